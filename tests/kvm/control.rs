//! A guest that runs, from outside: `throughway vm` and its control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::machine::{Guest, Heard, Running, available, wait_until};

/// `throughway vm` with these words, for guests below `folder`.
fn command(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.arg("vm").args(words).arg("--run-dir").arg(folder.join("run")).env_remove("RUST_LOG");
    command
}

fn vm(folder: &Path, words: &[&str]) -> Output {
    command(folder, words).stdin(Stdio::null()).output().unwrap()
}

/// The same, which must work; what it printed.
fn done(folder: &Path, words: &[&str]) -> String {
    let output = vm(folder, words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The same, which must not; its one error.
fn refused(folder: &Path, words: &[&str]) -> String {
    let output = vm(folder, words);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{words:?}: {error}");
    error
}

/// Starts it and waits until it can be controlled.
fn start(guest: &Guest) -> Running {
    let running = guest.start();
    let socket = running.folder().join("run/guest/control.sock");
    wait_until("the control socket is there", || UnixStream::connect(&socket).is_ok());
    running
}

#[test]
fn a_paused_guest_does_nothing_and_goes_on_where_it_was() {
    if !available() {
        return;
    }
    for cpus in ["1", "2"] {
        let mut guest = start(&Guest { cpus, ..Guest::new("test=obey") });
        guest.wait_for("ready");
        let folder = guest.folder().to_owned();
        for _ in 0..3 {
            done(&folder, &["pause", "guest"]);
            done(&folder, &["pause", "guest"]);
            assert!(done(&folder, &["list"]).contains("paused"));
            guest.send(b"abc");
            std::thread::sleep(Duration::from_millis(200));
            assert!(!guest.has_said("abc"), "it runs");
            assert!(refused(&folder, &["power-button", "guest"]).contains("resume it first"));
            assert!(refused(&folder, &["stop", "guest"]).contains("resume it first"));
            done(&folder, &["resume", "guest"]);
            guest.wait_for("abc");
        }
        assert!(done(&folder, &["list"]).contains("running"));
        guest.send(b"q");
        assert_eq!(guest.end().code, Some(0));
        assert!(done(&folder, &["list"]).contains("No guest runs."));
    }
}

#[test]
fn a_guest_is_reset_also_while_it_is_paused() {
    if !available() {
        return;
    }
    let mut guest = start(&Guest::new("test=obey"));
    guest.wait_for("ready");
    let folder = guest.folder().to_owned();
    done(&folder, &["reset", "guest"]);
    guest.wait_for("ready");
    done(&folder, &["pause", "guest"]);
    done(&folder, &["reset", "guest"]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(done(&folder, &["list", "--json"]).contains("\"state\": \"paused\""));
    done(&folder, &["resume", "guest"]);
    guest.wait_for("ready");
    assert!(done(&folder, &["list", "--json"]).contains("\"resets\": 2"));
    guest.send(b"q");
    assert_eq!(guest.end().code, Some(0));
}

#[test]
fn a_stop_is_a_button_first_and_then_the_plug() {
    if !available() {
        return;
    }
    let mut guest = start(&Guest::new("test=button"));
    guest.wait_for("ready");
    let said = done(guest.folder(), &["stop", "guest"]);
    assert!(said.contains("has shut down"), "{said}");
    assert_eq!(guest.end().code, Some(0));

    let mut deaf = start(&Guest::new("test=spin"));
    deaf.wait_for("ready");
    let said = done(deaf.folder(), &["stop", "guest", "--timeout", "1"]);
    assert!(said.contains("did not shut down within 1 s"), "{said}");
    assert_eq!(deaf.end().code, Some(7));

    let mut deaf = start(&Guest::new("test=spin"));
    deaf.wait_for("ready");
    assert!(done(deaf.folder(), &["stop", "guest", "--timeout", "0"]).contains("was stopped"));
    assert_eq!(deaf.end().code, Some(7));
}

#[test]
fn a_paused_guest_is_stopped_at_once_and_one_whose_console_is_full_is_paused() {
    if !available() {
        return;
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut command, folder) = Guest::new("test=flood").command();
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let guest = Running::new(child, Heard::default(), folder);
    drop(command);
    let folder = guest.folder().to_owned();
    wait_until("it runs", || done(&folder, &["list"]).contains("running"));
    // By then its console is most likely full; either way it is paused.
    std::thread::sleep(Duration::from_millis(500));
    done(&folder, &["pause", "guest"]);
    done(&folder, &["resume", "guest"]);
    done(&folder, &["pause", "guest"]);
    assert!(done(&folder, &["stop", "guest", "--timeout", "0"]).contains("was stopped"));
    assert_eq!(guest.end().code, Some(7));
    // Whatever was held while it was paused, nothing is missing in the middle.
    let mut said = String::new();
    let mut reader = reader;
    reader.read_to_string(&mut said).unwrap();
    assert!("more and more ".repeat(said.len() / 14 + 1).starts_with(&said), "{} bytes", said.len());
}

#[test]
fn what_it_counts_is_shown() {
    if !available() {
        return;
    }
    let mut guest = start(&Guest { cpus: "2", ..Guest::new("test=obey") });
    guest.wait_for("ready");
    let text = done(guest.folder(), &["stats", "guest"]);
    assert!(text.contains("memory    resident") && text.contains("vcpu 1"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&done(guest.folder(), &["stats", "guest", "--json"])).unwrap();
    assert_eq!(json["vcpus"].as_array().unwrap().len(), 2);
    assert!(json["resident"].as_u64().unwrap() > 0);
    assert!(
        refused(guest.folder(), &["link", "guest", "lan", "down"]).contains("no virtio network card `lan`")
    );
    assert!(refused(guest.folder(), &["boot-once", "guest", "root"]).contains("without firmware"));
    guest.send(b"q");
    assert_eq!(guest.end().code, Some(0));
}

#[test]
fn a_guest_in_the_background_is_started_watched_typed_to_and_stopped() {
    if !available() {
        return;
    }
    let (_, folder) = Guest::new("test=obey").command();
    let folder = folder.path();
    let (file, logs) = (folder.join("box.yaml"), folder.join("logs"));
    let start = |name: &str| {
        let mut command = command(folder, &["start", name]);
        command
            .arg("--file")
            .arg(&file)
            .arg("--log-dir")
            .arg(&logs)
            .arg("--state-dir")
            .arg(folder.join("state"));
        command.output().unwrap()
    };
    let nobody = start("nobody");
    assert_eq!(nobody.status.code(), Some(1));
    let started = start("guest");
    let text = String::from_utf8_lossy(&started.stdout).into_owned();
    assert!(
        text.contains("Guest `guest` runs, as process"),
        "{text}{}",
        String::from_utf8_lossy(&started.stderr)
    );
    let again = start("guest");
    assert!(String::from_utf8_lossy(&again.stderr).contains("runs already, as process"), "{again:?}");

    let mut console = command(folder, &["console", "guest"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let heard = Heard::listen(console.stdout.take().unwrap());
    assert!(heard.wait_for("ready", 0).is_some(), "what was said before");
    let mut keyboard = console.stdin.take().unwrap();
    keyboard.write_all(b"typed over the socket").unwrap();
    assert!(heard.wait_for("typed over the socket", 0).is_some());
    assert!(refused(folder, &["console", "guest"]).contains("attached to the console already"));
    keyboard.write_all(b"\x01d").unwrap();
    assert_eq!(console.wait().unwrap().code(), Some(0));

    let log = logs.join("guest.console.log");
    wait_until("the log has it", || {
        std::fs::read_to_string(&log).unwrap_or_default().contains("ready\ntyped over the socket")
    });
    assert!(done(folder, &["stop", "guest", "--timeout", "0"]).contains("was stopped"));
    assert!(!folder.join("run/guest").exists(), "nothing is left");
    assert!(refused(folder, &["stop", "guest"]).contains("No guest `guest` runs"));
}

#[test]
fn a_start_that_fails_says_why_as_run_does() {
    if !available() {
        return;
    }
    let broken = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(broken.path(), [0; 4096]).unwrap();
    for (guest, code, why) in [
        (Guest { kernel: broken.path().into(), ..Guest::new("") }, 1, "neither a bzImage nor an ELF file"),
        (Guest::new("test=triple-fault"), 5, "Triple fault"),
    ] {
        let (_, folder) = guest.command();
        let mut command = command(folder.path(), &["start", "guest"]);
        command
            .arg("--file")
            .arg(folder.path().join("box.yaml"))
            .arg("--log-dir")
            .arg(folder.path().join("logs"));
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // A guest may have crashed before or after it could be asked: what it said is in its log in either case.
        if output.status.code() == Some(0) {
            let log = folder.path().join("logs/guest.log");
            wait_until(why, || std::fs::read_to_string(&log).unwrap_or_default().contains(why));
            continue;
        }
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.starts_with("error: ") && error.contains(why), "{error}");
    }
}

#[test]
fn what_a_killed_process_left_is_told_and_cleaned() {
    if !available() {
        return;
    }
    let mut guest = start(&Guest::new("test=obey"));
    guest.wait_for("ready");
    let socket = guest.folder().join("run/guest/control.sock");
    let folder = guest.keep_folder();
    drop(guest.kill());
    assert!(socket.exists());
    let error = refused(folder.path(), &["pause", "guest"]);
    assert!(error.contains("gone without having said goodbye"), "{error}");
    assert!(!socket.exists());
    assert!(refused(folder.path(), &["pause", "guest"]).contains("No guest `guest` runs"));
}

/// A connection as another user has it, asked for the state; what comes back.
fn asked_as(user: u32, socket: &Path) -> std::io::Result<String> {
    let socket = socket.to_owned();
    // The user of this thread alone, which ends with it.
    let ask = move || {
        let uid = rustix::fs::Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(crate::machine::PATIENCE))?;
        // It may be closed before it has been heard.
        let _ = stream.write_all(b"\"state\"\n");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = String::new();
        match stream.read_to_string(&mut said) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(said),
        }
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn only_root_and_who_started_the_guest_may_control_it() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;
    if !available() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can be another user");
    }
    let mut guest = start(&Guest::new("test=obey"));
    guest.wait_for("ready");
    let socket = guest.folder().join("run/guest/control.sock");
    let nobody = 65534;
    let refused = asked_as(nobody, &socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "the folder is closed: {refused}");
    // Who has opened all doors by mistake has not let anybody in.
    for path in [guest.folder().to_owned(), guest.folder().join("run"), guest.folder().join("run/guest")] {
        set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(asked_as(nobody, &socket).unwrap(), "", "not even a greeting");
    guest.wait_for_log("A user who may not tried to control the guest");
    let root = asked_as(0, &socket).unwrap();
    assert!(root.contains("\"hello\"") && root.contains("\"running\""), "{root}");
    guest.send(b"q");
    assert_eq!(guest.end().code, Some(0));
}

#[test]
fn clients_that_say_nonsense_or_nothing_do_not_disturb() {
    if !available() {
        return;
    }
    let mut guest = start(&Guest::new("test=obey"));
    guest.wait_for("ready");
    let socket = guest.folder().join("run/guest/control.sock");
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut noisy = UnixStream::connect(&socket).unwrap();
    noisy.set_nonblocking(true).unwrap();
    for seed in 0_u32..2000 {
        let bytes: Vec<u8> =
            (0..512_u32).map(|at| seed.wrapping_mul(at).wrapping_add(at >> 3).to_le_bytes()[0]).collect();
        let _ = noisy.write(&bytes);
        let _ = noisy.write(b"\n\"state\"\n");
    }
    let mut fair = BufReader::new(UnixStream::connect(&socket).unwrap());
    fair.get_ref().set_read_timeout(Some(crate::machine::PATIENCE)).unwrap();
    fair.get_mut().write_all(b"\"state\"\n").unwrap();
    let mut lines = [String::new(), String::new()];
    for line in &mut lines {
        fair.read_line(line).unwrap();
    }
    assert!(lines[0].starts_with("{\"hello\"") && lines[1].starts_with("{\"state\""), "{lines:?}");
    guest.send(b"abcdefgh");
    guest.wait_for("abcdefgh");
    drop(silent);
    guest.send(b"q");
    assert_eq!(guest.end().code, Some(0));
}
