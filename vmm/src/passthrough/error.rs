//! Why a host function cannot be given to a guest.

use std::io;

use crate::{memory, vm};

/// A function could not be put into a guest slot, or guest RAM could not be shown to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The function refused or failed. The message names it and what was being done.
    #[error(transparent)]
    Function(#[from] vfio::Error),
    /// KVM refused what the function needs.
    #[error("{function}: {source}")]
    Vm {
        /// The label of the function.
        function: String,
        /// What KVM said.
        source: vm::Error,
    },
    /// The function is not one that a guest can be given.
    #[error("{function} cannot be given to a guest: {why}")]
    Unusable {
        /// The label of the function.
        function: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A call on the host failed.
    #[error("{function}: {doing}: {source}")]
    Host {
        /// The label of the function.
        function: String,
        /// What was being done.
        doing: &'static str,
        /// The errno.
        source: io::Error,
    },
    /// Guest RAM lies where the IOMMU takes no addresses.
    #[error(
        "Guest memory at {start:#x}-{end:#x} cannot be reached by devices: the IOMMU of this host maps only {valid}; \
         give the guest less memory"
    )]
    Iova {
        /// First guest physical address of the region.
        start: u64,
        /// Its last address.
        end: u64,
        /// The ranges that may be mapped, for a person.
        valid: String,
    },
    /// Guest RAM could not be shown to a device.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

impl Error {
    pub(super) fn unusable(function: &str, why: impl Into<String>) -> Self {
        Self::Unusable { function: function.to_owned(), why: why.into() }
    }

    pub(super) fn host(function: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let function = function.to_owned();
        move |source| Self::Host { function, doing, source }
    }
}
