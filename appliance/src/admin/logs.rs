//! The ends of logs: the daemon's own, those of guests' processes, and of their consoles.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use web::Problem;
use web::wire::Log;

use super::recent::Recent;
use super::{Admin, fault};
use crate::apply::file_name;

/// Bytes that are looked at for the last lines.
const MOST: u64 = 1 << 20;

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
}
