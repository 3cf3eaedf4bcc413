//! Strangers who want to be a burden, and a box that has nothing to do.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::appliance::{file, guest};
use crate::client::{Answer, Served, a_while};
use crate::machine::{PATIENCE, available, wait_until};

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// By TLS, to who has the certificate that the box made for itself, and to nobody else.
fn secure(served: &Served, port: u16) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let path = served.appliance.path("state").join("web/tls/certificate.der");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(fs::read(path)?)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, connect(port));
    stream.flush()?;
    Ok(stream)
}

fn get(served: &Served, port: u16, path: &str) -> std::io::Result<Answer> {
    let mut stream = secure(served, port)?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    Ok(Answer::read(stream))
}

/// It answers those who come by the network, and root on the box.
fn is_usable(served: &Served, port: u16) {
    wait_until("it answers over the network", || {
        get(served, port, "/healthz").is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(served.get("/healthz").good().text(), "ok\n");
}

/// Bytes of a process that are in memory and its own, shared ones by their share.
fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn woken(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().parse().unwrap()
    };
    number("voluntary_ctxt_switches") + number("nonvoluntary_ctxt_switches")
}

#[test]
fn strangers_come_by_tls_and_get_nothing_without_a_login() {
    if !available() {
        return;
    }
    let (served, port) = Served::by_https(&file(&[]));
    is_usable(&served, port);
    for path in ["overview", "config", "devices", "guests", "audit", "log", "events", "images"] {
        let answer = get(&served, port, &format!("/api/v1/{path}")).unwrap();
        assert_eq!(answer.problem().0, 401, "{path}");
    }
    assert_eq!(get(&served, port, "/metrics").unwrap().problem().0, 401);
    // Plain HTTP, nothing at all, and what is no TLS.
    for words in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"",
        b"\x16\x03\x01\xff\xff\x01\x00",
        &vec![0xff; 70_000],
    ] {
        let mut stream = connect(port);
        let _ = stream.write_all(words);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP/1.1 200"), "{said:?}");
    }
    is_usable(&served, port);
}

#[test]
fn a_slow_one_and_a_long_one_are_let_go() {
    if !available() {
        return;
    }
    let (served, port) = Served::by_https(&file(&[]));
    is_usable(&served, port);
    // A head that comes a byte a second, and no end of it.
    let begun = Instant::now();
    let mut slow = secure(&served, port).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    while begun.elapsed() < PATIENCE * 2 && slow.write_all(b"X").and_then(|()| slow.flush()).is_ok() {
        std::thread::sleep(Duration::from_secs(1));
    }
    let mut said = Vec::new();
    let _ = slow.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP/1.1 200"));
    assert!(begun.elapsed() < PATIENCE * 2, "it is still there");
    // A gigabyte: refused by its length, and where that is not said, when it is too much.
    for length in ["Content-Length: 1073741824", "Transfer-Encoding: chunked"] {
        let mut long = served.connect();
        let head = format!(
            "POST /api/v1/config/check HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/yaml\r\n{length}\r\n\r\n"
        );
        long.write_all(head.as_bytes()).unwrap();
        let chunk = [format!("{:x}\r\n", 1 << 20).as_bytes(), &vec![b'#'; 1 << 20], b"\r\n"].concat();
        let mut sent = 0_u64;
        while sent < 1 << 30 && long.write_all(&chunk).is_ok() {
            sent += 1 << 20;
        }
        assert!(sent < 1 << 28, "{sent} bytes were taken of what is refused");
        let mut said = Vec::new();
        let _ = long.read_to_end(&mut said);
        // Where its end was cut off by what was still being sent, nothing is heard of the answer.
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&said));
    }
    assert!(memory(served.web()) < 64 << 20, "{} bytes", memory(served.web()));
    is_usable(&served, port);
}

#[test]
fn ten_thousand_idle_connections_are_no_burden() {
    if !available() {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap();
    let count = 10_000_u64.min(limit.maximum.unwrap_or(u64::MAX).saturating_sub(500));
    let (served, port) = Served::by_https(&file(&[]));
    is_usable(&served, port);
    let mut held = Vec::new();
    for at in 0..count {
        // Some say nothing, some begin with TLS and go no further.
        let Ok(mut stream) = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), PATIENCE) else {
            continue;
        };
        if at % 2 == 0 {
            let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
        }
        held.push(stream);
    }
    assert!(held.len() as u64 > count / 2, "{} of {count} could be made", held.len());
    is_usable(&served, port);
    let web = served.web();
    let descriptors = fs::read_dir(format!("/proc/{web}/fd")).unwrap().count();
    assert!(descriptors < 700, "{descriptors} descriptors are held");
    assert!(memory(web) < 64 << 20, "{} bytes", memory(web));
    drop(held);
    is_usable(&served, port);
}

#[test]
fn an_idle_box_costs_next_to_nothing() {
    if !available() {
        return;
    }
    let (served, port) = Served::by_https(&file(&[guest("a", "halt", "autostart: true")]));
    served.wait_for_state("a", "running");
    is_usable(&served, port);
    let processes = [served.daemon_pid(), served.web()];
    // Threads that were needed a moment ago end after ten seconds.
    wait_until("they are idle", || {
        processes.iter().all(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() == 1)
    });
    a_while();
    let before: Vec<u64> = processes.iter().map(|pid| woken(*pid)).collect();
    std::thread::sleep(Duration::from_secs(10));
    for (pid, before) in processes.iter().zip(before) {
        let times = woken(*pid) - before;
        assert!(times < 20, "process {pid} was woken {times} times in ten seconds");
    }
    let memory: u64 = processes.iter().map(|pid| memory(*pid)).sum();
    eprintln!("idle: {} KiB in both processes", memory >> 10);
    assert!(cfg!(debug_assertions) || memory < 15 << 20, "{memory} bytes");
}
