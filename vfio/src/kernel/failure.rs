//! From errno and the library's errors to ours: which function, what was being done, the errno.

use std::io;

use crate::function::Error;

pub(super) fn failed(label: &str, doing: impl Into<String>, source: io::Error) -> Error {
    let (function, doing) = (label.to_owned(), doing.into());
    match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => Error::Gone { function, doing },
        _ => Error::Io { function, doing, source },
    }
}

/// A function that the kernel opens and that is not on the bus.
pub(super) fn dead(function: String) -> Error {
    let what = format!(
        "its config space reads all ones: it is powered off (D3cold), fell off the bus, or failed a reset. \
         Look at /sys/bus/pci/devices/{function}/power_state and the kernel's log; `echo 1 > remove` there and \
         `echo 1 > /sys/bus/pci/rescan`, or a cold boot, may bring it back"
    );
    Error::Invalid { function, what }
}

/// With the errno that is somewhere in the chain, or the library's own words where there is none.
pub(super) fn convert(
    label: &str,
    doing: impl Into<String>,
    error: &(dyn std::error::Error + 'static),
) -> Error {
    let mut cause = Some(error);
    while let Some(link) = cause {
        let errno = link.downcast_ref::<vmm_sys_util::errno::Error>().map(|error| error.errno());
        let errno = errno.or_else(|| link.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
        if let Some(errno) = errno {
            return failed(label, doing, io::Error::from_raw_os_error(errno));
        }
        cause = link.source();
    }
    failed(label, doing, io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_function_is_named_with_cause_and_cure() {
        let text = dead("0000:65:10.2".to_owned()).to_string();
        assert!(text.starts_with("0000:65:10.2: its config space reads all ones"), "{text}");
        for part in ["D3cold", "devices/0000:65:10.2/power_state", "rescan", "cold boot"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_errno_within_tells_gone_from_failed() {
        let gone = failed("x", "reading", io::Error::from_raw_os_error(libc::ENODEV));
        assert!(matches!(gone, Error::Gone { .. }));
        let io = failed("x", "reading", io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(io, Error::Io { .. }));
        let deep = vmm_sys_util::errno::Error::new(libc::ENODEV);
        assert!(matches!(convert("x", "opening", &deep), Error::Gone { .. }));
    }
}
