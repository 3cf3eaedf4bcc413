//! What is done to guests, and their consoles.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::appliance::{file, guest};
use crate::client::Served;
use crate::machine::available;

#[test]
fn a_guest_is_started_paused_reset_and_stopped() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "stop-timeout: 1s")]));
    let act = |verb: &str| served.post(&format!("/api/v1/guests/a/{verb}"));
    assert_eq!(served.state_of("a"), "off");
    assert_eq!(act("pause").problem().0, 409, "it does not run");
    assert_eq!(act("stop").problem().0, 409);
    assert_eq!(act("start").status, 204);
    served.wait_for_state("a", "running");
    assert_eq!(act("start").problem().0, 409, "it runs already");
    assert_eq!(act("pause").status, 204);
    assert_eq!(served.state_of("a"), "paused");
    assert_eq!(act("resume").status, 204);
    assert_eq!(served.state_of("a"), "running");
    assert_eq!(act("reset").status, 204);
    assert_eq!(act("power-button").status, 204);
    assert_eq!(act("stop").status, 204, "it does not listen, and its plug is pulled");
    served.wait_for_state("a", "off");
    assert_eq!(act("start").status, 204);
    served.wait_for_state("a", "running");
    assert_eq!(act("kill").status, 204);
    served.wait_for_state("a", "off");
    let done: Vec<String> =
        served.audit().into_iter().filter(|(.., refused)| refused.is_none()).map(|(what, ..)| what).collect();
    let expected = [
        "pull a guest's plug",
        "start a guest",
        "stop a guest",
        "press a guest's power button",
        "reset a guest",
        "resume a guest",
        "pause a guest",
        "start a guest",
    ];
    assert_eq!(done, expected);
}

/// A WebSocket's client: what it sends is masked (RFC 6455, section 5).
struct Socket(UnixStream);

impl Socket {
    fn open(served: &Served, path: &str) -> Result<Self, String> {
        let mut stream = served.connect();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            read.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&read).into_owned();
        // The example of RFC 6455, section 1.3.
        let accepted = head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        if accepted { Ok(Self(stream)) } else { Err(head) }
    }

    fn send(&mut self, bytes: &[u8]) {
        let length = u8::try_from(bytes.len()).unwrap();
        assert!(length < 126);
        let mut frame = vec![0x82, 0x80 | length, 0, 0, 0, 0];
        frame.extend_from_slice(bytes);
        self.0.write_all(&frame).unwrap();
    }

    /// The next frame: its opcode and what is in it.
    fn next(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            length => usize::from(length),
        };
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        (head[0] & 0xf, bytes)
    }

    fn wait_for(&mut self, text: &str) {
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(text) {
            let (opcode, bytes) = self.next();
            assert_eq!(opcode, 2, "{text:?} never came: {}", String::from_utf8_lossy(&heard));
            heard.extend(bytes);
        }
    }
}

#[test]
fn a_console_is_read_and_typed_into() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "autostart: true, restart: no")]));
    served.wait_for_state("a", "running");
    let path = "/api/v1/guests/a/console";
    let mut reads = Socket::open(&served, path).unwrap();
    // Also who comes late sees what was said.
    reads.wait_for("ready");
    let mut writes = Socket::open(&served, &format!("{path}?write=true")).unwrap();
    writes.wait_for("ready");
    let second = Socket::open(&served, &format!("{path}?write=true")).err().unwrap();
    assert!(second.starts_with("HTTP/1.1 409 "), "{second}");
    reads.send(b"nobody hears this");
    writes.send(b"over the web");
    for socket in [&mut reads, &mut writes] {
        socket.wait_for("over the web");
    }
    writes.send(b"q");
    writes.wait_for("bye");
    // Its end is that of the console, and is said.
    while writes.next().0 != 8 {}
    served.wait_for_state("a", "off");
    let audit = served.audit();
    assert!(audit.iter().any(|(what, detail, refused)| {
        what == "attach to the console" && detail == "guest `a`" && refused.is_none()
    }));
}

#[test]
fn who_serves_is_started_again_when_it_is_killed_and_guests_go_on() {
    if !available() {
        return;
    }
    let served = Served::new(&file(&[guest("a", "obey", "autostart: true")]));
    served.wait_for_state("a", "running");
    let (guests, web) = (served.appliance.running(), served.web());
    crate::appliance::kill_and_wait(web);
    crate::machine::wait_until("another one answers", || {
        UnixStream::connect(served.socket()).is_ok_and(|_| served.get("/healthz").status == 200)
    });
    assert_ne!(served.web(), web);
    assert_eq!(served.appliance.running(), guests);
}
