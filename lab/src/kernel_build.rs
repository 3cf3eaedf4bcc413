//! Builds the second kernel: Debian's Linux 6.12 source with `kernel.fragment`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Cache};
use crate::kernel::{Flavour, Kernel};
use crate::{command, host, progress};

/// The configuration the kernel is built with, over allnoconfig.
const FRAGMENT: &str = include_str!("../kernel.fragment");

/// Debian's package with the source.
const SOURCE: &str = "linux-source-6.12";

/// About how many lines a build prints, for the progress shown.
const LINES: usize = 2600;

const TOOLS: [(&str, &str); 8] = [
    ("gcc", "compiles the kernel"),
    ("libc6-dev", "compiles the kernel's own build tools"),
    ("make", "runs the kernel's build"),
    ("flex", "builds the kernel's configuration parser"),
    ("bison", "builds the kernel's configuration parser"),
    ("bc", "computes the kernel's time constants"),
    ("libelf-dev", "checks the kernel's object files"),
    ("libssl-dev", "builds the kernel's signing tools"),
];

fn key(codename: &str) -> String {
    format!("{codename}-{}", cache::key([FRAGMENT]))
}

fn at(folder: &Path, key: String) -> Kernel {
    Kernel {
        flavour: Flavour::Iommufd,
        vmlinux: folder.join("vmlinux"),
        bzimage: folder.join("bzImage"),
        modules: None,
        key,
    }
}

/// The kernel out of the cache, when it was built before.
pub fn built(cache: &Cache) -> Result<Option<Kernel>> {
    let key = key(&apt::Release::detect()?.codename);
    let folder = cache.path("kernel-iommufd").join(&key);
    Ok(folder.is_dir().then(|| at(&folder, key)))
}

/// The kernel out of the cache, built now when it is not there: some 20 minutes
/// of CPU time, at low priority.
pub fn build(cache: &Cache) -> Result<Kernel> {
    let key = key(&apt::Release::detect()?.codename);
    let folder = cache.folder("kernel-iommufd", &key, |scratch| {
        progress::note("The iommufd kernel is not in the cache: no Debian kernel has CONFIG_IOMMUFD, so it is built once");
        host::ensure(&TOOLS)?;
        let work = scratch.join("work");
        fs::create_dir_all(&work).with_context(|| format!("Creating {}", work.display()))?;
        let source = fetch(cache, &work)?;
        configure(&source)?;
        compile(&source, &cache.path("kernel-iommufd.log"))?;
        fs::copy(source.join("vmlinux"), scratch.join("vmlinux")).context("Copying vmlinux")?;
        fs::copy(source.join("arch/x86/boot/bzImage"), scratch.join("bzImage")).context("Copying bzImage")?;
        fs::copy(source.join(".config"), scratch.join("config")).context("Copying the configuration")?;
        fs::remove_dir_all(&work).with_context(|| format!("Removing {}", work.display()))
    })?;
    Ok(at(&folder, key))
}

fn fetch(cache: &Cache, work: &Path) -> Result<std::path::PathBuf> {
    let package = {
        let apt = Apt::new(cache)?;
        let _lock = cache.lock("apt")?;
        apt.update()?;
        progress::step(&format!("Downloading {SOURCE} (150 MB)"), |_| apt.download(SOURCE, work))?
    };
    progress::step("Unpacking the kernel source", |_| {
        let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | xz -dc | tar -x -C \"$2\"";
        let mut unpack = Command::new("bash");
        unpack.args(["-o", "pipefail", "-c", script, "unpack"]).arg(&package).arg(work);
        command::output(&mut unpack, "Unpacking the kernel source")?;
        fs::remove_file(&package).with_context(|| format!("Removing {}", package.display()))
    })?;
    let source = work.join(SOURCE);
    if !source.is_dir() {
        bail!("{SOURCE} did not unpack to a folder of its name");
    }
    Ok(source)
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("nice");
    // Cargo's own variables must not leak into another build.
    command
        .arg("make")
        .current_dir(source)
        .env_remove("MAKEFLAGS")
        .env_remove("TARGET")
        .env("LC_ALL", "C.UTF-8");
    command.env("KBUILD_BUILD_USER", "lab").env("KBUILD_BUILD_HOST", "lab");
    command
}

fn configure(source: &Path) -> Result<()> {
    let fragment = source.join("lab.fragment");
    fs::write(&fragment, FRAGMENT).with_context(|| format!("Writing {}", fragment.display()))?;
    let mut command = make(source);
    command.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
    command::output(&mut command, "Configuring the kernel")?;
    let config = fs::read_to_string(source.join(".config")).context("Reading the kernel configuration")?;
    for needed in [
        "CONFIG_IOMMUFD=y",
        "CONFIG_VFIO_DEVICE_CDEV=y",
        "CONFIG_IGB=y",
        "CONFIG_IGBVF=y",
        "CONFIG_KVM_AMD=y",
        "CONFIG_NETDEVSIM=y",
        "CONFIG_DEVMEM=y",
        // Without ASPM a kernel asks its firmware for no part of PCI Express, native hotplug included.
        "CONFIG_PCIEASPM=y",
        "CONFIG_HOTPLUG_PCI_PCIE=y",
    ] {
        if !config.lines().any(|line| line == needed) {
            bail!(
                "Configuring the kernel: {needed} did not survive; a dependency is missing from lab/kernel.fragment"
            );
        }
    }
    Ok(())
}

fn compile(source: &Path, log: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    progress::step("Building the iommufd kernel (4 to 15 minutes, once)", |step| {
        let mut lines: usize = 0;
        let mut command = make(source);
        command.arg(format!("-j{jobs}")).arg("bzImage");
        command::logged_ok(&mut command, log, "Building the kernel", |line| {
            lines = lines.saturating_add(1);
            let percent = (lines.saturating_mul(100) / LINES).min(99);
            step.at(&format!("about {percent} %  {}", line.trim()));
        })
    })
}
