//! Suites that cargo runs: format, lints, and tests that need nothing but this machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::suite::{Counts, Outcome};
use super::{Context, tail};
use crate::{command, demo, fresh, host, progress, tool};

/// Tests that need rights or devices, and have suites of their own; `demo` is the second half of `browser`.
const PRIVILEGED: [&str; 13] = [
    "kvm", "jail", "daemon", "api", "web", "browser", "demo", "systemd", "disk", "netns", "crash", "host",
    "package",
];

/// What suites of a whole system need beside the others.
const SYSTEMD: [(&str, &str); 1] = [("systemd", "is process 1 of hosts that the suite makes in namespaces")];

pub(super) fn fmt(context: &Context) -> Result<Outcome> {
    verdict(context, "fmt", fresh::cargo().args(["fmt", "--all", "--check"]))
}

pub(super) fn clippy(context: &Context) -> Result<Outcome> {
    verdict(
        context,
        "clippy",
        fresh::cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    )
}

/// Runs a command whose exit status is the one check.
pub(super) fn verdict(context: &Context, name: &str, command: &mut Command) -> Result<Outcome> {
    let log = context.log(name);
    let (passed, _) =
        progress::step(name, |step| command::logged(command, &log, name, |line| step.at(line)))?;
    if !passed {
        anstream::eprintln!("{}\n   log: {}", tail(&log, 40), log.display());
        context.failed(format!("{name}:\n{}", tail(&log, 20)));
    }
    Ok(Outcome::Ran(Counts::one(passed)))
}

pub(super) fn unit(context: &Context) -> Result<Outcome> {
    let mut arguments: Vec<String> =
        ["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins"].map(str::to_owned).into();
    for name in test_targets()? {
        if !PRIVILEGED.contains(&name.as_str()) {
            arguments.extend(["--test".to_owned(), name]);
        }
    }
    let mut counts = tests(context, "unit", fresh::cargo().args(&arguments))?;
    counts.add(tests(
        context,
        "unit-doc",
        fresh::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]),
    )?);
    Ok(Outcome::Ran(counts))
}

pub(super) fn kvm(context: &Context) -> Result<Outcome> {
    with_guests(context, "kvm")
}

/// As root alone: a user's process lacks some of its walls.
pub(super) fn jail(context: &Context) -> Result<Outcome> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Outcome::Skipped("only root can lock a process up whole".to_owned()));
    }
    let mut command = fresh::cargo();
    command.env("REQUIRE", "jail");
    command.args(["test", "--package", "throughway", "--locked", "--test", "jail"]);
    Ok(Outcome::Ran(tests(context, "jail", &mut command)?))
}

pub(super) fn api(context: &Context) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    let programs = tool::packaged("prometheus")?;
    let mut command = fresh::cargo();
    command.env("REQUIRE", "api").env("THROUGHWAY_PROMETHEUS", programs);
    command.args(["test", "--package", "throughway", "--locked", "--no-fail-fast", "--test", "api"]);
    Ok(Outcome::Ran(tests(context, "api", &mut command)?))
}

/// As root alone: the daemon gives the rights of its child away.
pub(super) fn web(context: &Context) -> Result<Outcome> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Outcome::Skipped("only root can start the daemon with its admin interface".to_owned()));
    }
    let mut command = fresh::cargo();
    command.args(["test", "--package", "throughway", "--locked", "--no-fail-fast", "--test", "web"]);
    Ok(Outcome::Ran(tests(context, "web", &mut command)?))
}

pub(super) fn daemon(context: &Context) -> Result<Outcome> {
    with_guests(context, "daemon")
}

/// A visit to the daemon of this machine, and one to the box of the demonstration, whose card has VFs.
pub(super) fn browser(context: &Context) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    host::ensure(&[
        ("chromium", "somebody looks at the admin interface with it"),
        ("chromium-driver", "and a test is that somebody"),
    ])?;
    let of = |name: &str| {
        let mut command = fresh::cargo();
        command.env("REQUIRE", "browser");
        command.args(["test", "--package", "throughway", "--locked", "--test", name]);
        command
    };
    let mut counts = tests(context, "browser", &mut of("browser"))?;
    let (passed, failed, visit) = demo::visited(|url, code| {
        let mut command = of("demo");
        command.env("DEMO_URL", url).env("DEMO_CODE", code);
        tests(context, "browser-demo", &mut command)
    })?;
    counts.add(Counts { passed, failed, skipped: 0 });
    counts.add(visit.unwrap_or_else(|| {
        context.failed("browser: the demonstration was not whole, so its box was not visited".to_owned());
        Counts::one(false)
    }));
    Ok(Outcome::Ran(counts))
}

/// Why no guest can run here.
fn without_kvm() -> Option<Outcome> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    opened.err().map(|error| Outcome::Skipped(format!("/dev/kvm cannot be opened: {error}")))
}

fn with_guests(context: &Context, suite: &str) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    let mut command = fresh::cargo();
    command.args(["test", "--package", "throughway", "--locked", "--no-fail-fast", "--test", suite]);
    Ok(Outcome::Ran(tests(context, suite, &mut command)?))
}

