//! DMA that the IOMMU stopped. The kernel says so only in its log, so that is where it is read from.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::thread::JoinHandle;

use vfio::PciAddress;

/// A stopped access.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// Whose.
    device: PciAddress,
    /// I/O address.
    address: String,
    /// What it wanted there; empty where the kernel does not say.
    access: &'static str,
}

/// Watches the kernel's log for faults of a guest's functions, and says each in ours. Ends with the process: reading the log blocks.
pub(crate) fn watch(vm: &str, functions: Vec<PciAddress>) -> std::io::Result<Option<JoinHandle<()>>> {
    let mut log = match File::open("/dev/kmsg") {
        Ok(log) => log,
        Err(error) => {
            tracing::debug!("/dev/kmsg: {error}; DMA that the IOMMU stops is in the kernel's log only");
            return Ok(None);
        }
    };
    log.seek(SeekFrom::End(0))?;
    let vm = vm.to_owned();
    let thread = std::thread::Builder::new().name("iommu-faults".into()).spawn(move || {
        // One record a read; a record that is overwritten before it is read is EPIPE, and the next one follows.
        let mut record = vec![0; 8192];
        loop {
            match log.read(&mut record) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    if let Some(fault) = parse(&text).filter(|fault| functions.contains(&fault.device)) {
                        let Fault { device, address, access } = fault;
                        tracing::error!(
                            "{device}: the IOMMU stopped a DMA{access} at {address}, which is not memory of guest `{vm}`: \
                             its driver is at fault, or someone in the guest tries to get out"
                        );
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => {
                    tracing::debug!("/dev/kmsg: {error}");
                    return;
                }
            }
        }
    })?;
    Ok(Some(thread))
}

/// Intel: `DMAR: [DMA Write NO_PASID] Request device [05:00.0] fault addr 0x20000000 [fault reason 0x05] ...`.
/// AMD: `... AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x20000000 flags=0x0020]` after the device's own name, or
/// with `device=05:00.0` in it.
fn parse(record: &str) -> Option<Fault> {
    let message = record.split_once(';').map_or(record, |(_, message)| message);
    let word = |after: &str| {
        let rest = message.split_once(after)?.1;
        rest.split([' ', ']', ',', '\n']).next()
    };
    let (device, address) = if message.contains("DMAR:") {
        (word("Request device [")?.parse().ok()?, word("fault addr ")?)
    } else if message.contains("IO_PAGE_FAULT") {
        let named = word("device=").or_else(|| message.split([' ', ':']).find(|part| part.contains('.')));
        let leading = message.split(' ').find_map(|part| part.trim_end_matches(':').parse().ok());
        (named.and_then(|text| text.parse().ok()).or(leading)?, word("address=")?)
    } else {
        return None;
    };
    let access = match message {
        text if text.contains("DMA Write") => " write",
        text if text.contains("DMA Read") => " read",
        _ => "",
    };
    Some(Fault { device, address: address.to_owned(), access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_both_makers_are_understood() {
        let intel = "3,812,9731,-;DMAR: [DMA Write NO_PASID] Request device [05:00.0] fault addr 0x20000000 [fault reason 0x05] PTE Write access is not set\n";
        let amd = "4,900,1,-;vfio-pci 0000:05:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x20000000 flags=0x0020]\n";
        for (record, access) in [(intel, " write"), (amd, "")] {
            let device = "0000:05:00.0".parse().unwrap();
            assert_eq!(parse(record), Some(Fault { device, address: "0x20000000".into(), access }));
        }
        assert_eq!(parse("6,1,1,-;DMAR: IOMMU enabled"), None);
        assert_eq!(parse(""), None);
    }
}
