//! Whether the metadata of a qcow2 image agree with themselves: every reference counted anew and compared with the counts
//! that are stored. The library has no such thing. Only reads (QEMU, `docs/interop/qcow2.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Qcow2Header;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Told at most; all are counted.
const TOLD: usize = 8;
/// 4 TiB of an image with ordinary clusters.
const MOST_CLUSTERS: u64 = 64 << 20;
const MOST_SNAPSHOTS: u32 = 65536;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Contradictions by which data are or will be lost.
    pub errors: u64,
    /// Clusters that are set aside and belong to nobody: wasted room, and harmless.
    pub leaks: u64,
    /// Clusters of the disk that have data of their own.
    pub data_clusters: u64,
    /// How many of them are compressed.
    pub compressed_clusters: u64,
    /// The first of the errors in words.
    pub told: Vec<String>,
}

/// Looks through the image; `progress` is told of each part of a thousand of the first-level table that is done.
pub fn check(file: &File, progress: &mut dyn FnMut(u64)) -> io::Result<Findings> {
    let header = Qcow2Header::read(file)?;
    let mut walk = Walk::new(file, &header)?;
    walk.own(0, header.cluster_size());
    walk.own(header.l1_offset, u64::from(header.l1_entries).saturating_mul(8));
    walk.table(header.l1_offset, header.l1_entries, true, progress)?;
    walk.snapshots()?;
    let stored = walk.stored()?;
    walk.compare(&stored);
    walk.copied_flags(&stored)?;
    Ok(walk.findings)
}

struct Walk<'a> {
    file: &'a File,
    header: &'a Qcow2Header,
    length: u64,
    /// References to each cluster of the file, as they are counted here.
    counts: Vec<u32>,
    /// Clusters that nothing else may refer to: the image's own tables.
    own: Vec<u64>,
    /// Entries that say whether their cluster has one reference only: what points there, and what it says.
    flags: Vec<(u64, bool)>,
    findings: Findings,
}

impl<'a> Walk<'a> {
    fn new(file: &'a File, header: &'a Qcow2Header) -> io::Result<Self> {
        let length = super::chain::raw_size(file)?;
        let clusters = length.div_ceil(header.cluster_size());
        if clusters > MOST_CLUSTERS {
            return Err(bad("has too many clusters to be checked here: use qemu-img check"));
        }
        let mut autoclear = [0; 8];
        if header.version == 3 {
            file.read_exact_at(&mut autoclear, 88)?;
        }
        if u64::from_be_bytes(autoclear) & 1 != 0 {
            return Err(bad("has dirty bitmaps, which are not known here: use qemu-img check"));
        }
        let counts = vec![0; usize::try_from(clusters).unwrap_or_default()];
        Ok(Self {
            file,
            header,
            length,
            counts,
            own: Vec::new(),
            flags: Vec::new(),
            findings: Findings::default(),
        })
    }

    fn error(&mut self, what: impl FnOnce() -> String) {
        self.findings.errors = self.findings.errors.saturating_add(1);
        if self.findings.told.len() < TOLD {
            self.findings.told.push(what());
        }
    }

    /// A reference to what is at `offset`, for `length` bytes. Whether all of it is in the file.
    fn count(&mut self, offset: u64, length: u64) -> bool {
        let cluster = self.header.cluster_size();
        let end = self.length.next_multiple_of(cluster);
        let Some(last) = offset.checked_add(length).filter(|last| *last <= end) else {
            self.error(|| format!("{length} bytes at {offset:#x} are behind the end of the file"));
            return false;
        };
        for index in offset / cluster..last.div_ceil(cluster) {
            if let Some(count) = usize::try_from(index).ok().and_then(|index| self.counts.get_mut(index)) {
                *count = count.saturating_add(1);
            }
        }
        true
    }

    /// A reference to what only the image itself may use.
    fn own(&mut self, offset: u64, length: u64) -> bool {
        let cluster = self.header.cluster_size();
        let inside = self.count(offset, length);
        if inside {
            self.own.extend((offset / cluster)..offset.saturating_add(length).div_ceil(cluster));
        }
        inside
    }

    /// A table of 64-bit entries.
    fn entries(&self, offset: u64, count: u64) -> io::Result<Vec<u64>> {
        let length = usize::try_from(count.saturating_mul(8)).unwrap_or_default();
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// A first-level table and all below it.
    fn table(
        &mut self,
        offset: u64,
        entries: u32,
        active: bool,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        let length = u64::from(entries).saturating_mul(8);
        if entries == 0 || offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Ok(());
        }
        let cluster = self.header.cluster_size();
        let table = self.entries(offset, entries.into())?;
        for (entry, index) in table.into_iter().zip(0_u64..) {
            progress(index.saturating_mul(1000) / u64::from(entries));
            let at = entry & OFFSET;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(cluster) {
                self.error(|| format!("a second-level table is at {at:#x}, within a cluster"));
                continue;
            }
            if !self.count(at, cluster) {
                continue;
            }
            if active {
                self.flags.push((at, entry & COPIED != 0));
            }
            for entry in self.entries(at, cluster / 8)? {
                self.mapping(entry, active);
            }
        }
        Ok(())
    }

