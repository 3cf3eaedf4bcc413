//! `throughway image convert`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use vmm::disk::{Access, Chain, DiskImage, Extent, Format, NewImage, Preallocate, Rules};

use super::{Exit, Failure, Folders, FormatArgument, look};
use crate::config::Size;

/// Copied at once.
const CHUNK: usize = 2 << 20;
/// Zeroes of this length are not stored.
const BLOCK: usize = 64 << 10;

#[derive(Args)]
pub(super) struct Arguments {
    /// The image that is copied.
    source: PathBuf,
    /// The image that is made.
    target: PathBuf,
    /// What the source is. Where it is not said, name and content must agree.
    #[arg(long, value_enum)]
    format: Option<FormatArgument>,
    /// What the target shall be. Where it is not said, its name does.
    #[arg(long, value_enum)]
    to: Option<FormatArgument>,
    /// Unit of allocation of a qcow2 target.
    #[arg(long, default_value = "64KiB")]
    cluster_size: Size,
    /// Replace the target where there is one already.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    folders: Folders,
}

pub(super) fn convert(arguments: &Arguments) -> Result<Exit, Failure> {
    let Arguments { source, target, force, .. } = arguments;
    let format = super::of_existing(source, arguments.format)?;
    let to = super::of_new(target, arguments.to, "--to")?;
    let chain = super::open(source, format, &arguments.folders.rules(Access::Read))?;
    let _theirs = replaced(target, *force, chain.layers().iter().map(|layer| &layer.file))?;
    let from = chain.image()?;
    let new = NewImage::begin(target)?;
    let image = match to {
        Format::Raw => new.raw(from.size(), Preallocate::Off)?,
        Format::Qcow2 => new.qcow2(
            from.size(),
            super::change::cluster_size(arguments.cluster_size),
            None,
            Preallocate::Off,
        )?,
    };
    let bar = look::bar(from.size(), "Copying", target, "{bytes} of {total_bytes}, {eta}");
    let copied = copy(&*from, &*image, source, target, &bar);
    bar.finish_and_clear();
    copied?;
    drop(image);
    new.publish(*force)?;
    Ok(Exit::Success)
}

/// Locks what will be replaced, so that no guest loses it from under it.
pub(super) fn replaced<'a>(
    target: &Path,
    force: bool,
    sources: impl Iterator<Item = &'a File>,
) -> Result<Option<Chain>, Failure> {
    let Ok(there) = std::fs::metadata(target) else { return Ok(None) };
    if !force {
        let message =
            format!("{} exists already, and is left as it is: say --force to replace it", target.display());
        return Err(super::refused(message));
    }
    if !there.is_file() {
        return Err(super::refused(format!("{} is not a file, and is left as it is", target.display())));
    }
    for source in sources {
        let source = source.metadata().context("Looking at the source")?;
        if (source.dev(), source.ino()) == (there.dev(), there.ino()) {
            let message = format!("{} cannot be both what is copied and what is made", target.display());
            return Err(super::refused(message));
        }
    }
    Ok(Some(super::open(target, Format::Raw, &Rules::new(Access::Write))?))
}

fn copy(
    from: &dyn DiskImage,
    to: &dyn DiskImage,
    source: &Path,
    target: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let reading = || format!("Reading {}", source.display());
    let writing = || format!("Writing {}; nothing is left of it", target.display());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < from.size() {
        let (extent, length) = from.extent(at).with_context(reading)?;
        anyhow::ensure!(length > 0, "Reading {}: it ends too early", source.display());
        let end = at.saturating_add(length);
        while extent == Extent::Data && at < end {
            let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
            let chunk = buffer.get_mut(..count).unwrap_or_default();
            from.read_at(chunk, at).with_context(reading)?;
            for block in chunk.chunks(BLOCK) {
                if block.iter().any(|byte| *byte != 0) {
                    to.write_at(block, at).with_context(writing)?;
                }
                at = at.saturating_add(u64::try_from(block.len()).unwrap_or_default());
            }
            bar.set_position(at);
        }
        at = end;
        bar.set_position(at);
    }
    to.flush().with_context(writing)
}
