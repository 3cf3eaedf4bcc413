//! Debian packages through apt with a configuration of our own: own lists and
//! own, empty, status (so that whole closures are fetched). The machine's configuration is read, never changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::{command, progress, sources};

/// After this long the package lists are fetched anew before a download.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// The Debian release of this machine, and what the lab needs to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `bookworm`, `trixie`, ...
    pub codename: String,
    /// Whether QEMU 10 and Linux 6.12 come from the backports suite.
    pub backports: bool,
}

impl Release {
    /// Reads `/etc/os-release`.
    pub fn detect() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("Reading /etc/os-release")?;
        Self::parse(&text)
    }

    fn parse(os_release: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let (id, codename) = (field("ID"), field("VERSION_CODENAME"));
        if id != "debian" || codename.is_empty() {
            bail!("This machine is {id:?} {codename:?}: the lab is made from packages of Debian 12 or 13");
        }
        if codename == "bullseye" || codename == "buster" {
            bail!(
                "This machine is Debian {codename}: QEMU 8.1 or newer is needed, which Debian 12 and 13 have"
            );
        }
        let backports = codename == "bookworm";
        Ok(Self { codename, backports })
    }
}

/// apt with private lists and status.
#[derive(Debug, Clone)]
pub struct Apt {
    folder: PathBuf,
    release: Release,
}

impl Apt {
    /// Prepares the private configuration below `cache`.
    pub fn new(cache: &Cache) -> Result<Self> {
        let release = Release::detect()?;
        let folder = cache.path("apt").join(&release.codename);
        for name in ["lists/partial", "state", "sources.list.d"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("Creating {}", path.display()))?;
        }
        let apt = Self { folder, release };
        let status = apt.folder.join("state/status");
        if !status.exists() {
            fs::write(&status, "").with_context(|| format!("Writing {}", status.display()))?;
        }
        Ok(apt)
    }

    /// The release packages come from.
    #[must_use]
    pub fn release(&self) -> &Release {
        &self.release
    }

    fn get(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        let settings = [
            option("Dir::Etc::sourcelist", Path::new("/dev/null")),
            option("Dir::Etc::sourceparts", &self.folder.join("sources.list.d")),
            option("Dir::Etc::preferences", Path::new("/dev/null")),
            option("Dir::Etc::preferencesparts", Path::new("/dev/null")),
            option("Dir::State", &self.folder.join("state")),
            option("Dir::State::status", &self.folder.join("state/status")),
            option("Dir::State::lists", &self.folder.join("lists")),
            option("Dir::Cache", &self.folder),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // The files are this user's own; apt's helper user could not read them.
            "APT::Sandbox::User=".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "Debug::NoLocking=true".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Dpkg::Use-Pty=0".to_owned(),
        ];
        for setting in settings {
            command.arg("-o").arg(setting);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command
    }

    fn release_option(&self) -> Vec<String> {
        if self.release.backports {
            vec!["-t".to_owned(), format!("{}-backports", self.release.codename)]
        } else {
            Vec::new()
        }
    }

    /// Fetches the package lists when they are missing, old, or for other sources.
    pub fn update(&self) -> Result<()> {
        let stanzas = sources::read(Path::new("/etc/apt"))?;
        let derived = sources::derive(&stanzas, &self.release.codename, self.release.backports)?;
        let path = self.folder.join("sources.list.d/throughway.sources");
        let stamp = self.folder.join("lists/.fetched");
        let same = fs::read_to_string(&path).is_ok_and(|before| before == derived);
        let age = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if same && age.is_some_and(|age| age < LISTS_FRESH) {
            return Ok(());
        }
        fs::write(&path, derived).with_context(|| format!("Writing {}", path.display()))?;
        progress::step("Fetching Debian's package lists (into the cache folder, for the lab only)", |_| {
            command::output(self.get("apt-get").arg("update").arg("-q"), "Fetching package lists")
        })?;
        fs::write(&stamp, "").with_context(|| format!("Writing {}", stamp.display()))
    }

    /// The version of `package` that would be taken, or an error when there is none.
    pub fn candidate(&self, package: &str) -> Result<String> {
        let mut command = self.get("apt-cache");
        let text = command::text(
            command.args(self.release_option()).args(["policy", package]),
            "Asking apt for a version",
        )?;
        let found = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"));
        match found.map(str::trim) {
            Some(version) if version != "(none)" => Ok(version.to_owned()),
            _ => bail!("Debian {} has no package {package}", self.release.codename),
        }
    }

    /// The direct dependencies of `package` that start with `prefix`.
    pub fn depends(&self, package: &str, prefix: &str) -> Result<Vec<String>> {
        let version = self.candidate(package)?;
        let mut command = self.get("apt-cache");
        let text = command::text(
            command.args(["depends", "--important", &format!("{package}={version}")]),
            "Asking apt for dependencies",
        )?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends:")).map(str::trim);
        Ok(names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect())
    }

    /// Downloads `packages` with everything they depend on, down to the C
    /// library, into `folder`, and returns the package files. Of a release with
    /// backports they come from there where it has them.
    pub fn download_closure(&self, packages: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
        self.download_all(packages, self.release_option(), folder)
    }

    /// Like [`download_closure`](Self::download_closure), with all that no Debian is without, as the release itself has it.
    pub fn download_installation(&self, packages: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
        let text = command::text(self.get("apt-cache").arg("dumpavail"), "Asking apt for what is required")?;
        let mut wanted = required(&text);
        wanted.push("?essential");
        wanted.extend(packages);
        self.download_all(&wanted, Vec::new(), folder)
    }

    fn download_all(&self, packages: &[&str], from: Vec<String>, folder: &Path) -> Result<Vec<PathBuf>> {
        let partial = folder.join("partial");
        fs::create_dir_all(&partial).with_context(|| format!("Creating {}", partial.display()))?;
        let mut fetch = self.get("apt-get");
        fetch.arg("-o").arg(format!("Dir::Cache::archives={}", folder.display()));
        fetch.args(["install", "-y", "-q", "--download-only"]).args(from).args(packages);
        command::output(&mut fetch, "Downloading Debian packages")?;
        let entries = fs::read_dir(folder).with_context(|| format!("Reading {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        files.sort();
        if files.is_empty() {
            bail!("Downloading Debian packages: apt left no files in {}", folder.display());
        }
        Ok(files)
    }

    /// Downloads one package without its dependencies into `folder`.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        let version = self.candidate(package)?;
        let mut command = self.get("apt-get");
        command.current_dir(folder).args(["download", "-q", &format!("{package}={version}")]);
        command::output(&mut command, &format!("Downloading {package} {version}"))?;
        let entries = fs::read_dir(folder).with_context(|| format!("Reading {}", folder.display()))?;
        let start = format!("{package}_");
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&start) {
                return Ok(entry.path());
            }
        }
        bail!("Downloading {package}: apt left no file in {}", folder.display());
    }
}

