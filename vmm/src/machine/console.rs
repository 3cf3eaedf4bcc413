//! From a descriptor into the guest's console, no faster than the guest takes it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::events::{Events, Source};
use crate::legacy::SerialPort;
use crate::virtio::console::Keyboard;

/// Bytes that are kept for a guest that does not read; whoever types more waits.
const MOST_TYPED: usize = 4096;

/// The guest's end of the console's input.
pub(super) enum GuestEnd {
    /// COM1.
    Serial(Arc<SerialPort>),
    /// A virtio console.
    Virtio(Arc<Keyboard>),
}

impl GuestEnd {
    fn room(&self) -> usize {
        match self {
            Self::Serial(port) => port.room(),
            Self::Virtio(keyboard) => keyboard.room(),
        }
    }

    /// No more than there is room for.
    fn receive(&self, bytes: &[u8]) {
        match self {
            Self::Serial(port) => drop(port.receive(bytes)),
            Self::Virtio(keyboard) => keyboard.type_in(bytes),
        }
    }

    /// Readable when the guest has taken all of it.
    fn drained(&self) -> BorrowedFd<'_> {
        match self {
            Self::Serial(port) => port.drained(),
            Self::Virtio(keyboard) => keyboard.drained().fd(),
        }
    }

    fn clear_drained(&self) {
        match self {
            Self::Serial(port) => port.clear_drained(),
            Self::Virtio(keyboard) => drop(keyboard.drained().take()),
        }
    }
}

/// The console's input side. At its end the guest simply gets no more.
pub(super) struct ConsoleInput {
    guest: GuestEnd,
    /// Typed over the control socket, before what `input` has.
    typed: VecDeque<u8>,
    input: Option<File>,
    watched: bool,
}

impl ConsoleInput {
    pub(super) fn new(guest: GuestEnd, input: Option<OwnedFd>, events: &Events) -> io::Result<Self> {
        events.watch(guest.drained(), Source::ConsoleDrained)?;
        let input = input.map(File::from);
        let mut console = Self { guest, typed: VecDeque::new(), input, watched: false };
        console.arm(events)?;
        Ok(console)
    }

    /// Something can be read: takes as much as the guest has room for, and looks away while there is none.
    pub(super) fn readable(&mut self, events: &Events) -> io::Result<()> {
        let room = self.guest.room();
        if room == 0 {
            return self.disarm(events);
        }
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut bytes = vec![0; room.min(64)];
        match input.read(&mut bytes) {
            Ok(0) => self.close(events),
            Ok(count) => {
                self.guest.receive(bytes.get(..count).unwrap_or(&bytes));
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
        self.guest.clear_drained();
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
        let count = self.guest.room().min(self.typed.len());
        if count > 0 {
            let bytes: Vec<u8> = self.typed.drain(..count).collect();
            self.guest.receive(&bytes);
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
