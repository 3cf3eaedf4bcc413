//! A text in the place of the file, unless somebody has written the file meanwhile (docs/decisions/0521, 0546).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::file::tag;

/// How often it is tried to put something back where somebody goes on writing: he writes faster than a hand does.
const MOST_ROUNDS: usize = 100;

/// That a folder gets a file. Where it comes from keeps two that come after each other apart: the kernel makes one event of two
/// that are alike.
const COMES: WatchFlags =
    WatchFlags::MOVED_TO.union(WatchFlags::MOVED_FROM).union(WatchFlags::CREATE).union(WatchFlags::ONLYDIR);

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It is there, and on disk.
    Done,
    /// The file is another one than was seen: nothing was done.
    Other,
    /// Another one came in the moment in which it was put there, and is gone.
    Over,
}

/// What the file system can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Can {
    /// Exchange two files, and rename one where there is none.
    Exchange,
    /// Give a file a second name.
    Link,
}

/// Puts it there, where the file has the tag `seen`; that of no bytes is a file's that is not there.
///
/// # Errors
/// There is no room for it, or the file system can do neither of what it takes; the file is as it was.
pub(super) fn put(path: &Path, text: &[u8], seen: &str) -> io::Result<Put> {
    match put_by(Can::Exchange, path, text, seen) {
        Err(error) if is_lack(&error) => put_by(Can::Link, path, text, seen),
        other => other,
    }
}

