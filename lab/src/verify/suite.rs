//! The table of suites. A new one is a line here and a function.

use std::fmt;

use anyhow::Result;

use super::{Context, cargo, deny, lab, package};

/// How many checks passed, failed, and could not be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Counts {
    /// One check.
    pub(super) fn one(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} passed, {} failed", self.passed, self.failed);
        if self.skipped > 0 {
            text.push_str(&format!(", {} skipped", self.skipped));
        }
        f.pad(&text)
    }
}

/// What running a suite came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It ran.
    Ran(Counts),
    /// It cannot run on this machine, and why.
    Skipped(String),
}

/// One suite.
pub(super) struct Suite {
    /// Its name for `--only` and `REQUIRE`.
    pub(super) name: &'static str,
    /// What it checks.
    pub(super) what: &'static str,
    /// The integration test of the root package without which the suite does not exist.
    pub(super) test_target: Option<&'static str>,
    /// Whether it belongs to every check there is. One that has not been seen to hold often enough is run by who names it.
    pub(super) gates: bool,
    /// Whether it boots boxes of its own, and may run beside another one that does.
    pub(super) boxed: bool,
    /// Runs it.
    pub(super) run: fn(&Context) -> Result<Outcome>,
}

/// All suites, the quick ones first.
pub(super) const SUITES: [Suite; 20] = [
    Suite {
        name: "fmt",
        what: "the code is formatted",
        test_target: None,
        gates: true,
        boxed: false,
        run: cargo::fmt,
    },
    Suite {
        name: "clippy",
        what: "no lint warns",
        test_target: None,
        gates: true,
        boxed: false,
        run: cargo::clippy,
    },
    Suite {
        name: "deny",
        what: "licences, sources and duplicate versions of dependencies",
        test_target: None,
        gates: true,
        boxed: false,
        run: deny::run,
    },
    Suite {
        name: "unit",
        what: "unit, property, golden and documentation tests",
        test_target: None,
        gates: true,
        boxed: false,
        run: cargo::unit,
    },
    Suite {
        name: "kvm",
        what: "small guests on this machine's /dev/kvm",
        test_target: Some("kvm"),
        gates: true,
        boxed: false,
        run: cargo::kvm,
    },
    Suite {
        name: "jail",
        what: "a guest's machine tries what is forbidden, on each kind of its threads",
        test_target: Some("jail"),
        gates: true,
        boxed: false,
        run: cargo::jail,
    },
    Suite {
        name: "daemon",
        what: "the daemon with small guests on this machine's /dev/kvm: it is killed, and they are",
        test_target: Some("daemon"),
        gates: true,
        boxed: false,
        run: cargo::daemon,
    },
    Suite {
        name: "api",
        what: "the admin API of the real daemon, with small guests, editors, uploads, and strangers who are a burden",
        test_target: Some("api"),
        gates: true,
        boxed: false,
        run: cargo::api,
    },
    Suite {
        name: "web",
        what: "who may do what in the real daemon's admin interface: claim, logins, roles, tokens, limits",
        test_target: Some("web"),
        gates: true,
        boxed: false,
        run: cargo::web,
    },
    Suite {
        name: "systemd",
        what: "the units under a real systemd, with small guests on this machine's /dev/kvm",
        test_target: Some("systemd"),
        gates: true,
        boxed: false,
        run: cargo::systemd,
    },
    Suite {
        name: "package",
        what: "the Debian package: lintian, and installed, upgraded, removed and purged under a real systemd",
        test_target: Some("package"),
        gates: true,
        boxed: false,
        run: package::run,
    },
    Suite {
        name: "disk",
        what: "disk images beside QEMU's tools, and disks of guests that are killed",
        test_target: Some("disk"),
        gates: true,
        boxed: false,
        run: cargo::disk,
    },
    Suite {
        name: "netns",
        what: "links in network namespaces of this kernel",
        test_target: Some("netns"),
        gates: true,
        boxed: false,
        run: cargo::netns,
    },
    Suite {
        name: "host",
        what: "the whole program in namespaces: nobody is locked out, drift, other tools, owners of links",
        test_target: Some("host"),
        gates: true,
        boxed: false,
        run: cargo::whole_program,
    },
    Suite {
        name: "crash",
        what: "changes of the host, killed at every boundary of their steps",
        test_target: Some("crash"),
        gates: true,
        boxed: false,
        run: cargo::crash,
    },
    Suite {
        name: "lab",
        what: "scenarios in the emulated box, Debian's kernel",
        test_target: None,
        gates: true,
        boxed: true,
        run: lab::debian,
    },
    Suite {
        name: "lab-iommufd",
        what: "scenarios in the emulated box, the iommufd kernel",
        test_target: None,
        gates: true,
        boxed: true,
        run: lab::iommufd,
    },
    Suite {
        name: "uefi",
        what: "an installed Debian, and a live one that installs itself, started in the emulated box by the distribution's firmware",
        test_target: None,
        gates: true,
        boxed: true,
        run: lab::uefi,
    },
    Suite {
        name: "guest",
        what: "a guest's devices in the emulated box: pulled and plugged in under traffic, killed while written to, in trouble",
        test_target: None,
        gates: true,
        boxed: true,
        run: lab::guest,
    },
    Suite {
        name: "browser",
        what: "the pages in Debian's Chromium, with the daemon and a small guest on this machine's /dev/kvm, and with the box of `cargo demo`",
        test_target: Some("browser"),
        gates: true,
        boxed: true,
        run: cargo::browser,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_plain() {
        assert_eq!(Counts { passed: 3, failed: 0, skipped: 0 }.to_string(), "3 passed, 0 failed");
        assert_eq!(Counts { passed: 3, failed: 1, skipped: 2 }.to_string(), "3 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = SUITES.iter().map(|suite| suite.name).collect();
        assert_eq!(names.len(), SUITES.len());
    }
}
