//! Boot by UEFI firmware: what stock OVMF finds on a Q35 board beside the chipset itself.
//!
//! ```text
//!   4 GiB  +----------------------+
//!          | code, read-only      |  the reset vector is in its last 16 bytes
//!          +----------------------+
//!          | variables, flash     |  kept in a file of the guest's own (`store`)
//!          +----------------------+  4 GiB - 4 MiB for Debian's OVMF_CODE_4M.fd and OVMF_VARS_4M.fd
//! ```
//!
//! Rooms: `flash` (the chip that holds the variables), `store` (its file), `read_only` (memory that the guest only reads),
//! `fw_cfg` (the ports by which firmware learns of the machine), `items` (what it learns there), `smbios`, `debug_port`,
//! `port92`.

mod debug_port;
mod flash;
mod fw_cfg;
mod items;
mod port92;
mod read_only;
mod smbios;
mod store;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{FileOffset, MmapRegion};

pub use debug_port::DebugPort;
pub use flash::Flash;
pub use fw_cfg::{FwCfg, Tables};
pub use items::{BootDevice, BootKind, Described};
pub use port92::Port92;
pub use store::VariableStore;

use crate::memory::GuestRam;
use crate::vcpu::Buses;
use crate::vm::{self, Vm};
use crate::{bus, spec};
use read_only::ReadOnly;

/// Where code and variables end.
const END: u64 = 1 << 32;
/// What the chipset decodes for firmware at most: below lie the interrupt controllers (ICH9, 10.1.27).
const MOST: u64 = 8 << 20;
/// Where firmware can be. Reading there changes nothing.
pub(crate) const WINDOW: std::ops::Range<u64> = END - MOST..END;
/// Blocks of the flash chip, and pages of the processor.
pub(crate) const BLOCK: u64 = 4096;
/// A firmware volume's header (UEFI PI 1.8, volume 3, 3.2.1.1): its length and its signature.
const VOLUME_LENGTH: usize = 32;
const VOLUME_SIGNATURE: std::ops::Range<usize> = 40..44;

/// Firmware cannot be had as asked for. The caller knows the paths.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not what it is said to be.
    #[error("{file} {why}")]
    Image {
        /// Which file, as a sentence begins with it.
        file: &'static str,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Another guest has the variables.
    #[error(
        "The firmware's variables are in use by another guest, or by another program that locked the file"
    )]
    InUse,
    /// A call on the host failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// KVM.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// Something else is at an address of the firmware's.
    #[error(transparent)]
    Bus(#[from] bus::Overlap),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] crate::acpi::Error),
}

impl Error {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

const CODE: &str = "The firmware's code";
const VARIABLES: &str = "The firmware's variables file";

/// Size in bytes of the firmware volume that a file begins with, after a look at all that can be seen from outside.
fn volume(what: &'static str, file: &File) -> Result<u64, Error> {
    let refused = |why: &str| Error::Image { file: what, why: why.to_owned() };
    let length = file.metadata().map_err(Error::io("Looking at the firmware's files"))?.len();
    let mut head = [0; 64];
    if length < BLOCK {
        return Err(refused("is too short to be one; Debian's package `ovmf` has both files"));
    }
    file.read_exact_at(&mut head, 0).map_err(Error::io("Reading the firmware's files"))?;
    let stated =
        head.get(VOLUME_LENGTH..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b));
    if head.get(VOLUME_SIGNATURE) != Some(b"_FVH") {
        return Err(refused(
            "is no UEFI firmware: it does not begin with a firmware volume; Debian's package `ovmf` has both files",
        ));
    }
    if stated == 0 || stated > length {
        return Err(Error::Image {
            file: what,
            why: format!("is cut off: it has {length} bytes of {stated}; copy it again"),
        });
    }
    Ok(stated)
}

/// Sizes of both parts, which must belong together: OVMF is cut in two where the variables end, and both parts make 1, 2, 4
/// or 8 MiB.
pub fn sizes(code: &File, variables: &File) -> Result<(u64, u64), Error> {
    volume(CODE, code)?;
    let code = code.metadata().map_err(Error::io("Looking at the firmware's files"))?.len();
    let variables = volume(VARIABLES, variables)?;
    let whole = code.saturating_add(variables);
    if !code.is_multiple_of(BLOCK)
        || !variables.is_multiple_of(BLOCK)
        || !whole.is_power_of_two()
        || whole > MOST
    {
        let why = format!(
            "has {code} bytes, which do not go together with {variables} bytes of variables; take both files of one build, such as OVMF_CODE_4M.fd and OVMF_VARS_4M.fd"
        );
        return Err(Error::Image { file: CODE, why });
    }
    Ok((code, variables))
}

/// The firmware of one machine, in its place.
pub struct Installed {
    flash: Arc<Flash>,
    fw_cfg: Arc<FwCfg>,
    debug: Arc<DebugPort>,
    order: Vec<BootDevice>,
}

impl Installed {
    /// Puts it there: flash below 4 GiB, and the ports.
    pub fn new(
        vm: &Arc<Vm>,
        ram: &Arc<GuestRam>,
        buses: &Buses,
        firmware: spec::Firmware,
        described: &Described,
        tables: Tables,
    ) -> Result<Self, Error> {
        let (code_size, variables_size) = sizes(&firmware.code, &firmware.variables)?;
        let base = END.saturating_sub(code_size);
        let mut code = ReadOnly::new(vm, map_code(firmware.code, code_size)?, base);
        code.show()?;
        buses.mmio.insert(base, code_size, Arc::new(code))?;

        let store = VariableStore::open(firmware.variables, variables_size)?;
        let flash = Arc::new(Flash::new(vm, store, base.saturating_sub(variables_size))?);
        buses.mmio.insert(base.saturating_sub(variables_size), variables_size, Arc::clone(&flash) as _)?;

        let (items, first_order) = (items::all(described), items::first_order(described));
        let fw_cfg = Arc::new(FwCfg::new(Arc::clone(ram), items, first_order, tables)?);
        buses.pio.insert(fw_cfg::PORT, fw_cfg::PORTS, Arc::clone(&fw_cfg) as _)?;
        let debug = Arc::new(DebugPort::default());
        buses.pio.insert(debug_port::PORT, 1, Arc::clone(&debug) as _)?;
        buses.pio.insert(port92::PORT, 1, Arc::new(Port92::default()))?;
        Ok(Self { flash, fw_cfg, debug, order: described.order.clone() })
    }

    /// Whether the guest's file says what to boot from. Where it does not, nothing can be booted once: firmware keeps in its
    /// variables what it was told.
    pub fn has_order(&self) -> bool {
        !self.order.is_empty()
    }

    /// Back to power-on, at a machine reset. The variables stay. `once` is booted from this time, before all others.
    pub fn reset(&self, once: Option<BootDevice>) {
        self.flash.reset();
        self.fw_cfg.reset(once.map(|once| items::in_front(once, &self.order)));
        self.debug.flush();
    }

    /// The guest has ended: what it wrote goes to where it belongs in its file.
    pub fn close(&self) {
        self.debug.flush();
        self.flash.close();
    }
}

/// The code is mapped from its file, so that guests share it.
fn map_code(file: File, size: u64) -> Result<MmapRegion, Error> {
    let failed = Error::io("Mapping the firmware's code");
    let length = usize::try_from(size)
        .map_err(|error| Error::io("Mapping the firmware's code")(io::Error::other(error)))?;
    MmapRegion::build(Some(FileOffset::new(file, 0)), length, libc::PROT_READ, libc::MAP_PRIVATE)
        .map_err(|error| failed(io::Error::other(error)))
}
