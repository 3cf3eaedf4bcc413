//! `throughway image`: disk images made, looked at and changed.

mod change;
mod copy;
mod look;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use vmm::disk::{self, Access, Chain, Format, Rules};

use super::Exit;
use super::failure::{Failure, ended};
use crate::config::Size;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what an image is, and what it stands on.
    Info(look::Arguments),
    /// Make a new, empty image, or one that stands on another.
    Create(change::CreateArguments),
    /// Copy an image into a new one, of the same or another format, without what it stands on.
    Convert(copy::Arguments),
    /// Make the disk of an image larger or smaller, in place.
    Resize(change::ResizeArguments),
    /// Look whether the metadata of an image agree with themselves. Ends with 1 when they do not.
    Check(look::Arguments),
}

/// What an image is, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArgument {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl From<FormatArgument> for Format {
    fn from(format: FormatArgument) -> Self {
        match format {
            FormatArgument::Raw => Self::Raw,
            FormatArgument::Qcow2 => Self::Qcow2,
        }
    }
}

/// Where backing files may be.
#[derive(Args, Debug)]
struct Folders {
    /// A folder besides that of the image where backing files may be; may be said several times.
    #[arg(long, value_name = "FOLDER")]
    allow_backing: Vec<PathBuf>,
}

impl Folders {
    fn rules(&self, access: Access) -> Rules {
        Rules { folders: self.allow_backing.clone(), ..Rules::new(access) }
    }
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    ended(match &arguments.command {
        Command::Info(arguments) => look::info(arguments),
        Command::Create(arguments) => change::create(arguments),
        Command::Convert(arguments) => copy::convert(arguments),
        Command::Resize(arguments) => change::resize(arguments),
        Command::Check(arguments) => look::check(arguments),
    })
}

impl From<disk::Error> for Failure {
    fn from(error: disk::Error) -> Self {
        use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
        match &error {
            disk::Error::Io { source, .. }
                if !matches!(source.kind(), NotFound | PermissionDenied | NotADirectory) =>
            {
                Self::Fault(error.into())
            }
            _ => Self::Refused(error.into()),
        }
    }
}

fn refused(message: String) -> Failure {
    Failure::Refused(anyhow::Error::msg(message))
}

/// The format that a name promises.
fn by_name(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "qcow2" => Some(Format::Qcow2),
        "raw" | "img" | "iso" => Some(Format::Raw),
        _ => None,
    }
}

/// The format of an image that is there: as it was said, else as both its name and its first bytes have it.
fn of_existing(path: &Path, said: Option<FormatArgument>) -> Result<Format, Failure> {
    if let Some(format) = said {
        return Ok(format.into());
    }
    let mut magic = [0; 4];
    let mut file = File::open(path).map_err(|error| {
        Failure::Refused(anyhow::Error::new(error).context(format!("Opening the image {}", path.display())))
    })?;
    let begins = file.read_exact(&mut magic).is_ok() && magic == *b"QFI\xfb";
    let content = if begins { Format::Qcow2 } else { Format::Raw };
    match by_name(path) {
        Some(name) if name == content => Ok(name),
        Some(name) => Err(refused(format!(
            "{} is named like a {} image and does not begin like one; say --format {} or --format {}",
            path.display(),
            name.name(),
            name.name(),
            content.name()
        ))),
        None => Err(refused(format!(
            "{}: its name does not say what it is; say --format raw or --format qcow2",
            path.display()
        ))),
    }
}

/// The format of an image that is to be.
fn of_new(path: &Path, said: Option<FormatArgument>, option: &str) -> Result<Format, Failure> {
    said.map(Format::from).or_else(|| by_name(path)).ok_or_else(|| {
        refused(format!(
            "{}: its name does not say what it shall be; say {option} raw or {option} qcow2",
            path.display()
        ))
    })
}

fn open(path: &Path, format: Format, rules: &Rules) -> Result<Chain, Failure> {
    Ok(Chain::open(path, format, rules)?)
}

/// A size for a person: in the largest unit that leaves no rest, and always in bytes.
fn size_text(bytes: u64) -> String {
    match Size(bytes).to_string() {
        text if text.ends_with("bytes") => text,
        text => format!("{text} ({bytes} bytes)"),
    }
}
