//! Devices of a guest that is started again and again: a network card on a bridge, a disk and a source of entropy.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{command, host};

/// Bytes of the disk, of which none is written.
const DISK: u64 = 64 << 20;

/// Says to this program that it is where [`alone`] leads.
const ALONE: &str = "THROUGHWAY_BENCH_ALONE";

/// What the devices stand on.
pub(super) struct Devices {
    disk: PathBuf,
    state: PathBuf,
}

impl Devices {
    /// Makes a disk in `folder`; and a bridge with a tap for each of the others. Throughway makes its tap itself.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        host::ensure(&[("iproute2", "makes the bridge and the taps that guests are on")])?;
        ip("link add br0 type bridge")?;
        ip("link set br0 up")?;
        for tap in ["alioth", "qemu"] {
            ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"))?;
            ip(&format!("link set {tap} master br0 up"))?;
        }
        let disk = folder.join("disk.raw");
        let file = std::fs::File::create(&disk).with_context(|| format!("Creating {}", disk.display()))?;
        file.set_len(DISK).with_context(|| format!("Sizing {}", disk.display()))?;
        Ok(Self { disk, state: folder.join("state") })
    }

    /// Keys of the guest in the appliance file, its last one, and the network.
    pub(super) fn ours(&self) -> String {
        let disk = self.disk.display();
        format!(
            "    rng: true\n    disks: {{data: {{path: {disk}}}}}\n    nics: {{lan: {{network: br0}}}}\n\
             host: {{iommu: optional, interrupt-remapping: optional}}\nnetworks:\n  br0: {{type: bridge}}\n"
        )
    }

    /// Where Throughway notes what it has of the host.
    pub(super) fn state(&self) -> Vec<String> {
        words(&["--state-dir", &self.state.display().to_string()])
    }

    pub(super) fn alioth(&self) -> Vec<String> {
        let disk = format!("file,path={}", self.disk.display());
        words(&["--entropy", "--blk", &disk, "--net", "tap,if=alioth,mac=02:00:00:00:00:01,mtu=1500"])
    }

    /// microvm has them on its own bus, q35 on PCI.
    pub(super) fn qemu(&self, machine: &str) -> Vec<String> {
        let (kind, rom) = if machine == "microvm" { ("device", "") } else { ("pci", ",romfile=") };
        let disk = format!("if=none,id=data,format=raw,file={}", self.disk.display());
        words(&[
            "-device",
            &format!("virtio-rng-{kind}"),
            "-drive",
            &disk,
            "-device",
            &format!("virtio-blk-{kind},drive=data"),
            "-netdev",
            "tap,id=lan,ifname=qemu,script=no,downscript=no",
            "-device",
            &format!("virtio-net-{kind},netdev=lan{rom}"),
        ])
    }
}

/// Has this program go on in a network namespace of its own, from its start.
pub(super) fn alone() -> Result<()> {
    if std::env::var_os(ALONE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("Finding this program")?;
    let mut command = Command::new("unshare");
    command.arg("--net").arg(program).args(std::env::args_os().skip(1)).env(ALONE, "1");
    Err(command.exec()).context("Making a network namespace")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn ip(line: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command::output(command.args(line.split(' ')), &format!("ip {line}")).map(drop)
}
