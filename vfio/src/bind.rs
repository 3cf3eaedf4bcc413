//! Which driver holds a function, and lending it to vfio-pci. Only by `driver_override`, never by `new_id`: that would
//! claim every function of the kind, now and later.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::PciAddress;
use crate::sysfs::{self, Sysfs, link_name, read, write};

/// The driver that a function is lent to.
pub const VFIO_PCI: &str = "vfio-pci";

/// How long the kernel may take until a driver shows up in sysfs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A function could not be bound or put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such function.
    #[error("{0}: there is no such PCI function; `throughway devices` lists those that there are")]
    Absent(PciAddress),
    /// Reading or writing sysfs failed.
    #[error("{address}: {source}")]
    Sysfs {
        /// The function.
        address: PciAddress,
        /// File and errno.
        source: sysfs::Error,
    },
    /// The driver does not take it.
    #[error("{address}: it was offered to {wanted}, but {} holds it{hint}", .holds.as_deref().unwrap_or("no driver"))]
    Refused {
        /// The function.
        address: PciAddress,
        /// The driver that should hold it.
        wanted: String,
        /// The one that does.
        holds: Option<String>,
        /// What to do.
        hint: &'static str,
    },
}

/// Which driver a function had, and what its `driver_override` said: what is to be put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DriverState {
    /// The driver, if any.
    pub driver: Option<String>,
    /// `driver_override`, where it was set.
    pub driver_override: Option<String>,
}

/// One function's binding.
pub struct Binding<'a> {
    address: PciAddress,
    sysfs: &'a Sysfs,
    device: PathBuf,
}

impl<'a> Binding<'a> {
    /// Of a function that exists.
    pub fn of(sysfs: &'a Sysfs, address: PciAddress) -> Result<Self, Error> {
        let device = sysfs.device(address);
        if device.exists() { Ok(Self { address, sysfs, device }) } else { Err(Error::Absent(address)) }
    }

    /// The driver that holds it now.
    pub fn driver(&self) -> Option<String> {
        link_name(&self.device.join("driver"))
    }

    /// Driver and override as they are.
    pub fn state(&self) -> Result<DriverState, Error> {
        let text = read(&self.device.join("driver_override")).map_err(|source| self.sysfs(source))?;
        let set = !text.is_empty() && text != "(null)";
        Ok(DriverState { driver: self.driver(), driver_override: set.then_some(text) })
    }

    /// Binds it to vfio-pci, whatever held it before. Does nothing where vfio-pci holds it already.
    pub fn lend(&self) -> Result<(), Error> {
        self.bind(VFIO_PCI)
    }

    /// Puts back what [`state`](Self::state) said. May be done twice.
    ///
    /// The driver comes back by an override too, which is then set as it was: without one, a VF whose PF has
    /// `sriov_drivers_autoprobe` off takes no driver at all, and another driver than before may find the function.
    pub fn restore(&self, state: &DriverState) -> Result<(), Error> {
        match &state.driver {
            driver if *driver == self.driver() => {}
            Some(driver) => self.bind(driver)?,
            None => self.unbind()?,
        }
        self.set_override(state.driver_override.as_deref().unwrap_or(""))
    }

    fn bind(&self, driver: &str) -> Result<(), Error> {
        let held = self.driver();
        self.set_override(driver)?;
        if held.as_deref() == Some(driver) {
            return Ok(());
        }
        self.unbind()?;
        self.probe(driver)
    }

    fn set_override(&self, driver: &str) -> Result<(), Error> {
        // An empty line clears it; no bytes at all would be no write.
        write(&self.device.join("driver_override"), &format!("{driver}\n"))
            .map_err(|source| self.sysfs(source))
    }

    fn unbind(&self) -> Result<(), Error> {
        if self.driver().is_none() {
            return Ok(());
        }
        match write(&self.device.join("driver/unbind"), &self.address.to_string()) {
            // It let go by itself between the look and the write.
            Err(_) if self.driver().is_none() => Ok(()),
            result => result.map_err(|source| self.sysfs(source)),
        }
    }

    fn probe(&self, driver: &str) -> Result<(), Error> {
        let probe = self.sysfs.path("bus/pci/drivers_probe");
        write(&probe, &self.address.to_string()).map_err(|source| self.sysfs(source))?;
        self.wait_for(driver)
    }

    fn wait_for(&self, driver: &str) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            let holds = self.driver();
            if holds.as_deref() == Some(driver) {
                return Ok(());
            }
            if Instant::now() >= until {
                let loaded = self.sysfs.path("bus/pci/drivers").join(driver).exists();
                let hint = if loaded { "" } else { "; its module is not loaded (modprobe it first)" };
                return Err(Error::Refused { address: self.address, wanted: driver.to_owned(), holds, hint });
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn sysfs(&self, source: sysfs::Error) -> Error {
        Error::Sysfs { address: self.address, source }
    }
}
