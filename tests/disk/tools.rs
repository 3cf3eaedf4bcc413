//! Programs that tests call, and what they write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Whether QEMU's tools are there; says it where they are not.
pub(crate) fn available() -> bool {
    let there =
        |name: &str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    if there("qemu-img") && there("qemu-io") {
        return true;
    }
    let required = std::env::var("REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|suite| matches!(suite.trim(), "disk" | "all"));
    assert!(!required, "the suite disk is required, and qemu-img or qemu-io is missing");
    eprintln!("skipped: qemu-img and qemu-io, of qemu-utils, are missing");
    false
}

/// A command that must succeed, in `folder`; its standard output.
pub(crate) fn run(folder: &Path, command: &str) -> String {
    let output = output(folder, command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command that must fail, in `folder`: its exit code and standard error.
pub(crate) fn fails(folder: &Path, command: &str) -> (i32, String) {
    let output = output(folder, command);
    assert!(!output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn output(folder: &Path, command: &str) -> Output {
    let mut words = command.split_whitespace();
    let program = match words.next().unwrap() {
        "throughway" => env!("CARGO_BIN_EXE_throughway"),
        program => program,
    };
    Command::new(program).args(words).current_dir(folder).env_remove("RUST_LOG").output().unwrap()
}

/// A disk with data here and there, holes between, and an end that is no whole cluster.
pub(crate) fn sample(folder: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = folder.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len((40 << 20) + 3 * 512).unwrap();
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = vec![0; 300_000];
    for at in [0, 65_536 * 3 + 512, 9 << 20, (40 << 20) - 299_000] {
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        file.write_all_at(&bytes, at).unwrap();
    }
    path
}
