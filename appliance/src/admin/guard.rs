//! What a text may say that came in over the API, beyond what is right by itself: which files of the host it may name, and whether
//! it may give devices away. Who has the password of a page is not root: what he writes must not read root's files to a guest
//! of his.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::Parts;
use crate::config::{Config, Diagnostic, Document, Firmware, Nic};

/// Folders of the distribution's packages with firmware and kernels for guests.
const FIRMWARE: [&str; 5] =
    ["/usr/share/OVMF", "/usr/share/ovmf", "/usr/share/qemu", "/usr/share/seabios", "/usr/share/edk2"];

/// What is compared with, and what is allowed.
pub(super) struct Guard<'a> {
    before: &'a [Config],
    /// Where relative paths start.
    folder: PathBuf,
    allowed: Vec<PathBuf>,
    known: BTreeSet<PathBuf>,
}

/// A path of a file, and where in the file it stands.
struct Named<'a> {
    at: Vec<String>,
    path: &'a Path,
}

impl<'a> Guard<'a> {
    /// `before` is what root has written, or was let through by this.
    pub(super) fn new(parts: &Parts, before: &'a [Config]) -> Self {
        let folder = parts.path().parent().map(Path::to_owned).unwrap_or_default();
        let images = parts.state.join("images");
        Self::within(before, folder, &images)
    }

    fn within(before: &'a [Config], folder: PathBuf, images: &Path) -> Self {
        let mut allowed: Vec<PathBuf> = FIRMWARE.iter().map(PathBuf::from).collect();
        allowed.push(images.to_owned());
        let known = before.iter().flat_map(paths).map(|named| folder.join(named.path)).collect();
        Self { before, folder, allowed, known }
    }

    /// All that is wrong.
    pub(super) fn problems(&self, document: &Document, config: &Config, devices: bool) -> Vec<Diagnostic> {
        let mut found: Vec<Diagnostic> = paths(config)
            .iter()
            .filter(|named| !self.is_allowed(named.path))
            .map(|named| self.strange(document, named))
            .collect();
        if !devices {
            found.extend(self.devices(document, config));
        }
        found
    }

    fn strange(&self, document: &Document, named: &Named<'_>) -> Diagnostic {
        let allowed: Vec<String> =
            self.allowed.iter().rev().map(|folder| folder.display().to_string()).collect();
        let message =
            format!("{} is not in a folder that files of guests may be in by this way", named.path.display());
        let help = format!(
            "bring it in as an image, which is then in {}; or have root write it into the file on the box",
            allowed.join(", ")
        );
        document.at_path(&named.at, message, Some(help))
    }

    fn is_allowed(&self, path: &Path) -> bool {
        let whole = self.folder.join(path);
        if self.known.contains(&whole) {
            return true;
        }
        // What `..` leads to, and links: both are looked at, as a link may be put there later, and one that is there now counts.
        if whole.components().any(|part| part == Component::ParentDir) {
            return false;
        }
        let within = |path: &Path, real: bool| {
            self.allowed.iter().any(|folder| {
                let folder = if real {
                    fs::canonicalize(folder).unwrap_or_else(|_| folder.clone())
                } else {
                    folder.clone()
                };
                path.starts_with(&folder)
            })
        };
        within(&whole, false) && fs::canonicalize(&whole).map_or(true, |real| within(&real, true))
    }

    /// Where it gives devices of the host away otherwise than before.
    pub(super) fn devices(&self, document: &Document, config: &Config) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut refuse = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|&part| part.to_owned()).collect();
            let message = "This login may not give devices of the host to guests, nor change which are given"
                .to_owned();
            let help = "it takes the right to assign devices, which an administrator gives".to_owned();
            found.push(document.at_path(&path, message, Some(help)));
        };
        let as_before = |same: &dyn Fn(&Config) -> bool| {
            self.before.iter().any(same) || (self.before.is_empty() && same(&Config::default()))
        };
        if !as_before(&|before| before.devices == config.devices) {
            refuse(&["devices"]);
        }
        if !as_before(&|before| before.sriov == config.sriov) {
            refuse(&["sriov"]);
        }
        if !as_before(&|before| before.pools == config.pools) {
            refuse(&["pools"]);
        }
        for (name, vm) in &config.vms {
            for (key, given) in &vm.pci {
                let same =
                    |before: &Config| before.vms.get(name).is_some_and(|vm| vm.pci.get(key) == Some(given));
                if !self.before.iter().any(same) {
                    refuse(&["vms", name, "pci", key]);
                }
            }
            for (key, nic) in vm.nics.iter().filter(|(_, nic)| is_device(nic)) {
                let same =
                    |before: &Config| before.vms.get(name).is_some_and(|vm| vm.nics.get(key) == Some(nic));
                if !self.before.iter().any(same) {
                    refuse(&["vms", name, "nics", key]);
                }
            }
        }
        found
    }
}

fn is_device(nic: &Nic) -> bool {
    nic.pool.is_some() || nic.pf.is_some() || nic.vf.is_some()
}

