//! Disk images and installers: a folder below the state folder. One that comes is beside the others under a name that nobody can
//! ask for, until all of it is there.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use web::wire::Image;
use web::{Actor, Problem, Upload};

use super::answer::Detail;
use super::{Admin, Parts, cannot_write, fault};

/// Uploads at once.
const AT_ONCE: usize = 4;
/// What must be left on the disk beside an image: a full one stops the box.
const RESERVE: u64 = 64 << 20;
/// Of a name.
const LONGEST: usize = 128;
/// What begins the name of one that is not whole.
const COMING: &str = ".upload-";

/// One that is being brought in.
pub(super) struct Coming {
    name: String,
    path: PathBuf,
    length: u64,
    /// Whose it is: nobody else ends it.
    by: String,
    file: File,
}

impl Parts {
    fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Takes away what an earlier daemon, or a power cut, has left half.
    pub(super) fn tidy_images(&self) {
        for entry in fs::read_dir(self.images()).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(COMING.as_bytes())
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!("Removing {}: {error}", entry.path().display());
            }
        }
    }
}

/// A name that is one file in one folder, and nothing else.
fn checked(name: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'+');
    if name.is_empty() || name.len() > LONGEST || name.starts_with(['.', '-']) || !name.bytes().all(plain) {
        return Err(Problem::malformed(format!(
            "An image's name has 1 to {LONGEST} letters, digits and . - _ + of ASCII, and begins with none of . and -"
        )));
    }
    Ok(())
}

impl Admin {
    pub(super) async fn images(&self) -> Result<Vec<Image>, Problem> {
        self.beside(|parts| {
            let users = users(parts);
            let mut images = Vec::new();
            let entries = match fs::read_dir(parts.images()) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(images),
                Err(error) => return Err(fault(error)),
            };
            for entry in entries {
                let path = entry.map_err(fault)?.path();
                let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
                if checked(name).is_ok() && path.is_file() {
                    images.extend(about(name, &path, &users));
                }
            }
            images.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(images)
        })
        .await
    }

    pub(super) async fn begin_upload(&self, by: &Actor, name: &str, length: u64) -> Result<Upload, Problem> {
        checked(name)?;
        let id = self.0.next_upload.fetch_add(1, Ordering::Relaxed);
        let promised: u64 = {
            let coming = self.0.coming.lock().unwrap_or_else(PoisonError::into_inner);
            if coming.len() >= AT_ONCE {
                return Err(Problem::conflict(format!(
                    "{AT_ONCE} images are coming in already; wait for one of them"
                )));
            }
            coming.values().map(|one| one.length).fold(0, u64::saturating_add)
        };
        let asked = name.to_owned();
        let (path, file) = self
            .beside(move |parts| {
                let folder = parts.images();
                let doing = format!("Making {}", folder.display());
                let made = DirBuilder::new().recursive(true).mode(0o755).create(&folder);
                made.map_err(|error| cannot_write(&doing, &error))?;
                if folder.join(&asked).exists() {
                    return Err(Problem::conflict(format!(
                        "There is an image `{asked}` already; remove it first"
                    )));
                }
                let disk = rustix::fs::statvfs(&folder).map_err(fault)?;
                let room = disk.f_bavail.saturating_mul(disk.f_frsize);
                let wanted = length.saturating_add(promised).saturating_add(RESERVE);
                if room < wanted {
                    return Err(Problem::no_room(format!(
                        "The image has {length} bytes, and the disk of {} has room for {} more",
                        folder.display(),
                        room.saturating_sub(promised).saturating_sub(RESERVE)
                    )));
                }
                let path = folder.join(format!("{COMING}{id}"));
                let _ = fs::remove_file(&path);
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let file =
                    made.map_err(|error| cannot_write(&format!("Making {}", path.display()), &error))?;
                Ok((path, file))
            })
            .await?;
        let kept = file.try_clone().map_err(fault)?;
        let coming = Coming { name: name.to_owned(), path, length, by: by.name.clone(), file: kept };
        self.0.coming.lock().unwrap_or_else(PoisonError::into_inner).insert(id, coming);
        Ok(Upload { id, file })
    }

    fn take_coming(&self, by: &Actor, id: u64) -> Result<Coming, Problem> {
        let mut coming = self.0.coming.lock().unwrap_or_else(PoisonError::into_inner);
        match coming.get(&id) {
            Some(one) if one.by == by.name => coming.remove(&id),
            _ => None,
        }
        .ok_or_else(|| Problem::not_found(format!("No upload {id} is under way")))
    }

    pub(super) async fn finish(&self, by: &Actor, id: u64, detail: &mut Detail) -> Result<Image, Problem> {
        let coming = self.take_coming(by, id)?;
        detail.0 = format!("{}, {} bytes", coming.name, coming.length);
        self.beside(move |parts| {
            let result = keep(parts, &coming);
            if result.is_err() {
                let _ = fs::remove_file(&coming.path);
            }
            result
        })
        .await
    }

    pub(super) async fn give_up(
        &self,
        by: &Actor,
        id: u64,
        why: &str,
        detail: &mut Detail,
    ) -> Result<(), Problem> {
        let coming = self.take_coming(by, id)?;
        detail.0 = format!("{}, {} bytes: {why}", coming.name, coming.length);
        self.beside(move |_| fs::remove_file(&coming.path).map_err(fault)).await
    }

    /// The process that brought them in is gone.
    pub(super) fn give_all_up(&self) {
        let coming = std::mem::take(&mut *self.0.coming.lock().unwrap_or_else(PoisonError::into_inner));
        for one in coming.into_values() {
            tracing::warn!("The image `{}` of {} will not come: nothing of it is kept", one.name, one.by);
            let _ = fs::remove_file(&one.path);
        }
    }

    pub(super) async fn remove_image(&self, name: &str) -> Result<(), Problem> {
        let name = name.to_owned();
        self.beside(move |parts| {
            let gone = || Problem::not_found(format!("There is no image `{name}`"));
            checked(&name).map_err(|_| gone())?;
            let path = parts.images().join(&name);
            if let Some(guests) = users(parts).get(&path) {
                return Err(Problem::conflict(format!(
                    "The image `{name}` is that of guest {}: take it out of the file first",
                    guests.join(", ")
                )));
            }
            fs::remove_file(&path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => gone(),
                _ => fault(error),
            })
        })
        .await
    }
}

