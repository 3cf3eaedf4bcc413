//! `throughway vm stats`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use clap::Args;
use vmm::control::{Message, Request, Statistics};

use super::{Guest, print, size};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    guest: Guest,
    /// As JSON, with every counter.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut client = arguments.guest.connect()?;
    let Message::Stats(mut statistics) = client.ask(&Request::Stats)? else {
        return Err(Failure::Fault(anyhow::anyhow!("Guest `{}` has no statistics", client.vm())));
    };
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    for device in statistics.devices.iter_mut().filter(|device| device.passthrough) {
        device.interrupts = host_interrupts(&table, &device.name);
    }
    print(&if arguments.json {
        serde_json::to_string_pretty(&statistics).map_err(anyhow::Error::from)?
    } else {
        text(&statistics)
    });
    Ok(Exit::Success)
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

/// What a person looks for first; counters that have counted nothing are left out.
fn text(statistics: &Statistics) -> String {
    let mut text = String::new();
    let mut line = |head: &str, rest: &str| {
        let _ = writeln!(text, "{head:<10}{rest}");
    };
    let Statistics { vcpus, devices, mapped, resident, .. } = statistics;
    line("memory", &format!("resident {}, pinned for devices {}", size(*resident), size(*mapped)));
    for (index, vcpu) in vcpus.iter().enumerate() {
        let counters = counters(&vcpu.kvm);
        line(
            &format!("vcpu {index}"),
            if counters.is_empty() { "this kernel counts nothing" } else { &counters },
        );
    }
    for device in devices {
        let mut parts: Vec<String> = Vec::new();
        parts.extend((!device.report.is_empty()).then(|| device.report.clone()));
        parts.push(if device.interrupts_in_kernel {
            "the kernel interrupts for it, and does not count how often".to_owned()
        } else {
            format!("{} interrupts", device.interrupts)
        });
        line(&device.name, &format!(" {}", parts.join("; ")));
    }
    text.trim_end().to_owned()
}

fn counters(counters: &BTreeMap<String, u64>) -> String {
    let shown = counters.iter().filter(|(name, value)| **value != 0 || name.ends_with("exits"));
    let shown: Vec<String> = shown.map(|(name, value)| format!("{name}={value}")).collect();
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use vmm::control::Device;

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

    #[test]
    fn what_nobody_counts_is_no_number() {
        let device = |name: &str, interrupts_in_kernel| Device {
            name: name.to_owned(),
            interrupts: 3,
            interrupts_in_kernel,
            ..Default::default()
        };
        let devices = vec![device("nic lan", true), device("rng", false)];
        let statistics = Statistics { devices, mapped: 192 << 20, ..Default::default() };
        assert_eq!(
            text(&statistics),
            "memory    resident 0 bytes, pinned for devices 192MiB\n\
             nic lan    the kernel interrupts for it, and does not count how often\n\
             rng        3 interrupts"
        );
    }
}
