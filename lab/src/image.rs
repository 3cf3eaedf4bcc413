//! Initial RAM file systems for L1 (the box) and L2 (its guests), packed from
//! files of Debian packages.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::modules::Modules;
use crate::progress;
use crate::sysroot::Sysroot;

/// Bumped when the way of packing changes.
const LAYOUT: &str = "3";

const BOX_INIT: &str = include_str!("../box/init");
const GUEST_INIT: &str = include_str!("../guest/init");

const BOX_TOOLS: [&str; 13] = [
    "/usr/bin/dash",
    "/usr/bin/ip",
    "/usr/sbin/bridge",
    "/usr/sbin/tc",
    "/usr/bin/kmod",
    "/usr/bin/lspci",
    "/usr/bin/setpci",
    "/usr/bin/iperf3",
    "/usr/sbin/ethtool",
    "/usr/sbin/nvme",
    "/usr/bin/zstd",
    "/usr/bin/xz",
    "/usr/bin/busybox",
];

const GUEST_TOOLS: [&str; 7] = [
    "/usr/bin/dash",
    "/usr/bin/ip",
    "/usr/bin/iperf3",
    "/usr/sbin/ethtool",
    "/usr/bin/lspci",
    "/usr/bin/setpci",
    "/usr/bin/busybox",
];

/// Drivers of the box: the NICs, VFIO, KVM, the links `throughway` makes, and the 9p share.
const BOX_MODULES: [&str; 23] = [
    "9p",
    "9pnet_virtio",
    "igb",
    "igbvf",
    "e1000e",
    "vfio-pci",
    "vfio_iommu_type1",
    "kvm-amd",
    "macvtap",
    "tun",
    "bridge",
    "vhost_net",
    "vhost_vsock",
    "8021q",
    "veth",
    "dummy",
    "nvme",
    "virtio_net",
    "pci-pf-stub",
    "loop",
    "ext4",
    "crc32c_generic",
    "uio_pci_generic",
];

/// Drivers of the guests.
const GUEST_MODULES: [&str; 17] = [
    "igbvf",
    "igb",
    "e1000e",
    "nvme",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "sr_mod",
    "isofs",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "vmw_vsock_virtio_transport",
    "i6300esb",
    "pvpanic-mmio",
    "8021q",
];

/// The initial RAM file systems that go with one kernel.
#[derive(Debug, Clone)]
pub struct Images {
    /// For L1.
    pub host: PathBuf,
    /// For L2.
    pub guest: PathBuf,
}

/// Images for `kernel` out of the cache, packed when missing.
pub fn images(cache: &Cache, sysroot: &Sysroot, kernel: &Kernel) -> Result<Images> {
    let parts: Vec<&str> = [LAYOUT, sysroot.key(), &kernel.key, BOX_INIT, GUEST_INIT]
        .into_iter()
        .chain(BOX_TOOLS)
        .chain(GUEST_TOOLS)
        .chain(BOX_MODULES)
        .chain(GUEST_MODULES)
        .collect();
    let name = format!("{}-{}", kernel.flavour.name(), cache::key(parts));
    let folder = cache.folder("images", &name, |scratch| {
        progress::step(&format!("Packing the box's images ({})", kernel.flavour.name()), |_| {
            let host = Recipe { init: BOX_INIT, tools: &BOX_TOOLS, modules: &BOX_MODULES };
            pack(&host, &scratch.join("l1.cpio"), &scratch.join("l1"), sysroot, kernel)?;
            let guest = Recipe { init: GUEST_INIT, tools: &GUEST_TOOLS, modules: &GUEST_MODULES };
            pack(&guest, &scratch.join("l2.cpio"), &scratch.join("l2"), sysroot, kernel)
        })
    })?;
    Ok(Images { host: folder.join("l1.cpio"), guest: folder.join("l2.cpio") })
}

struct Recipe<'a> {
    init: &'a str,
    tools: &'a [&'a str],
    modules: &'a [&'a str],
}