/// Names of the packages with priority "required", out of their descriptions: these are what debootstrap begins with.
fn required(available: &str) -> Vec<&str> {
    fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
        stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
    }
    let stanzas = available
        .split(
            "

",
        )
        .filter(|stanza| field(stanza, "Priority:") == Some("required"));
    let mut names: Vec<&str> = stanzas.filter_map(|stanza| field(stanza, "Package:")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Unpacks one package file below `root`, following the merged-/usr links there.
pub fn unpack(package: &Path, root: &Path) -> Result<()> {
    let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink --no-same-owner -C \"$2\"";
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", script, "unpack"]).arg(package).arg(root);
    command::output(&mut command, &format!("Unpacking {}", package.display())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_packages_are_found_once() {
        let text = "Package: tar\nPriority: required\n\nPackage: vim\nPriority: optional\n\nPackage: tar\nPriority: required\n";
        assert_eq!(required(text), ["tar"]);
    }

    #[test]
    fn releases_are_told_apart() {
        let bookworm = Release::parse("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
        let trixie = Release::parse("VERSION_CODENAME=\"trixie\"\nID=debian\n").unwrap();
        assert!(bookworm.backports && !trixie.backports);
        assert!(Release::parse("ID=fedora\nVERSION_CODENAME=\n").is_err());
        assert!(Release::parse("ID=debian\nVERSION_CODENAME=bullseye\n").is_err());
    }
}
