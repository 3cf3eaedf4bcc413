//! From the file's guest to the machine's specification: paths become opened files, defaults become numbers.

mod cards;
pub mod parts;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::Path;

use anyhow::Context;
use vmm::disk::{Access, Chain, Format, Rules};
use vmm::firmware;
use vmm::spec::{self, ConsoleDevice, CpuSpec, MemoryPolicy, MemorySpec, Starts, VmSpec};
use vmm::virtio::vsock::Vsock;

use crate::apply::{Applied, Taps};
use crate::config::{self, Firmware, Vm};
use crate::jail::Files;
use crate::plan::Card;
use crate::variables::Variables;
use parts::{Boot, CardPart, Disk, Functions, New, VsockPart};

/// Of a disk, where the file does not say how many.
const MOST_QUEUES: u16 = 4;

/// The files that a guest starts from, opened while nothing has been touched yet.
pub struct BootFiles {
    /// What it starts with.
    pub boot: Boot,
    /// Its disks, in the file's order.
    pub disks: Vec<Disk>,
    /// Its socket device.
    pub vsock: Option<VsockPart>,
    /// The descriptors of all of them.
    pub files: Files,
}

impl BootFiles {
    /// Opens them. Relative paths start at the folder of the appliance file; variables of firmware are kept below `state`.
    ///
    /// # Errors
    /// Each that cannot be had, with the keys of the file that ask for it.
    pub fn open(
        name: &str,
        vm: &Vm,
        folder: &Path,
        state: &Path,
    ) -> Result<Self, Vec<(Vec<String>, anyhow::Error)>> {
        let mut refusals = Vec::new();
        let mut refuse = |keys: &[&str], error| {
            let path = ["vms", name].iter().chain(keys).map(ToString::to_string).collect();
            refusals.push((path, error));
        };
        let mut files = Files::default();
        let boot = open_boot(name, vm, folder, state, &mut files);
        let boot = boot.map_err(|(key, error)| refuse(&["boot", key], error)).ok();
        let mut disks = Vec::with_capacity(vm.disks.len());
        for (key, disk) in &vm.disks {
            match open_disk(key, disk, folder, queues(vm), &mut files) {
                Ok(slot) => disks.push(slot),
                Err(error) => refuse(&["disks", key, "path"], error),
            }
        }
        let vsock = vm.vsock.as_ref().map(|vsock| open_vsock(vsock, &mut files)).transpose();
        let vsock = vsock.map_err(|error| refuse(&["vsock"], error)).ok().flatten();
        match boot {
            Some(boot) if refusals.is_empty() => Ok(Self { boot, disks, vsock, files }),
            _ => Err(refusals),
        }
    }

    /// Has firmware start from the guest's device `name` once: until the guest is first reset.
    pub fn boot_once(&mut self, vm: &Vm, name: &str) -> anyhow::Result<()> {
        let Boot::Firmware { order, once, .. } = &mut self.boot else {
            anyhow::bail!("This guest starts with a kernel: only firmware starts from a device");
        };
        // Firmware remembers the order it is told, and without another one it would start from that device ever after.
        anyhow::ensure!(
            !order.is_empty(),
            "This guest has no `boot.order`; say in the file what it starts from otherwise, such as `order: [root]`"
        );
        let mut devices = vm.disks.keys().chain(vm.nics.keys()).chain(vm.pci.keys());
        anyhow::ensure!(devices.any(|device| device == name), "This guest has no device `{name}`");
        *once = Some(name.to_owned());
        Ok(())
    }
}

/// Of a disk.
fn queues(vm: &Vm) -> u16 {
    u16::try_from(vm.cpus.topology().count).unwrap_or(u16::MAX).clamp(1, MOST_QUEUES)
}

/// The guest with one device alone: the one of this key, or `nic KEY`, `disk KEY`, `pci KEY` where several have it.
pub(crate) fn only(vm: &Vm, name: &str) -> anyhow::Result<Vm> {
    let (section, key) = match name.split_once(' ') {
        Some((section, key)) => (Some(section), key),
        None => (None, name),
    };
    let wanted = |of: &str| section.is_none_or(|section| section == of);
    let mut only = vm.clone();
    only.nics.retain(|own, _| wanted("nic") && own == key);
    only.disks.retain(|own, _| wanted("disk") && own == key);
    only.pci.retain(|own, _| wanted("pci") && own == key);
    only.rng = vm.rng && section.is_none() && key == "rng";
    let found = [
        (!only.nics.is_empty(), "nic"),
        (!only.disks.is_empty(), "disk"),
        (!only.pci.is_empty(), "pci"),
        (only.rng, "rng"),
    ];
    let found: Vec<&str> = found.iter().filter(|(is, _)| *is).map(|(_, section)| *section).collect();
    match &found[..] {
        [_] => Ok(only),
        [] if matches!(name, "console" | "vsock") => {
            anyhow::bail!("A guest's {name} cannot be added while it runs: it is there from start to end")
        }
        [] => {
            let all = [
                vm.nics.keys().map(|key| format!("nic {key}")).collect::<Vec<_>>(),
                vm.disks.keys().map(|key| format!("disk {key}")).collect(),
                vm.pci.keys().map(|key| format!("pci {key}")).collect(),
            ]
            .concat();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            anyhow::bail!("There is no device `{name}`; it has {all}. Write it into the file first")
        }
        several => {
            let all: Vec<_> = several.iter().map(|section| format!("`{section} {key}`")).collect();
            anyhow::bail!("`{name}` may be {}; say which", all.join(" or "))
        }
    }
}

