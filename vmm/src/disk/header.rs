//! The header of a qcow2 image, read with suspicion before the library sees the file (QEMU, `docs/interop/qcow2.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::LARGEST;

/// `QFI\xfb`.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// A first-level table of 32 MiB, as QEMU bounds it.
const MOST_L1_ENTRIES: u32 = (32 << 20) / 8;
/// A refcount table of 8 MiB, as QEMU bounds it.
const MOST_REFCOUNT_TABLE: u64 = 8 << 20;
const LONGEST_NAME: u32 = 1023;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What the header says, checked against bounds; offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk.
    pub size: u64,
    /// The unit of allocation is `1 << cluster_bits`, 9 to 21.
    pub cluster_bits: u32,
    /// Width of a reference count is `1 << refcount_order` bits, 0 to 6.
    pub refcount_order: u32,
    /// Entries of the first-level table.
    pub l1_entries: u32,
    /// Where the first-level table is.
    pub l1_offset: u64,
    /// Where the refcount table is.
    pub refcount_table_offset: u64,
    /// How many clusters it has.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// The name of the backing file, as it stands there.
    pub backing_file: Option<String>,
    /// The format of the backing file, as it stands there.
    pub backing_format: Option<String>,
    /// The image was not closed cleanly, and its reference counts may be wrong.
    pub dirty: bool,
}

impl Qcow2Header {
    /// Reads it. An error of kind `InvalidData` says in words that follow the file's name what is wrong.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; 104];
        let length = read_up_to(file, &mut bytes)?;
        if !bytes.starts_with(&MAGIC) || length < 72 {
            return Err(bad("is not a qcow2 image: say `raw` if that is what it is"));
        }
        let version = be32(&bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(bad(format!("is qcow2 of version {version}; versions 2 and 3 are known")));
        }
        let (features, refcount_order, header_length) = match version {
            2 => (0, 4, 72),
            _ if length < bytes.len() => return Err(bad("ends within its qcow2 header")),
            _ => (be64(&bytes, 72), be32(&bytes, 96), be32(&bytes, 100)),
        };
        refuse_features(features)?;
        let mut header = Self {
            version,
            size: be64(&bytes, 24),
            cluster_bits: be32(&bytes, 20),
            refcount_order,
            l1_entries: be32(&bytes, 36),
            l1_offset: be64(&bytes, 40),
            refcount_table_offset: be64(&bytes, 48),
            refcount_table_clusters: be32(&bytes, 56),
            snapshots: be32(&bytes, 60),
            backing_file: None,
            backing_format: None,
            dirty: features & DIRTY != 0,
        };
        if be32(&bytes, 32) != 0 {
            return Err(bad("is encrypted, which is not supported: decrypt it with qemu-img convert"));
        }
        header.check_bounds()?;
        header.backing_file = header.read_name(file, be64(&bytes, 8), be32(&bytes, 16))?;
        if version == 3 {
            header.read_extensions(file, header_length)?;
        }
        Ok(header)
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits.min(21)
    }

    fn check_bounds(&self) -> io::Result<()> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(bad(format!(
                "has clusters of 2^{} bytes; 2^9 to 2^21 are allowed",
                self.cluster_bits
            )));
        }
        if self.refcount_order > 6 {
            return Err(bad(format!(
                "has reference counts of 2^{} bits; at most 2^6 are allowed",
                self.refcount_order
            )));
        }
        if self.size > LARGEST {
            return Err(bad(format!("is a disk of {} bytes; at most {LARGEST} are allowed", self.size)));
        }
        let cluster = self.cluster_size();
        let needed = self.size.div_ceil(cluster.saturating_mul(cluster / 8));
        if self.l1_entries > MOST_L1_ENTRIES || u64::from(self.l1_entries) < needed {
            let entries = self.l1_entries;
            return Err(bad(format!(
                "has a first-level table of {entries} entries, and its size takes {needed}"
            )));
        }
        let table = u64::from(self.refcount_table_clusters).saturating_mul(cluster);
        if self.refcount_table_clusters == 0 || table > MOST_REFCOUNT_TABLE.max(cluster) {
            return Err(bad(format!("has a refcount table of {table} bytes; it is damaged")));
        }
        let placed = [(self.l1_offset, "first-level"), (self.refcount_table_offset, "refcount")];
        for (offset, name) in placed {
            if !offset.is_multiple_of(cluster) || offset > LARGEST || (offset == 0 && name == "refcount") {
                return Err(bad(format!("has its {name} table at {offset:#x}; it is damaged")));
            }
        }
        Ok(())
    }

    fn read_name(&self, file: &File, offset: u64, length: u32) -> io::Result<Option<String>> {
        if offset == 0 {
            return Ok(None);
        }
        let fits = offset.checked_add(length.into()).is_some_and(|end| end < self.cluster_size());
        if length == 0 || length > LONGEST_NAME || !fits {
            return Err(bad("has the name of its backing file out of place; it is damaged"));
        }
        let mut name = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut name, offset)?;
        match String::from_utf8(name) {
            Ok(name) if !name.contains('\0') => Ok(Some(name)),
            _ => Err(bad("has a backing file with a name that is no text")),
        }
    }

    fn read_extensions(&mut self, file: &File, header_length: u32) -> io::Result<()> {
        let mut at = u64::from(header_length);
        if at < 104 || !at.is_multiple_of(8) {
            return Err(bad(format!("says that its header has {at} bytes; it is damaged")));
        }
        let end = self.cluster_size();
        while at.saturating_add(8) <= end {
            let mut head = [0; 8];
            // A file may end where its extensions do.
            if file.read_exact_at(&mut head, at).is_err() {
                return Ok(());
            }
            let (kind, length) = (be32(&head, 0), be32(&head, 4));
            let data = at.saturating_add(8);
            let next = data.saturating_add(u64::from(length).next_multiple_of(8));
            if kind == EXTENSION_END {
                return Ok(());
            }
            if next > end {
                return Err(bad("has a header extension that does not fit; it is damaged"));
            }
            if kind == EXTENSION_BACKING_FORMAT {
                let mut name = vec![0; usize::try_from(length.min(LONGEST_NAME)).unwrap_or_default()];
                file.read_exact_at(&mut name, data)?;
                let name =
                    String::from_utf8(name).map_err(|_| bad("has a backing format that is no text"))?;
                if self.backing_format.replace(name).is_some() {
                    return Err(bad("says the format of its backing file twice"));
                }
            }
            at = next;
        }
        Ok(())
    }
}

fn refuse_features(features: u64) -> io::Result<()> {
    let why = if features & CORRUPT != 0 {
        "is marked as corrupt: look at it with qemu-img check"
    } else if features & DATA_FILE != 0 {
        "keeps its data in another file, which is not supported: convert it with qemu-img convert"
    } else if features & COMPRESSION != 0 {
        "is compressed with zstd, which is not supported: convert it with qemu-img convert -o compression_type=zlib"
    } else if features & EXTENDED_L2 != 0 {
        "has subclusters, which are not supported: convert it with qemu-img convert -o extended_l2=off"
    } else if features & !DIRTY != 0 {
        "needs a feature that is not known: convert it with qemu-img convert"
    } else {
        return Ok(());
    };
    Err(bad(why))
}

/// Whether a file begins as qcow2 images do.
pub(super) fn looks_like_qcow2(file: &File) -> io::Result<bool> {
    let mut bytes = [0; 4];
    Ok(read_up_to(file, &mut bytes)? == bytes.len() && bytes == MAGIC)
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(done..) {
        match file.read_at(rest, u64::try_from(done).unwrap_or_default()) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_be_bytes(*chunk))
}
