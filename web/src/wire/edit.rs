//! Small changes of the file, as forms make them: all else in it, comments among it, stays as it is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One change of the file's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// Gives a function of the host to a guest: a VF of a network card under `nics`, others under `pci`. It, or the VF's PF, gets a
    /// name in `devices` where it has none.
    GiveDevice {
        /// Its address.
        address: String,
        /// The guest's name.
        guest: String,
    },
    /// Says how many VFs a PF has; it gets a name in `devices` where it has none.
    SetVfs {
        /// The PF's address.
        address: String,
        /// How many.
        count: u16,
    },
    /// Adds a guest, or makes one as it is said here: what is not said here stays.
    PutGuest {
        /// Its name.
        name: String,
        /// The guest.
        guest: Definition,
    },
    /// Takes a guest out.
    RemoveGuest {
        /// Its name.
        name: String,
    },
}

/// What a form says of a guest. Texts are as the file has them; an empty one is as good as none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Definition {
    /// It is started with the box.
    pub autostart: bool,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest RAM: `2GiB`.
    pub memory: String,
    /// UEFI firmware finds what to start; otherwise it is the kernel.
    pub uefi: bool,
    /// A kernel's path.
    pub kernel: String,
    /// An initial RAM disk's path.
    pub initrd: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Network cards.
    pub nics: Vec<DefinedNic>,
    /// Disks.
    pub disks: Vec<DefinedDisk>,
}

/// A network card of a form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct DefinedNic {
    /// Its name.
    pub name: String,
    /// A network of the file; or
    pub network: String,
    /// a pool of VFs.
    pub pool: String,
}

/// A disk of a form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct DefinedDisk {
    /// Its name.
    pub name: String,
    /// The image.
    pub path: String,
    /// It is in QEMU's format, and not the disk's bytes as they are.
    pub qcow2: bool,
    /// It is in a CD drive.
    pub cdrom: bool,
}

/// What of a file a form wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Defined {
    /// The guest, where the file has it.
    pub guest: Option<Definition>,
    /// All guests of the file.
    pub guests: Vec<String>,
    /// Networks that guests can be on.
    pub networks: Vec<String>,
    /// Pools of VFs.
    pub pools: Vec<String>,
}
