//! The guest that is started again and again: made by the C compiler's assembler, in a moment.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{command, host};

/// The byte that the guest says.
pub(super) const SAYS: u8 = b'!';

/// Builds it below `folder`.
pub(super) fn build(folder: &Path) -> Result<PathBuf> {
    host::ensure(&[("gcc", "to assemble the guest")])?;
    let (source, guest) = (folder.join("guest.S"), folder.join("guest.elf"));
    std::fs::write(&source, include_str!("guest.S"))
        .with_context(|| format!("Writing {}", source.display()))?;
    let mut cc = Command::new("cc");
    cc.args(["-m64", "-nostdlib", "-static", "-no-pie", "-o"]).arg(&guest).arg(&source);
    // -n: sections start where they are told to, not a page of headers before.
    cc.arg("-Wl,-n,-Ttext=0x100000,--build-id=none,-z,noexecstack");
    command::output(&mut cc, "Assembling the guest")?;
    Ok(guest)
}
