//! `throughway image create` and `throughway image resize`.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use vmm::disk::{Access, Chain, Format, NewImage, Preallocate, Qcow2Header};

use super::{Exit, Failure, Folders, FormatArgument, copy};
use crate::config::Size;

#[derive(Args)]
pub(super) struct CreateArguments {
    /// The image that is made.
    file: PathBuf,
    /// Size of its disk, such as 20GiB; that of the backing file where it is not said.
    size: Option<Size>,
    /// What it shall be. Where it is not said, its name does.
    #[arg(long, value_enum)]
    format: Option<FormatArgument>,
    /// Have what is not written in the image read from this one, which must not change any more; qcow2 only.
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// What the backing file is. Where it is not said, name and content must agree.
    #[arg(long, value_enum)]
    backing_format: Option<FormatArgument>,
    /// Unit of allocation of a qcow2 image.
    #[arg(long, default_value = "64KiB")]
    cluster_size: Size,
    /// What is set aside on the host's disk from the start.
    #[arg(long, value_enum, default_value = "off")]
    preallocate: PreallocateArgument,
    /// Replace the image where there is one already.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    folders: Folders,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PreallocateArgument {
    /// Nothing.
    Off,
    /// All of it.
    Full,
}

#[derive(Args)]
pub(super) struct ResizeArguments {
    /// The image.
    file: PathBuf,
    /// New size of its disk, such as 40GiB; or by how much it grows, such as +10GiB.
    size: String,
    /// What it is. Where it is not said, name and content must agree.
    #[arg(long, value_enum)]
    format: Option<FormatArgument>,
    /// Make it smaller: what lies behind the new end is lost.
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    folders: Folders,
}

/// A cluster size for the library, which refuses what is none.
pub(super) fn cluster_size(size: Size) -> u32 {
    u32::try_from(size.0).unwrap_or(0)
}

pub(super) fn create(arguments: &CreateArguments) -> Result<Exit, Failure> {
    let file = &arguments.file;
    let format = super::of_new(file, arguments.format, "--format")?;
    let base = arguments.backing.as_deref().map(|name| backing(arguments, file, name)).transpose()?;
    let size = match (arguments.size, &base) {
        (Some(size), _) => size.0,
        (None, Some((_, _, size))) => *size,
        (None, None) => {
            return Err(super::refused(format!("{}: say how large its disk shall be", file.display())));
        }
    };
    let _theirs = copy::replaced(file, arguments.force, std::iter::empty())?;
    let preallocate = match arguments.preallocate {
        PreallocateArgument::Off => Preallocate::Off,
        PreallocateArgument::Full => Preallocate::Full,
    };
    let new = NewImage::begin(file)?;
    let image = match (format, base) {
        (Format::Raw, None) => new.raw(size, preallocate)?,
        (Format::Raw, Some(_)) => {
            return Err(super::refused(format!("{}: a raw image cannot stand on another", file.display())));
        }
        (Format::Qcow2, base) => {
            let base = base.map(|(name, format, _)| (name, format));
            new.qcow2(size, cluster_size(arguments.cluster_size), base, preallocate)?
        }
    };
    image.flush().with_context(|| format!("Writing {}", file.display()))?;
    drop(image);
    new.publish(arguments.force)?;
    Ok(Exit::Success)
}

/// The backing file as the header will have it, its format, and the size of its disk.
fn backing(arguments: &CreateArguments, file: &Path, name: &Path) -> Result<(String, Format, u64), Failure> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let path = folder.join(name);
    let format = super::of_existing(&path, arguments.backing_format)?;
    let chain = super::open(&path, format, &arguments.folders.rules(Access::Read))?;
    let text = name.to_str().filter(|text| !text.split('/').next().is_some_and(|first| first.contains(':')));
    let text =
        text.ok_or_else(|| super::refused(format!("{}: a backing file needs a plain name", name.display())))?;
    let real = |path: &Path| {
        path.canonicalize()
            .with_context(|| format!("Looking at {}", path.display()))
            .map_err(Failure::Refused)
    };
    let at = real(&path)?;
    let home = if folder == Path::new("") { Path::new(".") } else { folder };
    let mut allowed = vec![real(home)?];
    for folder in &arguments.folders.allow_backing {
        allowed.push(real(folder)?);
    }
    if !allowed.iter().any(|folder| at.starts_with(folder)) {
        return Err(super::refused(format!(
            "{} would stand on {}, which is outside its folder; put it there, or say --allow-backing, here and wherever the image is used",
            file.display(),
            at.display()
        )));
    }
    // Replaced, the chain would be a loop, and what is in it lost.
    let own = file.canonicalize().ok();
    if let Some(own) = own.filter(|own| stands_on(&chain, own)) {
        return Err(super::refused(format!(
            "{} cannot stand on {}, which stands on it; give the new image another name",
            own.display(),
            at.display()
        )));
    }
    Ok((text.to_owned(), format, chain.image()?.size()))
}

/// Whether a file is one of a disk's, by whatever name.
fn stands_on(chain: &Chain, file: &Path) -> bool {
    let same = |about: &Metadata| (about.dev(), about.ino());
    let Ok(own) = file.metadata() else { return false };
    chain.layers().iter().any(|layer| layer.file.metadata().is_ok_and(|about| same(&about) == same(&own)))
}

pub(super) fn resize(arguments: &ResizeArguments) -> Result<Exit, Failure> {
    let file = &arguments.file;
    let format = super::of_existing(file, arguments.format)?;
    let (more, text) = match arguments.size.strip_prefix('+') {
        Some(text) => (true, text),
        None => (false, arguments.size.as_str()),
    };
    let wanted: Size = text.parse().map_err(|error| Failure::Refused(anyhow::Error::new(error)))?;
    let chain = super::open(file, format, &arguments.folders.rules(Access::Write))?;
    let upper = chain.layers().first().filter(|layer| layer.format == Format::Qcow2);
    if let Some(layer) = upper {
        let header =
            Qcow2Header::read(&layer.file).with_context(|| format!("Looking at {}", file.display()))?;
        if header.snapshots > 0 {
            let message = format!(
                "{} has internal snapshots, and they would not fit another size: delete them with qemu-img snapshot -d",
                file.display()
            );
            return Err(super::refused(message));
        }
    }
    let mut image = chain.image()?;
    let before = image.size();
    let size = if more { before.saturating_add(wanted.0) } else { wanted.0 };
    if size > vmm::disk::LARGEST {
        return Err(super::refused(format!("{} cannot be that large", file.display())));
    }
    if size < before && !arguments.shrink {
        return Err(super::refused(format!(
            "{} has {}, and what lies behind {} would be lost: say --shrink if that is meant",
            file.display(),
            super::size_text(before),
            Size(size)
        )));
    }
    image
        .resize(size)
        .and_then(|()| image.flush())
        .with_context(|| format!("Resizing {}", file.display()))?;
    Ok(Exit::Success)
}
