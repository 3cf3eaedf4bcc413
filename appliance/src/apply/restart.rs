//! The box was started anew: what the kernel had is gone, and only what is on disk tells of it.

use std::sync::OnceLock;

use super::{History, Host};

/// The boot that this is (/proc/sys/kernel/random/boot_id).
pub(crate) fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    })
}

/// Something was written down in this boot, or does not say in which.
pub(crate) fn is_this_boot(written: &str) -> bool {
    written.is_empty() || written == boot()
}

/// Takes away what is written down of NAT networks that went with the boot they were made in: nothing of them is there but that.
pub fn after_restart(history: &History, host: &Host) -> anyhow::Result<()> {
    let records = history.records()?;
    if records.last().is_none_or(|last| last.is_of_this_boot()) {
        return Ok(());
    }
    for name in host.nats.settings()?.into_keys() {
        if let Err(error) = host.nats.realize(&name, None) {
            tracing::warn!("Taking away what is left of a NAT network of the boot before: {error}");
        }
    }
    Ok(())
}
