//! An explanation as a person reads it.

use std::fmt;

use vfio::inventory::{Bar, Function};
use vfio::isolation::{Cause, Gap, Isolation, Kind};

use super::{Explanation, Hop, Reason, SharedBecause, Verdict};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.function.address, self.name)?;
        for (what, is) in self.lines() {
            writeln!(f, "  {what:<14}{is}")?;
        }
        writeln!(f, "\nFrom the root")?;
        for (depth, hop) in self.from_root.iter().enumerate() {
            writeln!(f, "  {:indent$}{}", "", hop_text(hop), indent = depth * 2)?;
        }
        self.group(f)?;
        let verdict = match self.verdict {
            Verdict::Ready => "ready: a guest can have it now",
            Verdict::PossibleAfter => "possible, after what is marked with !",
            Verdict::NotPossible => "not possible",
        };
        write!(f, "\nVerdict: {verdict}")?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n{reason}"))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.weight == Verdict::Ready { '-' } else { '!' };
        write!(f, "  {mark} {}", self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "\n      {help}"))
    }
}

impl Explanation {
    fn lines(&self) -> Vec<(String, String)> {
        let function = &self.function;
        let dash = || "-".to_owned();
        let kind = self.kind.unwrap_or("unknown class");
        let ids = format!("{kind}, {:04x}:{:04x}", function.vendor, function.device);
        let driver = match (&function.driver, &function.driver_override) {
            (Some(driver), Some(wanted)) => format!("{driver} (driver_override {wanted})"),
            (Some(driver), None) => driver.clone(),
            (None, _) => "none".to_owned(),
        };
        let mut lines = vec![
            ("is".to_owned(), ids),
            ("plugged in at".to_owned(), function.path.clone().unwrap_or_else(dash)),
            ("driver".to_owned(), driver),
            ("NUMA node".to_owned(), function.numa_node.map_or_else(dash, |node| node.to_string())),
            ("link".to_owned(), link(function)),
            (
                "resets by".to_owned(),
                if function.reset_methods.is_empty() { dash() } else { function.reset_methods.join(", ") },
            ),
        ];
        if !function.modules.is_empty() {
            lines.insert(3, ("modules".to_owned(), function.modules.join(", ")));
        }
        lines.extend(function.bars.iter().map(bar));
        if let Some(sriov) = &function.sriov {
            lines.push(("VFs".to_owned(), format!("{} of {}", sriov.num_vfs, sriov.total_vfs)));
        }
        if let (Some(pf), Some(index)) = (function.physical_function, function.vf_index) {
            lines.push(("VF".to_owned(), format!("{index} of {pf}")));
        }
        lines
    }

    fn group(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(number) = self.function.iommu_group else {
            return writeln!(f, "\nNo IOMMU group");
        };
        if self.shares_group_with.is_empty() {
            writeln!(f, "\nIOMMU group {number}: it alone")?;
        } else {
            writeln!(f, "\nIOMMU group {number}: together with")?;
        }
        for other in &self.shares_group_with {
            let driver = other.driver.as_deref().unwrap_or("no driver");
            writeln!(f, "  {}  {} ({driver})", other.address, other.name)?;
        }
        self.causes.iter().try_for_each(|cause| writeln!(f, "  {cause}"))?;
        self.parted_although.iter().try_for_each(|cause| writeln!(f, "  {}", although(cause)))
    }
}

/// The kernel's decision where it contradicts the registers.
fn although(cause: &Cause) -> String {
    const KNOWS: &str =
        "the kernel has parted its group: it knows this device (a quirk), or was told to (pcie_acs_override)";
    match cause {
        Cause::Port { port, gap: Gap::Absent } => format!("though {port} has no ACS, {KNOWS}"),
        Cause::Port { port, gap: Gap::Off } => {
            format!("though ACS of {port} is not all switched on as far as its registers say, {KNOWS}")
        }
        Cause::Port { port, gap: Gap::Conventional } => {
            format!("though {port} leads to a conventional PCI bus, {KNOWS}")
        }
        Cause::Functions(first) => {
            format!("though the device at {first} has no ACS to keep its functions apart, {KNOWS}")
        }
        Cause::Kernel | Cause::Unknown => format!("for a reason that is not known, {KNOWS}"),
    }
}

impl fmt::Display for SharedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joins: Vec<String> = self.joins.iter().map(ToString::to_string).collect();
        let joins = joins.join(", ");
        match &self.cause {
            Cause::Port { port, gap: Gap::Absent } => {
                write!(f, "since {port} has no ACS, past the IOMMU it is open to {joins}")
            }
            Cause::Port { port, gap: Gap::Off } => {
                write!(f, "since ACS of {port} is not all switched on, past the IOMMU it is open to {joins}")
            }
            Cause::Port { port, gap: Gap::Conventional } => {
                write!(
                    f,
                    "since {port} leads to a conventional PCI bus, the IOMMU cannot tell it from {joins}"
                )
            }
            Cause::Functions(first) => {
                write!(
                    f,
                    "since the device at {first} does not keep its functions apart (no ACS), it is open to {joins}"
                )
            }
            Cause::Kernel => {
                write!(
                    f,
                    "for a reason that no register shows, with {joins}: the kernel knows one of these devices (a quirk, such as a shared requester ID)"
                )
            }
            Cause::Unknown => {
                write!(f, "for a reason that config space does not show (read it as root), with {joins}")
            }
        }
    }
}

fn hop_text(hop: &Hop) -> String {
    let kind = hop.isolation.map(describe).unwrap_or_default();
    format!("{}  {}{kind}", hop.address, hop.name)
}

fn describe(isolation: Isolation) -> String {
    let kind = match isolation.kind {
        Kind::RootPort => "root port",
        Kind::UpstreamPort => "switch, upstream port",
        Kind::DownstreamPort => "switch, downstream port",
        Kind::ConventionalBridge => "bridge to conventional PCI",
        Kind::Endpoint | Kind::IntegratedEndpoint | Kind::Other => return String::new(),
    };
    let acs = match isolation.gap() {
        None if isolation.kind == Kind::UpstreamPort => "",
        None => ", ACS keeps apart",
        Some(Gap::Absent) => ", no ACS",
        Some(Gap::Off) => ", ACS is off",
        Some(Gap::Conventional) => ", cannot keep apart",
    };
    format!(" ({kind}{acs})")
}

fn link(function: &Function) -> String {
    function.link.as_ref().map_or_else(
        || "-".to_owned(),
        |link| format!("{} x{}, at best {} x{}", link.speed, link.width, link.max_speed, link.max_width),
    )
}

fn bar(bar: &Bar) -> (String, String) {
    let name = if bar.index == 6 { "ROM".to_owned() } else { format!("BAR {}", bar.index) };
    let (number, unit) = match bar.size {
        size if size >= 1 << 30 => (size >> 30, "GiB"),
        size if size >= 1 << 20 => (size >> 20, "MiB"),
        size if size >= 1 << 10 => (size >> 10, "KiB"),
        size => (size, "bytes"),
    };
    let kind = match (bar.io, bar.wide, bar.prefetchable) {
        (true, ..) => "I/O ports",
        (_, true, true) => "64-bit, prefetchable",
        (_, true, false) => "64-bit",
        (_, false, true) => "32-bit, prefetchable",
        (_, false, false) => "32-bit",
    };
    (name, format!("{number} {unit} at {:#x}, {kind}", bar.start))
}
