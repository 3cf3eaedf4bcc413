//! Nobody is locked out: a session over the link that a change breaks works again in time, or a new one confirms the change.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::namespace::{alone, ip};
use crate::settings;
use crate::visit::{Visited, wait_for};

/// The address is taken from the card and another one given to a bridge.
const MOVED: &str = "version: 1
management: {confirm-timeout: 5s}
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.10.0.1/24]}
";
/// The same, with time to think.
const MOVED_SLOWLY: &str = "version: 1
management: {confirm-timeout: 60s}
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.10.0.1/24]}
";
/// The address goes along to the bridge.
const BRIDGED: &str = "version: 1
management: {confirm-timeout: 4s}
networks:
  br0: {type: bridge, ports: {box0: {}}, addresses: [10.9.0.1/24]}
";

const SOON: Duration = Duration::from_secs(12);

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn an_address_that_moved_unconfirmed_is_back_in_time() {
    alone("lockout::an_address_that_moved_unconfirmed_is_back_in_time", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        let file = visited.file("box.yaml", MOVED);
        let (mut session, mut keepalive) =
            (administrator.comes_in("10.9.0.1"), administrator.comes_in("10.9.0.1"));
        // No default route, no key `management.interface`: only the session tells by what the administrator comes.
        assert!(
            session
                .ask(&visited.line(&format!("plan {}", file.display())))
                .contains("this is the way to this box")
        );
        session.write(&visited.line(&format!("apply {}", file.display())));
        keepalive.is_cut_off_within(SOON);
        visited.change(1, "waiting");
        let waiting = Instant::now();
        assert!(administrator.tries_to_come_in("10.9.0.1").is_err());
        keepalive.comes_back_within(SOON);
        let record = visited.change(1, "reverted");
        assert!(
            waiting.elapsed() > Duration::from_secs(2) && waiting.elapsed() < SOON,
            "{:?}",
            waiting.elapsed()
        );
        assert_eq!(record["state"]["reverted"]["why"], "nobody confirmed it within 5 s");
        let history = session.ask(&visited.line("history"));
        assert!(history.contains("put back: nobody confirmed it within 5 s"), "{history}");
        assert_eq!(settings(), before);
        administrator.comes_in("10.9.0.1");
        assert_eq!(visited.run("confirm 1").0, 1, "it is too late");
    });
}

#[test]
fn a_port_that_was_taken_away_unconfirmed_is_back_in_time() {
    alone("lockout::a_port_that_was_taken_away_unconfirmed_is_back_in_time", || {
        let (visited, administrator) = Visited::new();
        for line in [
            "link add way type bridge",
            "link set way up",
            "link set box0 master way",
            "address del 10.9.0.1/24 dev box0",
            "address add 10.9.0.1/24 dev way",
            "route add default via 10.9.0.2 dev way metric 77 proto dhcp",
        ] {
            ip(line);
        }
        let (before, routes) = (settings(), ip("route show"));
        let text = "version: 1
management: {interface: way, confirm-timeout: 5s}
networks: {other: {type: bridge, ports: {box0: {}}}}
";
        let file = visited.file("box.yaml", text);
        let (mut session, mut keepalive) =
            (administrator.comes_in("10.9.0.1"), administrator.comes_in("10.9.0.1"));
        session.write(&visited.line(&format!("apply {}", file.display())));
        keepalive.is_cut_off_within(SOON);
        keepalive.comes_back_within(SOON * 2);
        let history = session.ask(&visited.line("history"));
        assert!(history.contains("put back: nobody confirmed it within 5 s"), "{history}");
        assert_eq!(settings(), before);
        assert_eq!(ip("route show"), routes);
    });
}

#[test]
fn going_back_from_the_file_that_names_the_link_waits_for_somebody_too() {
    alone("lockout::going_back_from_the_file_that_names_the_link_waits_for_somebody_too", || {
        let (visited, _administrator) = Visited::new();
        // Nobody has come in, and no route leaves by it: only the file tells.
        let text = "version: 1
management: {interface: box0, confirm-timeout: 5s}
networks: {br0: {type: bridge, ports: {box0: {}}, addresses: [10.9.0.1/24]}}
";
        let file = visited.file("box.yaml", text);
        std::thread::scope(|scope| {
            let applying = scope.spawn(|| visited.run(&format!("apply {}", file.display())));
            visited.change(1, "waiting");
            assert_eq!(visited.run("confirm 1").0, 0);
            assert_eq!(applying.join().unwrap().0, 0);
        });
        let confirmed = settings();
        let (code, said) = visited.run("rollback");
        assert!(code != 0 && said.contains("nobody confirmed it within 5 s"), "{said}");
        assert_eq!(settings(), confirmed);
    });
}

