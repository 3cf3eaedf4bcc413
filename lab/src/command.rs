//! Running other programs: quietly, with the tail of what they said in the error.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// How many of the last lines an error shows.
const TAIL: usize = 15;

fn shown(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(TAIL);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// Runs a program to its end and returns what it wrote to standard output.
/// A failure carries the last lines of both outputs.
pub fn output(command: &mut Command, doing: &str) -> Result<Vec<u8>> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{doing}: starting {}", shown(command)))?;
    if !done.status.success() {
        let said =
            format!("{}\n{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        bail!("{doing}: {} ended with {}\n{}", shown(command), done.status, tail(&said));
    }
    Ok(done.stdout)
}

/// Like [`output`], as text.
pub fn text(command: &mut Command, doing: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command, doing)?).into_owned())
}

/// Runs a program with both outputs going to `log`, and hands each line to
/// `each` as it comes. Returns whether it succeeded, and its last lines.
pub fn logged(
    command: &mut Command,
    log: &Path,
    doing: &str,
    mut each: impl FnMut(&str),
) -> Result<(bool, String)> {
    let mut file = File::create(log).with_context(|| format!("Creating {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("Making a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("Sharing a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{doing}: starting {}", shown(command)))?;
    // The command keeps its copies of the pipe's writing end until it is changed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut last = std::collections::VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.with_context(|| format!("{doing}: reading what {} said", shown(command)))?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        writeln!(file, "{line}").with_context(|| format!("Writing {}", log.display()))?;
        each(&line);
        last.push_back(line);
        if last.len() > TAIL {
            last.pop_front();
        }
    }
    let status = child.wait().with_context(|| format!("{doing}: waiting for {}", shown(command)))?;
    Ok((status.success(), Vec::from(last).join("\n")))
}

/// [`logged`], where a failure is an error that names the log.
pub fn logged_ok(command: &mut Command, log: &Path, doing: &str, each: impl FnMut(&str)) -> Result<()> {
    let (success, last) = logged(command, log, doing, each)?;
    if !success {
        bail!("{doing}: {} failed, full log in {}\n{last}", shown(command), log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), "Trying").unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn a_logged_run_writes_both_outputs_and_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let log = scratch.path().join("log");
        let mut seen = Vec::new();
        let (success, last) =
            logged(Command::new("sh").args(["-c", "echo a; echo b >&2"]), &log, "Trying", |line| {
                seen.push(line.to_owned())
            })
            .unwrap();
        assert!(success);
        assert_eq!(seen.len(), 2);
        assert!(last.contains('a') && std::fs::read_to_string(&log).unwrap().contains('b'));
    }
}
