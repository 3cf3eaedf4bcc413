//! The file: two who edit it, one who edits it by hand, what may not be written, and a disk that is full.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::appliance::file;
use crate::client::Served;
use crate::machine::available;

fn text(vms: &str) -> String {
    format!("version: 1\nmanagement: {{listen: []}}\nvms: {{{vms}}}\n")
}

#[test]
fn who_comes_second_is_told_and_nothing_is_lost() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let path = served.appliance.path("box.yaml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let seen = served.tag();
    let known = format!("If-None-Match: \"{seen}\"");
    assert_eq!(served.ask("GET", "/api/v1/config", &[&known], b"").status, 304);
    let first = served.save(&text("# the first\n"), &seen).good();
    assert_eq!(first.json()["applied"], false);
    assert_eq!(fs::read_to_string(&path).unwrap(), text("# the first\n"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    let (status, detail) = served.save(&text("# the second\n"), &seen).problem();
    assert_eq!(status, 412, "{detail}");
    assert!(detail.contains("somebody has changed it meanwhile"), "{detail}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text("# the first\n"));
    // By hand, behind the back of who looks at it.
    let seen = served.tag();
    fs::write(&path, text("# by hand\n")).unwrap();
    assert_eq!(served.save(&text("# the third\n"), &seen).problem().0, 412);
    let stale = served.post_json("/api/v1/changes", &serde_json::json!({"tag": seen}));
    assert_eq!(stale.problem().0, 412);
    assert_eq!(fs::read_to_string(&path).unwrap(), text("# by hand\n"));
    let blind = served.ask("PUT", "/api/v1/config", &["Content-Type: application/yaml"], b"version: 1\n");
    assert_eq!(blind.problem().0, 428);
    let saved =
        served.audit().into_iter().find(|(what, _, refused)| what == "save the file" && refused.is_none());
    assert!(saved.unwrap().1.contains("+vms: {# the first"), "its diff is written down");
}

#[test]
fn what_is_wrong_is_said_at_its_line_and_not_written() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[]));
    let (before, tag) = (fs::read(served.appliance.path("box.yaml")).unwrap(), served.tag());
    for (wrong, line) in [
        ("version: 1\nvmz: {}\n".to_owned(), 2),
        ("version: 1\n\tvms: {}\n".to_owned(), 2),
        (text("a: {memory: 16MiB, boot: {kernel: /etc/shadow}}"), 3),
        (text("a: {memory: 16MiB, boot: {firmware: uefi}, disks: {d: {path: /dev/sda}}}"), 3),
        (text("a: {memory: 16MiB, boot: {kernel: /usr/share/OVMF/../../../etc/shadow}}"), 3),
        ("version: 1\nweb: {certificate: /a, key: /etc/shadow}\n".to_owned(), 2),
    ] {
        let check = served.post_yaml("/api/v1/config/check", &wrong).good().json();
        assert_eq!(check["diagnostics"][0]["line"], line, "{wrong}: {check}");
        for answer in [served.post_yaml("/api/v1/config/plan", &wrong), served.save(&wrong, &tag)] {
            assert_eq!(answer.problem().0, 422, "{wrong}");
            assert_eq!(answer.json()["diagnostics"][0]["line"], line, "{wrong}");
        }
    }
    assert_eq!(served.post_yaml("/api/v1/config/check", &"#".repeat(3 << 20)).problem().0, 413);
    assert_eq!(fs::read(served.appliance.path("box.yaml")).unwrap(), before);
}

/// A small disk of its own, as long as this lives.
pub(crate) struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub(crate) fn at(path: &Path, bytes: u64) -> Self {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=755")).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(path.to_owned())
    }

    /// Until nothing more goes onto it.
    pub(crate) fn fill(&self) {
        let _ = fs::write(self.0.join("filler"), vec![1; 16 << 20]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_the_file_is_as_before() {
    if !available() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a disk of one's own takes root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::at(&folder.path().join("small"), 1 << 20);
    let path = folder.path().join("small/box.yaml");
    let served = Served::new(&file(&[]));
    // The file is a link to one on the small disk.
    fs::rename(served.appliance.path("box.yaml"), folder.path().join("moved")).unwrap();
    fs::copy(folder.path().join("moved"), &path).unwrap();
    std::os::unix::fs::symlink(&path, served.appliance.path("box.yaml")).unwrap();
    let (before, tag) = (fs::read(&path).unwrap(), served.tag());
    disk.fill();
    let (status, detail) = served.save(&text(&"# more and more\n".repeat(1000)), &tag).problem();
    assert_eq!(status, 507, "{detail}");
    assert!(detail.contains("No space left on device"), "{detail}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path().join("small")).unwrap().count(), 2, "nothing half is left");
    fs::remove_file(folder.path().join("small/filler")).unwrap();
    served.save(&text(""), &tag).good();
    assert!(fs::symlink_metadata(served.appliance.path("box.yaml")).unwrap().is_symlink());
}
