//! The other VMMs that a start is compared with, as people would have them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::sysroot::Sysroot;
use crate::{command, fresh, progress};

/// The version of Alioth that is compared with.
const ALIOTH: &str = "0.12.0";

/// A VMM, and how it starts the guest with its console on standard input and output.
#[derive(Clone, Debug)]
pub(super) struct Contestant {
    /// What the table calls it.
    pub(super) name: String,
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// The program's own file.
    pub(super) program: PathBuf,
}

impl Contestant {
    fn new(name: impl Into<String>, program: PathBuf, command: Vec<String>) -> Self {
        Self { name: name.into(), command, program }
    }

    pub(super) fn ours(program: PathBuf, file: &Path, vm: &str) -> Self {
        let command = [text(&program), "run".into(), text(file), "--vm".into(), vm.into()];
        Self::new("Throughway", program, command.into())
    }

    /// With more arguments.
    pub(super) fn with(mut self, more: Vec<String>) -> Self {
        self.command.extend(more);
        self
    }

    /// From a fresh copy of its program. How a file came into the page cache (piece by piece, in large folios, joined since)
    /// is up to a fifth of a start's page faults, so it must be the same for who is compared.
    pub(super) fn copied(mut self, folder: &Path) -> Result<Self> {
        let copy = folder.join(self.program.file_name().context("A program without a name")?);
        std::fs::copy(&self.program, &copy)
            .and_then(|_| std::fs::File::open(&copy)?.sync_all())
            .with_context(|| format!("Copying {}", self.program.display()))?;
        if let Some(program) = self.command.first_mut() {
            *program = text(&copy);
        }
        Ok(self)
    }

    /// Out of the cache folder, installed there with cargo when missing.
    pub(super) fn alioth(cache: &Cache, guest: &Path, mib: u64) -> Result<Self> {
        let program = installed(cache)?;
        // Its memory from a memory file, as with the others, so that it can be told from what else it holds.
        let command = [text(&program), "boot".into(), "--pvh".into(), text(guest)]
            .into_iter()
            .chain(["--cpu".into(), "count=1".into()])
            .chain(["--memory".into(), format!("size={mib}M,backend=memfd")]);
        Ok(Self::new(format!("Alioth {ALIOTH}"), program.clone(), command.collect()))
    }

    /// Debian's QEMU as the lab has it, with one of its machines: `microvm`, the smallest, or `q35`.
    pub(super) fn qemu(sysroot: &Sysroot, guest: &Path, mib: u64, machine: &str, accelerator: &str) -> Self {
        let program = "/usr/bin/qemu-system-x86_64";
        let data = sysroot.path("/usr/share");
        let mut command = sysroot.run_with(program);
        let mut add =
            |arguments: &[&str]| command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-L", &text(&data.join("qemu")), "-L", &text(&data.join("seabios"))]);
        add(&["-M", &format!("{machine},memory-backend=ram"), "-smp", "1", "-m", &format!("{mib}M")]);
        add(&["-object", &format!("memory-backend-memfd,id=ram,size={mib}M,share=on")]);
        add(&["-accel", accelerator, "-cpu", if accelerator == "kvm" { "host" } else { "max" }]);
        add(&[
            "-kernel",
            &text(guest),
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        Self::new(format!("QEMU {machine}, {accelerator}"), sysroot.path(program), command)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn installed(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.folder("tools", &format!("alioth-{ALIOTH}"), |scratch| {
        let build = scratch.join("build");
        let mut install = fresh::cargo();
        // Outside of the checkout: as its authors build it.
        install.current_dir(scratch).env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET");
        install.args(["install", "alioth-cli", "--version", ALIOTH, "--locked"]);
        install.arg("--root").arg(scratch).arg("--target-dir").arg(&build);
        let log = cache.path("alioth.log");
        progress::step("Installing Alioth into the cache folder (a few minutes, once)", |step| {
            command::logged_ok(&mut install, &log, "Installing Alioth", |line| step.at(line.trim()))
        })?;
        std::fs::remove_dir_all(&build).with_context(|| format!("Removing {}", build.display()))
    })?;
    let program = folder.join("bin/alioth");
    if !program.exists() {
        bail!("Installing Alioth left no {}", program.display());
    }
    Ok(program)
}

/// The version that QEMU says it has.
pub(super) fn qemu_version(sysroot: &Sysroot) -> Result<String> {
    let arguments = sysroot.run_with("/usr/bin/qemu-system-x86_64");
    let (loader, rest) = arguments.split_first().context("The sysroot has no loader")?;
    let said =
        command::text(Command::new(loader).args(rest).arg("--version"), "Asking QEMU for its version")?;
    let version = said.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(version.unwrap_or("of an unknown version").to_owned())
}