/// What says that a file system has not this way, such as NFS.
fn is_lack(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

fn put_by(can: Can, path: &Path, text: &[u8], seen: &str) -> io::Result<Put> {
    let (fresh, before) = (beside(path, "new"), beside(path, "before"));
    let about = fs::metadata(path).ok();
    let put = write(&fresh, text, about.as_ref()).and_then(|()| match (can, about) {
        (Can::Exchange, Some(_)) => exchanged(path, &fresh, text, seen),
        (Can::Exchange, None) => first(renameat_with(CWD, &fresh, CWD, path, RenameFlags::NOREPLACE)),
        (Can::Link, Some(_)) => replaced(path, &fresh, &before, seen),
        (Can::Link, None) => first(rustix::fs::link(&fresh, path)),
    });
    // What is left there is the one that was replaced, or the one that was not put there.
    let _ = fs::remove_file(&fresh);
    let put = match put {
        // It is there by now, or gone.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
                && read(path)?.is_none_or(|now| tag(&now) != seen) =>
        {
            Put::Other
        }
        put => put?,
    };
    if put == Put::Done {
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    }
    Ok(put)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".");
    name.push(what);
    name.into()
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Where there was none.
fn first(made: rustix::io::Result<()>) -> io::Result<Put> {
    Ok(made.map(|()| Put::Done)?)
}

/// What was there is looked at where nobody finds it any more: what somebody wrote in the last moment is put back, and what
/// somebody writes while that is done is put back too.
fn exchanged(path: &Path, fresh: &Path, text: &[u8], seen: &str) -> io::Result<Put> {
    let exchange = || -> io::Result<String> {
        renameat_with(CWD, fresh, CWD, path, RenameFlags::EXCHANGE)?;
        Ok(tag(&fs::read(fresh)?))
    };
    let mut out = exchange()?;
    if out == seen {
        return Ok(Put::Done);
    }
    let mut there = tag(text);
    for _ in 0..MOST_ROUNDS {
        let came = exchange()?;
        if came == there {
            return Ok(Put::Other);
        }
        (there, out) = (out, came);
    }
    Ok(Put::Over)
}

/// The same in steps: what was there keeps a name, so that it can be looked at behind the new one, and put back.
///
/// Whoever writes into the file is noticed by its bytes; who puts another one in its place, before that by its number, and in the
/// moment after by what the folder says of itself.
fn replaced(path: &Path, fresh: &Path, before: &Path, seen: &str) -> io::Result<Put> {
    match fs::remove_file(before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::hard_link(path, before)?;
    let put = || -> io::Result<Put> {
        if tag(&fs::read(before)?) != seen {
            return Ok(Put::Other);
        }
        inotify::add_watch(&watch, folder, COMES)?;
        if fs::metadata(path)?.ino() != fs::metadata(before)?.ino() {
            return Ok(Put::Other);
        }
        fs::rename(fresh, path)?;
        if tag(&fs::read(before)?) != seen {
            fs::rename(before, path)?;
            return Ok(if times(&watch, path)? > 2 { Put::Over } else { Put::Other });
        }
        Ok(if times(&watch, path)? > 1 { Put::Over } else { Put::Done })
    };
    let put = put();
    let _ = fs::remove_file(before);
    put
}

/// How often the folder has got a file of this name: ours once.
fn times(watch: &impl std::os::fd::AsFd, path: &Path) -> io::Result<usize> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut space = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(watch, &mut space);
    let mut count = 0_usize;
    loop {
        match reader.next() {
            // More than the kernel keeps: whether one of them was another file of this name is not known.
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => return Ok(usize::MAX),
            Ok(event) => {
                let ours = event.file_name().is_some_and(|of| of.to_bytes() == name);
                let came = event.events().intersects(ReadFlags::MOVED_TO | ReadFlags::CREATE);
                count = count.saturating_add(usize::from(ours && came));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(count),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whole and on disk, with the mode and the owner of the one before.
fn write(path: &Path, text: &[u8], before: Option<&fs::Metadata>) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        fs::create_dir_all(folder)?;
    }
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    let mode = before.map_or(0o644, |before| before.mode() & 0o7777);
    if let Some(before) = before {
        std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    const BOTH: [Can; 2] = [Can::Exchange, Can::Link];

    #[test]
    fn a_file_keeps_its_mode_and_is_exchanged_whole() {
        for can in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("box.yaml");
            assert_eq!(put_by(can, &path, b"one", &tag(b"")).unwrap(), Put::Done);
            assert_eq!(fs::read(&path).unwrap(), b"one");
            fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            assert_eq!(put_by(can, &path, b"two", &tag(b"one")).unwrap(), Put::Done);
            assert_eq!(fs::read(&path).unwrap(), b"two");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        }
    }

    #[test]
    fn what_somebody_wrote_meanwhile_is_not_lost() {
        for can in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("box.yaml");
            fs::write(&path, "by hand").unwrap();
            assert_eq!(put_by(can, &path, b"by api", &tag(b"seen")).unwrap(), Put::Other);
            assert_eq!(fs::read(&path).unwrap(), b"by hand");
            let new = folder.path().join("new.yaml");
            assert_eq!(put_by(can, &new, b"x", &tag(b"")).unwrap(), Put::Done);
            assert_eq!(put_by(can, &new, b"y", &tag(b"")).unwrap(), Put::Other, "there is one by now");
            fs::remove_file(&path).unwrap();
            assert_eq!(
                put_by(can, &path, b"z", &tag(b"by hand")).unwrap(),
                Put::Done,
                "there is none by now"
            );
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn who_writes_at_the_same_time_by_hand_loses_nothing_unsaid() {
        for can in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("box.yaml");
            fs::write(&path, "start\n").unwrap();
            let ended = AtomicBool::new(false);
            let (mut done, mut other, mut over) = (0_usize, 0_usize, 0_usize);
            let lost = std::thread::scope(|scope| {
                // As an editor does it, which looks at nothing.
                let editor = scope.spawn(|| {
                    let (own, mut lost, mut count) = (folder.path().join(".box.swp"), 0_usize, 0_u64);
                    while !ended.load(Ordering::Relaxed) {
                        count += 1;
                        let line = format!("hand {count}\n");
                        fs::write(&own, format!("start\n{line}")).unwrap();
                        fs::rename(&own, &path).unwrap();
                        // For a moment another text may be there, which is put back.
                        let there = || fs::read_to_string(&path).is_ok_and(|text| text.contains(&line));
                        lost += usize::from((0..200).all(|_| {
                            let missing = !there();
                            if missing {
                                std::thread::sleep(Duration::from_millis(1));
                            }
                            missing
                        }));
                        // Sometimes not at all, sometimes for longer than a write takes.
                        std::thread::sleep(Duration::from_millis(count * 7 % 3 * (count * 13 % 50)));
                    }
                    lost
                });
                let begun = Instant::now();
                while (done < 20 || other < 5) && begun.elapsed() < Duration::from_secs(300) {
                    let now = fs::read(&path).unwrap();
                    let text = [&now[..], b"api\n"].concat();
                    match put_by(can, &path, &text, &tag(&now)).unwrap() {
                        Put::Done => done += 1,
                        Put::Other => other += 1,
                        Put::Over => over += 1,
                    }
                }
                ended.store(true, Ordering::Relaxed);
                editor.join().unwrap()
            });
            eprintln!("{can:?}: {done} done, {other} refused, {over} over another one; {lost} lost");
            assert!(if can == Can::Exchange { lost == 0 } else { lost <= over });
            assert!(done >= 20 && other >= 5);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        }
    }

    #[test]
    fn another_one_that_comes_in_the_last_moment_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.yaml");
        fs::write(&path, "one").unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, folder.path(), COMES).unwrap();
        assert_eq!(times(&watch, &path).unwrap(), 0);
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::rename(folder.path().join("a"), &path).unwrap();
        assert_eq!(times(&watch, &path).unwrap(), 1);
        fs::rename(folder.path().join("b"), &path).unwrap();
        fs::rename(folder.path().join("c"), &path).unwrap();
        assert_eq!(times(&watch, &path).unwrap(), 2);
    }

    #[test]
    fn a_file_system_that_can_do_neither_says_so_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("box.yaml");
        fs::write(&path, "one").unwrap();
        // A folder in the place of the second name: it can be had by no link.
        fs::create_dir_all(beside(&path, "before").join("x")).unwrap();
        assert!(put_by(Can::Link, &path, b"two", &tag(b"one")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert!(is_lack(&io::Error::from_raw_os_error(libc::EINVAL)));
        assert!(!is_lack(&io::Error::from_raw_os_error(libc::ENOSPC)));
    }
}
