//! What the machine's own thread waits for: one epoll over the mailbox, the console and the devices' descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// Who is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The mailbox has something in it.
    Mailbox,
    /// The console has input.
    ConsoleInput,
    /// The guest has emptied the console's receive buffer.
    ConsoleDrained,
    /// A device that comes or goes.
    Hotplug,
    /// A descriptor of the machine's owner; the index is its place in the owner's list.
    Owner(u8),
    /// A device's descriptor; the index is the one that `watch` was given.
    Device(u32),
    /// The guest has said something, and someone waits for it.
    Said,
    /// A descriptor of the control socket's; the index is the server's.
    Control(u32),
}

/// Tokens of the control socket's are above those of devices.
const CONTROL: u64 = 1 << 33;

impl Source {
    fn token(self) -> u64 {
        match self {
            Self::Mailbox => 0,
            Self::ConsoleInput => 1,
            Self::ConsoleDrained => 2,
            Self::Hotplug => 4,
            Self::Owner(index) => 0x10 + u64::from(index),
            Self::Said => 3,
            Self::Device(index) => 0x200 + u64::from(index),
            Self::Control(index) => CONTROL + u64::from(index),
        }
    }

    fn of(token: u64) -> Option<Self> {
        match token {
            0 => Some(Self::Mailbox),
            1 => Some(Self::ConsoleInput),
            2 => Some(Self::ConsoleDrained),
            3 => Some(Self::Said),
            4 => Some(Self::Hotplug),
            0x10..=0x10f => u8::try_from(token - 0x10).ok().map(Self::Owner),
            CONTROL.. => u32::try_from(token - CONTROL).ok().map(Self::Control),
            _ => u32::try_from(token.checked_sub(0x200)?).ok().map(Self::Device),
        }
    }
}

/// The set of descriptors that are waited for.
pub(crate) struct Events {
    epoll: std::os::fd::OwnedFd,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits for `fd` to become readable from now on. False where it never blocks (a regular file): poll it once.
    pub(crate) fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<bool> {
        let data = epoll::EventData::new_u64(source.token());
        match epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for it no more.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match epoll::delete(&self.epoll, fd) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::PERM) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for `wanted` of `fd` instead of `before`; for nothing, not even for its end, where that is empty.
    pub(crate) fn adjust(
        &self,
        fd: BorrowedFd<'_>,
        source: Source,
        before: epoll::EventFlags,
        wanted: epoll::EventFlags,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(source.token());
        match (before.is_empty(), wanted.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Ok(epoll::add(&self.epoll, fd, data, wanted)?),
            (false, true) => self.forget(fd),
            (false, false) => Ok(epoll::modify(&self.epoll, fd, data, wanted)?),
        }
    }

    /// Sleeps until something is ready, or no longer than that.
    pub(crate) fn wait(&self, at_most: Option<Duration>) -> io::Result<Vec<Source>> {
        let mut ready = Vec::with_capacity(32);
        let at_most = at_most.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match epoll::wait(&self.epoll, spare_capacity(&mut ready), at_most.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(ready.iter().filter_map(|event| Source::of(event.data.u64())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lead_back_to_their_sources() {
        for source in [
            Source::Mailbox,
            Source::ConsoleInput,
            Source::ConsoleDrained,
            Source::Hotplug,
            Source::Owner(0),
            Source::Owner(u8::MAX),
            Source::Device(0),
            Source::Device(u32::MAX),
            Source::Said,
            Source::Control(0),
            Source::Control(u32::MAX),
        ] {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(5), None);
    }
}
