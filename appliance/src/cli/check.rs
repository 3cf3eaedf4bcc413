//! `throughway check` and `throughway schema`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use schemars::schema_for;

use super::Exit;
use crate::config::{self, Config, Diagnostic, Document, Firmware, Severity, Vm};
use crate::guest;
use crate::plan::Refusal;

#[derive(Args)]
pub(super) struct Arguments {
    /// The appliance file.
    file: String,
    /// Problems as JSON on standard output: a list, empty when there are none.
    #[arg(long)]
    json: bool,
    /// Print the file as Throughway reads it: its own names for keys, sections in order.
    #[arg(long)]
    canonical: bool,
}

/// Reads a file and says all that is wrong with it.
pub(super) fn load(name: &str) -> Result<(Document, Config), Vec<Diagnostic>> {
    let document = config::read(name).map_err(|problem| vec![problem])?;
    config::load(&document).map(|config| (document, config))
}

pub(super) fn main(arguments: &Arguments) -> Exit {
    let folder = Path::new(&arguments.file).parent().unwrap_or(Path::new(""));
    let result = load(&arguments.file);
    let problems = match &result {
        Ok((document, config)) => firmware(document, config, folder),
        Err(problems) => problems.clone(),
    };
    if arguments.json {
        print(&serde_json::to_string_pretty(&problems).unwrap_or_default());
    } else {
        complain(&problems);
    }
    match result {
        Err(_) => Exit::BadInput,
        Ok(_) if problems.iter().any(|problem| problem.severity == Severity::Error) => Exit::BadInput,
        Ok((_, config)) => {
            if arguments.canonical {
                print(serde_yaml::to_string(&config).unwrap_or_default().trim_end());
            }
            Exit::Success
        }
    }
}

/// Firmware that is not there, or is none. The distribution's own may be missing where a file is only looked at, so that is
/// a warning.
fn firmware(document: &Document, config: &Config, folder: &Path) -> Vec<Diagnostic> {
    let wrong = |(name, vm): (&String, &Vm)| {
        let firmware = vm.boot.firmware.as_ref()?;
        let error = guest::open_firmware(firmware, folder).err()?;
        let path = ["vms", name, "boot", "firmware"].map(str::to_owned);
        let mut problem = document.at_path(&path, format!("{error:#}"), None);
        let missing =
            error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
        if missing && matches!(firmware, Firmware::Known(_)) {
            problem.severity = Severity::Warning;
        }
        Some(problem)
    };
    config.vms.iter().filter_map(wrong).collect()
}

/// All problems on standard error, with a count where there are several.
pub(super) fn complain(problems: &[Diagnostic]) {
    for problem in problems {
        eprint!("{}", problem.render());
    }
    if problems.len() > 1 {
        eprintln!("{} problems", problems.len());
    }
}

/// Refusals with the line of the file that asks for what is refused.
pub(super) fn at_their_lines(document: &Document, refusals: &[Refusal]) -> Vec<Diagnostic> {
    let place =
        |refusal: &Refusal| document.at_path(&refusal.path, refusal.message.clone(), refusal.help.clone());
    let mut problems: Vec<Diagnostic> = refusals.iter().map(place).collect();
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems
}

pub(super) fn schema() -> Exit {
    print(&serde_json::to_string_pretty(&schema_for!(Config)).unwrap_or_default());
    Exit::Success
}

/// A line on standard output; a reader that went away is no fault.
pub(super) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
