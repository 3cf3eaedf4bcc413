//! The host's processors: which there are, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::config::{CpuList, Cpus};

fn list(path: &Path) -> CpuList {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Those that run, below `sys`.
pub fn processors_online(sys: &Path) -> CpuList {
    list(&sys.join("devices/system/cpu/online"))
}

/// The NUMA node of each, below `sys`.
pub fn nodes_of_processors(sys: &Path) -> BTreeMap<u32, u32> {
    let folder = sys.join("devices/system/node");
    let nodes = fs::read_dir(&folder).into_iter().flatten().flatten();
    let nodes = nodes.filter_map(|node| node.file_name().to_str()?.strip_prefix("node")?.parse::<u32>().ok());
    let of = |node: u32| {
        list(&folder.join(format!("node{node}/cpulist"))).0.into_iter().map(move |cpu| (cpu, node))
    };
    nodes.flat_map(of).collect()
}

/// The processors that each vCPU may run on, by its index; none where the file does not say.
///
/// As many processors as vCPUs: one each. Threads of one core are then neighbours, as they are in the guest. Otherwise each
/// vCPU may run on any of them.
pub fn affinity(sys: &Path, cpus: &Cpus) -> Vec<BTreeSet<u32>> {
    let Some(CpuList(set)) = cpus.cpuset() else { return Vec::new() };
    let count = usize::try_from(cpus.topology().count).unwrap_or(usize::MAX);
    if set.len() == count {
        return by_core(sys, set).into_iter().map(|cpu| BTreeSet::from([cpu])).collect();
    }
    vec![set.clone(); count]
}

/// In the order of their cores, with all of a core's threads together.
fn by_core(sys: &Path, set: &BTreeSet<u32>) -> Vec<u32> {
    let mut left = set.clone();
    let mut ordered = Vec::with_capacity(set.len());
    while let Some(first) = left.pop_first() {
        ordered.push(first);
        let siblings =
            list(&sys.join(format!("devices/system/cpu/cpu{first}/topology/thread_siblings_list"))).0;
        ordered.extend(siblings.into_iter().filter(|sibling| left.remove(sibling)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CpuTopology;

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/online", "0-7\n");
        for cpu in 0..8 {
            write(
                &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{},{}\n", cpu % 4, cpu % 4 + 4),
            );
        }
        write("node/node0/cpulist", "0-1,4-5\n");
        write("node/node1/cpulist", "2-3,6-7\n");
        root
    }

    fn cpus(count: u32, cpuset: &str) -> Cpus {
        let cpuset = Some(cpuset.parse().unwrap());
        Cpus::Topology(CpuTopology { count, sockets: 1, threads: 2, cpuset })
    }

    #[test]
    fn threads_of_a_core_are_neighbours() {
        let host = host();
        let each = affinity(host.path(), &cpus(4, "2-3,6-7"));
        assert_eq!(each, [2, 6, 3, 7].map(|cpu| BTreeSet::from([cpu])));
    }

    #[test]
    fn other_numbers_share_them() {
        let host = host();
        let all = BTreeSet::from([1, 2, 3]);
        assert_eq!(affinity(host.path(), &cpus(4, "1-3")), vec![all; 4]);
        assert_eq!(affinity(host.path(), &Cpus::Count(4)), Vec::<BTreeSet<u32>>::new());
    }

    #[test]
    fn each_has_its_node() {
        let host = host();
        let nodes = nodes_of_processors(host.path());
        assert_eq!((nodes.len(), nodes[&5], nodes[&6]), (8, 0, 1));
        assert_eq!(processors_online(host.path()).to_string(), "0-7");
    }
}
