//! The ends of logs, and what comes to them: the daemon's own, those of guests' processes, and of their consoles.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use web::Problem;
use web::wire::{Log, LogNews};

use super::recent::Recent;
use super::{Admin, fault};
use crate::apply::file_name;

/// Bytes that are looked at for the last lines.
const MOST: u64 = 1 << 20;
/// Bytes of a log that are told at once; a line that is longer is told in pieces.
const AT_ONCE: u64 = 256 << 10;

impl Admin {
    pub(super) async fn log(&self, guest: Option<&str>, console: bool, lines: u32) -> Result<Log, Problem> {
        let count = usize::try_from(lines).unwrap_or(usize::MAX);
        let Some(guest) = guest else {
            let (lines, more) = Recent::last(count);
            return Ok(Log { lines, more });
        };
        self.known(guest)?;
        // The name of a guest is no part of a path before it is made one.
        let name = format!("{}.{}log", file_name(guest), if console { "console." } else { "" });
        self.beside(move |parts| end_of(&parts.logs.join(name), count)).await
    }

    pub(super) async fn log_since(
        &self,
        guest: Option<&str>,
        console: bool,
        since: String,
        lines: u32,
    ) -> Result<LogNews, Problem> {
        let count = usize::try_from(lines).unwrap_or(usize::MAX);
        let Some(guest) = guest else { return Ok(own_since(&since, count)) };
        self.known(guest)?;
        let name = format!("{}.{}log", file_name(guest), if console { "console." } else { "" });
        self.beside(move |parts| file_since(&parts.logs.join(name), &since, count).map_err(fault)).await
    }
}

/// Of the daemon's own log. A place in it is the daemon's, and the number of a line: after a restart all is new.
fn own_since(since: &str, count: usize) -> LogNews {
    static BEGUN: OnceLock<u64> = OnceLock::new();
    let begun = *BEGUN.get_or_init(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs()) << 22 | u64::from(std::process::id())
    });
    let (from, known) = match numbers(since) {
        Some((of, number)) if of == begun && number <= Recent::next() => (number, true),
        _ => (Recent::next().saturating_sub(count as u64), since.is_empty()),
    };
    let (lines, first) = Recent::since(from, count);
    let next = first.saturating_add(lines.len() as u64);
    LogNews { lines, place: place(begun, next), missed: !known || (first > from && !since.is_empty()) }
}

/// A place: which log, and how far.
fn place(of: u64, far: u64) -> String {
    format!("{of:x}-{far:x}")
}

fn numbers(place: &str) -> Option<(u64, u64)> {
    let (of, far) = place.split_once('-')?;
    Some((u64::from_str_radix(of, 16).ok()?, u64::from_str_radix(far, 16).ok()?))
}

/// Of a file that grows, and that another one takes the place of once it is long: then it has `.1` at its end. A place is the number
/// of the file, and bytes.
fn file_since(path: &Path, since: &str, count: usize) -> io::Result<LogNews> {
    let open = |path: &Path| match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    };
    let Some(now) = open(path)? else {
        return Ok(LogNews { lines: Vec::new(), place: since.to_owned(), missed: false });
    };
    let about = now.metadata()?;
    if let Some((number, from)) = numbers(since) {
        if number == which(&about) && from <= about.len() {
            return part(now, number, from, count, false);
        }
        let mut earlier = OsString::from(path);
        earlier.push(".1");
        if let Some(file) = open(Path::new(&earlier))?
            && which(&file.metadata()?) == number
        {
            let rest = part(file, number, from, count, true)?;
            if !rest.lines.is_empty() {
                return Ok(rest);
            }
            return part(now, which(&about), 0, count, false);
        }
    }
    // From the last lines on: of those that are whole, so many.
    let from = about.len().saturating_sub(AT_ONCE);
    let mut news = part(now, which(&about), from, usize::MAX, false)?;
    let cut = usize::from(from > 0);
    let skipped = news.lines.len().saturating_sub(count).max(cut.min(news.lines.len()));
    news.lines.drain(..skipped);
    news.missed = !since.is_empty();
    Ok(news)
}

/// Which file it is: the number of one that is gone is soon another one's.
fn which(about: &Metadata) -> u64 {
    let mut hasher = DefaultHasher::new();
    (about.dev(), about.ino(), about.created().ok()).hash(&mut hasher);
    hasher.finish()
}

