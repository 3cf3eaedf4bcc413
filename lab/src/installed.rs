//! Debian on a disk with GRUB in an ESP, and a live Debian on a CD: installed once by debootstrap, from
//! packages that apt fetched and looked at, and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Cache};
use crate::sysroot::Sysroot;
use crate::{command, progress};

/// Which Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Installed {
    /// On a disk: `disk.raw`.
    Disk,
    /// On a CD, from which it runs by itself and can be put on a disk, as the CDs of installers are: `live.iso`.
    Live,
}

/// What makes the images. debootstrap is a script: it runs with this machine's shell, dpkg and perl.
const TOOLS: [(&str, &str); 6] = [
    ("debootstrap", "installs Debian into a folder"),
    ("fdisk", "makes the partition table"),
    ("mtools", "makes the ESP"),
    ("e2fsprogs", "makes the system's file system"),
    ("squashfs-tools", "makes the file system on a CD"),
    ("genisoimage", "makes the CD"),
];

/// What is installed beside the base system. The kernel is the full one: the `cloud` flavour has no igbvf.
const PACKAGES: [&str; 12] = [
    "systemd-sysv",
    "udev",
    "linux-image-amd64",
    "grub-efi-amd64-signed",
    "initramfs-tools",
    "efibootmgr",
    "iproute2",
    "iputils-ping",
    "iperf3",
    "kmod",
    "e2fsprogs",
    "pciutils",
];

/// What a live one has as well: to run from a CD, and to put itself on a disk.
const LIVE: [&str; 4] = ["live-boot", "live-boot-initramfs-tools", "fdisk", "dosfstools"];

/// What debootstrap chooses where apt has a choice.
const CHOSEN: [&str; 2] = ["apt", "usr-is-merged"];

const INSTALL: &str = include_str!("../debian/install.sh");

impl Installed {
    /// What `# image: NAME` of a scenario calls it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Disk, Self::Live].into_iter().find(|one| one.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Disk => "debian",
            Self::Live => "live",
        }
    }

    /// By which tag the box mounts its folder.
    #[must_use]
    pub fn tag(self) -> &'static str {
        match self {
            Self::Disk => "installed",
            Self::Live => "live",
        }
    }

    /// What the script calls it.
    fn kind(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Live => "live",
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let more: &[&str] = if self == Self::Live { &LIVE } else { &[] };
        PACKAGES.iter().chain(more).copied().collect()
    }

    /// The folder with the image, out of the cache; made when missing.
    pub fn folder(self, cache: &Cache) -> Result<PathBuf> {
        let release = apt::Release::detect()?;
        let packages = self.packages();
        let key = cache::key([INSTALL, self.kind()].iter().chain(&packages).chain(&CHOSEN));
        cache.folder("installed", &format!("{}-{key}", release.codename), |scratch| {
            if !rustix::process::geteuid().is_root() {
                bail!(
                    "Installing Debian on an image needs root: its files belong to many users; run `sudo --preserve-env=HOME,THROUGHWAY_CACHE cargo lab run` once"
                );
            }
            let tools = Sysroot::of(cache, &TOOLS)?;
            let pool = scratch.join("pool");
            {
                let apt = Apt::new(cache)?;
                let _lock = cache.lock("apt")?;
                apt.update()?;
                let packages: Vec<&str> = CHOSEN.iter().chain(&packages).copied().collect();
                progress::step("Downloading the packages of a Debian guest", |_| {
                    apt.download_installation(&packages, &pool)
                })?;
            }
            self.install(scratch, &pool, &tools, &release.codename, &cache.path("installed.log"))?;
            for rest in ["root", "repository", "pool", "cd"] {
                match fs::remove_dir_all(scratch.join(rest)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("Removing {}", scratch.join(rest).display()));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// In a mount namespace of its own, which takes along what is mounted when it ends.
    fn install(self, scratch: &Path, pool: &Path, tools: &Sysroot, suite: &str, log: &Path) -> Result<()> {
        let script = scratch.join("install.sh");
        fs::write(&script, INSTALL).with_context(|| format!("Writing {}", script.display()))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "bash"]).arg(&script).arg(self.kind());
        command.arg(scratch).arg(pool).arg(tools.root()).arg(suite).arg(self.packages().join(","));
        let on = if self == Self::Live { "a CD" } else { "a disk" };
        progress::step(&format!("Installing Debian on the image of {on} (a minute or two, once)"), |step| {
            command::logged_ok(&mut command, log, "Installing Debian", |line| step.at(line))
        })
    }
}
