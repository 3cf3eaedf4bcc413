//! Picks kernel modules with what they depend on, in the order they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::sysroot::Sysroot;

/// The dependency table of one kernel, as depmod(8) wrote it.
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    /// Name to path below the folder, and the paths it depends on.
    table: BTreeMap<String, (String, Vec<String>)>,
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn parse(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(path, needs)| {
            (name_of(path), (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
        })
        .collect()
}

fn resolve(table: &BTreeMap<String, (String, Vec<String>)>, names: &[&str]) -> Result<Vec<String>> {
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for name in names {
        let Some((path, needs)) = table.get(&name.replace('-', "_")) else {
            bail!("The kernel has no module {name}");
        };
        // modules.dep lists all dependencies of a module, nearest first: load from the far end.
        for path in needs.iter().rev().chain([path]) {
            if seen.insert(path.clone()) {
                order.push(path.clone());
            }
        }
    }
    Ok(order)
}

impl Modules {
    /// Reads the table below `folder`, a `lib/modules/<release>`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("modules.dep");
        let text = fs::read_to_string(&path).with_context(|| format!("Reading {}", path.display()))?;
        Ok(Self { folder: folder.to_owned(), table: parse(&text) })
    }

    /// The names out of `names` that are modules of this kernel and not built in.
    #[must_use]
    pub fn known<'n>(&self, names: &[&'n str]) -> Vec<&'n str> {
        names.iter().copied().filter(|name| self.table.contains_key(&name.replace('-', "_"))).collect()
    }

    /// Unpacks the modules and their dependencies into `folder` (flat names kept
    /// below `kernel/`), and returns their paths there in loading order.
    pub fn unpack(&self, names: &[&str], folder: &Path, sysroot: &Sysroot) -> Result<Vec<String>> {
        let mut paths = Vec::new();
        for path in resolve(&self.table, names)? {
            let source = self.folder.join(&path);
            let plain = path.trim_end_matches(".xz").to_owned();
            let target = folder.join(&plain);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).with_context(|| format!("Creating {}", parent.display()))?;
            }
            let bytes = if plain == path {
                fs::read(&source).with_context(|| format!("Reading {}", source.display()))?
            } else {
                let mut command = sysroot.command("/usr/bin/xz");
                crate::command::output(command.arg("-dc").arg(&source), "Unpacking a kernel module")?
            };
            fs::write(&target, bytes).with_context(|| format!("Writing {}", target.display()))?;
            paths.push(plain);
        }
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            let source = self.folder.join(name);
            if source.exists() {
                fs::copy(&source, folder.join(name)).with_context(|| format!("Copying {name}"))?;
            }
        }
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a/igb.ko.xz: kernel/b/dca.ko.xz kernel/c/i2c-algo-bit.ko.xz\nkernel/b/dca.ko.xz:\n\
        kernel/c/i2c-algo-bit.ko.xz:\nkernel/v/vfio-pci.ko: kernel/v/vfio-pci-core.ko kernel/v/vfio.ko\n\
        kernel/v/vfio-pci-core.ko: kernel/v/vfio.ko\nkernel/v/vfio.ko:\n";

    #[test]
    fn dependencies_load_first_and_once() {
        let order = resolve(&parse(DEP), &["igb", "vfio-pci", "dca", "vfio_pci"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/c/i2c-algo-bit.ko.xz",
                "kernel/b/dca.ko.xz",
                "kernel/a/igb.ko.xz",
                "kernel/v/vfio.ko",
                "kernel/v/vfio-pci-core.ko",
                "kernel/v/vfio-pci.ko"
            ]
        );
    }

    #[test]
    fn an_unknown_module_is_named() {
        assert!(resolve(&parse(DEP), &["nope"]).unwrap_err().to_string().contains("nope"));
    }
}
