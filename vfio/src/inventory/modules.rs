//! Which of the running kernel's modules know a function: what would drive it when it is probed.

use std::path::Path;

/// The kernel's table of which module is for what, as depmod(8) wrote it.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// Patterns of PCI functions with their modules: of modules that are files, and of those that are built in.
    files: Vec<(String, String)>,
    built_in: Vec<(String, String)>,
}

impl Modules {
    /// Of the kernel that runs. One without modules, or without that table, knows none.
    pub fn load() -> Self {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy().into_owned();
        Self::read(&Path::new("/lib/modules").join(release))
    }

    /// Of a folder such as `/lib/modules/6.12.0`.
    pub fn read(folder: &Path) -> Self {
        let text = |name: &str| {
            let bytes = std::fs::read(folder.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self::of(&text("modules.alias"), &text("modules.builtin.modinfo"))
    }

    /// `modules.alias` has lines, `alias PATTERN MODULE`; `modules.builtin.modinfo` ends each `MODULE.alias=PATTERN` with a zero.
    fn of(files: &str, built_in: &str) -> Self {
        let line = |line: &str| {
            let (pattern, module) = line.strip_prefix("alias ")?.split_once(' ')?;
            is_pci(pattern).then(|| (pattern.to_owned(), module.trim().to_owned()))
        };
        let field = |field: &str| {
            let (key, pattern) = field.split_once('=')?;
            let module = key.strip_suffix(".alias").filter(|_| is_pci(pattern))?;
            Some((pattern.to_owned(), module.to_owned()))
        };
        Self {
            files: files.lines().filter_map(line).collect(),
            built_in: built_in.split('\0').filter_map(field).collect(),
        }
    }

    /// Modules for what a function says of itself (`modalias`), each once. As with modprobe(8), what is built in is asked for only where
    /// no file is found.
    pub(super) fn of_alias(&self, alias: &str) -> Vec<String> {
        for table in [&self.files, &self.built_in] {
            let mut found = Vec::<String>::new();
            for (_, module) in table.iter().filter(|(pattern, _)| fits(pattern.as_bytes(), alias.as_bytes()))
            {
                if !found.contains(module) {
                    found.push(module.clone());
                }
            }
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }
}

fn is_pci(pattern: &str) -> bool {
    pattern.starts_with("pci:")
}

/// Whether a text is as a pattern, in which `*` stands for anything, as in all patterns of PCI functions (scripts/mod/file2alias.c).
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: it stands for one more.
    let mut retry = None;
    loop {
        match (pattern.get(at), text.get(seen)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((at, seen));
                at += 1;
            }
            (Some(wanted), Some(found)) if wanted == found => {
                at += 1;
                seen += 1;
            }
            _ => match retry {
                Some((star, from)) if from < text.len() => {
                    retry = Some((star, from + 1));
                    at = star + 1;
                    seen = from + 1;
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALIASES: &str = "# Aliases extracted from modules themselves.
alias pci:v00008086d000010C9sv*sd*bc*sc*i* igb
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v0000106Bd00002003sv*sd*bc*sc*i* nvme
alias pci:v000010DEd*sv*sd*bc03sc00i00* nouveau
alias pci:v000010DEd*sv*sd*bc03sc00i00* nvidiafb
alias pci:v000010DEd00002204sv*sd*bc*sc*i* nouveau
alias usb:v8086p*d*dc*dsc*dp*ic*isc*ip*in* cdc_acm
";
    const BUILT_IN: &str = "ehci_pci.license=GPL\0ehci_pci.alias=pci:v*d*sv*sd*bc0Csc03i20*\0\
                            igb_in.alias=pci:v00008086d000010C9sv*sd*bc*sc*i*\0";

    #[test]
    fn modules_are_found_as_modprobe_finds_them() {
        let modules = Modules::of(ALIASES, BUILT_IN);
        for (alias, wanted) in [
            ("pci:v00008086d000010C9sv00008086sd0000A03Cbc02sc00i00", &["igb"][..]),
            ("pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02", &["nvme"]),
            ("pci:v000010DEd00002204sv00001043sd000087B3bc03sc00i00", &["nouveau", "nvidiafb"]),
            ("pci:v00001022d0000148Csv00001022sd0000148Cbc0Csc03i20", &["ehci_pci"]),
            ("pci:v00001022d0000148Csv00001022sd0000148Cbc0Csc03i30", &[]),
            ("", &[]),
        ] {
            assert_eq!(modules.of_alias(alias), wanted, "{alias}");
        }
        assert!(Modules::read(Path::new("/nonexistent")).of_alias("pci:").is_empty());
    }

    /// What it means, without care for time.
    fn means(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => means(rest, text),
            (Some((b'*', rest)), Some((_, after))) => means(rest, text) || means(pattern, after),
            (Some((wanted, rest)), Some((found, after))) => wanted == found && means(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_star_stands_for_anything(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), means(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_table_can_panic(files in "(alias )?[pci: *=.\0\n]{0,60}", alias in "[pci:*]{0,8}") {
            Modules::of(&files, &files).of_alias(&alias);
        }
    }
}
