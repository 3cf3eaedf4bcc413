use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A server with a loop of its own, as the machine has one.
struct Served {
    server: Server,
    events: Events,
    recent: Arc<Recent>,
    folder: TempDir,
    /// Room for what is typed.
    room: usize,
    typed: Vec<u8>,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let (recent, events) = (Arc::new(Recent::new().unwrap()), Events::new().unwrap());
        events.watch(recent.more().fd(), Source::Said).unwrap();
        let server = Server::new(listener.into(), "guest", &recent, &events).unwrap();
        Self { server, events, recent, folder, room: 4096, typed: Vec::new() }
    }

    fn connect(&mut self) -> Talker {
        let stream = UnixStream::connect(self.folder.path().join("s")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut talker = Talker(BufReader::new(stream));
        self.turn();
        let hello = talker.line();
        assert!(hello.starts_with("{\"hello\":{\"protocol\":1,\"vm\":\"guest\""), "{hello}");
        talker
    }

    /// Serves until nothing is left to do; every request is answered with `done`.
    fn turn(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        for _ in 0..10_000 {
            let ready = self.events.wait(Some(Duration::ZERO)).unwrap();
            for source in &ready {
                match source {
                    Source::Control(place) => self.server.ready(*place, self.room, &self.events),
                    _ => self.recent.look(),
                }
            }
            let before = requests.len();
            while let Some((client, request)) = self.server.next_request() {
                match request {
                    Request::Console(how) => self.server.attach(client, how),
                    _ => self.server.answer(client, &Message::Done),
                }
                requests.push(request);
            }
            let typed = self.server.take_typed();
            self.room = self.room.saturating_sub(typed.len());
            self.typed.extend(typed);
            self.server.settle(self.room > 0, &self.events);
            if ready.is_empty() && before == requests.len() {
                return requests;
            }
        }
        panic!("the loop spins");
    }

    fn say(&self, text: &[u8]) {
        self.recent.extend(text);
    }

    fn connections(&self) -> usize {
        self.server.connections.iter().flatten().count()
    }
}

struct Talker(BufReader<UnixStream>);

impl Talker {
    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }
}

#[test]
fn requests_are_answered_in_order_and_others_refused() {
    let mut served = Served::new();
    let mut talker = served.connect();
    talker.send(b"\"pause\"\nnonsense\n\"resu");
    assert_eq!(served.turn(), [Request::Pause]);
    talker.send(b"me\"\n");
    assert_eq!(served.turn(), [Request::Resume]);
    assert_eq!(talker.line(), "\"done\"\n");
    let refused = talker.line();
    assert!(refused.starts_with("{\"error\":{\"kind\":\"malformed\""), "{refused}");
    assert_eq!(talker.line(), "\"done\"\n");
    drop(talker);
    served.turn();
    assert!(served.server.is_quiet());
}

#[test]
fn a_line_without_end_is_sent_away() {
    let mut served = Served::new();
    let mut talker = served.connect();
    talker.0.get_ref().set_nonblocking(true).unwrap();
    let piece = [b'x'; 4096];
    for _ in 0..64 {
        let _ = talker.0.get_mut().write(&piece);
        served.turn();
    }
    assert!(served.server.is_quiet());
    talker.0.get_ref().set_nonblocking(false).unwrap();
    let line = talker.line();
    assert!(line.contains("at most 65536 bytes"), "{line}");
}

#[test]
fn who_asks_and_never_reads_holds_up_himself_alone() {
    let mut served = Served::new();
    let mut deaf = served.connect();
    let mut other = served.connect();
    deaf.0.get_ref().set_nonblocking(true).unwrap();
    let mut answered = 0;
    for _ in 0..2000 {
        let _ = deaf.0.get_mut().write(&b"\"state\"\n".repeat(100));
        answered += served.turn().len();
    }
    other.send(b"\"state\"\n");
    assert_eq!(served.turn(), [Request::State]);
    assert_eq!(other.line(), "\"done\"\n");
    // What waits for it is bounded, and so is what was done for it.
    assert!(answered < 200_000, "{answered}");
    assert!(served.server.deadline().is_some(), "it is not waited for for ever");
}

