//! A code for root, who can always get in: what is kept of it is put where the web process reads it.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, fstat, open, openat, renameat, unlinkat};
use web::access::{CODE_FILE, new_code};

/// Beside it, before it is whole.
const NEW: &str = "code.json.root";

/// Makes a code and puts it into the web process's folder; the code. No process need run for that, and none is told.
///
/// # Errors
/// The folder is not there yet, it is not ours, or there is no room.
pub(crate) fn renew(state: &Path) -> anyhow::Result<String> {
    let folder = state.join("web");
    let doing = || format!("Writing a code to {}", folder.display());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (code, text) = new_code(now).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    // The folder is a process's that strangers talk to, which may have put anything there: no link is followed, and what is
    // written is a file of this moment.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = open(&folder, flags, Mode::empty()).with_context(|| {
        format!("{}: the admin interface has not run here yet; start the daemon", folder.display())
    })?;
    match unlinkat(&within, NEW, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => return Err(error).with_context(doing),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&within, NEW, flags, Mode::RUSR | Mode::WUSR).with_context(doing)?);
    let owner = fstat(&within).with_context(doing)?;
    fchown(&file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))
        .with_context(doing)?;
    file.write_all(text.as_bytes()).with_context(doing)?;
    file.sync_all().with_context(doing)?;
    renameat(&within, NEW, &within, CODE_FILE).with_context(doing)?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn what_is_kept_is_no_code_and_belongs_to_the_folders_owner() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("web");
        assert!(renew(state.path()).unwrap_err().to_string().contains("start the daemon"));
        std::fs::create_dir(&folder).unwrap();
        let other = state.path().join("other");
        std::fs::write(&other, "kept").unwrap();
        // What somebody may have left there to have root write elsewhere.
        symlink(&other, folder.join(NEW)).unwrap();
        symlink(&other, folder.join(CODE_FILE)).unwrap();
        let code = renew(state.path()).unwrap();
        let text = std::fs::read_to_string(folder.join(CODE_FILE)).unwrap();
        assert!(code.len() == 14 && !text.contains(&code.to_lowercase().replace('-', "")), "{code} {text}");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
        let written = std::fs::symlink_metadata(folder.join(CODE_FILE)).unwrap();
        assert!(written.is_file() && written.mode() & 0o777 == 0o600);
        assert_eq!(written.uid(), std::fs::metadata(&folder).unwrap().uid());
        assert_ne!(renew(state.path()).unwrap(), code);
    }

    #[test]
    fn a_folder_that_is_a_link_is_not_followed() {
        let state = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        symlink(other.path(), state.path().join("web")).unwrap();
        assert!(renew(state.path()).is_err());
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    }
}
