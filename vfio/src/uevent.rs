//! What the kernel tells of devices that come, go, and change their drivers (`NETLINK_KOBJECT_UEVENT`).
//!
//! That something has changed, not what: whoever hears of it reads everything again. So nothing is missed when messages are lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Subsystems that matter: functions, their interfaces, and what VFIO makes of them.
const SUBSYSTEMS: [&str; 4] = ["pci", "net", "vfio", "vfio-dev"];
/// The kernel's own messages; group 2 is udev's.
const KERNEL: u32 = 1;
/// The kernel's messages are shorter (UEVENT_BUFFER_SIZE and the path).
const LONGEST: usize = 8192;
/// No more messages at one time, so that whoever asks goes on.
const MOST: usize = 10_000;

/// A socket on which the kernel tells of devices.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// From now on.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(socket))
    }

    /// Takes all that was told since the last time; whether it matters. Messages that were lost do.
    pub fn heard(&self) -> io::Result<bool> {
        let mut found = false;
        let mut buffer = vec![0; LONGEST];
        for _ in 0..MOST {
            match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => found |= buffer.get(..length).is_some_and(matters),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // The kernel had more to say than there was room for.
                Err(Errno::NOBUFS) => {
                    tracing::info!("The kernel told of more devices than could be heard: all is read again");
                    found = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `bind@/devices/...`, then `KEY=VALUE` each, all of them ended by zeros (lib/kobject_uevent.c).
fn matters(message: &[u8]) -> bool {
    let mut fields = message.split(|byte| *byte == 0);
    fields.any(|field| {
        let subsystem = field.strip_prefix(b"SUBSYSTEM=").and_then(|name| std::str::from_utf8(name).ok());
        subsystem.is_some_and(|name| SUBSYSTEMS.contains(&name))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn functions_and_interfaces_matter_and_disks_do_not() {
        let message = |subsystem: &str| {
            format!("bind@/devices/pci0000:00/0000:00:02.0\0ACTION=bind\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
        };
        for subsystem in SUBSYSTEMS {
            assert!(matters(message(subsystem).as_bytes()));
        }
        assert!(!matters(message("block").as_bytes()));
        assert!(!matters(message("pci_bus").as_bytes()));
    }

    proptest! {
        #[test]
        fn no_message_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            matters(&bytes);
        }
    }
}
