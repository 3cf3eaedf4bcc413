//! The Debian package on a host of its own, under a real systemd: installed, upgraded, removed, purged.
//!
//! Needs what the suite `systemd` needs, and `THROUGHWAY_DEB`, which `cargo verify --only package` sets. Without them the test says
//! so and passes; with `REQUIRE=package` (or `all`) it fails.

#[path = "../systemd/host.rs"]
mod host;
#[allow(dead_code, reason = "shared with the suite kvm, which has other guests")]
#[path = "../kvm/image.rs"]
mod image;

use std::path::{Path, PathBuf};

use crate::host::{Boot, Host, available, wait_until};

const FILE: &str = "/etc/throughway/appliance.yaml";
const DEB: &str = "/root/throughway.deb";
/// What the program may be at most, in bytes.
const LARGEST: u64 = 15 << 20;

/// A guest that knows of its power button.
const GUEST: &str = "version: 1
host: {iommu: optional, interrupt-remapping: optional}
vms:
  web: {memory: 16MiB, boot: {kernel: /root/guest.elf, cmdline: \"test=button\"}, autostart: true}
";

fn package() -> Option<PathBuf> {
    let path = std::env::var_os("THROUGHWAY_DEB").map(PathBuf::from);
    if path.is_none() {
        assert!(std::env::var_os("REQUIRE").is_none(), "THROUGHWAY_DEB names no package");
        eprintln!("skipped: THROUGHWAY_DEB names no package; `cargo verify --only package` does");
    }
    path
}

fn dpkg(boot: &Boot<'_>, words: &[&str]) {
    boot.run(&[&["env", "DEBIAN_FRONTEND=noninteractive", "dpkg"], words].concat());
}

fn is_there(boot: &Boot<'_>, path: &str) -> bool {
    boot.output(&["test", "-e", path]).status.success()
}

/// What becomes of the box with the package.
#[test]
fn a_package_comes_with_its_daemon_leaves_guests_running_when_it_is_upgraded_and_goes_without_a_trace() {
    let Some(package) = package().filter(|_| available()) else { return };
    let guest = image::elf();
    let host = Host::with(&[(package.as_path(), DEB), (Path::new(&guest), "/root/guest.elf")]);
    let boot = host.boot();
    let active = |unit: &str| boot.property(unit, "ActiveState") == "active";

    dpkg(&boot, &["--install", DEB]);
    for unit in ["throughway.service", "throughway-guests.service"] {
        assert!(active(unit), "{unit}: {}", boot.journal());
        assert_eq!(boot.property(unit, "UnitFileState"), "enabled");
    }
    assert_eq!(boot.property("throughway-restore.service", "UnitFileState"), "disabled");
    assert_eq!(
        boot.run(&["systemctl", "--failed", "--plain", "--no-legend", "list-units", "throughway*"]),
        ""
    );
    assert!(boot.run(&["throughway", "status"]).contains("The host is as change 1"));
    assert!(boot.run(&["man", "-w", "throughway-vm-start"]).ends_with("throughway-vm-start.8.gz"));
    boot.run(&["throughway", "check", FILE]);
    let size: u64 = boot.run(&["stat", "--format", "%s", "/usr/bin/throughway"]).parse().unwrap();
    assert!(size <= LARGEST, "the program has {size} bytes");

    host.write(FILE, GUEST);
    boot.run(&["systemctl", "reload", "throughway.service"]);
    let guests = boot.wait_for(&["web"]);
    let daemon = boot.daemon();
    dpkg(&boot, &["--install", DEB]);
    wait_until(|| boot.journal(), || ![0, daemon].contains(&boot.daemon()) && active("throughway.service"));
    assert_eq!(boot.wait_for(&["web"]), guests, "an upgrade is none of a guest's");
    assert_eq!(boot.run(&["cat", FILE]), GUEST.trim_end(), "what was written there is kept");

    dpkg(&boot, &["--remove", "throughway"]);
    let journal = boot.journal();
    assert!(journal.contains("Guest `web` has ended: it powered off"), "{journal}");
    assert!(!is_there(&boot, "/usr/bin/throughway") && is_there(&boot, FILE));
    assert_eq!(
        boot.text(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "throughway-guest-*"]),
        ""
    );

    dpkg(&boot, &["--install", DEB]);
    assert_ne!(boot.wait_for(&["web"]), guests);

    boot.run(&[
        "sh",
        "-c",
        "mkdir -p /var/lib/throughway/images && touch /var/lib/throughway/images/mine.raw",
    ]);
    dpkg(&boot, &["--purge", "throughway"]);
    for gone in
        ["/etc/throughway", "/var/log/throughway", "/var/lib/throughway/history", "/usr/bin/throughway"]
    {
        assert!(!is_there(&boot, gone), "{gone}");
    }
    assert_eq!(
        boot.run(&[
            "find",
            "/etc/systemd",
            "/var/lib/systemd/deb-systemd-helper-enabled",
            "-name",
            "throughway*"
        ]),
        ""
    );
    assert!(is_there(&boot, "/var/lib/throughway/images/mine.raw"), "images are their owner's");
}