fn pack(
    recipe: &Recipe<'_>,
    target: &Path,
    scratch: &Path,
    sysroot: &Sysroot,
    kernel: &Kernel,
) -> Result<()> {
    let file = File::create(target).with_context(|| format!("Creating {}", target.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    skeleton(&mut archive).context("Writing the image's folders")?;
    archive.file("init", 0o755, recipe.init.as_bytes()).context("Writing the image's init")?;
    pack_tools(&mut archive, recipe.tools, sysroot)?;
    if let Some(modules) = &kernel.modules {
        pack_modules(&mut archive, recipe.modules, modules, scratch, sysroot)?;
    }
    archive.finish().context("Ending the image")?;
    Ok(())
}

fn skeleton<W: std::io::Write>(archive: &mut Archive<W>) -> std::io::Result<()> {
    for folder in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "etc",
        "share",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
    ] {
        archive.folder(folder)?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.link(name, &format!("usr/{name}"))?;
    }
    // The console exists before devtmpfs is mounted, so that init is heard.
    archive.character_device("dev/console", 5, 1)?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n")
}

fn pack_tools<W: std::io::Write>(archive: &mut Archive<W>, tools: &[&str], sysroot: &Sysroot) -> Result<()> {
    let mut present = BTreeSet::new();
    for tool in tools {
        let path = sysroot.path(tool);
        let content = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        let mode =
            fs::metadata(&path).with_context(|| format!("Reading {}", path.display()))?.permissions().mode();
        archive.file(tool, mode, &content).with_context(|| format!("Packing {tool}"))?;
        present.insert(tool.rsplit('/').next().unwrap_or_default().to_owned());
        for (name, file) in sysroot.libraries_of(tool)? {
            let inside = match name.rsplit_once('/') {
                Some((_, loader)) => format!("usr/lib64/{loader}"),
                None => format!("usr/lib/x86_64-linux-gnu/{name}"),
            };
            if present.insert(inside.clone()) {
                let content = fs::read(&file).with_context(|| format!("Reading {}", file.display()))?;
                archive.file(&inside, 0o755, &content).with_context(|| format!("Packing {inside}"))?;
            }
        }
    }
    if present.contains("kmod") {
        for name in ["modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod"] {
            present.insert(name.to_owned());
            archive.link(&format!("usr/sbin/{name}"), "../bin/kmod").context("Packing kmod's names")?;
        }
    }
    if present.contains("dash") {
        present.insert("sh".to_owned());
        archive.link("usr/bin/sh", "dash").context("Packing the shell's name")?;
    }
    let mut busybox = std::process::Command::new(sysroot.path("/usr/bin/busybox"));
    for applet in crate::command::text(busybox.arg("--list"), "Listing busybox's programs")?.lines() {
        if present.insert(applet.to_owned()) {
            archive.link(&format!("usr/bin/{applet}"), "busybox").context("Packing busybox's names")?;
        }
    }
    Ok(())
}

fn pack_modules<W: std::io::Write>(
    archive: &mut Archive<W>,
    names: &[&str],
    modules: &Path,
    scratch: &Path,
    sysroot: &Sysroot,
) -> Result<()> {
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let table = Modules::read(modules)?;
    let staging = scratch.join("lib/modules").join(&release);
    fs::create_dir_all(&staging).with_context(|| format!("Creating {}", staging.display()))?;
    let order = table.unpack(&table.known(names), &staging, sysroot)?;
    let mut depmod = sysroot.command("/usr/sbin/depmod");
    crate::command::output(depmod.arg("-b").arg(scratch).arg(&release), "Indexing the image's modules")?;
    let base = format!("usr/lib/modules/{release}");
    let indexes = fs::read_dir(&staging).with_context(|| format!("Reading {}", staging.display()))?;
    let mut files: Vec<String> = indexes
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    files.extend(order.iter().cloned());
    for file in files {
        let path = staging.join(&file);
        let content = fs::read(&path).with_context(|| format!("Reading {}", path.display()))?;
        archive
            .file(&format!("{base}/{file}"), 0o644, &content)
            .with_context(|| format!("Packing {file}"))?;
    }
    let list: String = order.iter().map(|path| format!("/{base}/{path}\n")).collect();
    archive.file("etc/modules.order", 0o644, list.as_bytes()).context("Packing the loading order")?;
    fs::remove_dir_all(scratch).with_context(|| format!("Removing {}", scratch.display()))
}
