//! Shows what links are set to, and makes one so:
//!
//! ```text
//! links show                      every link, as JSON
//! links show br0                  one
//! links realize br0 <br0.json     makes it as what was shown once; `null` for away with it
//! ```

use std::process::ExitCode;

use throughway_netconfig::LinkSettings;
use throughway_netconfig::blocking::with_network;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Failure> {
    match arguments {
        ["show"] => {
            let links = with_network(async |network| network.settings().await)?;
            println!("{}", serde_json::to_string(&links)?);
        }
        ["show", name] => {
            let links = with_network(async |network| network.settings().await)?;
            println!("{}", serde_json::to_string(&links.get(*name))?);
        }
        ["realize", name] => {
            let wanted: Option<LinkSettings> = serde_json::from_reader(std::io::stdin())?;
            with_network(async |network| network.realize(name, wanted.as_ref()).await)?;
            let found = with_network(async |network| network.differences(name, wanted.as_ref()).await)?;
            for difference in &found {
                println!("{difference}");
            }
            if !found.is_empty() {
                return Err("it is not as wanted".into());
            }
        }
        _ => return Err("usage: links show [NAME] | links realize NAME <JSON".into()),
    }
    Ok(())
}
