//! The machine L0 shows to L1, as QEMU arguments.
//!
//! Known to work, with what was met on the way, is this shape: q35 with an
//! intel-iommu that remaps interrupts, every device behind a root port of its own,
//! at most 2560 MiB (igb's VF BARs break above 4 GiB in QEMU 10.0), and no option
//! ROMs.

use std::path::{Path, PathBuf};

use crate::kernel::Flavour;

/// A host folder the box can mount over 9p by its tag.
#[derive(Debug, Clone)]
pub struct Share {
    /// The name L1 mounts.
    pub tag: &'static str,
    /// The folder on the host.
    pub path: PathBuf,
    /// Whether L1 may write to it.
    pub writable: bool,
}

/// What the box is booted with.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Which kernel `kernel` is.
    pub flavour: Flavour,
    /// Uncompressed ELF kernel of L1.
    pub kernel: PathBuf,
    /// Initial RAM file system of L1.
    pub initrd: PathBuf,
    /// Words added to L1's kernel command line.
    pub append: String,
    /// 9p shares.
    pub shares: Vec<Share>,
    /// Backing file of the NVMe namespace.
    pub disk: PathBuf,
    /// Descriptor of the pipe L1's second serial port writes to, inherited by QEMU.
    pub results: Option<i32>,
    /// Whether the terminal is L1's console, with Ctrl-A x to leave.
    pub interactive: bool,
    /// TCP port of L1 reachable at a free port of the host's loopback: (host, L1).
    pub forward: Option<(u16, u16)>,
    /// Whether L1 boots again when it resets; else QEMU ends.
    pub reboots: bool,
    /// Whether L1 has a second NUMA node: with memory and a card, and without a processor.
    pub two_nodes: bool,
}

/// The kernel command line every L1 gets. A periodic tick: where the emulator loses one, the next one comes all the same.
const APPEND: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check intel_iommu=on iommu=pt nohz=off highres=off";

/// The rate of this machine's time stamp counter, where /proc/cpuinfo tells it: in a virtual machine, whose "cpu MHz" is that rate.
///
/// The box's own counter is this machine's. Its kernel measures the rate in a hurry, and on a busy machine is off by more than the
/// 250 ppm that its KVM puts up with: guests then have a clock that stands still ("user requested TSC rate below hardware speed").
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = |name: &str| {
        cpuinfo.lines().find(|line| line.starts_with(name))?.split_once(':').map(|(_, value)| value)
    };
    let virtual_machine = line("flags")?.split_whitespace().any(|flag| flag == "hypervisor");
    let (whole, thousandths) = line("cpu MHz")?.trim().split_once('.')?;
    let khz = whole.parse::<u64>().ok()? * 1000 + thousandths.get(..3)?.parse::<u64>().ok()?;
    virtual_machine.then_some(khz)
}

/// Makes the arguments; `data` is the sysroot's `/usr/share`.
#[must_use]
pub fn arguments(spec: &Spec, data: &Path) -> Vec<String> {
    let mut arguments = Arguments::default();
    arguments.machine(spec, data);
    arguments.consoles(spec);
    arguments.network_cards(spec);
    arguments.other_functions(spec);
    for (index, share) in spec.shares.iter().enumerate() {
        let mode = if share.writable { "" } else { ",readonly=on" };
        let path = share.path.display().to_string().replace(',', ",,");
        arguments.pair(
            "-fsdev",
            format!("local,id=share{index},path={path},security_model=none,multidevs=remap{mode}"),
        );
        let tag = share.tag;
        arguments.pair("-device", format!("virtio-9p-pci,fsdev=share{index},mount_tag={tag},bus=pcie.0"));
    }
    arguments.list
}