#[test]
fn the_administrator_behind_a_router_comes_back_too() {
    alone("lockout::the_administrator_behind_a_router_comes_back_too", || {
        let (visited, administrator) = Visited::new();
        administrator.ip("address add 10.20.0.2/32 dev lo");
        administrator.ip("route replace 10.9.0.0/24 dev adm0 src 10.20.0.2");
        administrator.ip("route add 10.10.0.0/24 dev adm0 src 10.20.0.2");
        ip("route add 10.20.0.0/16 via 10.9.0.2 dev box0 metric 30");
        ip("route add default via 10.9.0.7 dev box0 metric 100");
        let routes = ip("route show");
        let file = visited.file("box.yaml", MOVED);
        let mut session = administrator.comes_in("10.9.0.1");
        assert!(session.ask("echo $SSH_CONNECTION").starts_with("10.20.0.2 "));
        session.write(&visited.line(&format!("apply {}", file.display())));
        visited.change(1, "reverted");
        session.comes_back_within(SOON);
        assert_eq!(ip("route show"), routes, "with its metric, and the other one too");
    });
}

#[test]
fn a_route_goes_along_with_the_address_and_back() {
    alone("lockout::a_route_goes_along_with_the_address_and_back", || {
        let (visited, administrator) = Visited::new();
        administrator.ip("address add 10.20.0.2/32 dev lo");
        administrator.ip("route replace 10.9.0.0/24 dev adm0 src 10.20.0.2");
        ip("route add 10.20.0.0/16 via 10.9.0.2 dev box0 metric 30");
        let routes = ip("route show");
        let file = visited.file("box.yaml", BRIDGED);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&visited.line(&format!("apply {}", file.display())));
        visited.change(1, "waiting");
        let mut other = administrator.comes_in("10.9.0.1");
        assert!(other.ask(&visited.line("confirm 1")).ends_with(" 0"));
        visited.change(1, "committed");
        assert!(
            ip("route show").contains("10.20.0.0/16 via 10.9.0.2 dev br0 metric 30"),
            "{}",
            ip("route show")
        );
        session.comes_back_within(SOON);
        session.write(&visited.line("rollback"));
        visited.change(2, "waiting");
        let mut other = administrator.comes_in("10.9.0.1");
        assert!(other.ask(&visited.line("confirm")).ends_with(" 0"));
        visited.change(2, "committed");
        assert_eq!(ip("route show"), routes);
    });
}

#[test]
fn a_new_session_from_a_new_address_confirms_and_it_stays() {
    alone("lockout::a_new_session_from_a_new_address_confirms_and_it_stays", || {
        let (visited, administrator) = Visited::new();
        let file = visited.file("box.yaml", MOVED);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&visited.line(&format!("apply {}", file.display())));
        visited.change(1, "waiting");
        administrator.ip("address add 10.10.0.2/24 dev adm0");
        let mut new = administrator.comes_in("10.10.0.1");
        assert!(new.ask("echo $SSH_CONNECTION").starts_with("10.10.0.2 "));
        let status = new.ask(&visited.line("status"));
        assert!(
            status.contains("The host is as change 1") && status.contains("throughway confirm 1"),
            "{status}"
        );
        // While it waits nobody may build on it.
        let other = new.ask(&visited.line(&format!("apply {}", file.display())));
        assert!(other.contains("Change 1 waits to be confirmed") && other.ends_with(" 1"), "{other}");
        assert!(new.ask(&visited.line("confirm 7")).ends_with(" 1"));
        let confirmed = new.ask(&visited.line("confirm 1"));
        assert!(confirmed.contains("Change 1 is confirmed.") && confirmed.ends_with(" 0"), "{confirmed}");
        visited.change(1, "committed");
        std::thread::sleep(Duration::from_secs(6));
        let history = new.ask(&visited.line("history"));
        assert!(history.contains("holds") && !history.contains("put back"), "{history}");
        assert!(new.ask(&visited.line("status")).ends_with(" 0"));
        assert!(administrator.tries_to_come_in("10.9.0.1").is_err());
        administrator.comes_in("10.10.0.1");
    });
}

