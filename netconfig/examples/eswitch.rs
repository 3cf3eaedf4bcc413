//! Shows how a card's switch is run, and has it run otherwise: `eswitch BUS DEVICE [legacy|switchdev]`.

use std::process::ExitCode;

use throughway_netconfig::EswitchMode;
use throughway_netconfig::devlink::{Eswitch, eswitch_mode, set_eswitch_mode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (bus, device, mode) = match words[..] {
        [bus, device] => (bus, device, None),
        [bus, device, "legacy"] => (bus, device, Some(EswitchMode::Legacy)),
        [bus, device, "switchdev"] => (bus, device, Some(EswitchMode::Switchdev)),
        _ => {
            eprintln!("usage: eswitch BUS DEVICE [legacy|switchdev]");
            return ExitCode::from(2);
        }
    };
    let changed = mode.map_or(Ok(()), |mode| set_eswitch_mode(bus, device, mode));
    match changed.and_then(|()| eswitch_mode(bus, device)) {
        Ok(Eswitch::Mode(EswitchMode::Legacy)) => println!("legacy"),
        Ok(Eswitch::Mode(EswitchMode::Switchdev)) => println!("switchdev"),
        Ok(Eswitch::Unsupported(reason)) => println!("unsupported: {reason}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
