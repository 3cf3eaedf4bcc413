//! A host that has nothing left to give: one clear error, and the exit code for a fault of the host.

use std::process::{Command, Stdio};

use crate::machine::{Ended, Guest, Heard, Running, available};

/// Runs the guest with a limit of the shell's `ulimit`.
fn limited(guest: &Guest, limit: &str) -> Ended {
    let (command, folder) = guest.command();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "sh"]).arg(command.get_program());
    shell.args(command.get_args()).env_remove("RUST_LOG");
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    let console = Heard::listen(child.stdout.take().unwrap());
    Running::new(child, console, folder).end()
}

#[test]
fn descriptors_that_run_out_anywhere_are_one_error() {
    if !available() {
        return;
    }
    let guest = Guest { cpus: "2", ..Guest::new("test=hello") };
    let mut first = None;
    for most in 4..48 {
        let ended = limited(&guest, &format!("-n {most}"));
        match ended.code {
            Some(0) => _ = first.get_or_insert(most),
            // The file, or the kernel, could not be opened.
            Some(1 | 3) => assert!(
                ended.log.matches("error: ").count() == 1 && ended.log.contains("Too many open files"),
                "{most} descriptors: {}",
                ended.log
            ),
            _ => panic!("{most} descriptors: {ended:?}"),
        }
        // At the edge it depends on which of two threads, that each open things for a moment, is first.
        assert!(
            first.is_none_or(|first| most < first + 4) || ended.code == Some(0),
            "{most} descriptors: {}",
            ended.log
        );
    }
    assert!(first.is_some_and(|first| first < 43), "47 descriptors are enough, and not by luck: {first:?}");
}

#[test]
fn memory_that_cannot_be_mapped_is_one_error() {
    if !available() {
        return;
    }
    // Address space for the program, and not for the guest's memory.
    let guest = Guest { memory: "512MiB".into(), ..Guest::new("test=hello") };
    let ended = limited(&guest, "-v 400000");
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert_eq!(
        ended.log,
        "error: Making 536870912 bytes of guest memory (mmap): Cannot allocate memory (os error 12)\n"
    );
}
