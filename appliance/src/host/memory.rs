//! Where a guest's memory is to lie on this host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vfio::PciAddress;
use vmm::spec::MemoryPolicy;

use super::nodes_of_processors;
use crate::config::{CpuList, MemoryDetail, MemoryNuma, Size, Vm};

/// What the file asks for, in numbers of this host, whose tree is below `sys`. `functions` are those that the guest gets. Where
/// `auto` finds no node, the host's choice holds.
pub fn memory_policy(
    sys: &Path,
    name: &str,
    vm: &Vm,
    functions: impl Iterator<Item = PciAddress>,
) -> MemoryPolicy {
    let memory = vm.memory.detail();
    if memory.transparent_hugepages {
        warn_of_small_pages(sys, name);
    }
    let (nodes, strict) = match memory.numa {
        None => (BTreeSet::new(), false),
        Some(MemoryNuma::Node(node)) => (BTreeSet::from([node]), true),
        Some(MemoryNuma::Near(_)) => (near(sys, name, vm, functions), false),
    };
    MemoryPolicy { nodes, strict, transparent: memory.transparent_hugepages }
}

/// The nodes of the guest's processors, else the one node of its devices.
fn near(sys: &Path, name: &str, vm: &Vm, functions: impl Iterator<Item = PciAddress>) -> BTreeSet<u32> {
    if let Some(CpuList(processors)) = vm.cpus.cpuset() {
        let known = nodes_of_processors(sys);
        return processors.iter().filter_map(|cpu| known.get(cpu).copied()).collect();
    }
    // -1 where the firmware does not say.
    let node = |address: PciAddress| number(&sys.join(format!("bus/pci/devices/{address}/numa_node")));
    let nodes: BTreeSet<u32> = functions.filter_map(node).collect();
    if nodes.len() != 1 {
        let why = if nodes.is_empty() { "no device tells a NUMA node" } else { "its devices are on several" };
        tracing::info!("Guest `{name}`: {why}, so its memory lies where the host puts it");
        return BTreeSet::new();
    }
    nodes
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Whether the node that the file names is there and has enough: for what is beyond its memory the kernel would kill.
pub fn node_has_room(sys: &Path, name: &str, memory: &MemoryDetail) -> anyhow::Result<()> {
    let Some(MemoryNuma::Node(node)) = memory.numa else { return Ok(()) };
    let folder = sys.join(format!("devices/system/node/node{node}"));
    if !folder.is_dir() {
        let online = fs::read_to_string(sys.join("devices/system/node/online")).unwrap_or_default();
        let online = if online.trim().is_empty() { "none" } else { online.trim() };
        anyhow::bail!("`vms.{name}.memory.numa` is node {node}, and this host's nodes are: {online}");
    }
    match memory.hugepages {
        Some(page) => {
            let kib = page.0 >> 10;
            let free =
                number(&folder.join(format!("hugepages/hugepages-{kib}kB/free_hugepages"))).unwrap_or(0);
            let wanted = memory.size.0.div_ceil(page.0.max(1));
            anyhow::ensure!(
                u64::from(free) >= wanted,
                "The guest wants {wanted} huge pages of {page} on NUMA node {node}, which has {free} to give; set aside more by {}",
                folder.join(format!("hugepages/hugepages-{kib}kB/nr_hugepages")).display()
            );
        }
        None => {
            let text = fs::read_to_string(folder.join("meminfo")).unwrap_or_default();
            // What the page cache has is given back.
            let kib = |key: &str| -> u64 {
                let line = text.lines().find_map(|line| line.split_once(key));
                line.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
            };
            let free = (kib(" MemFree:").saturating_add(kib(" FilePages:"))) << 10;
            anyhow::ensure!(
                text.is_empty() || free >= memory.size.0,
                "The guest wants {} of memory on NUMA node {node}, which has {} to give; write `numa: auto`, or another node",
                memory.size,
                Size(free >> 20 << 20)
            );
        }
    }
    Ok(())
}

/// Guest memory is shared memory to the kernel, which has a switch of its own for it.
fn warn_of_small_pages(sys: &Path, name: &str) {
    let switch = sys.join("kernel/mm/transparent_hugepage/shmem_enabled");
    let text = fs::read_to_string(&switch).unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen);
    if !matches!(chosen, Some("always" | "advise" | "within_size" | "force")) {
        tracing::warn!(
            "Guest `{name}`: this host makes no transparent huge pages of shared memory ({}); `echo advise >{}` lets it",
            chosen.unwrap_or("its kernel cannot"),
            switch.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Document, load};

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("devices/system/node/online", "0-1\n");
        write("devices/system/node/node0/cpulist", "0-1\n");
        write("devices/system/node/node1/cpulist", "2-3\n");
        write("devices/system/node/node1/meminfo", "Node 1 MemFree: 1048576 kB\nNode 1 FilePages: 0 kB\n");
        write("devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "3\n");
        write("bus/pci/devices/0000:01:00.0/numa_node", "1\n");
        write("bus/pci/devices/0000:02:00.0/numa_node", "-1\n");
        root
    }

    fn policy(memory: &str, cpus: &str, functions: &[&str]) -> Result<MemoryPolicy, String> {
        let text =
            format!("version: 1\nvms:\n  a: {{cpus: {cpus}, memory: {memory}, boot: {{kernel: /k}}}}\n");
        let config = load(&Document { name: "box.yaml".into(), text }).unwrap();
        let functions = functions.iter().map(|function| function.parse().unwrap());
        let (host, vm) = (host(), &config.vms["a"]);
        node_has_room(host.path(), "a", &vm.memory.detail()).map_err(|error| error.to_string())?;
        Ok(memory_policy(host.path(), "a", vm, functions))
    }

    #[test]
    fn auto_is_where_processors_are_and_else_where_devices_are() {
        let nodes =
            |cpus, functions: &[&str]| policy("{size: 1GiB, numa: auto}", cpus, functions).unwrap().nodes;
        assert_eq!(nodes("{count: 1, cpuset: \"2-3\"}", &[]), BTreeSet::from([1]));
        assert_eq!(nodes("1", &["0000:01:00.0", "0000:02:00.0"]), BTreeSet::from([1]));
        assert_eq!(nodes("1", &["0000:02:00.0"]), BTreeSet::new());
        assert_eq!(policy("1GiB", "1", &["0000:01:00.0"]).unwrap(), MemoryPolicy::default());
    }

    #[test]
    fn a_node_by_its_number_must_be_there_and_have_room() {
        let good = policy("{size: 1GiB, numa: 1}", "1", &[]).unwrap();
        assert_eq!((good.nodes, good.strict), (BTreeSet::from([1]), true));
        for (memory, error) in [
            ("{size: 1GiB, numa: 2}", "`vms.a.memory.numa` is node 2, and this host's nodes are: 0-1"),
            (
                "{size: 2GiB, numa: 1}",
                "The guest wants 2GiB of memory on NUMA node 1, which has 1GiB to give; write `numa: auto`, or another node",
            ),
        ] {
            assert_eq!(policy(memory, "1", &[]).unwrap_err(), error);
        }
        let error = policy("{size: 8MiB, hugepages: 2MiB, numa: 1}", "1", &[]).unwrap_err();
        assert!(
            error.starts_with("The guest wants 4 huge pages of 2MiB on NUMA node 1, which has 3 to give"),
            "{error}"
        );
    }
}