#[derive(Default)]
struct Arguments {
    list: Vec<String>,
    ports: u8,
}

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.list.push(name.to_owned());
    }

    fn pair(&mut self, name: &str, value: impl Into<String>) {
        self.list.push(name.to_owned());
        self.list.push(value.into());
    }

    /// Adds a root port and `device` behind it.
    fn behind_port(&mut self, device: &str) {
        let index = self.ports;
        self.ports = self.ports.saturating_add(1);
        let slot = index.saturating_add(0x10);
        self.pair(
            "-device",
            format!("pcie-root-port,id=rp{index},bus=pcie.0,chassis={index},slot={index},addr={slot:#x}"),
        );
        self.pair("-device", format!("{device},bus=rp{index}"));
    }

    fn machine(&mut self, spec: &Spec, data: &Path) {
        for flag in ["-nodefaults", "-no-user-config"] {
            self.flag(flag);
        }
        if !spec.reboots {
            self.flag("-no-reboot");
        }
        for folder in ["qemu", "seabios"] {
            self.pair("-L", data.join(folder).display().to_string());
        }
        self.pair("-display", "none");
        self.pair("-M", "q35");
        self.pair("-accel", "tcg,thread=multi,tb-size=1024");
        self.pair("-cpu", "max");
        // One processor: with two that run guests at once, the emulator's nested virtualization fails within minutes.
        self.pair("-smp", "1");
        self.pair("-m", "2560M");
        if spec.two_nodes {
            for (node, size, processors) in [(0, "1536M", ",cpus=0"), (1, "1024M", "")] {
                self.pair("-object", format!("memory-backend-ram,id=memory{node},size={size}"));
                self.pair("-numa", format!("node,nodeid={node},memdev=memory{node}{processors}"));
            }
        }
        self.pair("-device", "intel-iommu,intremap=on,eim=on");
        self.pair("-kernel", spec.kernel.display().to_string());
        self.pair("-initrd", spec.initrd.display().to_string());
        let clock = tsc_khz(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        let clock = clock.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        self.pair("-append", format!("{APPEND}{clock} {}", spec.append));
    }

    fn consoles(&mut self, spec: &Spec) {
        if spec.interactive {
            self.pair("-serial", "mon:stdio");
        } else {
            self.pair("-chardev", "stdio,id=console,signal=off");
            self.pair("-serial", "chardev:console");
        }
        if let Some(descriptor) = spec.results {
            self.pair("-chardev", format!("file,id=results,path=/proc/self/fd/{descriptor}"));
            self.pair("-serial", "chardev:results");
        }
    }

    /// Two SR-IOV cards and a plain one, all on one wire.
    fn network_cards(&mut self, spec: &Spec) {
        for (index, model) in ["igb", "igb", "e1000e"].iter().enumerate() {
            self.pair("-netdev", format!("hubport,id=wire{index},hubid=0"));
            self.behind_port(&format!(
                "{model},id=nic{index},netdev=wire{index},mac=52:54:00:10:00:{index:02x},romfile="
            ));
        }
        if spec.two_nodes {
            // A root bus of its own, which the firmware's tables say is near the second node.
            self.pair("-device", "pxb-pcie,id=far,bus=pcie.0,bus_nr=128,numa_node=1,addr=0x1e");
            self.pair("-device", "pcie-root-port,id=rpfar,bus=far,chassis=100,slot=100");
            self.pair("-netdev", "hubport,id=wirefar,hubid=0");
            self.pair("-device", "e1000e,id=nicfar,netdev=wirefar,mac=52:54:00:10:00:11,romfile=,bus=rpfar");
        }
        if let Some((host, inside)) = spec.forward {
            // restrict: the box reaches nothing outside; only this port leads in.
            self.pair("-netdev", format!("user,id=admin,restrict=on,hostfwd=tcp:127.0.0.1:{host}-:{inside}"));
            self.behind_port("virtio-net-pci,id=admin0,netdev=admin,mac=52:54:00:10:00:10,romfile=");
        }
    }

    fn other_functions(&mut self, spec: &Spec) {
        self.behind_port("edu,id=edu0,dma_mask=0xffffffffffffffff");
        let disk = spec.disk.display().to_string().replace(',', ",,");
        self.pair("-drive", format!("if=none,id=namespace,format=raw,file={disk}"));
        self.pair("-device", "nvme-subsys,id=subsystem,nqn=lab");
        self.behind_port(
            "nvme,id=nvme0,serial=lab,subsys=subsystem,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,\
             max_ioqpairs=6,msix_qsize=8",
        );
        self.pair("-device", "nvme-ns,drive=namespace,nsid=1,shared=on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_a_port_of_its_own() {
        let spec = Spec {
            flavour: Flavour::Debian,
            kernel: "k".into(),
            initrd: "i".into(),
            append: String::new(),
            shares: vec![Share { tag: "share", path: "/a,b".into(), writable: false }],
            disk: "d".into(),
            results: Some(7),
            interactive: false,
            reboots: false,
            two_nodes: false,
            forward: None,
        };
        let all = arguments(&spec, Path::new("/data"));
        let ports = all.iter().filter(|argument| argument.starts_with("pcie-root-port")).count();
        let behind = all.iter().filter(|argument| argument.contains(",bus=rp")).count();
        assert_eq!((ports, behind), (5, 5));
        assert!(all.iter().any(|argument| argument.contains("/a,,b") && argument.contains("readonly=on")));
    }

    #[test]
    fn the_rate_is_taken_from_virtual_machines_only() {
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 2596.122\nflags\t\t: fpu hypervisor lm\n";
        assert_eq!(tsc_khz(cpuinfo), Some(2_596_122));
        assert_eq!(tsc_khz(&cpuinfo.replace("hypervisor ", "")), None);
        assert_eq!(tsc_khz(""), None);
    }
}
