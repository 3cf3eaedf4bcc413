//! A file and the backing files below it, opened under rules.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::direct::{self, DirectImage};
use super::{Access, DiskImage, Error, Format, LARGEST, Qcow2Header, RawImage, check, header, lock, qcow2};

/// The most files that a disk may be made of.
pub const MOST_LAYERS: usize = 16;

/// What opening a disk may do.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Reading or writing of the uppermost file; those below are only ever read.
    pub access: Access,
    /// Folders that backing files may be in, besides that of the uppermost file; what is below them counts too.
    pub folders: Vec<PathBuf>,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

impl Rules {
    /// For reading or writing, backing files beside the image only, through the page cache.
    pub fn new(access: Access) -> Self {
        Self { access, folders: Vec::new(), direct: false }
    }
}

/// One file of a disk.
#[derive(Debug)]
pub struct Layer {
    /// Open, and locked against others.
    pub file: File,
    /// What it is.
    pub format: Format,
    /// Where it was, for messages.
    pub path: PathBuf,
}

/// A disk as opened files, the uppermost first.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    access: Access,
    direct: bool,
}

impl Chain {
    /// Opens and locks `path`, which is `format`, and what it stands on.
    pub fn open(path: &Path, format: Format, rules: &Rules) -> Result<Self, Error> {
        let real = path.canonicalize().map_err(Error::io("Opening the image", path))?;
        let mut allowed = vec![real.parent().unwrap_or(Path::new("/")).to_owned()];
        for folder in &rules.folders {
            allowed.push(folder.canonicalize().map_err(Error::io("Looking at the folder", folder))?);
        }
        let mut seen = BTreeSet::new();
        let mut layers: Vec<Layer> = Vec::new();
        let mut next = Some((real, format));
        while let Some((at, format)) = next {
            // Messages are about the file that the person named, unless it is one below.
            let named = if layers.is_empty() { path } else { &at };
            if layers.len() == MOST_LAYERS {
                let why = format!(
                    "is below {MOST_LAYERS} other images, the most that are allowed: flatten them with `throughway image convert`"
                );
                return Err(Error::refused(named, why));
            }
            let access = if layers.is_empty() { rules.access } else { Access::Read };
            let file = open(&at, named, access)?;
            let metadata = file.metadata().map_err(Error::io("Looking at", named))?;
            if !seen.insert((metadata.dev(), metadata.ino())) {
                return Err(Error::refused(named, "stands on itself: its chain of backing files is a loop"));
            }
            lock::lock(&file, named, access)?;
            next = match format {
                Format::Raw => check_raw(&file, named).map(|()| None)?,
                Format::Qcow2 => below(&file, &at, named, access, &allowed)?,
            };
            layers.push(Layer { file, format, path: named.to_owned() });
        }
        Ok(Self { layers, access: rules.access, direct: rules.direct })
    }

    /// What was opened, handed over by whoever did: the same layers, with the same locks.
    ///
    /// # Errors
    /// There is no layer, too many, or one that is neither a file nor a block device.
    pub fn of(layers: Vec<Layer>, access: Access, direct: bool) -> Result<Self, Error> {
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            return Err(Error::refused(Path::new("-"), format!("has {} files", layers.len())));
        }
        for Layer { file, path, .. } in &layers {
            is_storage(file, path)?;
        }
        Ok(Self { layers, access, direct })
    }

    /// The one file of a raw disk that another program has opened for reading; locked here.
    ///
    /// # Errors
    /// It is no disk, or somebody writes to it.
    pub fn of_medium(file: File, path: &Path) -> Result<Self, Error> {
        is_storage(&file, path)?;
        lock::lock(&file, path, Access::Read)?;
        check_raw(&file, path)?;
        let layer = Layer { file, format: Format::Raw, path: path.to_owned() };
        Self::of(vec![layer], Access::Read, false)
    }

    /// Its layers, for who takes them elsewhere.
    pub fn into_layers(self) -> Vec<Layer> {
        self.layers
    }

    /// Whether it is to bypass the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The files, the uppermost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether the disk is one raw file.
    pub fn is_raw(&self) -> bool {
        matches!(self.layers.as_slice(), [Layer { format: Format::Raw, .. }])
    }

    /// Not earlier: tables are read in pieces that the host's disk would not take.
    fn bypass_cache(&self) -> Result<(), Error> {
        for Layer { file, path, .. } in self.layers.iter().filter(|_| self.direct) {
            rustix::fs::fcntl_setfl(file, OFlags::DIRECT)
                .map_err(|errno| Error::io("Bypassing the host's page cache for", path)(errno.into()))?;
        }
        Ok(())
    }

    /// The disk. A qcow2 image that will be written to is looked through first: with tables that contradict each other,
    /// writing would lose more of it, and the library is not made for them.
    pub fn image(self) -> Result<Box<dyn DiskImage>, Error> {
        if let [Layer { file, path, format: Format::Qcow2 }, ..] = self.layers.as_slice()
            && self.access == Access::Write
        {
            sound(file, path)?;
        }
        self.bypass_cache()?;
        let (layers, access, direct) = (self.layers, self.access, self.direct);
        let [Layer { format: Format::Raw, file, path }] = layers.as_slice() else {
            return Ok(Box::new(qcow2::open(layers, access, direct)?));
        };
        // A guest can write the header of another format into its own raw disk, and would read any file of the host by it, if
        // what it wrote were believed.
        if header::looks_like_qcow2(file).unwrap_or(false) {
            tracing::warn!(
                "{} is used as raw, as it is said to be, and begins like a qcow2 image",
                path.display()
            );
        }
        let failed = || Error::io("Looking at", path);
        let raw = RawImage::new(file.try_clone().map_err(failed())?).map_err(failed())?;
        if !direct {
            return Ok(Box::new(raw));
        }
        // Past the page cache the library aligns what it is given.
        let by_sectors = direct::takes_sectors(file);
        let aligning = qcow2::open(layers, access, true)?;
        Ok(if by_sectors { Box::new(DirectImage::new(raw, aligning)) } else { Box::new(aligning) })
    }
}

