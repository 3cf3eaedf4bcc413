//! What a machine is handed, as words and descriptors: the keeper opens, the machine makes devices of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use vfio::kernel::{Backend, FunctionFile, Iommu, SpaceFile};
use vfio::{PciAddress, PciFunction};
use vmm::disk::{self, Access, Chain, Format, Layer};
use vmm::spec::{self, NewDevice, Slot, VirtioSlot};
use vmm::virtio::blk::{Block, BlockSpec};
use vmm::virtio::net::{Net, NetSpec};
use vmm::virtio::rng::Rng;
use vmm::virtio::scsi::{CdDrive, Medium};
use vmm::virtio::vsock::Vsock;

use crate::jail::{Files, Place};

/// What a guest starts with ([`spec::Boot`]).
#[derive(Debug, Serialize, Deserialize)]
pub enum Boot {
    /// Direct boot.
    Kernel {
        /// The kernel.
        kernel: Place,
        /// The initial RAM disk.
        initrd: Option<Place>,
    },
    /// UEFI ([`spec::Firmware`]).
    Firmware {
        /// The code.
        code: Place,
        /// The guest's variables.
        variables: Place,
        /// What to start from.
        order: Vec<String>,
        /// What goes before that once.
        once: Option<String>,
    },
}

/// A disk or a CD drive.
#[derive(Debug, Serialize, Deserialize)]
pub struct Disk {
    name: String,
    cdrom: bool,
    read_only: bool,
    queues: u16,
    access: Access,
    direct: bool,
    layers: Vec<LayerPart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LayerPart {
    file: Place,
    format: Format,
    /// For messages.
    path: PathBuf,
}

/// A network card.
#[derive(Debug, Serialize, Deserialize)]
pub struct CardPart {
    /// The machine's name for it.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Of its network.
    pub mtu: u16,
    /// One for each pair of queues.
    pub taps: Vec<Place>,
    /// As many of /dev/vhost-net, or none.
    pub vhost: Vec<Place>,
    /// By which it hears that a link is gone.
    pub watch: Option<Place>,
}

/// The socket device.
#[derive(Debug, Serialize, Deserialize)]
pub struct VsockPart {
    /// Its context ID.
    pub cid: u32,
    /// Of /dev/vhost-vsock.
    pub vhost: Place,
}

/// Functions through VFIO, and the file of an I/O address space for a machine that has none yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Functions {
    backend: Backend,
    space: Place,
    slots: Vec<SlotPart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SlotPart {
    name: String,
    rom: bool,
    functions: Vec<FunctionPart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FunctionPart {
    address: PciAddress,
    group: Option<u32>,
    file: Option<Place>,
}

/// A device that is plugged in.
#[derive(Debug, Serialize, Deserialize)]
pub enum New {
    /// A disk.
    Disk(Disk),
    /// A network card.
    Card(CardPart),
    /// The source of entropy.
    Rng,
    /// The functions of one slot.
    Functions(Functions),
}

impl Boot {
    /// Makes what the machine takes of it.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub fn open(self, files: &mut Files) -> anyhow::Result<spec::Boot> {
        let mut file = |place| files.take(place).map(File::from);
        Ok(match self {
            Self::Kernel { kernel, initrd } => {
                spec::Boot::Kernel { kernel: file(kernel)?, initrd: initrd.map(file).transpose()? }
            }
            Self::Firmware { code, variables, order, once } => {
                let (code, variables) = (file(code)?, file(variables)?);
                spec::Boot::Firmware(spec::Firmware { code, variables, order, once })
            }
        })
    }
}

impl Disk {
    /// Of an image that is open and locked.
    pub fn new(
        name: &str,
        chain: Chain,
        (cdrom, read_only): (bool, bool),
        queues: u16,
        files: &mut Files,
    ) -> Self {
        let (access, direct) = (chain.access(), chain.is_direct());
        let mut layer = |Layer { file, format, path }| LayerPart { file: files.put(file), format, path };
        let layers = chain.into_layers().into_iter().map(&mut layer).collect();
        Self { name: name.to_owned(), cdrom, read_only, queues, access, direct, layers }
    }