#[test]
fn a_worker_that_is_killed_is_followed_up_by_who_started_it() {
    alone("lockout::a_worker_that_is_killed_is_followed_up_by_who_started_it", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        let file = visited.file("box.yaml", MOVED_SLOWLY);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&format!("{} 2>&1; echo ended $?", visited.line(&format!("apply {}", file.display()))));
        kill(visited.worker(1), Signal::KILL);
        session.comes_back_within(SOON);
        visited.change(1, "reverted");
        assert_eq!(settings(), before);
    });
}

#[test]
fn what_nobody_is_left_to_put_back_recover_does() {
    alone("lockout::what_nobody_is_left_to_put_back_recover_does", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        let file = visited.file("box.yaml", MOVED_SLOWLY);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&format!("echo $$; {}", visited.line(&format!("apply {}", file.display()))));
        let worker = visited.worker(1);
        let started_it = parent(worker);
        kill(started_it, Signal::KILL);
        wait_for("another parent", SOON, || (parent(worker) != started_it).then_some(()));
        kill(worker, Signal::KILL);
        wait_for("its end", SOON, || (!alive(worker)).then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        assert!(administrator.tries_to_come_in("10.9.0.1").is_err(), "nobody has done anything yet");
        let (code, status) = visited.run("status");
        assert!(code == 2 && status.contains("Change 1 was cut short: `throughway recover`"), "{status}");
        let (code, recovered) = visited.run("recover");
        assert!(code == 0 && recovered.ends_with("1 unfinished change was put back.\n"), "{recovered}");
        session.comes_back_within(SOON);
        assert_eq!(settings(), before);
        let (_, history) = visited.run("history");
        assert!(history.contains("put back: its process ended before anybody confirmed it"), "{history}");
        assert_eq!(visited.run("recover"), (0, "Nothing to put back.\n".to_owned()));
    });
}

#[test]
fn what_was_confirmed_holds_although_its_worker_is_killed() {
    alone("lockout::what_was_confirmed_holds_although_its_worker_is_killed", || {
        let (visited, administrator) = Visited::new();
        let file = visited.file("box.yaml", MOVED_SLOWLY);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&visited.line(&format!("apply {}", file.display())));
        let worker = visited.worker(1);
        kill(parent(worker), Signal::KILL);
        kill(worker, Signal::KILL);
        wait_for("its end", SOON, || (!alive(worker)).then_some(()));
        administrator.ip("address add 10.10.0.2/24 dev adm0");
        let mut new = administrator.comes_in("10.10.0.1");
        assert!(new.ask(&visited.line("confirm 1")).ends_with(" 0"));
        assert_eq!(visited.run("recover"), (0, "Nothing to put back.\n".to_owned()));
        visited.change(1, "committed");
        administrator.comes_in("10.10.0.1");
    });
}

/// A terminal, and a shell on it that applies `file`; with all its log, which goes to the terminal as well.
fn on_a_terminal(visited: &Visited, file: &Path) -> (OwnedFd, Child) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let end = || std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let line = visited.line(&format!("-vvv apply {}", file.display()));
    // Whoever runs this may ignore the signal (nohup does), which is inherited.
    let mut shell = Command::new("env");
    shell.args(["--default-signal=HUP", "setsid", "--ctty", "sh", "-c", &format!("{line}; true")]);
    shell.env("SSH_CONNECTION", "10.9.0.2 5 10.9.0.1 22");
    let shell = shell.stdin(end()).stdout(end()).stderr(Stdio::from(end())).spawn().unwrap();
    (terminal, shell)
}

