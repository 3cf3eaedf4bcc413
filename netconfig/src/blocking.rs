//! For callers without a runtime: one is made for the call, on this thread.

use std::io;

use crate::Network;
use crate::network::Error;

/// Runs `work` with a fresh [`Network`] to its end.
pub fn with_network<T>(work: impl AsyncFnOnce(&Network) -> Result<T, Error>) -> Result<T, Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Socket)?;
    runtime.block_on(async {
        let network = Network::open()?;
        work(&network).await
    })
}

/// The name of the interface of a PF, as sysfs has it below the function's folder.
pub fn interface_of(device: &std::path::Path) -> io::Result<Option<String>> {
    let folder = device.join("net");
    if !folder.exists() {
        return Ok(None);
    }
    let first = std::fs::read_dir(folder)?.next().transpose()?;
    Ok(first.and_then(|entry| entry.file_name().into_string().ok()))
}
