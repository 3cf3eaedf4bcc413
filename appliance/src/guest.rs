//! From the file's guest to the machine's specification: paths become opened files, defaults become numbers.

mod cards;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use vfio::PciFunction;
use vfio::kernel::{Backend, Iommu};
use vmm::disk::{Access, Chain, Format, Rules};
use vmm::spec::{self, Console, CpuSpec, MemorySpec, Resources, Slot, VirtioSlot, VmSpec};
use vmm::virtio::blk::{Block, BlockSpec};

use crate::apply::Applied;
use crate::config::{self, Vm};

/// Of a disk, where the file does not say how many.
const MOST_QUEUES: u16 = 4;

/// The files that a guest starts from, opened while nothing has been touched yet.
pub struct BootFiles {
    kernel: File,
    initrd: Option<File>,
    disks: Vec<VirtioSlot>,
}

impl BootFiles {
    /// Opens them. Relative paths start at the folder of the appliance file.
    pub fn open(vm: &Vm, folder: &Path) -> anyhow::Result<Self> {
        let open = |what: &str, path: &PathBuf| {
            let path = folder.join(path);
            let file = File::open(&path).with_context(|| format!("Opening the {what} {}", path.display()))?;
            let plain = file
                .metadata()
                .with_context(|| format!("Looking at the {what} {}", path.display()))?
                .is_file();
            anyhow::ensure!(plain, "The {what} {} is not a file", path.display());
            Ok(file)
        };
        let kernel = open("kernel", &vm.boot.kernel)?;
        let initrd = vm.boot.initrd.as_ref().map(|path| open("initial RAM disk", path)).transpose()?;
        let queues = u16::try_from(vm.cpus.topology().count).unwrap_or(u16::MAX).clamp(1, MOST_QUEUES);
        let disks = vm.disks.iter().map(|(name, disk)| {
            let slot = open_disk(name, disk, folder, queues);
            slot.with_context(|| format!("Disk `{name}`"))
        });
        let disks = disks.collect::<anyhow::Result<_>>()?;
        Ok(Self { kernel, initrd, disks })
    }
}

/// Opens and locks an image and what it stands on.
fn open_disk(name: &str, disk: &config::Disk, folder: &Path, queues: u16) -> anyhow::Result<VirtioSlot> {
    let path = folder.join(&disk.path);
    let format = match disk.format {
        config::DiskFormat::Raw => Format::Raw,
        config::DiskFormat::Qcow2 => Format::Qcow2,
    };
    let rules = Rules {
        access: if disk.read_only { Access::Read } else { Access::Write },
        folders: disk.backing_folders.iter().map(|other| folder.join(other)).collect(),
        direct: disk.direct,
    };
    let image = Chain::open(&path, format, &rules)?.image()?;
    let device = Block::new(BlockSpec {
        image,
        read_only: disk.read_only,
        serial: name.to_owned(),
        queues: disk.queues.unwrap_or(queues),
    });
    Ok(VirtioSlot { name: format!("disk {name}"), device: Box::new(device) })
}

/// What to build.
pub fn spec(name: &str, vm: &Vm) -> VmSpec {
    let (cpus, memory) = (vm.cpus.topology(), vm.memory.detail());
    let (sockets, threads) = (cpus.sockets.max(1), cpus.threads.max(1));
    VmSpec {
        name: name.to_owned(),
        cpus: CpuSpec { sockets, cores: cpus.count / sockets / threads, threads },
        memory: MemorySpec {
            size: memory.size.0,
            hugepages: memory.hugepages.map(|page| page.0),
            prefault: memory.prefault,
        },
        cmdline: vm.boot.cmdline.clone(),
        on_reset: match vm.on_reset {
            config::OnReset::Restart => spec::OnReset::Restart,
            config::OnReset::Exit => spec::OnReset::Exit,
        },
        on_device_error: match vm.on_device_error {
            config::OnDeviceError::Reset => spec::OnDeviceError::Reset,
            config::OnDeviceError::Stop => spec::OnDeviceError::Stop,
            config::OnDeviceError::Detach => spec::OnDeviceError::Detach,
            config::OnDeviceError::Ignore => spec::OnDeviceError::Ignore,
        },
    }
}

/// What it needs that is opened: files, console, virtio devices, and the functions through VFIO, in one I/O address space.
pub fn resources(
    vm: &Vm,
    files: BootFiles,
    console: Console,
    applied: &Applied,
    kvm: impl FnOnce() -> anyhow::Result<OwnedFd>,
) -> anyhow::Result<Resources> {
    let mut slots = Vec::with_capacity(applied.slots.len());
    if !applied.slots.is_empty() {
        let iommu = Iommu::new(Backend::Auto, Some(kvm()?))?;
        for (name, addresses) in &applied.slots {
            let open = |address: &vfio::PciAddress| Ok(iommu.open(*address)? as Arc<dyn PciFunction>);
            let functions = addresses.iter().map(open).collect::<Result<_, vfio::Error>>()?;
            slots.push(Slot { name: name.clone(), functions });
        }
    }
    let mut virtio = cards::virtio(vm, &applied.cards)?;
    virtio.extend(files.disks);
    Ok(Resources { kernel: files.kernel, initrd: files.initrd, console, slots, virtio })
}
