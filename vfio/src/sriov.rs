//! The virtual functions of a physical one (PCIe 6.0, chapter 9), made and removed through sysfs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::PciAddress;
use crate::sysfs::{self, Sysfs, link_name, number, read, write};

/// Virtual functions could not be made, removed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no PF.
    #[error("{0}: it offers no virtual functions (no SR-IOV capability, or SR-IOV is off in the firmware)")]
    NoSriov(PciAddress),
    /// More than there are.
    #[error("{address}: {wanted} virtual functions were asked for, and it has {total} at most")]
    TooMany {
        /// The PF.
        address: PciAddress,
        /// num-vfs as asked for.
        wanted: u16,
        /// sriov_totalvfs.
        total: u16,
    },
    /// Reading or writing sysfs failed.
    #[error("{address}: {source}")]
    Sysfs {
        /// The PF.
        address: PciAddress,
        /// File and errno.
        source: sysfs::Error,
    },
    /// The kernel said yes and did something else.
    #[error("{address}: {wanted} virtual functions were asked for, and {actual} are there")]
    Differs {
        /// The PF.
        address: PciAddress,
        /// num-vfs as asked for.
        wanted: u16,
        /// What is read back.
        actual: u16,
    },
}

/// How many VFs there are and whether the host's drivers take new ones: what is to be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SriovState {
    /// sriov_numvfs.
    pub num_vfs: u16,
    /// sriov_drivers_autoprobe; kernels before 4.12 do not have it.
    pub drivers_autoprobe: Option<bool>,
}

/// A physical function.
pub struct PhysicalFunction {
    address: PciAddress,
    device: PathBuf,
    total: u16,
}

impl PhysicalFunction {
    /// The function at `address`, which must have an SR-IOV capability.
    pub fn of(sysfs: &Sysfs, address: PciAddress) -> Result<Self, Error> {
        let device = sysfs.device(address);
        let total = attribute(&device, "sriov_totalvfs").filter(|total| *total > 0);
        Ok(Self { address, device, total: total.ok_or(Error::NoSriov(address))? })
    }

    /// How many VFs it can have.
    pub fn total(&self) -> u16 {
        self.total
    }

    /// As it is now.
    pub fn state(&self) -> Result<SriovState, Error> {
        let text = read(&self.device.join("sriov_numvfs")).map_err(|source| self.failed(source))?;
        let num_vfs = text.parse().unwrap_or(0);
        let autoprobe = sysfs::read_maybe(&self.device.join("sriov_drivers_autoprobe"));
        Ok(SriovState {
            num_vfs,
            drivers_autoprobe: autoprobe.and_then(|text| number(&text)).map(|value| value != 0),
        })
    }

    /// The VFs that there are: index and address, by index.
    pub fn vfs(&self) -> Vec<(u16, PciAddress)> {
        let vf = |index: u16| {
            let address = link_name(&self.device.join(format!("virtfn{index}")))?.parse().ok()?;
            Some((index, address))
        };
        (0..self.total).map_while(vf).collect()
    }

    /// Whether the host's own drivers take VFs as they are made. True if it could be said.
    pub fn set_autoprobe(&self, on: bool) -> Result<bool, Error> {
        let path = self.device.join("sriov_drivers_autoprobe");
        if !path.exists() {
            return Ok(false);
        }
        write(&path, if on { "1" } else { "0" }).map_err(|source| self.failed(source)).map(|()| true)
    }

    /// Makes it have `wanted` VFs. The kernel changes a number only from and to 0, so all VFs that there are go first; who
    /// calls has made sure that nobody uses them.
    pub fn resize(&self, wanted: u16) -> Result<(), Error> {
        if wanted > self.total {
            return Err(Error::TooMany { address: self.address, wanted, total: self.total });
        }
        let path = self.device.join("sriov_numvfs");
        let now = self.state()?.num_vfs;
        if now == wanted {
            return Ok(());
        }
        if now != 0 {
            write(&path, "0").map_err(|source| self.failed(source))?;
        }
        if wanted != 0 {
            write(&path, &wanted.to_string()).map_err(|source| self.failed(source))?;
        }
        let actual = self.state()?.num_vfs;
        if actual == wanted { Ok(()) } else { Err(Error::Differs { address: self.address, wanted, actual }) }
    }

    /// Puts back what [`state`](Self::state) said. May be done twice.
    pub fn restore(&self, state: &SriovState) -> Result<(), Error> {
        if let Some(on) = state.drivers_autoprobe {
            self.set_autoprobe(on)?;
        }
        self.resize(state.num_vfs)
    }

    fn failed(&self, source: sysfs::Error) -> Error {
        Error::Sysfs { address: self.address, source }
    }
}

/// A number that an attribute holds.
fn attribute(device: &Path, name: &str) -> Option<u16> {
    sysfs::read_maybe(&device.join(name))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PF: &str = "0000:01:00.0";

    /// A PF in a folder: plain files keep what is written, which is enough to see what would be written.
    fn tree(num_vfs: &str) -> (tempfile::TempDir, Sysfs) {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("bus/pci/devices").join(PF);
        std::fs::create_dir_all(&device).unwrap();
        for (name, value) in
            [("sriov_totalvfs", "7\n"), ("sriov_numvfs", num_vfs), ("sriov_drivers_autoprobe", "1\n")]
        {
            std::fs::write(device.join(name), value).unwrap();
        }
        let sysfs = Sysfs::at(folder.path());
        (folder, sysfs)
    }

    #[test]
    fn the_state_is_read_and_too_many_are_refused_before_a_write() {
        let (folder, sysfs) = tree("2\n");
        let pf = PhysicalFunction::of(&sysfs, PF.parse().unwrap()).unwrap();
        assert_eq!(pf.state().unwrap(), SriovState { num_vfs: 2, drivers_autoprobe: Some(true) });
        assert!(matches!(pf.resize(8), Err(Error::TooMany { wanted: 8, total: 7, .. })));
        let left =
            std::fs::read_to_string(folder.path().join("bus/pci/devices").join(PF).join("sriov_numvfs"));
        assert_eq!(left.unwrap(), "2\n");
    }

    #[test]
    fn vfs_are_listed_by_index() {
        let (folder, sysfs) = tree("2\n");
        let device = folder.path().join("bus/pci/devices").join(PF);
        for (index, vf) in ["0000:01:10.0", "0000:01:10.2"].iter().enumerate() {
            std::os::unix::fs::symlink(format!("../{vf}"), device.join(format!("virtfn{index}"))).unwrap();
        }
        let pf = PhysicalFunction::of(&sysfs, PF.parse().unwrap()).unwrap();
        let want = vec![(0, "0000:01:10.0".parse().unwrap()), (1, "0000:01:10.2".parse().unwrap())];
        assert_eq!(pf.vfs(), want);
    }

    #[test]
    fn a_function_without_the_capability_is_no_pf() {
        let sysfs = Sysfs::at(tempfile::tempdir().unwrap().path());
        assert!(matches!(PhysicalFunction::of(&sysfs, PF.parse().unwrap()), Err(Error::NoSriov(_))));
    }
}
