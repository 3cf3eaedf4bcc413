//! NAT networks, with guests that are network namespaces of their own.

use std::collections::BTreeMap;
use std::process::Command;

use netconfig::dhcp::{DhcpClients, DhcpTool};
use netconfig::{DhcpRange, LinkSettings, Nat, Nats};

use crate::namespace::{alone, ip};
use crate::witness::{addresses, bridge, realize, settings};

/// A guest or host on a cable: a process that keeps a network namespace.
struct Peer(std::process::Child);

impl Peer {
    /// With the other end of a cable whose end here is `name`; `address` is its own.
    fn on(name: &str, address: Option<&str>) -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let peer = Self(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        // unshare(1) needs a moment.
        while std::fs::read_link(format!("/proc/{}/ns/net", peer.0.id())).unwrap() == own {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        ip(&format!("link add {name} type veth peer name eth0 netns {}", peer.0.id()));
        ip(&format!("link set {name} up"));
        for command in ["link set lo up", "link set eth0 up"] {
            peer.run("ip", command);
        }
        if let Some(address) = address {
            peer.run("ip", &format!("address add {address} dev eth0"));
        }
        peer
    }

    fn try_run(&self, program: &str, arguments: &str) -> Result<String, String> {
        let net = format!("--net=/proc/{}/ns/net", self.0.id());
        let output =
            Command::new("nsenter").arg(net).arg(program).args(arguments.split_whitespace()).output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    fn run(&self, program: &str, arguments: &str) -> String {
        self.try_run(program, arguments).unwrap_or_else(|said| panic!("{program} {arguments}: {said}"))
    }

    fn reaches(&self, address: &str) -> bool {
        self.try_run("busybox", &format!("ping -c 1 -W 1 {address}")).is_ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn has(program: &str) -> bool {
    let there = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| std::path::Path::new(folder).join(program).exists());
    if !there {
        // The lab's box lacks some, and its kernel lacks nothing: there these tests are made on the host.
        let required = crate::namespace::required() && !crate::witness::whole_kernel();
        assert!(!required, "{program} is required, and is not there");
        eprintln!("skipped: {program} is not there");
    }
    there
}

/// nftables with NAT, by the program that is compared with.
pub(crate) fn kernel_has_nat() -> bool {
    if !(has("nft") && has("busybox")) {
        return false;
    }
    let table =
        "table inet t { chain c { type nat hook postrouting priority 100; oifname \"x\" masquerade; }; }";
    let made = Command::new("nft").args(["-c", table]).output().unwrap();
    if made.status.success() {
        return true;
    }
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(!crate::namespace::required(), "the kernel lacks NAT: {said}");
    eprintln!("skipped: this kernel lacks NAT: {said}");
    false
}

pub(crate) fn nat(number: u8) -> Nat {
    Nat {
        addresses: addresses(&[&format!("10.77.{number}.1/24")]),
        dhcp: None,
        isolated: false,
        others: [].into(),
    }
}

pub(crate) fn bridge_with(list: &[&str], last: u8) -> LinkSettings {
    let mac_address = Some(crate::witness::mac(&format!("02:00:00:00:00:{last:02x}")));
    LinkSettings { addresses: addresses(list), mac_address, ..bridge() }
}

fn rules() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn forwards() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned()
}

/// A bridge nat0 with a guest, br0 with a host, and a host outside that has no way back.
fn house() -> [Peer; 3] {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    realize("nat0", Some(&bridge_with(&["10.77.0.1/24"], 0xa0)));
    realize("br0", Some(&bridge_with(&["10.1.0.1/24"], 0xa1)));
    let guest = Peer::on("g0", Some("10.77.0.9/24"));
    guest.run("ip", "route add default via 10.77.0.1");
    ip("link set g0 master nat0");
    let host = Peer::on("h0", Some("10.1.0.9/24"));
    host.run("ip", "route add default via 10.1.0.1");
    ip("link set h0 master br0");
    let outside = Peer::on("o0", Some("10.9.0.9/24"));
    ip("address add 10.9.0.1/24 dev o0");
    [guest, host, outside]
}

#[test]
fn guests_of_a_nat_network_get_out_and_nobody_in() {
    alone("nat::guests_of_a_nat_network_get_out_and_nobody_in", || {
        if !kernel_has_nat() {
            return;
        }
        let [guest, host, outside] = house();
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::new(folder.path().join("nat"));
        let others: std::collections::BTreeSet<String> = ["br0".to_owned()].into();
        let open = Nat { others: others.clone(), ..nat(0) };
        assert!(!guest.reaches("10.9.0.9"), "without NAT nobody answers");
        nats.realize("nat0", Some(&open)).unwrap();
        assert_eq!(nats.differences("nat0", Some(&open)).unwrap(), []);
        assert!(guest.reaches("10.9.0.9"), "{}", rules());
        assert!(guest.reaches("10.1.0.9"));
        assert!(host.reaches("10.77.0.9"), "networks of the file reach each other");
        outside.run("ip", "route add 10.77.0.0/24 via 10.9.0.1");
        assert!(!outside.reaches("10.77.0.9"), "nobody gets in unasked");

        let isolated = Nat { isolated: true, others, ..nat(0) };
        nats.realize("nat0", Some(&isolated)).unwrap();
        assert_eq!(nats.differences("nat0", Some(&isolated)).unwrap(), []);
        assert_eq!(nats.differences("nat0", Some(&open)).unwrap().len(), 1);
        assert!(guest.reaches("10.9.0.9"));
        assert!(!guest.reaches("10.1.0.9") && !host.reaches("10.77.0.9"));
        // A guest that takes another address is not let out with it.
        guest.run("ip", "address add 10.99.0.9/24 dev eth0");
        assert!(guest.try_run("busybox", "ping -c 1 -W 1 -I 10.99.0.9 10.9.0.9").is_err());

        nats.realize("nat0", None).unwrap();
        assert_eq!((rules().as_str(), forwards().as_str()), ("", "0"));
        assert_eq!(nats.differences("nat0", None).unwrap(), []);
        assert!(!guest.reaches("10.9.0.9"));
        assert_eq!(std::fs::read_dir(folder.path().join("nat")).unwrap().count(), 0, "nothing is left");
    });
}

#[test]
fn what_another_changes_of_it_is_seen_and_mended() {
    alone("nat::what_another_changes_of_it_is_seen_and_mended", || {
        if !kernel_has_nat() {
            return;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::new(folder.path());
        realize("nat0", Some(&bridge_with(&["10.77.0.1/24"], 0xa0)));
        nats.realize("nat0", Some(&nat(0))).unwrap();
        let before = rules();
        let nft = |arguments: &str| {
            assert!(Command::new("nft").args(arguments.split_whitespace()).status().unwrap().success());
        };
        let changes: [(&str, &dyn Fn()); 4] = [
            ("rules", &|| nft("flush chain inet throughway-nat0 postrouting")),
            ("rules", &|| nft("add rule inet throughway-nat0 forward counter accept")),
            ("rules", &|| nft("delete table inet throughway-nat0")),
            ("forwarding", &|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()),
        ];
        for (field, change) in changes {
            change();
            let found = nats.differences("nat0", Some(&nat(0))).unwrap();
            assert_eq!(found.iter().map(|found| found.field.as_str()).collect::<Vec<_>>(), [field]);
            nats.realize("nat0", Some(&nat(0))).unwrap();
            assert_eq!(nats.differences("nat0", Some(&nat(0))).unwrap(), []);
            assert_eq!(rules(), before);
        }
        // Rules of others are left alone, and so is a table whose name begins alike.
        nft("add table inet throughway-nat00");
        nats.realize("nat0", None).unwrap();
        assert!(rules().contains("throughway-nat00") && !rules().contains("masquerade"), "{}", rules());
    });
}

#[test]
fn forwarding_is_put_back_after_the_last_network_and_only_where_it_was_off() {
    alone("nat::forwarding_is_put_back_after_the_last_network_and_only_where_it_was_off", || {
        if !kernel_has_nat() {
            return;
        }
        for before in ["0", "1"] {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", before).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let nats = Nats::new(folder.path());
            nats.realize("nat0", Some(&nat(0))).unwrap();
            nats.realize("nat1", Some(&nat(1))).unwrap();
            let all: BTreeMap<String, Nat> =
                [("nat0".to_owned(), nat(0)), ("nat1".to_owned(), nat(1))].into();
            assert_eq!(nats.settings().unwrap(), all);
            nats.realize("nat0", None).unwrap();
            assert_eq!(forwards(), "1");
            // As another process would, after the first was killed.
            Nats::new(folder.path()).realize("nat1", None).unwrap();
            assert_eq!(forwards(), before);
        }
    });
}

#[test]
fn a_network_with_ipv6_keeps_the_boxs_own_announcements() {
    alone("nat::a_network_with_ipv6_keeps_the_boxs_own_announcements", || {
        if !kernel_has_nat() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::new(folder.path());
        realize("nat0", Some(&bridge_with(&["fd77::1/64"], 0xa0)));
        let conf = |path: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{path}")).unwrap().trim().to_owned()
        };
        let read = || (conf("all/forwarding"), conf("nat0/accept_ra"), conf("default/accept_ra"));
        let before = read();
        assert_eq!(before, ("0".to_owned(), "1".to_owned(), "1".to_owned()));
        let wanted = Nat { addresses: addresses(&["10.77.0.1/24", "fd77::1/64"]), ..nat(0) };
        nats.realize("nat0", Some(&wanted)).unwrap();
        assert_eq!(nats.differences("nat0", Some(&wanted)).unwrap(), []);
        assert_eq!(read(), ("1".to_owned(), "2".to_owned(), "2".to_owned()));
        nats.realize("nat0", None).unwrap();
        assert_eq!(read(), before);
    });
}

#[test]
fn dhcp_and_names_are_served_on_the_bridge_and_nowhere_else() {
    alone("nat::dhcp_and_names_are_served_on_the_bridge_and_nowhere_else", || {
        if !kernel_has_nat() || !has("dnsmasq") {
            return;
        }
        ip("link set lo up");
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::new(folder.path());
        let [guest, ..] = house();
        let range = |first: &str, last: &str| Nat {
            dhcp: Some(DhcpRange { first: first.parse().unwrap(), last: last.parse().unwrap() }),
            ..nat(0)
        };
        let wanted = range("10.77.0.50", "10.77.0.60");
        nats.realize("nat0", Some(&wanted)).unwrap();
        assert_eq!(nats.differences("nat0", Some(&wanted)).unwrap(), []);
        let pid = || std::fs::read_to_string(folder.path().join("nat0/dnsmasq.pid")).ok();
        let first = pid().unwrap();
        let sockets = Command::new("busybox").args(["netstat", "-lnu"]).output().unwrap();
        let sockets = String::from_utf8(sockets.stdout).unwrap();
        assert!(sockets.contains("10.77.0.1:53") && !sockets.contains("10.1.0.1:53"), "{sockets}");
        assert!(!sockets.contains("0.0.0.0:53") && !sockets.contains("127.0.0.1:53"), "{sockets}");
        let script = folder.path().join("lease");
        std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && echo lease $ip $router $dns\nexit 0\n")
            .unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let said = guest.run("busybox", &format!("udhcpc -f -n -q -i eth0 -s {}", script.display()));
        let lease = said.lines().find(|line| line.starts_with("lease ")).unwrap();
        let words: Vec<&str> = lease.split(' ').collect();
        let address: std::net::Ipv4Addr = words[1].parse().unwrap();
        assert!((50..=60).contains(&address.octets()[3]), "{lease}");
        assert_eq!(words[2..], ["10.77.0.1", "10.77.0.1"]);
        // The same again changes nothing; another range starts it anew; one that died is seen and comes back.
        nats.realize("nat0", Some(&wanted)).unwrap();
        assert_eq!(pid().unwrap(), first);
        let other = range("10.77.0.100", "10.77.0.101");
        let found = nats.differences("nat0", Some(&other)).unwrap();
        assert_eq!(found.iter().map(|found| found.field.as_str()).collect::<Vec<_>>(), ["nat", "dhcp"]);
        nats.realize("nat0", Some(&other)).unwrap();
        assert_eq!(nats.differences("nat0", Some(&other)).unwrap(), []);
        assert_ne!(pid().unwrap(), first);
        assert!(Command::new("kill").args(["-9", pid().unwrap().trim()]).status().unwrap().success());
        let found = || nats.differences("nat0", Some(&other)).unwrap();
        while found().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(found()[0].to_string(), "dhcp is dnsmasq does not run, wanted 10.77.0.100-10.77.0.101");
        Nats::new(folder.path()).realize("nat0", Some(&other)).unwrap();
        assert_eq!(found(), []);
        let last = pid().unwrap();
        nats.realize("nat0", None).unwrap();
        // One that ended and that nobody waited for has no arguments.
        let arguments = std::fs::read(format!("/proc/{}/cmdline", last.trim())).unwrap_or_default();
        assert!(arguments.is_empty(), "it ended");
        assert_eq!(settings().keys().filter(|name| *name == "nat0").count(), 1, "the bridge stays");
    });
}

#[test]
fn the_box_itself_asks_for_an_address_and_stops_asking() {
    alone("nat::the_box_itself_asks_for_an_address_and_stops_asking", || {
        if !kernel_has_nat() || !has("dnsmasq") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::new(folder.path().join("nat"));
        realize("nat0", Some(&bridge_with(&["10.77.0.1/24"], 0xa0)));
        let range = DhcpRange { first: "10.77.0.50".parse().unwrap(), last: "10.77.0.60".parse().unwrap() };
        nats.realize("nat0", Some(&Nat { dhcp: Some(range), ..nat(0) })).unwrap();
        ip("link add c0 address 02:00:00:00:00:c0 type veth peer name c1");
        ip("link set c1 master nat0 up");
        ip("link set c0 up");
        // busybox is what it is called.
        let udhcpc = folder.path().join("udhcpc");
        std::os::unix::fs::symlink("/bin/busybox", &udhcpc).unwrap();
        let clients = || DhcpClients::new(folder.path().join("dhcp")).with_client(DhcpTool::Udhcpc, &udhcpc);
        clients().start("c0").unwrap();
        assert!(clients().is_running("c0") && !clients().is_running("c1"));
        clients().start("c0").unwrap();
        let leases = || std::fs::read_to_string(folder.path().join("nat/nat0/leases")).unwrap_or_default();
        let start = std::time::Instant::now();
        while !leases().contains("02:00:00:00:00:c0 10.77.0.") {
            assert!(start.elapsed().as_secs() < 30, "{}", leases());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        clients().stop("c0").unwrap();
        assert!(!clients().is_running("c0"));
        assert_eq!(std::fs::read_dir(folder.path().join("dhcp")).unwrap().count(), 0);
        clients().stop("c0").unwrap();
        nats.realize("nat0", None).unwrap();
    });
}
