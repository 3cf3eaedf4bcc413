//! The listening socket and its clients, on the thread that runs the machine.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, accept_with};

use super::connection::{Connection, Line, Mode, may_control};
use super::protocol::{self, Attach, Greeting, Message, Refusal, RefusalKind, Request};
use super::recent::Recent;
use crate::machine::events::{Events, Source};

/// Clients at a time. One more, and the one that has been silent for longest is sent away.
const MOST: usize = 16;
/// Of these, attached to the console.
const MOST_CONSOLES: usize = 8;

/// Places in [`Source::Control`].
const LISTENER: u32 = 0;
const FIRST_CLIENT: u32 = 1;

/// Where the host has no descriptor left for a client, it is asked again after this long.
const AGAIN: Duration = Duration::from_secs(1);

/// Whom to answer, also later: an answer to one that has gone goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    place: usize,
    serial: u64,
}

pub(crate) struct Server {
    listener: OwnedFd,
    hello: Vec<u8>,
    recent: Arc<Recent>,
    connections: Vec<Option<Connection>>,
    next_serial: u64,
    /// For the console's input.
    typed: Vec<u8>,
    /// Nobody is let in before.
    deaf_until: Option<Instant>,
}

impl Server {
    /// Serves `listener`, a Unix stream socket that listens.
    pub(crate) fn new(
        listener: OwnedFd,
        vm: &str,
        recent: &Arc<Recent>,
        events: &Events,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        events.watch(&listener, Source::Control(LISTENER))?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = Message::Hello(Greeting { protocol: protocol::VERSION, vm: vm.to_owned(), version });
        Ok(Self {
            listener,
            hello: hello.line(),
            recent: Arc::clone(recent),
            connections: Vec::new(),
            next_serial: 0,
            typed: Vec::new(),
            deaf_until: None,
        })
    }

    /// A descriptor is ready. `room` is how much may be typed now.
    pub(crate) fn ready(&mut self, place: u32, room: usize, events: &Events) {
        match place {
            LISTENER => self.accept(events),
            _ => {
                let place = usize::try_from(place.saturating_sub(FIRST_CLIENT)).unwrap_or(usize::MAX);
                if let Some(Some(connection)) = self.connections.get_mut(place) {
                    let room = room.saturating_sub(self.typed.len());
                    if connection.is_writer() && room == 0 {
                        connection.look_for_its_end();
                    } else {
                        self.typed.extend(connection.readable(room));
                    }
                }
            }
        }
    }

