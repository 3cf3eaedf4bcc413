//! From `vfio-ioctls`' errors to ours: which function, what was being done, the errno.

use std::io;

use vfio_ioctls::VfioError;

use crate::function::Error;

pub(super) fn failed(label: &str, doing: impl Into<String>, source: io::Error) -> Error {
    let (function, doing) = (label.to_owned(), doing.into());
    match source.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => Error::Gone { function, doing },
        _ => Error::Io { function, doing, source },
    }
}

/// With the errno that is somewhere in the chain, or the library's own words where there is none.
pub(super) fn convert(label: &str, doing: impl Into<String>, error: VfioError) -> Error {
    if matches!(error, VfioError::GroupViable) {
        let what = "its IOMMU group is not viable: another member is bound to a host driver".to_owned();
        return Error::Invalid { function: label.to_owned(), what };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
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
