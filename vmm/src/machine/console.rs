//! From a descriptor into COM1, no faster than the guest takes it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::events::{Events, Source};
use crate::legacy::SerialPort;

/// Bytes that are kept for a guest that does not read; whoever types more waits.
const MOST_TYPED: usize = 4096;

/// The console's input side. At its end the guest simply gets no more.
pub(super) struct ConsoleInput {
    port: Arc<SerialPort>,
    /// Typed over the control socket, before what `input` has.
    typed: VecDeque<u8>,
    input: Option<File>,
    watched: bool,
}

impl ConsoleInput {
    pub(super) fn new(port: Arc<SerialPort>, input: Option<OwnedFd>, events: &Events) -> io::Result<Self> {
        events.watch(port.drained(), Source::ConsoleDrained)?;
        let input = input.map(File::from);
        let mut console = Self { port, typed: VecDeque::new(), input, watched: false };
        console.arm(events)?;
        Ok(console)
    }

    /// Something can be read: takes as much as the guest has room for, and looks away while there is none.
    pub(super) fn readable(&mut self, events: &Events) -> io::Result<()> {
        let room = self.port.room();
        if room == 0 {
            return self.disarm(events);
        }
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut bytes = vec![0; room.min(64)];
        match input.read(&mut bytes) {
            Ok(0) => self.close(events),
            Ok(count) => {
                self.port.receive(bytes.get(..count).unwrap_or(&bytes));
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(())
            }
            Err(error) => {
                // EIO: the other end of a pty is closed.
                tracing::debug!("Reading the console's input: {error}");
                self.close(events)
            }
        }
    }

    /// The guest has read all there was.
    pub(super) fn drained(&mut self, events: &Events) -> io::Result<()> {
        self.port.clear_drained();
        self.type_in();
        if self.watched { Ok(()) } else { self.arm(events) }
    }

    /// How many bytes may be typed over the control socket now.
    pub(super) fn room(&self) -> usize {
        MOST_TYPED.saturating_sub(self.typed.len())
    }

    /// Something was typed over the control socket.
    pub(super) fn typed(&mut self, bytes: &[u8]) {
        self.typed.extend(bytes);
        self.type_in();
    }

    fn type_in(&mut self) {
        let count = self.port.room().min(self.typed.len());
        if count > 0 {
            let bytes: Vec<u8> = self.typed.drain(..count).collect();
            self.port.receive(&bytes);
        }
        if self.typed.is_empty() {
            self.typed = VecDeque::new();
        }
    }

    fn arm(&mut self, events: &Events) -> io::Result<()> {
        let Some(input) = &self.input else { return Ok(()) };
        self.watched = events.watch(input.as_fd(), Source::ConsoleInput)?;
        if self.watched { Ok(()) } else { self.readable(events) }
    }

    fn disarm(&mut self, events: &Events) -> io::Result<()> {
        if let (true, Some(input)) = (self.watched, &self.input) {
            events.forget(input.as_fd())?;
        }
        self.watched = false;
        Ok(())
    }

    fn close(&mut self, events: &Events) -> io::Result<()> {
        self.disarm(events)?;
        self.input = None;
        Ok(())
    }
}