fn keep(parts: &Parts, coming: &Coming) -> Result<Image, Problem> {
    let come = coming.file.metadata().map_err(fault)?.len();
    if come != coming.length {
        return Err(Problem::malformed(format!(
            "{come} of {} bytes have come, and nothing of them is kept",
            coming.length
        )));
    }
    let doing = format!("Keeping the image `{}`", coming.name);
    coming.file.sync_all().map_err(|error| cannot_write(&doing, &error))?;
    let path = parts.images().join(&coming.name);
    renameat_with(CWD, &coming.path, CWD, &path, RenameFlags::NOREPLACE).map_err(|error| match error {
        rustix::io::Errno::EXIST => Problem::conflict(format!(
            "There is an image `{}` by now; nothing of this one is kept",
            coming.name
        )),
        error => cannot_write(&doing, &error.into()),
    })?;
    let folder = File::open(parts.images()).and_then(|folder| folder.sync_all());
    folder.map_err(|error| cannot_write(&doing, &error))?;
    about(&coming.name, &path, &users(parts)).ok_or_else(|| fault(anyhow::anyhow!("The image is gone again")))
}

fn about(name: &str, path: &Path, users: &BTreeMap<PathBuf, Vec<String>>) -> Option<Image> {
    let about = fs::metadata(path).ok()?;
    Some(Image {
        name: name.to_owned(),
        path: path.display().to_string(),
        allocated: about.blocks().saturating_mul(512),
        length: about.len(),
        guests: users.get(path).cloned().unwrap_or_default(),
    })
}

/// Which guests have which files, by the file that holds and the one on disk.
fn users(parts: &Parts) -> BTreeMap<PathBuf, Vec<String>> {
    let mut users = BTreeMap::<PathBuf, Vec<String>>::new();
    let on_disk = fs::read_to_string(parts.path()).unwrap_or_default();
    let name = String::new();
    let (on_disk, _) = crate::config::load_all(&crate::config::Document { name, text: on_disk });
    let folder = parts.path().parent().map(Path::to_owned).unwrap_or_default();
    for config in [Some(parts.holds()), on_disk].into_iter().flatten() {
        for (vm, guest) in &config.vms {
            let boot = guest.boot.kernel.iter().chain(&guest.boot.initrd);
            for path in guest.disks.values().map(|disk| &disk.path).chain(boot) {
                let guests = users.entry(folder.join(path)).or_default();
                if !guests.contains(vm) {
                    guests.push(vm.clone());
                }
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files_alone() {
        for fine in ["debian-13.iso", "a", "A_b+c.qcow2"] {
            assert!(checked(fine).is_ok(), "{fine}");
        }
        for wrong in ["", ".", "..", ".upload-1", "a/b", "../a", "-rf", "a b", "ä", "a\0", &"x".repeat(129)]
        {
            assert!(checked(wrong).is_err(), "{wrong}");
        }
    }
}
