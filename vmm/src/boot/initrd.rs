//! The initial RAM disk: as high as it can go, so that it is out of the kernel's way.

use super::fill::fill;
use super::{Error, INITRD, Request, file_length};

const PAGE: u64 = 4096;

/// Where it was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Guest physical address.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) size: u64,
}

/// Reads the initial RAM disk into the highest pages of `free`, straight into guest RAM. None and an empty one are the
/// same.
pub(super) fn load(request: &mut Request<'_>, free: std::ops::Range<u64>) -> Result<Option<Placed>, Error> {
    let Some(file) = request.initrd.take() else { return Ok(None) };
    let size = file_length(file, INITRD)?;
    if size == 0 {
        return Ok(None);
    }
    let address = place(size, &free).ok_or_else(|| Error::TooLarge {
        what: INITRD,
        needed: size,
        free: free.end.saturating_sub(free.start),
    })?;
    fill(request, INITRD, file, 0, address, size)?;
    Ok(Some(Placed { address, size }))
}

/// The highest page-aligned address at which `size` bytes fit into `free`.
fn place(size: u64, free: &std::ops::Range<u64>) -> Option<u64> {
    let address = free.end.checked_sub(size)? / PAGE * PAGE;
    (address >= free.start).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_lies_in_the_free_range(size in any::<u64>(), start in any::<u64>(), end in any::<u64>()) {
            match place(size, &(start..end)) {
                Some(address) => {
                    prop_assert_eq!(address % PAGE, 0);
                    prop_assert!(start <= address && address + size <= end);
                    prop_assert!(end - (address + size) < PAGE);
                }
                None => prop_assert!(u128::from(start.next_multiple_of(PAGE).max(start)) + u128::from(size) > u128::from(end)),
            }
        }
    }
}