    /// One client more, if it may.
    fn accept(&mut self, events: &Events) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
                return;
            }
            Err(error) => {
                // Out of descriptors: whoever knocks would wake us for ever.
                tracing::warn!("The control socket takes no client for now: {error}");
                if let Err(error) = events.forget(self.listener.as_fd()) {
                    tracing::error!("Looking away from the control socket: {error}");
                }
                self.deaf_until = Instant::now().checked_add(AGAIN);
                return;
            }
        };
        match may_control(&socket) {
            Ok(true) => {}
            Ok(false) => return tracing::warn!("A user who may not tried to control the guest; refused"),
            Err(error) => return tracing::warn!("Asking who wants to control the guest: {error}"),
        }
        self.next_serial = self.next_serial.saturating_add(1);
        let mut connection = Connection::new(socket, self.next_serial, &self.hello);
        let Some(place) = self.free_place() else {
            let message = "All connections are consoles that are attached; detach one";
            connection.put(&Message::refused(message).line());
            return connection.flush(&self.recent);
        };
        if let Some(slot) = self.connections.get_mut(place) {
            connection.flush(&self.recent);
            // One that is replaced leaves epoll as it is closed.
            *slot = Some(connection);
        }
    }

    /// A place for one more: a free one, or that of the one that has asked for nothing for longest.
    fn free_place(&mut self) -> Option<usize> {
        if let Some(free) = self.connections.iter().position(Option::is_none) {
            return Some(free);
        }
        if self.connections.len() < MOST {
            self.connections.push(None);
            return Some(self.connections.len().saturating_sub(1));
        }
        let idle = |(place, connection): (usize, &Option<Connection>)| {
            let connection = connection.as_ref()?;
            (matches!(connection.mode, Mode::Requests) && !connection.busy)
                .then_some((connection.heard, place))
        };
        self.connections.iter().enumerate().filter_map(idle).min().map(|(_, place)| place)
    }

    /// The next request of anyone. Each is to be answered: at once or later.
    pub(crate) fn next_request(&mut self) -> Option<(Client, Request)> {
        for place in 0..self.connections.len() {
            while let Some(Some(connection)) = self.connections.get_mut(place)
                && let Some(line) = connection.line()
            {
                let problem = match line {
                    Line::Whole(line) => match protocol::parse(&line) {
                        Ok(request) => {
                            connection.busy = true;
                            return Some((Client { place, serial: connection.serial }, request));
                        }
                        Err(problem) => problem,
                    },
                    Line::TooLong => {
                        connection.close_soon();
                        let message = format!("A request has at most {} bytes", protocol::LONGEST_LINE);
                        Message::Error(Refusal { kind: RefusalKind::Malformed, message })
                    }
                };
                connection.put(&problem.line());
            }
        }
        None
    }

    fn connection(&mut self, client: Client) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(client.place)?.as_mut()?;
        (connection.serial == client.serial).then_some(connection)
    }

    /// The file that came with a client's request.
    pub(crate) fn take_file(&mut self, client: Client) -> Option<OwnedFd> {
        self.connection(client)?.take_file()
    }

    /// Answers a request that [`next_request`](Self::next_request) gave.
    pub(crate) fn answer(&mut self, client: Client, message: &Message) {
        if let Some(connection) = self.connection(client) {
            connection.busy = false;
            connection.put(&message.line());
        }
    }

    /// Answers [`Request::Console`].
    pub(crate) fn attach(&mut self, client: Client, how: Attach) {
        let consoles = |connection: &&Connection| matches!(connection.mode, Mode::Console { .. });
        if self.connections.iter().flatten().filter(consoles).count() >= MOST_CONSOLES {
            let refused = format!("{MOST_CONSOLES} consoles are attached already; detach one");
            return self.answer(client, &Message::refused(refused));
        }
        let writer = self.connections.iter_mut().flatten().find(|connection| connection.is_writer());
        match writer {
            Some(writer) if how.write && how.take => writer.close_soon(),
            Some(_) if how.write => {
                let refused = "Someone is attached to the console already; watch it without typing, or take it from them";
                return self.answer(client, &Message::refused(refused));
            }
            _ => {}
        }
        self.answer(client, &Message::Done);
        let place = self.recent.place(how.recent);
        if let Some(connection) = self.connection(client) {
            let typed = connection.become_console(place, how.write);
            self.typed.extend(typed);
        }
    }

    /// Readers and writers of the console.
    pub(crate) fn consoles(&self) -> (u32, u32) {
        let count = |is: fn(&Connection) -> bool| {
            let count = self.connections.iter().flatten().filter(|connection| is(connection)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        (count(|connection| matches!(connection.mode, Mode::Console { .. })), count(Connection::is_writer))
    }

    /// What was typed since the last time.
    pub(crate) fn take_typed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.typed)
    }

    /// After anything: sends what can be sent, lets go of who is gone or was waited for too long, and has the loop wait for
    /// the rest. `may_type`: there is room for what is typed.
    pub(crate) fn settle(&mut self, may_type: bool, events: &Events) {
        let now = Instant::now();
        if self.deaf_until.take_if(|until| *until <= now).is_some()
            && let Err(error) = events.watch(&self.listener, Source::Control(LISTENER))
        {
            tracing::error!("Looking at the control socket again: {error}");
        }
        for (place, slot) in (FIRST_CLIENT..).zip(&mut self.connections) {
            let Some(connection) = slot else { continue };
            connection.flush(&self.recent);
            let late = connection.deadline().is_some_and(|deadline| deadline <= now);
            if late || connection.is_over() {
                *slot = None;
                continue;
            }
            let wanted = connection.wanted(&self.recent, may_type);
            if wanted == connection.interest {
                continue;
            }
            let source = Source::Control(place);
            match events.adjust(connection.as_fd(), source, connection.interest, wanted) {
                Ok(()) => connection.interest = wanted,
                Err(error) => {
                    tracing::warn!("Waiting for a client of the control socket: {error}");
                    *slot = None;
                }
            }
        }
        let reads = self
            .connections
            .iter()
            .flatten()
            .any(|connection| matches!(connection.mode, Mode::Console { .. }));
        self.recent.await_more(reads);
    }

    /// When someone is to be sent away.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.connections.iter().flatten().filter_map(Connection::deadline).chain(self.deaf_until).min()
    }

    /// No client is there.
    pub(crate) fn is_quiet(&self) -> bool {
        self.connections.iter().all(Option::is_none)
    }

    /// Tells all of the end, as far as they listen, with what the guest has said before it.
    pub(crate) fn say_goodbye(mut self, ended: &Message) {
        let line = ended.line();
        for connection in self.connections.iter_mut().flatten() {
            connection.busy = false;
            if matches!(connection.mode, Mode::Requests) {
                connection.put(&line);
            }
            connection.flush(&self.recent);
        }
    }
}

#[cfg(test)]
mod tests;
