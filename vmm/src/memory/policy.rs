//! Where guest RAM lies on the host: on which NUMA nodes, and in which pages (mbind(2), madvise(2)). Said before the first
//! touch: a page stays where it was when it was made.

use std::io;

use super::RamRegion;
use crate::spec::MemoryPolicy;

/// linux/mempolicy.h.
const MPOL_PREFERRED: libc::c_int = 1;
const MPOL_BIND: libc::c_int = 2;
const MPOL_PREFERRED_MANY: libc::c_int = 5;
/// Nodes that a kernel may know at most (MAX_NUMNODES), and as many bits.
const MOST_NODES: usize = 1024;
const WORDS: usize = MOST_NODES / 64;

/// Applies the policy to a region that nobody has touched; the error names the step.
pub(super) fn apply(policy: &MemoryPolicy, region: &RamRegion<'_>) -> Result<(), (&'static str, io::Error)> {
    let length = usize::try_from(region.size).map_err(|error| ("measuring it", io::Error::other(error)))?;
    if !policy.nodes.is_empty() {
        bind(policy, region, length).map_err(|error| ("mbind to its NUMA nodes", error))?;
    }
    if policy.transparent {
        // SAFETY: the range is a mapping of guest RAM; the advice changes no content.
        let advised = unsafe { libc::madvise(region.host_address.cast(), length, libc::MADV_HUGEPAGE) };
        if advised != 0 {
            return Err(("madvise for transparent huge pages", io::Error::last_os_error()));
        }
    }
    Ok(())
}

fn bind(policy: &MemoryPolicy, region: &RamRegion<'_>, length: usize) -> io::Result<()> {
    let mut mask = [0_u64; WORDS];
    for node in &policy.nodes {
        let node = usize::try_from(*node).map_err(|_| io::ErrorKind::InvalidInput)?;
        *mask.get_mut(node / 64).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (node % 64);
    }
    let mode = match (policy.strict, policy.nodes.len()) {
        (true, _) => MPOL_BIND,
        (false, 1) => MPOL_PREFERRED,
        (false, _) => MPOL_PREFERRED_MANY,
    };
    // SAFETY: the range is a mapping of guest RAM, and the mask has as many bits as is said; the policy of a mapping changes
    // no content.
    let result = unsafe {
        libc::syscall(libc::SYS_mbind, region.host_address, length, mode, mask.as_ptr(), MOST_NODES + 1, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::memory::GuestRam;
    use crate::spec::{MemoryPolicy, MemorySpec};

    const SPEC: MemorySpec = MemorySpec { size: 4 << 20, hugepages: None, prefault: false };

    /// The line of numa_maps(5) for a mapping.
    fn numa_map(ram: &GuestRam) -> Option<String> {
        let start = format!("{:x} ", ram.regions().next()?.host_address.addr());
        let maps = std::fs::read_to_string("/proc/self/numa_maps").ok()?;
        maps.lines().find(|line| line.starts_with(&start)).map(str::to_owned)
    }

    #[test]
    fn memory_is_bound_to_a_node_or_prefers_it() {
        for (strict, words) in [(true, "bind:0"), (false, "prefer:0")] {
            let policy = MemoryPolicy { nodes: BTreeSet::from([0]), strict, transparent: false };
            let ram = match GuestRam::with_policy(&SPEC, &policy) {
                Ok(ram) => ram,
                Err(error) => {
                    eprintln!("skipped: {error}");
                    return;
                }
            };
            let Some(map) = numa_map(&ram) else {
                eprintln!("skipped: no numa_maps");
                return;
            };
            assert!(map.contains(words), "{map}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_an_error() {
        for node in [1000, 5000] {
            let policy = MemoryPolicy { nodes: BTreeSet::from([node]), strict: true, transparent: false };
            let error = GuestRam::with_policy(&SPEC, &policy).err().unwrap();
            assert!(error.to_string().contains("mbind to its NUMA nodes"), "{error}");
        }
    }

    #[test]
    fn transparent_huge_pages_are_asked_for() {
        let policy = MemoryPolicy { transparent: true, ..MemoryPolicy::default() };
        let ram = match GuestRam::with_policy(&SPEC, &policy) {
            Ok(ram) => ram,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let start = format!("{:x}-", ram.regions().next().unwrap().host_address.addr());
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = flags.skip(1).find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.contains(" hg"), "{flags}");
    }
}
