//! Sets attributes of a VF and says what became of each, as a person would with `ip link set DEV vf N`:
//!
//! ```text
//! vf show eth1 0                                                 prints its state, as JSON
//! vf set eth1 0 '{"vlan-id": 100, "link-state": "disable"}'      sets attributes
//! vf restore eth1 "$state"                                       puts back what `show` printed
//! ```
//!
//! Ends with 0 when all is as asked for, 1 when something is not, 2 when nothing could be done.

use std::process::ExitCode;

use throughway_netconfig::blocking::with_network;
use throughway_netconfig::{Report, VfAttributes, VfState};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(reports) => {
            for report in &reports {
                println!("{} {report}", if report.holds() { "ok" } else { "not ok" });
            }
            if reports.iter().all(Report::holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[&str]) -> Result<Vec<Report>, Failure> {
    match arguments {
        ["show", link, vf] => {
            let id: u32 = vf.parse()?;
            let state = with_network(async |network| network.vf(link, id).await)?;
            println!("{}", serde_json::to_string(&state)?);
            Ok(Vec::new())
        }
        ["set", link, vf, attributes] => {
            let (id, wanted): (u32, VfAttributes) = (vf.parse()?, serde_json::from_str(attributes)?);
            Ok(with_network(async |network| network.set_vf(link, id, &wanted).await)?)
        }
        ["restore", link, state] => {
            let before: VfState = serde_json::from_str(state)?;
            Ok(with_network(async |network| network.restore_vf(link, &before).await)?)
        }
        _ => Err("write `show LINK VF`, `set LINK VF ATTRIBUTES` or `restore LINK STATE`".into()),
    }
}
