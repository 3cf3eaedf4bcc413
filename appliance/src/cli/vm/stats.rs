//! `throughway vm stats`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use vmm::control::{Message, Request, Statistics};

use super::{Guest, print, size};
use crate::cli::exit::Exit;
use crate::cli::failure::Failure;
use crate::control::count_host;

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
    count_host(client.vm(), &mut statistics);
    print(&if arguments.json {
        serde_json::to_string_pretty(&statistics).map_err(anyhow::Error::from)?
    } else {
        text(&statistics)
    });
    Ok(Exit::Success)
}

/// What a person looks for first; counters that have counted nothing are left out.
fn text(statistics: &Statistics) -> String {
    let mut text = String::new();
    let mut line = |head: &str, rest: &str| {
        let _ = writeln!(text, "{head:<10}{rest}");
    };
    let Statistics { vcpus, devices, mapped, resident, cpu_ms, .. } = statistics;
    line("cpu", &format!("{}.{:03} s", cpu_ms / 1000, cpu_ms % 1000));
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
        // Others say so in their report.
        let of = |name: &str| device.counters.get(name).filter(|_| device.interrupts_in_kernel);
        if let (Some(received), Some(sent)) = (of("packets-received"), of("packets-sent")) {
            parts.push(format!("packets received {received}, sent {sent}"));
        }
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
    fn what_nobody_counts_is_no_number() {
        let device = |name: &str, interrupts_in_kernel| Device {
            name: name.to_owned(),
            interrupts: 3,
            interrupts_in_kernel,
            ..Default::default()
        };
        let devices = vec![device("nic lan", true), device("rng", false)];
        let statistics = Statistics { devices, mapped: 192 << 20, cpu_ms: 61_005, ..Default::default() };
        assert_eq!(
            text(&statistics),
            "cpu       61.005 s\n\
             memory    resident 0 bytes, pinned for devices 192MiB\n\
             nic lan    the kernel interrupts for it, and does not count how often\n\
             rng        3 interrupts"
        );
    }
}