/// Whole lines from a place on. The last one of a file that has `ended` is whole.
fn part(mut file: File, number: u64, from: u64, count: usize, ended: bool) -> io::Result<LogNews> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(AT_ONCE).read_to_end(&mut bytes)?;
    let (mut lines, mut taken) = (Vec::new(), 0_usize);
    for line in bytes.split_inclusive(|byte| *byte == b'\n').take(count) {
        let whole = line.ends_with(b"\n") || ended || line.len() as u64 >= AT_ONCE;
        if !whole {
            break;
        }
        taken = taken.saturating_add(line.len());
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        lines.push(String::from_utf8_lossy(line).into_owned());
    }
    Ok(LogNews { lines, place: place(number, from.saturating_add(taken as u64)), missed: false })
}

fn end_of(path: &Path, count: usize) -> Result<Log, Problem> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Log { lines: Vec::new(), more: false });
        }
        Err(error) => return Err(fault(error)),
    };
    let length = file.metadata().map_err(fault)?.len();
    let from = length.saturating_sub(MOST);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from)).map_err(fault)?;
    file.take(MOST).read_to_end(&mut bytes).map_err(fault)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first one is cut off where there is more before it.
    let all: Vec<&str> = text.lines().skip(usize::from(from > 0)).collect();
    let skipped = all.len().saturating_sub(count);
    let lines = all.into_iter().skip(skipped).map(str::to_owned).collect();
    Ok(Log { lines, more: skipped > 0 || from > 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_read_of_a_long_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        assert_eq!(end_of(&path, 3).unwrap(), Log { lines: vec![], more: false });
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(end_of(&path, 3).unwrap(), Log { lines: vec!["one".into(), "two".into()], more: false });
        assert_eq!(end_of(&path, 1).unwrap(), Log { lines: vec!["two".into()], more: true });
        std::fs::write(&path, "0123456789\n".repeat(200_000)).unwrap();
        let log = end_of(&path, 5000).unwrap();
        assert!(log.more && log.lines.len() == 5000 && log.lines.iter().all(|line| line == "0123456789"));
    }

    #[test]
    fn each_line_that_comes_to_a_file_is_told_once_also_where_another_file_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut place = file_since(&path, "", 10).unwrap().place;
        assert_eq!(place, "", "there is none yet");
        let mut tell = |lines: usize| {
            let news = file_since(&path, &place, lines).unwrap();
            place = news.place;
            (news.lines, news.missed)
        };
        let told = |lines: &[&str], missed: bool| {
            (lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), missed)
        };
        let files = crate::control::LogFiles::at(&path, 2);
        let first = files.open().unwrap();
        let mut log = crate::control::RotatingLog::new(first, 40, Box::new(move || files.rotate())).unwrap();
        let mut write = |text: &str| std::io::Write::write_all(&mut log, text.as_bytes()).unwrap();
        write("one\r\ntwo\nthr");
        assert_eq!(tell(1), told(&["two"], false), "the last ones");
        assert_eq!(tell(10), told(&[], false), "it is not whole");
        write("ee\nfour\nfive\n");
        assert_eq!(tell(2), told(&["three", "four"], false));
        assert_eq!(tell(10), told(&["five"], false));
        write("six of them\nseven and more\neight\n");
        assert_eq!(tell(10), told(&["six of them", "sev"], false), "the rest of a file that is full");
        assert_eq!(tell(10), told(&["en and more", "eight"], false));
        assert_eq!(tell(10), told(&[], false));
        // What was given up meanwhile is said to be.
        write(&"0123456789\n".repeat(8));
        let (lines, missed) = tell(10);
        assert!(missed && !lines.is_empty(), "{lines:?}");
        for nonsense in ["x", "-", "1-", "ffffffffffffffffff-0", "0-0"] {
            assert!(file_since(&path, nonsense, 2).unwrap().missed, "{nonsense}");
        }
    }

    #[test]
    fn the_daemons_own_lines_are_told_once() {
        use std::io::Write as _;
        // Other tests may write lines, too.
        let place = own_since("", 5).place;
        writeln!(Recent, "one of ours").unwrap();
        writeln!(Recent, "another of ours").unwrap();
        let news = own_since(&place, 1000);
        let ours: Vec<_> = news.lines.iter().filter(|line| line.ends_with("of ours")).collect();
        assert_eq!((ours.len(), news.missed), (2, false));
        let news = own_since(&news.place, 1000);
        assert!(!news.lines.iter().any(|line| line.ends_with("of ours")));
        assert!(own_since("1-1", 10).missed, "of another daemon");
        let (lines, from) = Recent::since(Recent::next() - 1, 10);
        assert_eq!(lines.len() as u64, Recent::next() - from);
    }
}
