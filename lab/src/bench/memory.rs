//! What a VMM holds in memory beside its guest's RAM.

use std::path::Path;

use anyhow::{Context as _, Result};

/// KiB of processes, in proportion where pages are shared with others (Pss of proc_pid_smaps(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// All mappings but the guest's RAM.
    pub all: u64,
    /// Of it, what they have written: heap, stacks, relocated data (Pss_Anon). The rest is files that the page cache holds too.
    pub written: u64,
}

/// Of a process whose guest has `ram` bytes of RAM, all in memory files, together with the processes that it has started.
pub fn overhead(pid: u32, ram: u64) -> Result<Overhead> {
    let mut total = Overhead::default();
    for member in family(pid)? {
        let own = match own(member, ram) {
            // A child that has ended since holds nothing.
            Err(_) if member != pid => continue,
            own => own?,
        };
        total.all = total.all.saturating_add(own.all);
        total.written = total.written.saturating_add(own.written);
    }
    Ok(total)
}

fn own(process: u32, ram: u64) -> Result<Overhead> {
    let read = |name: &str| {
        let path = Path::new("/proc").join(process.to_string()).join(name);
        std::fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))
    };
    Ok(Overhead { all: all(&read("smaps")?, ram), written: written(&read("smaps_rollup")?) })
}

/// A process, its children, and theirs.
fn family(first: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in Path::new("/proc").read_dir().context("Reading /proc")? {
        let entry = entry.context("Reading /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Others come and go. Behind the name, which may have any byte: the state, and who started it (proc_pid_stat(5)).
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent =
            stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (parent, pid)));
    }
    let (mut all, mut next) = (vec![first], 0);
    while let Some(of) = all.get(next).copied() {
        let children = parents.iter().filter(|(parent, _)| *parent == of).map(|(_, pid)| *pid);
        let fresh: Vec<u32> = children.filter(|pid| !all.contains(pid)).collect();
        all.extend(fresh);
        next += 1;
    }
    Ok(all)
}

/// Every mapping counts but those of a memory file as large as guest RAM, or as one of its parts: half of it at least.
fn all(smaps: &str, ram: u64) -> u64 {
    let (mut total, mut guests) = (0_u64, false);
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            guests = mapping.memory_file && mapping.size >= ram / 2;
        } else if !guests && let Some(("Pss", kib)) = field(line) {
            total = total.saturating_add(kib);
        }
    }
    total
}

/// In proportion too: what two processes have written before one became two is one page for both.
fn written(rollup: &str) -> u64 {
    rollup.lines().filter_map(field).find(|(name, _)| *name == "Pss_Anon").map_or(0, |(_, kib)| kib)
}

struct Mapping {
    size: u64,
    memory_file: bool,
}

impl Mapping {
    /// `7f8d0f400000-7f8d1f400000 rw-s 00000000 00:01 1031 /memfd:guest-ram (deleted)`
    fn parse(line: &str) -> Option<Self> {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let size = number(end)?.saturating_sub(number(start)?);
        Some(Self { size, memory_file: line.contains(" /memfd:") })
    }
}

/// `Pss:                1432 kB`
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    Some((name, value.trim().strip_suffix(" kB")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f8d0f400000-7f8d1f400000 rw-s 00000000 00:01 1031                       /memfd:guest-ram (deleted)
Size:             262144 kB
Pss:                  20 kB
VmFlags: rd wr sh
7f8d1f749000-7f8d1fc94000 r-xp 00348000 fe:00 77                         /usr/bin/throughway
Size:               5420 kB
Pss:                3880 kB
7f8d1fc94000-7f8d1fdfa000 r--p 00892000 fe:00 77                         /usr/bin/throughway
Pss:                 132 kB
7ffd9fe0f000-7ffd9fe30000 rw-p 00000000 00:00 0                          [stack]
Pss:                  40 kB
";

    #[test]
    fn all_counts_but_the_guests_memory() {
        assert_eq!(all(SMAPS, 256 << 20), 4052);
        // A memory file that is not the guest's RAM counts.
        assert_eq!(all(SMAPS, 4 << 30), 4072);
    }

    #[test]
    fn this_process_has_some() {
        let own = overhead(std::process::id(), 1 << 30).unwrap();
        assert!(own.all >= own.written && own.written > 0, "{own:?}");
    }

    #[test]
    fn children_are_of_the_family() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let family = family(std::process::id()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(family.first(), Some(&std::process::id()));
        assert!(family.contains(&child.id()), "{family:?}");
    }
}