/// The one disk of a guest that has nothing else, or its source of entropy. Relative paths start at `folder`.
pub(crate) fn own_device(only: &Vm, folder: &Path, files: &mut Files) -> anyhow::Result<New> {
    if let Some((name, disk)) = only.disks.iter().next() {
        let opened = open_disk(name, disk, folder, queues(only), files);
        return Ok(New::Disk(opened.with_context(|| format!("Disk `{name}`"))?));
    }
    anyhow::ensure!(only.rng, "There is no such device");
    Ok(New::Rng)
}

/// A network card, whose link is made.
pub(crate) fn card(card: &Card, taps: &Taps, files: &mut Files) -> anyhow::Result<CardPart> {
    cards::open(card, taps, files)
}

/// The functions of slots, which are bound to vfio-pci; none where there are none.
pub(crate) fn functions(
    vm: &Vm,
    applied: &Applied,
    files: &mut Files,
) -> Result<Option<Functions>, vfio::Error> {
    if applied.slots.is_empty() {
        return Ok(None);
    }
    let rom = |name: &str| vm.pci.get(name).is_some_and(|given| given.rom_bar);
    let slots =
        applied.slots.iter().map(|(name, functions)| (name.as_str(), rom(name), functions.as_slice()));
    Functions::new(slots, files).map(Some)
}

/// What the guest has its console on.
pub(crate) fn console(vm: &Vm) -> ConsoleDevice {
    match vm.console {
        config::GuestConsole::Serial => ConsoleDevice::Serial,
        config::GuestConsole::Virtio => ConsoleDevice::Virtio,
    }
}

/// The machine's name for a network card.
pub(crate) fn card_name(card: &Card) -> String {
    cards::name(card)
}

/// What a guest starts from; or the key below `boot` for which that cannot be had.
fn open_boot(
    name: &str,
    vm: &Vm,
    folder: &Path,
    state: &Path,
    files: &mut Files,
) -> Result<Boot, (&'static str, anyhow::Error)> {
    if let Some(kernel) = &vm.boot.kernel {
        let open =
            |key, what: &str, path: &Path| open(what, &folder.join(path), "").map_err(|error| (key, error));
        let kernel = open("kernel", "kernel", kernel)?;
        let initrd = vm.boot.initrd.as_deref().map(|path| open("initrd", "initial RAM disk", path));
        let initrd = initrd.transpose()?;
        return Ok(Boot::Kernel { kernel: files.put(kernel), initrd: initrd.map(|file| files.put(file)) });
    }
    let mut open = || {
        let firmware = vm.boot.firmware.as_ref().context("The guest has nothing to start")?;
        let (code, template) = open_firmware(firmware, folder)?;
        let variables = Variables::of(state, name).open(&template)?;
        let (code, variables) = (files.put(code), files.put(variables));
        Ok(Boot::Firmware { code, variables, order: vm.boot.order.clone(), once: None })
    };
    open().map_err(|error| ("firmware", error))
}

/// The two files of firmware, code and variables as they are delivered, which go together. Relative paths start at `folder`.
pub fn open_firmware(firmware: &Firmware, folder: &Path) -> anyhow::Result<(File, File)> {
    let files = firmware.files();
    let hint = match firmware {
        Firmware::Known(_) => " (is the package `ovmf` installed?)",
        Firmware::Files(_) => "",
    };
    let code = open("firmware's code", &folder.join(&files.code), hint)?;
    let template = open("firmware's variables", &folder.join(&files.vars), hint)?;
    let (code_path, vars_path) = (files.code.display(), files.vars.display());
    firmware::sizes(&code, &template)
        .with_context(|| format!("The firmware {code_path} with {vars_path}"))?;
    Ok((code, template))
}