fn sound(file: &File, path: &Path) -> Result<(), Error> {
    let found = check(file, &mut |_| {}).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Error::refused(path, error.to_string()),
        _ => Error::io("Checking", path)(error),
    })?;
    match found.told.first() {
        Some(first) if found.errors > 0 => {
            let errors = found.errors;
            Err(Error::refused(
                path,
                format!(
                    "has {errors} errors in its metadata ({first}): repair it with qemu-img check -r all"
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Opens a path that is resolved already: a symbolic link in it now was not there before.
fn open(path: &Path, named: &Path, access: Access) -> Result<File, Error> {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    // Never waits for the writer of a named pipe.
    flags |= OFlags::NONBLOCK;
    flags |= if access == Access::Write { OFlags::RDWR } else { OFlags::RDONLY };
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(|errno| Error::io("Opening the image", named)(errno.into()))?;
    let file = File::from(file);
    is_storage(&file, named)?;
    // An io_uring would otherwise answer with EAGAIN where it ought to wait for the disk.
    rustix::fs::fcntl_setfl(&file, OFlags::empty())
        .map_err(|errno| Error::io("Setting the flags of", named)(errno.into()))?;
    Ok(file)
}

fn is_storage(file: &File, named: &Path) -> Result<(), Error> {
    let kind = file.metadata().map_err(Error::io("Looking at", named))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(Error::refused(named, "is neither a file nor a block device"))
}

fn check_raw(file: &File, path: &Path) -> Result<(), Error> {
    let size = raw_size(file).map_err(Error::io("Looking at", path))?;
    if size > LARGEST {
        return Err(Error::refused(
            path,
            format!("is a disk of {size} bytes; at most {LARGEST} are allowed"),
        ));
    }
    Ok(())
}

/// Size of a file or a block device in bytes.
pub(super) fn raw_size(mut file: &File) -> std::io::Result<u64> {
    use std::io::Seek;
    file.seek(std::io::SeekFrom::End(0))
}

/// What the qcow2 image `file` stands on.
fn below(
    file: &File,
    at: &Path,
    named: &Path,
    access: Access,
    allowed: &[PathBuf],
) -> Result<Option<(PathBuf, Format)>, Error> {
    let header = Qcow2Header::read(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Error::refused(named, error.to_string()),
        _ => Error::io("Reading the header of", named)(error),
    })?;
    if access == Access::Write && header.dirty {
        let why = "was not closed cleanly and its reference counts may be wrong: repair it with qemu-img check -r all";
        return Err(Error::refused(named, why));
    }
    let Some(name) = &header.backing_file else { return Ok(None) };
    let format = match header.backing_format.as_deref() {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => {
            return Err(Error::refused(
                named,
                format!("stands on an image of the format {other:?}; raw and qcow2 are known"),
            ));
        }
        None => {
            let why = format!(
                "stands on {name:?} and does not say of which format that is: say it with qemu-img rebase -u -b {name} -F FORMAT"
            );
            return Err(Error::refused(named, why));
        }
    };
    Ok(Some((resolve(name, at, named, allowed)?, format)))
}

fn resolve(name: &str, at: &Path, named: &Path, allowed: &[PathBuf]) -> Result<PathBuf, Error> {
    // `nbd:`, `json:`, `fat:`: QEMU would open far more than files.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(Error::refused(named, format!("stands on {name:?}, which is not the path of a file")));
    }
    let path = at.parent().unwrap_or(Path::new("/")).join(name);
    let outside = |path: &Path| {
        let why = format!(
            "stands on {}, which is outside {} and the folders that are allowed",
            path.display(),
            allowed.first().map(|folder| folder.display().to_string()).unwrap_or_default(),
        );
        Error::refused(named, why)
    };
    let real = match path.canonicalize() {
        Ok(real) => real,
        // Whether a file exists outside is nothing that an image's author may learn.
        Err(_) if !allowed.iter().any(|folder| path.starts_with(folder)) => return Err(outside(&path)),
        Err(source) => return Err(Error::Io { doing: "Opening the backing file", path, source }),
    };
    if allowed.iter().any(|folder| real.starts_with(folder)) { Ok(real) } else { Err(outside(&real)) }
}