/// All files of the host that a file names.
fn paths(config: &Config) -> Vec<Named<'_>> {
    let mut found = Vec::new();
    let at = |parts: &[&str]| parts.iter().map(|&part| part.to_owned()).collect::<Vec<String>>();
    let web = &config.web;
    for (key, path) in [("certificate", &web.certificate), ("key", &web.key), ("users-file", &web.users_file)]
    {
        found.extend(path.iter().map(|path| Named { at: at(&["web", key]), path }));
    }
    for (vm, guest) in &config.vms {
        let boot = &guest.boot;
        for (key, path) in [("kernel", &boot.kernel), ("initrd", &boot.initrd)] {
            found.extend(path.iter().map(|path| Named { at: at(&["vms", vm, "boot", key]), path }));
        }
        if let Some(Firmware::Files(files)) = &boot.firmware {
            for (key, path) in [("code", &files.code), ("vars", &files.vars)] {
                found.push(Named { at: at(&["vms", vm, "boot", "firmware", key]), path });
            }
        }
        for (disk, given) in &guest.disks {
            found.push(Named { at: at(&["vms", vm, "disks", disk, "path"]), path: &given.path });
            for path in &given.backing_folders {
                found.push(Named { at: at(&["vms", vm, "disks", disk, "backing-folders"]), path });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> (Document, Config) {
        let document = Document { name: "a".into(), text: format!("version: 1\n{text}") };
        let (config, problems) = crate::config::load_all(&document);
        (document, config.unwrap_or_else(|| panic!("{problems:?}")))
    }

    fn guest(disk: &str) -> String {
        format!(
            "vms:\n  a:\n    memory: 1GiB\n    boot: {{firmware: uefi}}\n    disks:\n      root: {{path: {disk}}}\n"
        )
    }

    #[test]
    fn files_are_those_of_images_and_those_that_were_there() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs::create_dir(&images).unwrap();
        fs::write(images.join("a.img"), "").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", images.join("link")).unwrap();
        let (_, before) = load(&guest("/srv/old.img"));
        let before = [before];
        let guard = Guard::within(&before, "/etc/throughway".into(), &images);
        let lines = |disk: &str| {
            let (document, config) = load(&guest(disk));
            guard.problems(&document, &config, true).iter().map(|problem| problem.line).collect::<Vec<_>>()
        };
        let at = |name: &str| images.join(name).display().to_string();
        for fine in ["/srv/old.img", &at("a.img"), &at("not-yet.img"), "/usr/share/OVMF/x.fd"] {
            assert_eq!(lines(fine), [0; 0], "{fine}");
        }
        for strange in ["/etc/shadow", "/dev/sda", "old.img", &at("../audit"), &at("link"), "/srv/old.img2"] {
            assert_eq!(lines(strange), [7], "{strange}");
        }
    }

    #[test]
    fn every_path_of_a_file_is_looked_at() {
        let (document, config) = load(
            "web: {certificate: /a, key: /b, users-file: /c}\nvms:\n  a:\n    memory: 1GiB\n    boot: {kernel: /d, initrd: /e}\n  b:\n    memory: 1GiB\n    boot: {firmware: {code: /f, vars: /g}}\n    disks:\n      root: {path: /h, format: qcow2, backing-folders: [/i]}\n",
        );
        let guard = Guard::within(&[], "/".into(), Path::new("/images"));
        assert_eq!(guard.problems(&document, &config, true).len(), 9);
        // Whoever adds a path to the file adds it here: these are all of the schema's.
        let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap().to_string();
        let described = [
            "kernel",
            "initrd",
            "code",
            "vars",
            "path",
            "backing-folders",
            "certificate",
            "key",
            "users-file",
        ];
        assert!(described.iter().all(|key| schema.contains(&format!("\"{key}\""))));
    }

    #[test]
    fn devices_are_given_by_who_may() {
        let devices = "devices:\n  gpu: {match: {id: \"10de:2204\"}}\n";
        let with =
            "vms:\n  a:\n    memory: 1GiB\n    boot: {firmware: uefi}\n    pci:\n      gpu: {device: gpu}\n";
        let (_, before) = load(devices);
        let before = [before];
        let guard = Guard::within(&before, "/".into(), Path::new("/images"));
        let found = |text: &str, may: bool| {
            let (document, config) = load(text);
            guard.problems(&document, &config, may).len()
        };
        let both = format!("{devices}{with}");
        assert_eq!(found(&both, true), 0);
        assert_eq!(found(&both, false), 1);
        assert_eq!(found(devices, false), 0);
        assert_eq!(found("vms: {}", false), 1, "a name that goes is a change of what is given");
        let fresh = Guard::within(&[], "/".into(), Path::new("/images"));
        let (document, config) = load("vms: {}");
        assert!(fresh.problems(&document, &config, false).is_empty());
        let (document, config) = load(devices);
        assert_eq!(fresh.problems(&document, &config, false).len(), 1);
    }
}
