//! A link that the real systemd-networkd keeps is left to it: told, refused with what to do, and taken over once that is done.
//!
//! In a mount namespace with a `/run` of its own. sysfs is read-only there, which tells the daemon that there is no udev.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::namespace::{again, alone, ip, required};
use crate::visit::{Visited, wait_for};

const NETWORKD: &str = "/usr/lib/systemd/systemd-networkd";
const MOUNTED: &str = "THROUGHWAY_TEST_MOUNTED";
const MOUNTS: &str = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t sysfs -o ro sysfs /sys && \
    mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/systemd/network && \
    chown -R systemd-network:systemd-network /run/systemd/netif && exec \"$@\"";
const SOON: Duration = Duration::from_secs(10);

/// The daemon, until it is dropped.
struct Networkd(Child);

impl Networkd {
    fn start() -> Self {
        Self(Command::new(NETWORKD).spawn().unwrap())
    }
}

impl Drop for Networkd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn what_networkd_keeps_is_left_to_it() {
    const NAME: &str = "owners::what_networkd_keeps_is_left_to_it";
    if !Path::new(NETWORKD).exists() {
        assert!(!required(), "{NETWORKD} is required");
        eprintln!("{NAME} is skipped: there is no {NETWORKD}");
        return;
    }
    alone(NAME, || {
        if std::env::var_os(MOUNTED).is_some() {
            return beside_networkd();
        }
        let mut mounted = Command::new("unshare");
        mounted.args(["--mount", "sh", "-c", MOUNTS, "sh"]).arg(std::env::current_exe().unwrap());
        again(mounted.env(MOUNTED, "1"), NAME);
    });
}

fn beside_networkd() {
    let (visited, _administrator) = Visited::new();
    let unit =
        "[Match]\nName=box0\n\n[Network]\nAddress=10.9.0.1/24\nGateway=10.9.0.2\nLinkLocalAddressing=no\n";
    std::fs::write("/run/systemd/network/10-lan.network", unit).unwrap();
    ip("link add free0 type veth peer name free1");
    let networkd = Networkd::start();
    wait_for("networkd's route", SOON, || {
        ip("route show").contains("default via 10.9.0.2 dev box0").then_some(())
    });
    let bridged = "version: 1
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.9.0.1/24], gateway: 10.9.0.2}
";
    let file = visited.file("box.yaml", bridged);
    let said = wait_for("an owner", SOON, || {
        let (code, said) = visited.run(&format!("plan {}", file.display()));
        (code == 1).then_some(said)
    });
    let owner = "systemd-networkd (/run/systemd/network/10-lan.network)";
    assert!(said.contains(&format!("`box0` is kept by {owner}")), "{said}");
    assert!(said.contains("box.yaml:3:37"), "{said}");
    let before = crate::settings();
    let (code, refused) = visited.run(&format!("apply {}", file.display()));
    assert!(code == 1 && refused.contains("is kept by"), "{refused}");
    assert_eq!(crate::settings(), before, "nothing was touched");
    // What it does not keep is ours to change, beside it.
    let other = visited.file(
        "other.yaml",
        "version: 1\nnetworks: {br1: {type: bridge, ports: {free0: {}}, addresses: [10.3.0.1/24]}}\n",
    );
    let (code, said) = visited.run(&format!("apply {}", other.display()));
    assert_eq!(code, 0, "{said}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(visited.run("status").0, 0, "networkd leaves it as it is");

    // What the refusal says, with a folder that is ours here, and without a systemd to restart the daemon.
    let command = refused.lines().find_map(|line| line.split_once("leave it alone: ")).unwrap().1;
    let (write, restart) = command.split_once(" && ").unwrap();
    assert_eq!(restart, "systemctl restart systemd-networkd");
    let write = write.replace("/etc/systemd/network/", "/run/systemd/network/");
    assert!(Command::new("sh").args(["-c", &write]).status().unwrap().success());
    drop(networkd);
    let _networkd = Networkd::start();
    std::thread::sleep(Duration::from_secs(1));
    assert!(ip("route show").contains("default via 10.9.0.2 dev box0"), "nobody is locked out by it");
    let both = visited.file(
        "both.yaml",
        &format!("{bridged}  br1: {{type: bridge, ports: {{free0: {{}}}}, addresses: [10.3.0.1/24]}}\n")
            .replace("version: 1", "version: 1\nmanagement: {confirm-timeout: 20s}"),
    );
    let confirms = {
        let line = visited.line("confirm");
        std::thread::spawn(move || {
            wait_for("a confirmation", SOON * 3, || {
                Command::new("sh").args(["-c", &line]).output().unwrap().status.success().then_some(())
            });
        })
    };
    let (code, said) = visited.run(&format!("apply {}", both.display()));
    assert_eq!(code, 0, "{said}");
    confirms.join().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let (code, status) = visited.run("status");
    assert!(code == 0 && !status.contains("is kept by"), "{status}");
    assert!(ip("address show dev br0").contains("10.9.0.1/24"));
}
