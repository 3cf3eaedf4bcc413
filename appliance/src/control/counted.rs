//! What the host's kernel has counted for guests, who cannot see it.

use std::fs;

use netconfig::{Traffic, blocking};
use vmm::control::Statistics;

use crate::plan::link_name;

/// Adds what passes the guest's process by: interrupts of functions, and packets of cards that vhost serves. What cannot be read
/// is left out.
pub fn count_host(vm: &str, statistics: &mut Statistics) {
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    for device in statistics.devices.iter_mut().filter(|device| device.passthrough) {
        device.interrupts = host_interrupts(&table, &device.name);
    }
    let mut cards = statistics.devices.iter_mut().filter(|device| device.interrupts_in_kernel).peekable();
    if cards.peek().is_none() {
        return;
    }
    let links = blocking::with_network(async |network| network.traffic().await).unwrap_or_default();
    for card in cards {
        let link = card.name.strip_prefix("nic ").map(|nic| link_name(vm, nic));
        let Some(Traffic { received, sent, dropped }) = link.and_then(|link| links.get(&link)) else {
            continue;
        };
        let counters = [("packets-received", received), ("packets-sent", sent), ("packets-dropped", dropped)];
        card.counters.extend(counters.map(|(name, count)| (name.to_owned(), *count)));
    }
}

/// How often a function that is given through VFIO has interrupted, on all of the host's processors: lines of
/// /proc/interrupts that end in `vfio-msix[0](0000:65:10.2)`.
fn host_interrupts(table: &str, address: &str) -> u64 {
    let name = format!("({address})");
    let of = |line: &str| -> u64 {
        let numbers = line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
        numbers.fold(0, u64::saturating_add)
    };
    let ours = table.lines().filter(|line| line.contains("vfio") && line.trim_end().ends_with(&name));
    ours.map(of).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_a_function_are_added_up() {
        let table = "           CPU0       CPU1\n  24:          3          4   PCI-MSI 524288-edge      vfio-msix[0](0000:01:10.0)\n  \
                     25:          0         10   PCI-MSI 524289-edge      vfio-msix[1](0000:01:10.0)\n  26:   9   9  PCI-MSI  eth0\n  \
                     27:   5   0   PCI-MSI 1-edge      vfio-msix[0](0000:01:10.1)\n";
        assert_eq!(host_interrupts(table, "0000:01:10.0"), 17);
        assert_eq!(host_interrupts(table, "0000:01:10.1"), 5);
        assert_eq!(host_interrupts(table, "0000:02:00.0"), 0);
    }
}
