//! Writes the manual pages and the completions of shells, for the package: `manual FOLDER`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::{Shell, generate_to};

/// Pages are for this section (man(1)).
const SECTION: &str = "8";

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).context("Usage: manual FOLDER")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).with_context(|| format!("Creating {}", folder.display()))?;
    let mut command = throughway::cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "throughway", folder).context("Writing completions")?;
    }
    command.build();
    pages(&command, "throughway", folder)
}

/// The page of a command, and of each below it: `throughway-vm-start.8`.
fn pages(command: &Command, name: &'static str, folder: &Path) -> Result<()> {
    let path = folder.join(format!("{name}.{SECTION}"));
    let named = command.clone().name(name).display_name(name);
    let page = clap_mangen::Man::new(named).section(SECTION).manual("Throughway");
    let mut text = Vec::new();
    page.render(&mut text).context("Making a page")?;
    fs::write(&path, text).with_context(|| format!("Writing {}", path.display()))?;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        // clap's names live as long as the program, and this one is over soon.
        pages(below, format!("{name}-{}", below.get_name()).leak(), folder)?;
    }
    Ok(())
}
