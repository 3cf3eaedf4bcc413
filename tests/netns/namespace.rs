//! A network namespace for each test: the test starts itself again below unshare(1), and only that child runs the body.

use std::process::Command;

/// Set for the child: the namespace that it must not be in.
const OUTSIDE: &str = "THROUGHWAY_TEST_OUTSIDE";
/// Set for the child that has no rights.
const UNPRIVILEGED: &str = "THROUGHWAY_TEST_UNPRIVILEGED";

/// Runs `body` of the test `name` in a network namespace of its own, which ends with it.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    if let Some(outside) = std::env::var_os(OUTSIDE) {
        assert_ne!(this_namespace().as_os_str(), outside, "this would change links of the host");
        return body();
    }
    let made = Command::new("unshare").args(["--net", "true"]).output();
    let why = match made {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    if let Some(why) = why {
        assert!(!required(), "network namespaces are required, and cannot be made: {why}");
        eprintln!("{name} is skipped: {why}");
        return;
    }
    let mut child = Command::new("unshare");
    child.arg("--net").arg(this_program());
    again(child.env(OUTSIDE, this_namespace()), name);
}

/// In a child of [`alone`]: runs `prepare` here, then `body` as the user nobody, in this namespace.
pub(crate) fn unprivileged(name: &str, prepare: impl FnOnce(), body: impl FnOnce()) {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    const NOBODY: u32 = 65534;
    if std::env::var_os(UNPRIVILEGED).is_some() {
        return body();
    }
    prepare();
    // The program may be below a folder that only its owner may enter.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("test");
    std::fs::copy(this_program(), &copy).unwrap();
    for path in [folder.path(), &copy] {
        set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    again(Command::new(copy).uid(NOBODY).gid(NOBODY).env(UNPRIVILEGED, "1"), name);
}

/// Runs this program again for one test, which must be run and pass.
pub(crate) fn again(command: &mut Command, name: &str) {
    let output = command.args(["--exact", name, "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that no test has would pass, too.
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn required() -> bool {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    required.split(',').any(|suite| matches!(suite.trim(), "netns" | "host" | "all"))
}

fn this_program() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

fn this_namespace() -> std::path::PathBuf {
    std::fs::read_link("/proc/self/ns/net").unwrap()
}

/// Runs ip(8), which must succeed, and returns what it prints.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What ip(8) says of a link.
pub(crate) fn seen(link: &str) -> serde_json::Value {
    let links: serde_json::Value =
        serde_json::from_str(&ip(&format!("-json -details link show dev {link}"))).unwrap();
    links[0].clone()
}
