//! A folder with the programs the lab uses, unpacked from Debian packages
//! together with all their libraries: it depends on nothing installed here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Cache};
use crate::progress;

/// What is unpacked, and why each is needed.
const PACKAGES: [(&str, &str); 20] = [
    ("qemu-system-x86", "is the box: emulates the IOMMU, the SR-IOV NICs and a CPU with virtualization"),
    ("busybox-static", "the box's shell tools"),
    ("dash", "the box's /bin/sh"),
    ("iproute2", "shows and sets links and VFs"),
    ("kmod", "loads kernel modules by their dependencies"),
    ("pciutils", "shows PCI functions"),
    ("iperf3", "measures throughput"),
    ("ethtool", "shows driver, link and interrupt state"),
    ("nvme-cli", "brings NVMe virtual functions online"),
    ("network-manager", "keeps a link beside Throughway, in a scenario"),
    ("dbus-daemon", "carries what nmcli tells it"),
    ("driverctl", "lists driver overrides, to be compared"),
    ("bash", "runs driverctl"),
    ("qemu-utils", "checks disk images of guests"),
    ("eject", "ejects a CD, in a guest"),
    ("fio", "writes to a guest's disk, and verifies what it reads"),
    ("genisoimage", "makes a CD for a guest"),
    ("ovmf", "UEFI firmware for guests, as the distribution has it"),
    ("zstd", "unpacks the kernel"),
    ("xz-utils", "unpacks kernel modules"),
];

/// Bumped when the way of unpacking changes.
const LAYOUT: &str = "2";

/// The unpacked programs.
#[derive(Debug, Clone)]
pub struct Sysroot {
    root: PathBuf,
    key: String,
}

impl Sysroot {
    /// Finds the box's programs in the cache, or downloads and unpacks them.
    pub fn open(cache: &Cache) -> Result<Self> {
        Self::of(cache, &PACKAGES)
    }

    /// A sysroot with these `packages` (name, and why it is needed).
    pub fn of(cache: &Cache, packages: &[(&str, &str)]) -> Result<Self> {
        let release = apt::Release::detect()?;
        let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
        let key = format!("{}-{}", release.codename, cache::key(names.iter().chain(&[LAYOUT])));
        let root = cache.folder("sysroot", &key, |scratch| {
            progress::note("The lab needs these Debian packages; they are unpacked into the cache folder, not installed:");
            for (name, why) in packages {
                progress::note(&format!("  {name}: {why}"));
            }
            let apt = Apt::new(cache)?;
            let _lock = cache.lock("apt")?;
            apt.update()?;
            let archives = scratch.join("archives");
            let files = progress::step("Downloading the programs", |_| apt.download_closure(&names, &archives))?;
            progress::step(&format!("Unpacking {} packages", files.len()), |_| {
                merged_usr(scratch)?;
                files.iter().try_for_each(|file| apt::unpack(file, scratch))?;
                keep_links_inside(scratch, Path::new(""))
            })?;
            fs::remove_dir_all(&archives).with_context(|| format!("Removing {}", archives.display()))
        })?;
        Ok(Self { root, key })
    }

    /// The folder, laid out like a root file system.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names this set of programs.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A path in the sysroot, by its absolute path there.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// By its real path: the usual one is an absolute link, out of the sysroot.
    fn loader(&self) -> PathBuf {
        self.path("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    }

    fn libraries(&self) -> String {
        let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib"];
        folders.map(|folder| self.path(folder).display().to_string()).join(":")
    }

    /// The arguments that run a dynamically linked program of the sysroot with
    /// the sysroot's own loader and libraries.
    #[must_use]
    pub fn run_with(&self, program: &str) -> Vec<String> {
        vec![
            self.loader().display().to_string(),
            "--library-path".to_owned(),
            self.libraries(),
            self.path(program).display().to_string(),
        ]
    }

    /// A command that runs a program of the sysroot.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let arguments = self.run_with(program);
        let mut command = Command::new(self.loader());
        command.args(arguments.iter().skip(1));
        command
    }

    /// The libraries `program` is linked with: name as asked for, and file.
    /// Empty for a static program.
    pub fn libraries_of(&self, program: &str) -> Result<Vec<(String, PathBuf)>> {
        // ld.so(8): --verify succeeds for what is dynamically linked and for this loader.
        let verified = Command::new(self.loader()).arg("--verify").arg(self.path(program)).status();
        if !verified.with_context(|| format!("Asking how {program} is linked"))?.success() {
            return Ok(Vec::new());
        }
        let mut command = Command::new(self.loader());
        command.arg("--library-path").arg(self.libraries()).arg("--list").arg(self.path(program));
        let text = crate::command::text(&mut command, &format!("Listing the libraries of {program}"))?;
        let mut libraries = Vec::new();
        for (name, rest) in text.lines().filter_map(|line| line.trim().split_once(" => ")) {
            let path = rest.split(" (").next().unwrap_or_default();
            if path.is_empty() || path == "not found" {
                bail!("{program} needs {name}, which none of the unpacked packages has");
            }
            libraries.push((name.to_owned(), PathBuf::from(path)));
        }
        Ok(libraries)
    }
}

/// Makes the absolute links below `folder` of a root file system relative, so that they lead to the root's own files and not to
/// those of the machine.
fn keep_links_inside(root: &Path, folder: &Path) -> Result<()> {
    let here = root.join(folder);
    for entry in fs::read_dir(&here).with_context(|| format!("Reading {}", here.display()))? {
        let entry = entry.with_context(|| format!("Reading {}", here.display()))?;
        let (path, kind) = (entry.path(), entry.file_type().context("Looking at an unpacked file")?);
        if kind.is_dir() {
            keep_links_inside(root, &folder.join(entry.file_name()))?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).with_context(|| format!("Reading {}", path.display()))?;
            if let Ok(target) = target.strip_prefix("/") {
                let up: PathBuf = folder.components().map(|_| "..").collect();
                fs::remove_file(&path)
                    .and_then(|()| symlink(up.join(target), &path))
                    .with_context(|| format!("Linking {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Makes /bin, /sbin, /lib and /lib64 links into /usr, as on an installed Debian.
fn merged_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let real = root.join("usr").join(name);
        fs::create_dir_all(&real).with_context(|| format!("Creating {}", real.display()))?;
        let link = root.join(name);
        symlink(format!("usr/{name}"), &link).with_context(|| format!("Linking {}", link.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_sysroots_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        merged_usr(root).unwrap();
        fs::write(root.join("usr/bin/kmod-of-the-sysroot"), "its own").unwrap();
        symlink("/bin/kmod-of-the-sysroot", root.join("usr/sbin/depmod")).unwrap();
        symlink("nowhere", root.join("usr/sbin/relative")).unwrap();
        keep_links_inside(root, Path::new("")).unwrap();
        assert_eq!(fs::read_to_string(root.join("sbin/depmod")).unwrap(), "its own");
        assert_eq!(fs::read_link(root.join("usr/sbin/relative")).unwrap(), Path::new("nowhere"));
        assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
    }
}