#[test]
fn one_too_many_takes_the_place_of_the_most_silent() {
    let mut served = Served::new();
    let mut talkers: Vec<Talker> = (0..MOST).map(|_| served.connect()).collect();
    for talker in talkers.iter_mut().skip(1) {
        talker.send(b"\"state\"\n");
    }
    served.turn();
    let mut late = served.connect();
    late.send(b"\"state\"\n");
    assert_eq!(served.turn(), [Request::State]);
    assert_eq!(served.connections(), MOST);
    assert_eq!(talkers.first_mut().unwrap().line(), "", "it was sent away");
}

#[test]
fn consoles_hear_the_same_and_one_may_type() {
    let mut served = Served::new();
    served.say(b"before ");
    let (mut writer, mut reader) = (served.connect(), served.connect());
    writer.send(b"{\"console\":{\"write\":true,\"recent\":true}}\nls\n");
    reader.send(b"{\"console\":{}}\nignored");
    served.turn();
    served.say(b"after");
    served.turn();
    assert_eq!((writer.line(), reader.line()), ("\"done\"\n".into(), "\"done\"\n".into()));
    assert_eq!(writer.bytes(12), b"before after");
    assert_eq!(reader.bytes(5), b"after");
    assert_eq!(served.typed, b"ls\n");
    assert_eq!(served.server.consoles(), (2, 1));

    let mut second = served.connect();
    second.send(b"{\"console\":{\"write\":true}}\n");
    served.turn();
    assert!(second.line().contains("attached to the console already"));
    second.send(b"{\"console\":{\"write\":true,\"take\":true}}\n");
    served.turn();
    assert_eq!(second.line(), "\"done\"\n");
    assert_eq!(writer.line(), "", "the one before is detached");
    second.send(b"x");
    served.turn();
    assert_eq!(served.typed, b"ls\nx");
}

#[test]
fn a_guest_that_reads_nothing_stops_who_types_and_nobody_else() {
    let mut served = Served::new();
    let mut writer = served.connect();
    writer.send(b"{\"console\":{\"write\":true}}\n");
    served.turn();
    writer.0.get_ref().set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = writer.0.get_mut().write(&[b'x'; 4096]) {
        sent += count;
        served.turn();
    }
    assert!(served.typed.len() <= 4096 && sent > 4096, "{sent}");
    // Its end is seen all the same.
    drop(writer);
    served.turn();
    assert!(served.server.is_quiet());
}

#[test]
fn a_console_that_reads_nothing_loses_what_is_old() {
    let mut served = Served::new();
    let mut slow = served.connect();
    slow.send(b"{\"console\":{}}\n");
    served.turn();
    for _ in 0..200 {
        served.say(&[b'.'; 8192]);
        served.turn();
    }
    served.say(b"last\n");
    served.turn();
    drop(slow.line());
    slow.0.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut heard = Vec::new();
    let mut bytes = [0; 8192];
    while let Ok(count @ 1..) = slow.0.read(&mut bytes) {
        heard.extend(bytes.iter().take(count));
        served.turn();
    }
    assert!(heard.ends_with(b"last\n") && heard.len() < 200 * 8192, "{}", heard.len());
}

#[test]
fn all_are_told_of_the_end() {
    let mut served = Served::new();
    let (mut asks, mut hears) = (served.connect(), served.connect());
    hears.send(b"{\"console\":{}}\n");
    served.turn();
    served.say(b"bye");
    served.server.say_goodbye(&Message::Ended(protocol::Ended::PowerOff));
    assert_eq!(asks.line(), "{\"ended\":\"power-off\"}\n");
    assert_eq!((hears.line(), hears.line()), ("\"done\"\n".into(), "bye".into()));
}
