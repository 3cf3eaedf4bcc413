//! `throughway`: see `throughway --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    throughway::cli::main()
}
