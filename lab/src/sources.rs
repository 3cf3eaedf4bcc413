//! The machine's own package sources, read to derive private ones from.
//!
//! Nothing here names a server: the URIs and keys are those the machine already
//! trusts, with at most the backports suite of the same release added.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// One stanza of package sources, in the deb822 form of sources.list(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    /// Fields in their order, continuation lines included in the value.
    fields: Vec<(String, String)>,
}

impl Stanza {
    fn get(&self, name: &str) -> &str {
        let found = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value.trim())
    }

    fn suites(&self) -> Vec<&str> {
        self.get("Suites").split_whitespace().collect()
    }

    fn is_binary(&self) -> bool {
        let on = !matches!(self.get("Enabled").to_ascii_lowercase().as_str(), "no" | "false" | "off" | "0");
        on && self.get("Types").split_whitespace().any(|kind| kind == "deb")
    }

    /// The same source for other suites, binary packages only.
    fn with_suites(&self, suites: &[&str]) -> Self {
        let mut fields =
            vec![("Types".to_owned(), "deb".to_owned()), ("Suites".to_owned(), suites.join(" "))];
        for (name, value) in &self.fields {
            if !["types", "suites", "enabled"].contains(&name.to_ascii_lowercase().as_str()) {
                fields.push((name.clone(), value.clone()));
            }
        }
        Self { fields }
    }

    fn render(&self) -> String {
        self.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
    }
}

fn parse_deb822(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !fields.is_empty() {
                stanzas.push(Stanza { fields: std::mem::take(&mut fields) });
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    stanzas
}

/// Option names of the one-line form and their deb822 fields, sources.list(5).
const OPTIONS: [(&str, &str); 6] = [
    ("signed-by", "Signed-By"),
    ("arch", "Architectures"),
    ("trusted", "Trusted"),
    ("check-valid-until", "Check-Valid-Until"),
    ("check-date", "Check-Date"),
    ("by-hash", "By-Hash"),
];

fn parse_one_line(text: &str) -> Vec<Stanza> {
    text.lines().filter_map(|line| parse_line(line.split('#').next().unwrap_or_default())).collect()
}

fn parse_line(line: &str) -> Option<Stanza> {
    let mut fields = vec![("Types".to_owned(), "deb".to_owned())];
    let mut rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    if let Some(inner) = rest.strip_prefix('[') {
        let (options, after) = inner.split_once(']')?;
        for (name, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
            if let Some((_, field)) = OPTIONS.iter().find(|(known, _)| *known == name) {
                fields.push(((*field).to_owned(), value.replace(',', " ")));
            }
        }
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    fields.push(("URIs".to_owned(), uri.to_owned()));
    fields.push(("Suites".to_owned(), suite.to_owned()));
    fields.push(("Components".to_owned(), words.collect::<Vec<_>>().join(" ")));
    Some(Stanza { fields })
}

/// Reads all package sources below `etc` (usually `/etc/apt`).
pub fn read(etc: &Path) -> Result<Vec<Stanza>> {
    let mut files: Vec<PathBuf> = vec![etc.join("sources.list")];
    if let Ok(folder) = fs::read_dir(etc.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
        more.sort();
        files.extend(more);
    }
    let mut stanzas = Vec::new();
    for path in files {
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read_to_string(&path) {
            Ok(text) => stanzas.extend(parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("Reading {}", path.display())),
        }
    }
    Ok(stanzas)
}

/// The sources of the Debian release `codename` out of `stanzas`, in deb822 form,
/// with the release's backports when `backports` is asked for.
pub fn derive(stanzas: &[Stanza], codename: &str, backports: bool) -> Result<String> {
    let of_release = |suite: &&str| *suite == codename || suite.starts_with(&format!("{codename}-"));
    let wanted = format!("{codename}-backports");
    let mut result = String::new();
    let mut main = false;
    for stanza in stanzas.iter().filter(|stanza| stanza.is_binary()) {
        let mut suites: Vec<&str> = stanza.suites().into_iter().filter(of_release).collect();
        suites.retain(|suite| *suite != wanted);
        if suites.is_empty() {
            continue;
        }
        if suites.contains(&codename) {
            main = true;
            if backports {
                suites.push(&wanted);
            }
        }
        if !result.is_empty() {
            result.push('\n');
        }
        result.push_str(&stanza.with_suites(&suites).render());
    }
    if !main {
        bail!(
            "No package source for the suite {codename} in /etc/apt: the lab takes QEMU and kernels from there; add one and try again"
        );
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb deb-src\n# a remark\nURIs: file:/mirror/debian\nSuites: bookworm bookworm-updates\n\
        Components: main\nSigned-By:\n -----BEGIN KEY-----\n .\n abc\n\nTypes: deb\nURIs: file:/mirror/security\n\
        Suites: bookworm-security\nComponents: main\n\nTypes: deb\nURIs: file:/other\nSuites: nodistro\nComponents: main\n";

    #[test]
    fn backports_come_from_the_main_suites_stanza() {
        let derived = derive(&parse_deb822(DEB822), "bookworm", true).unwrap();
        assert!(derived.contains("Suites: bookworm bookworm-updates bookworm-backports\n"), "{derived}");
        assert!(derived.contains("Suites: bookworm-security\n"), "{derived}");
        assert!(derived.contains("-----BEGIN KEY-----\n .\n abc"), "the inline key stays: {derived}");
        assert!(!derived.contains("nodistro") && !derived.contains("deb-src"), "{derived}");
    }

    #[test]
    fn one_line_sources_keep_their_key() {
        let text = "# x\ndeb [arch=amd64 signed-by=/k.gpg] file:/mirror bookworm main contrib # y\ndeb-src file:/m bookworm main\n";
        let derived = derive(&parse_one_line(text), "bookworm", true).unwrap();
        assert!(
            derived.contains("Signed-By: /k.gpg\n") && derived.contains("Architectures: amd64\n"),
            "{derived}"
        );
        assert!(derived.contains("Suites: bookworm bookworm-backports\n"), "{derived}");
        assert!(derived.contains("Components: main contrib\n"), "{derived}");
    }

    #[test]
    fn a_machine_without_the_suite_is_told() {
        let error = derive(&parse_deb822(DEB822), "trixie", false).unwrap_err();
        assert!(error.to_string().contains("trixie"), "{error}");
    }

    #[test]
    fn a_disabled_stanza_is_left_out() {
        let text = "Types: deb\nEnabled: no\nURIs: file:/m\nSuites: bookworm\nComponents: main\n";
        assert!(derive(&parse_deb822(text), "bookworm", false).is_err());
    }
}