fn open(what: &str, path: &Path, hint: &str) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("Opening the {what} {}{hint}", path.display()))?;
    let about = file.metadata().with_context(|| format!("Looking at the {what} {}", path.display()))?;
    anyhow::ensure!(about.is_file(), "The {what} {} is not a file", path.display());
    Ok(file)
}

/// Whether its first bytes are those of a qcow2 image. What cannot be read is found out later.
fn looks_like_qcow2(path: &Path) -> bool {
    let mut magic = [0; 4];
    let about = path.metadata();
    about.is_ok_and(|about| about.is_file() || about.file_type().is_block_device())
        && File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0)).is_ok()
        && magic == *b"QFI\xfb"
}

/// Opens and locks an image and what it stands on.
fn open_disk(
    name: &str,
    disk: &config::Disk,
    folder: &Path,
    queues: u16,
    files: &mut Files,
) -> anyhow::Result<Disk> {
    let path = folder.join(&disk.path);
    let format = match disk.format.unwrap_or_default() {
        config::DiskFormat::Raw => Format::Raw,
        config::DiskFormat::Qcow2 => Format::Qcow2,
    };
    // As raw the guest would find no disk that it knows, and write over the image's tables.
    if disk.format.is_none() && looks_like_qcow2(&path) {
        anyhow::bail!(
            "{} begins like a qcow2 image, and the file does not say what it is: say `format: qcow2`, or `format: raw` if the guest itself wrote that into a raw disk",
            path.display()
        );
    }
    let rules = Rules {
        access: if disk.is_read_only() { Access::Read } else { Access::Write },
        folders: disk.backing_folders.iter().map(|other| folder.join(other)).collect(),
        direct: disk.direct,
    };
    let chain = Chain::open(&path, format, &rules)?;
    let kind = (disk.device == config::DiskDevice::Cdrom, disk.read_only);
    Ok(Disk::new(name, chain, kind, disk.queues.unwrap_or(queues), files))
}

/// The host's end of a socket device; it takes the guest's context ID at once.
fn open_vsock(vsock: &config::Vsock, files: &mut Files) -> anyhow::Result<VsockPart> {
    const VHOST_VSOCK: &str = "/dev/vhost-vsock";
    let vhost = File::options().read(true).write(true).open(VHOST_VSOCK).with_context(|| {
        format!("Opening {VHOST_VSOCK}, which the guest's `vsock` needs (`modprobe vhost_vsock` makes it)")
    })?;
    // The open file keeps the context ID.
    drop(Vsock::new(vsock.cid, vhost.try_clone()?.into())?);
    Ok(VsockPart { cid: vsock.cid, vhost: files.put(vhost) })
}

/// What to build.
pub fn spec(name: &str, vm: &Vm, affinity: Vec<BTreeSet<u32>>, memory_policy: MemoryPolicy) -> VmSpec {
    let (cpus, memory) = (vm.cpus.topology(), vm.memory.detail());
    let (sockets, threads) = (cpus.sockets.max(1), cpus.threads.max(1));
    VmSpec {
        name: name.to_owned(),
        cpus: CpuSpec { sockets, cores: cpus.count / sockets / threads, threads },
        affinity,
        memory: MemorySpec {
            size: memory.size.0,
            hugepages: memory.hugepages.map(|page| page.0),
            prefault: memory.prefault,
        },
        memory_policy,
        starts: match vm.boot.firmware {
            Some(_) => Starts::AtReset,
            None => Starts::AfterFirmware,
        },
        cmdline: vm.boot.cmdline.clone(),
        on_reset: match vm.on_reset {
            config::OnReset::Restart => spec::OnReset::Restart,
            config::OnReset::Exit => spec::OnReset::Exit,
        },
        hotplug_ports: vm.hotplug_ports,
        on_device_error: match vm.on_device_error {
            config::OnDeviceError::Reset => spec::OnDeviceError::Reset,
            config::OnDeviceError::Stop => spec::OnDeviceError::Stop,
            config::OnDeviceError::Detach => spec::OnDeviceError::Detach,
            config::OnDeviceError::Ignore => spec::OnDeviceError::Ignore,
        },
        on_panic: vm.on_panic.map(on_trouble),
        watchdog: vm.watchdog.map(on_trouble),
    }
}

fn on_trouble(policy: config::OnTrouble) -> spec::OnTrouble {
    match policy {
        config::OnTrouble::Log => spec::OnTrouble::Log,
        config::OnTrouble::Pause => spec::OnTrouble::Pause,
        config::OnTrouble::Reset => spec::OnTrouble::Reset,
        config::OnTrouble::Stop => spec::OnTrouble::Stop,
    }
}

#[cfg(test)]
mod tests;
