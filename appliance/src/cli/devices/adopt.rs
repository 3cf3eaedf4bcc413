//! `throughway devices adopt`.

use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use vfio::PciAddress;
use vfio::inventory::{Function, Names};

use crate::apply::{Host, Ledger};
use crate::cli::StateDir;
use crate::cli::check::{self, print};
use crate::cli::exit::Exit;
use crate::cli::failure::{Failure, ended};
use crate::config::{Config, Document, load};
use crate::host::HostState;
use crate::plan::{self, Trait};

#[derive(Args)]
pub(super) struct Arguments {
    /// A name from the file's `devices`.
    name: String,
    /// The appliance file, which is changed in place.
    #[arg(short, long)]
    file: String,
    /// The device to point to; the one that is most likely meant where it is not said.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<PciAddress>,
    /// Do it without asking.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    ended(adopt(arguments))
}

fn adopt(arguments: &Arguments) -> Result<Exit, Failure> {
    let (document, config) = check::load(&arguments.file).map_err(Failure::Input)?;
    let host = read(&arguments.state, &config)?;
    let adoption = propose(&document, &config, &host, &arguments.name, arguments.to)
        .map_err(|message| Failure::Refused(anyhow!(message)))?;
    print(&adoption.shown);
    let Some(text) = adoption.text else { return Ok(Exit::Success) };
    agreed(&format!("Re-point `{}`?", arguments.name), arguments.yes)?;
    rewrite(&arguments.file, &document, &text)?;
    print(&format!("{}: `{}` means {} now.", arguments.file, arguments.name, adoption.address));
    Ok(Exit::Success)
}

/// The host, with all that devices are recognized by.
pub(super) fn read(state: &StateDir, config: &Config) -> Result<HostState, Failure> {
    let place = Host::at(&state.state_dir);
    let mut host = HostState::read(&place.sysfs, &Ledger::at(&state.state_dir), true)?;
    host.recognize(&place, config)?;
    host.read_serials(&place.sysfs);
    Ok(host)
}

/// What adopting comes to.
pub(super) struct Adoption {
    address: PciAddress,
    /// Both sides, as a person reads them.
    pub(super) shown: String,
    /// The file then; none where nothing is to be changed.
    pub(super) text: Option<String>,
}

pub(super) fn propose(
    document: &Document,
    config: &Config,
    host: &HostState,
    name: &str,
    to: Option<PciAddress>,
) -> Result<Adoption, String> {
    if !config.devices.contains_key(name) {
        let known: Vec<&str> = config.devices.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!("{} has no device `{name}`; it has {known}", document.name));
    }
    let now = plan::find(config, host, name);
    let address = match (to, &now) {
        (Some(to), _) => to,
        (None, Ok(there)) => *there,
        (None, Err(_)) => plan::candidate(config, host, name).map_err(|why| {
            format!("{why}; say which it is with --to ADDRESS (`throughway devices` lists them)")
        })?,
    };
    let Some(function) = host.inventory.function(address) else {
        return Err(format!(
            "{address}: there is no such PCI function; `throughway devices` lists those that there are"
        ));
    };
    let traits = plan::compare(config, host, name, function);
    let mut shown = table(name, function, &traits);
    if now == Ok(address) {
        shown.push_str("\nNothing is to be done: the name means this device.");
        return Ok(Adoption { address, shown, text: None });
    }
    let text = repointed(document, config, name, &traits)?;
    Ok(Adoption { address, shown, text: Some(text) })
}

fn table(name: &str, function: &Function, traits: &[Trait]) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let heads = ("the file says".to_owned(), format!("{} has", function.address));
    let width = |side: &dyn Fn(&Trait) -> String, head: &str| {
        traits.iter().map(|line| side(line).len()).chain([head.len()]).max().unwrap_or(0)
    };
    let left = width(&|line| or_dash(&line.said), &heads.0);
    let mut text = format!("{}: {}\n\n", function.address, Names::load().describe(function));
    text.push_str(&format!("{name:<15} {:<left$}  {}\n", heads.0, heads.1));
    for line in traits {
        let mark = if line.same { "" } else { "  <- differs" };
        text.push_str(&format!(
            "  {:<13} {:<left$}  {}{mark}\n",
            line.key,
            or_dash(&line.said),
            or_dash(&line.found)
        ));
    }
    text
}

/// The file with what differs re-pointed, checked by reading it again.
fn repointed(document: &Document, config: &Config, name: &str, traits: &[Trait]) -> Result<String, String> {
    let mut now = document.clone();
    for line in traits.iter().filter(|line| !line.same) {
        let said = line.said.as_deref().unwrap_or_default();
        let Some(found) = &line.found else {
            return Err(format!(
                "The file recognizes `{name}` by its {}, and this device has none: take that key out of the file first",
                line.key
            ));
        };
        let path = ["devices", name, "match", line.key];
        now.text = now.with_scalar(&path, said, found).ok_or_else(|| by_hand(document, &path.join(".")))?;
    }
    // As meant: the same file, but for what differed.
    let mut meant = config.clone();
    if let Some(device) = meant.devices.get_mut(name) {
        for line in traits.iter().filter(|line| !line.same) {
            let found = line.found.clone();
            match line.key {
                "address" => device.matches.address = found,
                "path" => device.matches.path = found,
                "id" => device.matches.id = found,
                "subsystem-id" => device.matches.subsystem_id = found,
                "serial" => device.matches.serial = found,
                _ => device.matches.permanent_mac = found.and_then(|mac| mac.parse().ok()),
            }
        }
    }
    match load(&now) {
        Ok(read) if read == meant => Ok(now.text),
        _ => Err(by_hand(document, &format!("devices.{name}"))),
    }
}

pub(super) fn by_hand(document: &Document, path: &str) -> String {
    format!(
        "{}: `{path}` is written in a way that cannot be changed in place: change it by hand",
        document.name
    )
}

/// Asks on a terminal; elsewhere it must have been said.
pub(super) fn agreed(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Refused(anyhow!(
            "{question} Nothing was changed: say --yes, or ask on a terminal"
        )));
    }
    let mut out = std::io::stdout();
    let _ = write!(out, "{question} [y/N] ").and_then(|()| out.flush());
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).context("Reading the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Refused(anyhow!("Nothing was changed"))),
    }
}

/// Writes a file whole or not at all, unless somebody changed it in the meantime.
pub(super) fn rewrite(name: &str, document: &Document, text: &str) -> anyhow::Result<()> {
    const MARK: &str = "\u{feff}";
    // A link stays one, and what it leads to is changed.
    let path = fs::canonicalize(name).with_context(|| format!("Finding {name}"))?;
    let now = fs::read_to_string(&path).with_context(|| format!("Reading {name}"))?;
    let (mark, body) = now.strip_prefix(MARK).map_or(("", now.as_str()), |body| (MARK, body));
    if body != document.text {
        bail!("{name} was changed by somebody in the meantime; nothing was written");
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let fresh = folder.join(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let permissions = fs::metadata(&path)?.permissions();
    let written = fs::File::create(&fresh).and_then(|mut file| {
        file.set_permissions(permissions)?;
        file.write_all(mark.as_bytes())?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(folder)?.sync_all()
    });
    written.with_context(|| format!("Writing {name}"))
}