pub(super) fn systemd(context: &Context) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    in_namespaces(context, "systemd", &SYSTEMD, None)
}

/// The life of this package.
pub(super) fn package(context: &Context, file: &Path) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    in_namespaces(context, "package", &SYSTEMD, Some(("THROUGHWAY_DEB", file)))
}

pub(super) fn disk(context: &Context) -> Result<Outcome> {
    if let Some(skipped) = without_kvm() {
        return Ok(skipped);
    }
    host::ensure(&[("qemu-utils", "images are compared with what qemu-img(1) and qemu-io(1) make of them")])?;
    let mut command = fresh::cargo();
    command.env("REQUIRE", "disk");
    command.args(["test", "--package", "throughway", "--locked", "--no-fail-fast", "--test", "disk"]);
    Ok(Outcome::Ran(tests(context, "disk", &mut command)?))
}

pub(super) fn netns(context: &Context) -> Result<Outcome> {
    in_namespaces(context, "netns", &[], None)
}

pub(super) fn whole_program(context: &Context) -> Result<Outcome> {
    in_namespaces(context, "host", &[], None)
}

pub(super) fn crash(context: &Context) -> Result<Outcome> {
    in_namespaces(context, "crash", &[], None)
}

/// Runs a suite that makes namespaces: with `more` packages installed, and a path in a variable of its environment.
fn in_namespaces(
    context: &Context,
    suite: &str,
    more: &[(&str, &str)],
    variable: Option<(&str, &Path)>,
) -> Result<Outcome> {
    let mut packages = vec![
        ("iproute2", "the suites in namespaces make links with ip(8), and compare with what it says"),
        ("nftables", "NAT networks are rules of nft(8)"),
        ("pciutils", "what is reported of PCI functions is compared with lspci(8)"),
        ("dnsmasq-base", "NAT networks have their DHCP and DNS by dnsmasq(8)"),
    ];
    // Two packages have it, and each would remove the other.
    if !Path::new("/bin/busybox").exists() {
        packages
            .push(("busybox", "guests of NAT networks ask for an address with its DHCP client, and ping"));
    }
    packages.extend(more);
    host::ensure(&packages)?;
    let mut command = fresh::cargo();
    let mut namespace = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        if command::output(Command::new("sudo").args(["-n", "true"]), "Asking sudo").is_err() {
            return Ok(Outcome::Skipped(
                "network namespaces need root, or sudo without a password".to_owned(),
            ));
        }
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -n -E");
        namespace = Command::new("sudo");
        namespace.args(["-n", "unshare"]);
    }
    if let Err(error) = command::output(namespace.args(["--net", "true"]), "Making a network namespace") {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    // What can run here must run: a test that skips itself would be a lie by now.
    command.env("REQUIRE", suite);
    if let Some((name, path)) = variable {
        command.env(name, path);
    }
    command.args(["test", "--package", "throughway", "--locked", "--no-fail-fast", "--test", suite]);
    Ok(Outcome::Ran(tests(context, suite, &mut command)?))
}

/// Names of all integration tests of the workspace.
fn test_targets() -> Result<Vec<String>> {
    let mut command = fresh::cargo();
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let text = command::text(&mut command, "Asking cargo for its test targets")?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("Reading cargo's metadata")?;
    let list = |value: &serde_json::Value, key: &str| {
        value.get(key).and_then(|list| list.as_array()).cloned().unwrap_or_default()
    };
    let mut names = Vec::new();
    for target in list(&metadata, "packages").iter().flat_map(|package| list(package, "targets")) {
        if list(&target, "kind").iter().any(|kind| kind == "test") {
            names.extend(target.get("name").and_then(|name| name.as_str()).map(str::to_owned));
        }
    }
    Ok(names)
}

/// Runs `cargo test` and adds up its result lines. A run that fails without a
/// failed test, because it does not compile for one, counts as one failure.
fn tests(context: &Context, name: &str, command: &mut Command) -> Result<Counts> {
    let log = context.log(name);
    let mut counts = Counts::default();
    let (success, _) = progress::step(name, |step| {
        command::logged(command, &log, name, |line| {
            step.at(line);
            if let Some(more) = result_line(line) {
                counts.add(more);
            } else if line.starts_with("test ") && line.ends_with("FAILED") {
                step.line(&format!("   {line}"));
                context.failed(format!("{name}: {line}"));
            }
        })
    })?;
    if !success {
        if counts.failed == 0 {
            counts.failed = 1;
        }
        anstream::eprintln!("{}\n   log: {}", tail(&log, 60), log.display());
        context.failed(tail(&log, 20));
    }
    Ok(counts)
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split(';') {
        let mut words = part.split_whitespace();
        let Some(number) = words.next().and_then(|number| number.parse().ok()) else { continue };
        match words.next() {
            Some("passed") => counts.passed = number,
            Some("failed") => counts.failed = number,
            Some("ignored") => counts.skipped = number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 21 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some(Counts { passed: 21, failed: 2, skipped: 1 }));
        assert_eq!(result_line("test a ... ok"), None);
    }
}
