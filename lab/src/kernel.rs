//! The two kernels of the lab, for L1 and L2 alike.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::progress;
use crate::sysroot::Sysroot;

/// Which kernel the box and its guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Flavour {
    /// Debian's stock kernel: VFIO by container and group (type1), drivers as modules.
    Debian,
    /// Built from Debian's source with lab/kernel.fragment: iommufd and VFIO
    /// character devices as well, drivers built in.
    Iommufd,
}

impl Flavour {
    /// The name on the command line and in scenario headers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Iommufd => "iommufd",
        }
    }
}

/// A kernel ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Which of the two.
    pub flavour: Flavour,
    /// The uncompressed ELF image, booted through PVH.
    pub vmlinux: PathBuf,
    /// The same kernel as a bzImage.
    pub bzimage: PathBuf,
    /// Folder with `lib/modules/<release>`, when drivers are modules.
    pub modules: Option<PathBuf>,
    /// Names this build of the kernel.
    pub key: String,
}

/// Debian's kernel out of the cache, downloaded and unpacked when missing.
pub fn debian(cache: &Cache, sysroot: &Sysroot) -> Result<Kernel> {
    let release = apt::Release::detect()?;
    let folder = cache.folder("kernel-debian", &release.codename, |scratch| {
        progress::note("The lab needs Debian's kernel package (igb, igbvf, VFIO and KVM drivers); it is unpacked, not installed");
        let apt = Apt::new(cache)?;
        let _lock = cache.lock("apt")?;
        apt.update()?;
        let images = apt.depends("linux-image-amd64", "linux-image-")?;
        let Some(image) = images.first() else { bail!("linux-image-amd64 depends on no kernel image") };
        let package = progress::step(&format!("Downloading {image}"), |_| apt.download(image, scratch))?;
        progress::step(&format!("Unpacking {image}"), |_| {
            apt::unpack(&package, scratch)?;
            fs::remove_file(&package).with_context(|| format!("Removing {}", package.display()))?;
            if scratch.join("lib").exists() && !scratch.join("usr/lib/modules").exists() {
                fs::create_dir_all(scratch.join("usr/lib")).context("Creating usr/lib")?;
                fs::rename(scratch.join("lib/modules"), scratch.join("usr/lib/modules")).context("Moving the modules")?;
            }
            let bzimage = find_bzimage(scratch)?;
            cut_vmlinux(&bzimage, &scratch.join("vmlinux"), sysroot)?;
            depmod(scratch, sysroot)
        })
    })?;
    let bzimage = find_bzimage(&folder)?;
    let key = bzimage.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    Ok(Kernel {
        flavour: Flavour::Debian,
        vmlinux: folder.join("vmlinux"),
        bzimage,
        modules: Some(folder.join("usr/lib/modules").join(&key)),
        key,
    })
}

fn find_bzimage(folder: &Path) -> Result<PathBuf> {
    let boot = folder.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("Reading {}", boot.display()))?;
    let mut images = entries.filter_map(|entry| Some(entry.ok()?.path()));
    images
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .with_context(|| format!("No vmlinuz in {}", boot.display()))
}

fn depmod(folder: &Path, sysroot: &Sysroot) -> Result<()> {
    let modules = folder.join("usr/lib/modules");
    let entries = fs::read_dir(&modules).with_context(|| format!("Reading {}", modules.display()))?;
    for entry in entries {
        let release = entry.context("Reading the modules folder")?.file_name();
        // depmod looks below lib/modules of the folder it is given.
        let mut command = sysroot.command("/usr/sbin/depmod");
        command.arg("-b").arg(folder.join("usr")).arg(&release);
        crate::command::output(&mut command, "Indexing kernel modules")?;
    }
    Ok(())
}

/// Cuts the uncompressed kernel out of a bzImage: the payload's place and size
/// stand in the setup header (Documentation/arch/x86/boot.rst, payload_offset).
fn cut_vmlinux(bzimage: &Path, vmlinux: &Path, sysroot: &Sysroot) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("Reading {}", bzimage.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    if !payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bail!("{} is not compressed with zstd, as Debian's kernels are", bzimage.display());
    }
    let packed = vmlinux.with_extension("zst");
    fs::write(&packed, payload).with_context(|| format!("Writing {}", packed.display()))?;
    let mut command = sysroot.command("/usr/bin/zstd");
    command.args(["-q", "-d", "-f", "-o"]).arg(vmlinux).arg(&packed);
    crate::command::output(&mut command, "Unpacking the kernel")?;
    fs::remove_file(&packed).with_context(|| format!("Removing {}", packed.display()))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match usize::from(*image.get(0x1f1)?) {
        0 => 4,
        sectors => sectors,
    };
    let start = sectors.checked_add(1)?.checked_mul(512)?.checked_add(word(0x248)?)?;
    // The last four bytes are the unpacked size, not part of the compressed stream.
    let length = word(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_by_the_setup_header() {
        let mut image = vec![0_u8; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x20_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&9_u32.to_le_bytes());
        image[0x420..0x425].copy_from_slice(b"hello");
        assert_eq!(payload(&image), Some(&b"hello"[..]));
        assert_eq!(payload(&image[..0x422]), None);
        assert_eq!(payload(b"MZ"), None);
    }
}