    /// An entry of a second-level table.
    fn mapping(&mut self, entry: u64, active: bool) {
        let cluster = self.header.cluster_size();
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.header.cluster_bits.clamp(9, 21) - 8);
            let at = entry & ((1 << shift) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> shift).saturating_add(1);
            self.count(at, (sectors * 512).saturating_sub(at & 511));
            if entry & COPIED != 0 {
                self.error(|| format!("the compressed cluster at {at:#x} is marked as copied"));
            }
            if active {
                self.findings.data_clusters = self.findings.data_clusters.saturating_add(1);
                self.findings.compressed_clusters = self.findings.compressed_clusters.saturating_add(1);
            }
            return;
        }
        let at = entry & OFFSET;
        if at == 0 {
            return;
        }
        if !at.is_multiple_of(cluster) {
            self.error(|| format!("data are at {at:#x}, within a cluster"));
            return;
        }
        if !self.count(at, cluster) || !active {
            return;
        }
        self.flags.push((at, entry & COPIED != 0));
        if entry & ZERO == 0 || self.header.version == 2 {
            self.findings.data_clusters = self.findings.data_clusters.saturating_add(1);
        }
    }

    /// What internal snapshots refer to.
    fn snapshots(&mut self) -> io::Result<()> {
        if self.header.snapshots == 0 {
            return Ok(());
        }
        if self.header.snapshots > MOST_SNAPSHOTS {
            return Err(bad("has more than 65536 snapshots; it is damaged"));
        }
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, 64)?;
        let start = u64::from_be_bytes(bytes);
        let mut at = start;
        for _ in 0..self.header.snapshots {
            let mut head = [0; 40];
            self.file.read_exact_at(&mut head, at)?;
            let field = |at: usize, length: usize| {
                head.iter().skip(at).take(length).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte))
            };
            let entries = u32::try_from(field(8, 4)).unwrap_or(u32::MAX);
            if entries > (32 << 20) / 8 {
                return Err(bad("has a snapshot with a first-level table that is too large; it is damaged"));
            }
            self.count(field(0, 8), u64::from(entries).saturating_mul(8));
            self.table(field(0, 8), entries, false, &mut |_| {})?;
            let length =
                40_u64.saturating_add(field(36, 4)).saturating_add(field(12, 2)).saturating_add(field(14, 2));
            at = at.saturating_add(length.next_multiple_of(8));
        }
        self.count(start, at.saturating_sub(start));
        Ok(())
    }

    /// The counts as the image has them, by cluster. Its own tables are counted on the way.
    fn stored(&mut self) -> io::Result<Vec<u64>> {
        let cluster = self.header.cluster_size();
        let length = u64::from(self.header.refcount_table_clusters).saturating_mul(cluster);
        let mut stored = vec![0; self.counts.len()];
        if !self.own(self.header.refcount_table_offset, length) {
            return Ok(stored);
        }
        let order = self.header.refcount_order.min(6);
        let each = cluster.saturating_mul(8) >> order;
        for (block, index) in
            self.entries(self.header.refcount_table_offset, length / 8)?.into_iter().zip(0_u64..)
        {
            let at = block & !511;
            if at == 0 {
                continue;
            }
            if !at.is_multiple_of(cluster) {
                self.error(|| format!("a block of reference counts is at {at:#x}, within a cluster"));
                continue;
            }
            if !self.own(at, cluster) {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(cluster).unwrap_or_default()];
            self.file.read_exact_at(&mut bytes, at)?;
            let first = usize::try_from(index.saturating_mul(each)).unwrap_or(usize::MAX);
            let counts = stored.get_mut(first.min(self.counts.len())..).unwrap_or_default();
            for (slot, number) in counts.iter_mut().zip(0..usize::try_from(each).unwrap_or_default()) {
                *slot = refcount(&bytes, order, number);
            }
        }
        Ok(stored)
    }

    fn compare(&mut self, stored: &[u64]) {
        let cluster = self.header.cluster_size();
        let counts = std::mem::take(&mut self.counts);
        for index in std::mem::take(&mut self.own) {
            let count = usize::try_from(index).ok().and_then(|index| counts.get(index)).copied();
            if count != Some(1) {
                let at = index.saturating_mul(cluster);
                self.error(|| {
                    format!(
                        "the cluster at {at:#x} is of the image's own tables, and used for something else too"
                    )
                });
            }
        }
        for ((counted, stored), index) in counts.iter().zip(stored).zip(0_u64..) {
            let counted = u64::from(*counted);
            if *stored < counted {
                let at = index.saturating_mul(cluster);
                self.error(|| {
                    format!("the cluster at {at:#x} has {counted} references and a count of {stored}")
                });
            } else if *stored > counted {
                self.findings.leaks = self.findings.leaks.saturating_add(1);
            }
        }
    }

    /// A cluster may be written in place when, and only when, nobody else refers to it.
    fn copied_flags(&mut self, stored: &[u64]) -> io::Result<()> {
        let cluster = self.header.cluster_size();
        for (at, copied) in std::mem::take(&mut self.flags) {
            let count = usize::try_from(at / cluster).ok().and_then(|index| stored.get(index)).copied();
            if copied != (count == Some(1)) {
                self.error(|| format!("the cluster at {at:#x} is wrongly marked as copied or not"));
            }
        }
        Ok(())
    }
}

/// Count number `index` of a block, `1 << order` bits wide.
fn refcount(bytes: &[u8], order: u32, index: usize) -> u64 {
    if order < 3 {
        let each = 8 >> order;
        let shift = (index % each) << order;
        let byte = bytes.get(index / each).copied().unwrap_or_default();
        return u64::from(byte >> shift) & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let field = bytes.iter().skip(index.saturating_mul(width)).take(width);
    field.fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