/// Reads a terminal until it says something.
fn read_until(terminal: &OwnedFd, text: &str) {
    let mut reads = std::fs::File::from(rustix::io::dup(terminal).unwrap());
    let mut said = String::new();
    while !said.contains(text) {
        let mut chunk = [0; 4096];
        let count = reads.read(&mut chunk).unwrap();
        said.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
}

#[test]
fn a_terminal_that_dies_does_not_keep_the_link_from_coming_back() {
    alone("lockout::a_terminal_that_dies_does_not_keep_the_link_from_coming_back", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        // Long enough that the terminal dies while the change waits, on a busy machine too.
        let file = visited.file("box.yaml", &MOVED.replace("5s", "8s"));
        let (terminal, mut shell) = on_a_terminal(&visited, &file);
        read_until(&terminal, "throughway confirm 1");
        let worker = visited.worker(1);
        assert!(administrator.tries_to_come_in("10.9.0.1").is_err());
        drop(terminal);
        assert!(!shell.wait().unwrap().success(), "SIGHUP ends what has the terminal");
        assert!(alive(worker));
        let record = visited.change(1, "reverted");
        assert_eq!(record["state"]["reverted"]["why"], "nobody confirmed it within 8 s");
        administrator.comes_in("10.9.0.1");
        assert_eq!(settings(), before);
        wait_for("its end", SOON, || (!alive(worker)).then_some(()));
    });
}

#[test]
fn a_terminal_that_hangs_does_not_keep_the_link_from_coming_back() {
    alone("lockout::a_terminal_that_hangs_does_not_keep_the_link_from_coming_back", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        // Nobody reads it: so is a terminal whose connection is cut off.
        let (terminal, mut shell) = on_a_terminal(&visited, &visited.file("box.yaml", MOVED));
        let record = visited.change(1, "reverted");
        assert_eq!(record["state"]["reverted"]["why"], "nobody confirmed it within 5 s");
        administrator.comes_in("10.9.0.1");
        assert_eq!(settings(), before);
        drop(terminal);
        shell.wait().unwrap();
    });
}

#[test]
fn a_login_whose_processes_are_all_ended_brings_the_link_back_at_once() {
    alone("lockout::a_login_whose_processes_are_all_ended_brings_the_link_back_at_once", || {
        let (visited, administrator) = Visited::new();
        let before = settings();
        let file = visited.file("box.yaml", MOVED_SLOWLY);
        let mut session = administrator.comes_in("10.9.0.1");
        session.write(&visited.line(&format!("apply {}", file.display())));
        let worker = visited.worker(1);
        kill(parent(worker), Signal::TERM);
        kill(worker, Signal::TERM);
        let why = &visited.change(1, "reverted")["state"]["reverted"]["why"];
        assert_eq!(why, "its process was told to end before anybody confirmed it");
        session.comes_back_within(SOON);
        assert_eq!(settings(), before);
    });
}

#[test]
fn the_way_in_is_known_below_sudo_and_before_the_bridge_is_made() {
    alone("lockout::the_way_in_is_known_below_sudo_and_before_the_bridge_is_made", || {
        let (visited, administrator) = Visited::new();
        let file = visited.file("box.yaml", BRIDGED);
        let plan = visited.line(&format!("plan {}", file.display()));
        let way = "this is the way to this box";
        assert!(!visited.run(&format!("plan {}", file.display())).1.contains(way), "nobody comes in by it");
        let mut session = administrator.comes_in("10.9.0.1");
        // sudo takes the variable away; the shell above it has it.
        let below_sudo = session.ask(&format!("env -u SSH_CONNECTION {plan}"));
        assert!(below_sudo.contains(way), "{below_sudo}");
        // An address of the box that is on no link that carries it: the answer goes by the card.
        ip("address add 192.0.2.1/32 dev lo");
        administrator.ip("route add 192.0.2.1/32 via 10.9.0.1");
        let by_loopback = administrator.comes_in("192.0.2.1").ask(&plan);
        assert!(by_loopback.contains(way), "{by_loopback}");
        // What the file calls the way in is yet to be made: till then it is the default route's.
        ip("route add default via 10.9.0.2 dev box0");
        let text = BRIDGED.replace("confirm-timeout", "interface: br0, confirm-timeout");
        let named = visited.file("named.yaml", &text);
        assert!(visited.run(&format!("plan {}", named.display())).1.contains(way));
        let nowhere = visited
            .file("nowhere.yaml", &BRIDGED.replace("confirm-timeout", "interface: bro, confirm-timeout"));
        let (code, said) = visited.run(&format!("plan {}", nowhere.display()));
        assert!(code == 1 && said.contains("There is no network interface `bro`"), "{said}");
    });
}

/// Field 4 of /proc/PID/stat.
fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, fields)| !matches!(fields.split_whitespace().next(), Some("Z" | "X")))
}