    /// Makes the device; reads the image's tables.
    ///
    /// # Errors
    /// The image is broken.
    pub fn open(self, files: &mut Files) -> anyhow::Result<VirtioSlot> {
        let Self { name, cdrom, read_only, queues, access, direct, layers } = self;
        let mut layer = |LayerPart { file, format, path }| -> std::io::Result<Layer> {
            Ok(Layer { file: files.take(file)?.into(), format, path })
        };
        let layers: Vec<Layer> = layers.into_iter().map(&mut layer).collect::<std::io::Result<_>>()?;
        let path = layers.first().map(|layer| layer.path.display().to_string()).unwrap_or_default();
        let opened = || -> Result<_, disk::Error> { Chain::of(layers, access, direct)?.image() };
        let image = opened()?;
        let device: Box<dyn vmm::virtio::VirtioDevice> = if cdrom {
            Box::new(CdDrive::new(Medium { image, path }, &name))
        } else {
            Box::new(Block::new(BlockSpec { image, read_only, serial: name.clone(), path, queues }))
        };
        Ok(VirtioSlot { name: format!("disk {name}"), device })
    }
}

impl CardPart {
    /// Makes the device.
    ///
    /// # Errors
    /// The kernel does not set a link up.
    pub fn open(self, files: &mut Files) -> anyhow::Result<VirtioSlot> {
        let Self { name, mac, mtu, taps, vhost, watch } = self;
        let mut all = |places: Vec<Place>| -> std::io::Result<Vec<OwnedFd>> {
            places.into_iter().map(|place| files.take(place)).collect()
        };
        let (taps, vhost) = (all(taps)?, all(vhost)?);
        let mut net = Net::new(&name, NetSpec { mac, mtu }, taps, vhost)?;
        if let Some(watch) = watch {
            net = net.hearing(files.take(watch)?);
        }
        Ok(VirtioSlot { name, device: Box::new(net) })
    }
}

impl VsockPart {
    /// Makes the device.
    ///
    /// # Errors
    /// The kernel does not set it up.
    pub fn open(self, files: &mut Files) -> anyhow::Result<VirtioSlot> {
        let device = Vsock::new(self.cid, files.take(self.vhost)?)?;
        Ok(VirtioSlot { name: "vsock".to_owned(), device: Box::new(device) })
    }
}

/// The source of entropy.
pub fn rng() -> VirtioSlot {
    VirtioSlot { name: "rng".to_owned(), device: Box::new(Rng) }
}

impl Functions {
    /// Opens the files of slots: name, whether with expansion ROM, functions.
    ///
    /// # Errors
    /// One is not there, or somebody has it.
    pub fn new<'a>(
        slots: impl Iterator<Item = (&'a str, bool, &'a [PciAddress])>,
        files: &mut Files,
    ) -> Result<Self, vfio::Error> {
        let space = SpaceFile::open(Backend::Auto)?;
        let mut parts = Vec::new();
        for (name, rom, addresses) in slots {
            let mut functions = Vec::with_capacity(addresses.len());
            for address in addresses {
                let FunctionFile { group, file } = FunctionFile::open(space.backend, *address)?;
                let file = file.map(|file| files.put(file));
                functions.push(FunctionPart { address: *address, group, file });
            }
            parts.push(SlotPart { name: name.to_owned(), rom, functions });
        }
        Ok(Self { backend: space.backend, space: files.put(space.file), slots: parts })
    }

    /// Makes the slots, in the address space that `iommu` answers: it is given the file of one, should it need it.
    ///
    /// # Errors
    /// The kernel does not attach a function, or it is dead.
    pub fn open(
        self,
        files: &mut Files,
        iommu: impl FnOnce(SpaceFile) -> anyhow::Result<Arc<Iommu>>,
    ) -> anyhow::Result<Vec<Slot>> {
        let Self { backend, space, slots } = self;
        let iommu = iommu(SpaceFile { backend, file: files.take(space)? })?;
        let mut opened = Vec::with_capacity(slots.len());
        for SlotPart { name, rom, functions } in slots {
            let mut attached: Vec<Arc<dyn PciFunction>> = Vec::with_capacity(functions.len());
            for FunctionPart { address, group, file } in functions {
                let file = file.map(|file| files.take(file)).transpose()?;
                attached.push(iommu.attach(address, FunctionFile { group, file })?);
            }
            opened.push(Slot { name, functions: attached, rom });
        }
        Ok(opened)
    }
}

impl New {
    /// The machine's name for it.
    pub fn given(&self) -> String {
        match self {
            Self::Disk(disk) => format!("disk {}", disk.name),
            Self::Card(card) => card.name.clone(),
            Self::Rng => "rng".to_owned(),
            Self::Functions(functions) => {
                functions.slots.first().map(|slot| slot.name.clone()).unwrap_or_default()
            }
        }
    }

    /// Makes the device; `iommu` as with [`Functions::open`].
    ///
    /// # Errors
    /// It cannot be made of what came.
    pub fn open(
        self,
        files: &mut Files,
        iommu: impl FnOnce(SpaceFile) -> anyhow::Result<Arc<Iommu>>,
    ) -> anyhow::Result<NewDevice> {
        Ok(NewDevice::Virtio(match self {
            Self::Disk(disk) => disk.open(files)?,
            Self::Card(card) => card.open(files)?,
            Self::Rng => rng(),
            Self::Functions(functions) => {
                let slot = functions.open(files, iommu)?.into_iter().next();
                return slot.map(NewDevice::Functions).context("There is no such device");
            }
        }))
    }
}
