//! Debian on a disk with GRUB in an ESP: installed once by debootstrap, from
//! packages that apt fetched and looked at, and kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Cache};
use crate::sysroot::Sysroot;
use crate::{command, progress};

/// What makes the image. debootstrap is a script: it runs with this machine's shell, dpkg and perl.
const TOOLS: [(&str, &str); 4] = [
    ("debootstrap", "installs Debian into a folder"),
    ("fdisk", "makes the partition table"),
    ("mtools", "makes the ESP"),
    ("e2fsprogs", "makes the system's file system"),
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

/// What debootstrap chooses where apt has a choice.
const CHOSEN: [&str; 2] = ["apt", "usr-is-merged"];

const INSTALL: &str = include_str!("../debian/install.sh");

/// The folder with `disk.raw`, out of the cache; installed when missing.
pub fn debian(cache: &Cache) -> Result<PathBuf> {
    let release = apt::Release::detect()?;
    let key = cache::key([INSTALL].iter().chain(&PACKAGES).chain(&CHOSEN));
    cache.folder("installed", &format!("{}-{key}", release.codename), |scratch| {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "Installing Debian on a disk image needs root: its files belong to many users; run `sudo --preserve-env=HOME,THROUGHWAY_CACHE cargo lab run` once"
            );
        }
        let tools = Sysroot::of(cache, &TOOLS)?;
        let pool = scratch.join("pool");
        {
            let apt = Apt::new(cache)?;
            let _lock = cache.lock("apt")?;
            apt.update()?;
            let packages: Vec<&str> = CHOSEN.iter().chain(&PACKAGES).copied().collect();
            progress::step("Downloading the packages of a Debian guest", |_| {
                apt.download_installation(&packages, &pool)
            })?;
        }
        install(scratch, &pool, &tools, &release.codename, &cache.path("installed.log"))?;
        for rest in ["root", "repository", "pool"] {
            let path = scratch.join(rest);
            fs::remove_dir_all(&path).with_context(|| format!("Removing {}", path.display()))?;
        }
        Ok(())
    })
}

/// In a mount namespace of its own, which takes along what is mounted when it ends.
fn install(scratch: &Path, pool: &Path, tools: &Sysroot, suite: &str, log: &Path) -> Result<()> {
    let script = scratch.join("install.sh");
    fs::write(&script, INSTALL).with_context(|| format!("Writing {}", script.display()))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "bash"]).arg(&script);
    command.arg(scratch).arg(pool).arg(tools.root()).arg(suite).arg(PACKAGES.join(","));
    progress::step("Installing Debian on a disk image (a minute or two, once)", |step| {
        command::logged_ok(&mut command, log, "Installing Debian", |line| step.at(line))
    })
}
