//! What the kernel tells of changes: links, addresses, default routes, VLANs and forwarding of bridges, rules of nftables.
//!
//! That something has changed, not what: whoever hears of it reads everything again. So nothing is missed when messages are lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::io::Errno;

use crate::network::Error;

/// Groups of rtnetlink (linux/rtnetlink.h): links, neighbours, addresses, routes, next hops, VLANs of bridges.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 9, 11, 32, 33];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 7;
/// Kinds of messages whose content decides: RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH.
const ROUTES: [u16; 2] = [24, 25];
const NEIGHBOURS: [u16; 2] = [28, 29];
/// No more messages at one time, so that whoever asks goes on.
const MOST: usize = 10_000;

/// Sockets on which the kernel tells of changes of this network namespace.
pub struct Changes {
    route: Socket,
    /// None where the kernel has no nftables, or tells it to root only.
    nftables: Option<Socket>,
}

impl Changes {
    /// From now on.
    pub fn open() -> Result<Self, Error> {
        let route = socket(NETLINK_ROUTE).map_err(Error::Socket)?;
        for group in GROUPS {
            // Kernels before 5.8 do not have the last one, and tell of VLANs as of links.
            if let Err(error) = route.add_membership(group) {
                tracing::debug!("Listening to group {group} of rtnetlink: {error}");
            }
        }
        // Without the first nothing would ever be heard.
        route.add_membership(1).map_err(Error::Socket)?;
        let nftables = socket(NETLINK_NETFILTER).and_then(|socket| {
            socket.add_membership(NFTABLES)?;
            Ok(socket)
        });
        let nftables = nftables.inspect_err(|error| tracing::debug!("Listening to nftables: {error}")).ok();
        Ok(Self { route, nftables })
    }

    /// What becomes readable when there is something to hear.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.route).chain(&self.nftables).map(AsFd::as_fd)
    }

    /// Takes all that was told since the last time; whether it matters. Messages that were lost do.
    pub fn heard(&self) -> io::Result<bool> {
        let mut matters = drain(&self.route, route_matters)?;
        if let Some(nftables) = &self.nftables {
            matters |= drain(nftables, |_| true)?;
        }
        Ok(matters)
    }
}

fn socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn drain(socket: &Socket, matters: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut found = false;
    // The beginning of a message is enough.
    let mut buffer = [0; 64];
    for _ in 0..MOST {
        match socket.recv(&mut &mut buffer[..], 0) {
            Ok(length) => found |= buffer.get(..length.min(buffer.len())).is_some_and(&matters),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => break,
                Some(Errno::INTR) => {}
                // The kernel had more to say than there was room for.
                Some(Errno::NOBUFS) => {
                    tracing::info!("The kernel told of more changes than could be heard: all is read again");
                    found = true;
                }
                _ => return Err(error),
            },
        }
    }
    Ok(found)
}

/// Of routes only default ones matter, of neighbours only what is told to a card (`self`): what a bridge learns comes and goes.
fn route_matters(message: &[u8]) -> bool {
    /// Bits of a neighbour's flags, and the family of bridges (linux/neighbour.h, AF_BRIDGE).
    const SELF: u8 = 0x02;
    const BRIDGE: u8 = 7;
    let kind = message.get(4..6).and_then(|kind| Some(u16::from_ne_bytes(*kind.first_chunk()?)));
    let byte = |at: usize| message.get(at).copied();
    match kind {
        // struct rtmsg behind the header of 16 bytes: family, length of the destination, ...
        Some(kind) if ROUTES.contains(&kind) => byte(17) == Some(0),
        // struct ndmsg: family, 3 bytes of padding, 4 of index, 2 of state, flags.
        Some(kind) if NEIGHBOURS.contains(&kind) => {
            byte(16) == Some(BRIDGE) && byte(26).is_some_and(|flags| flags & SELF != 0)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn what_traffic_brings_about_is_passed_over() {
        assert!(route_matters(&message(16, &[0; 16])), "a link");
        assert!(route_matters(&message(24, &[2, 0])), "a default route");
        assert!(!route_matters(&message(24, &[2, 24])), "another route");
        let neighbour = |family, flags| message(28, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, 0]);
        assert!(route_matters(&neighbour(7, 2)), "an address told to a card");
        assert!(!route_matters(&neighbour(7, 0)), "an address that a bridge has learnt");
        assert!(!route_matters(&neighbour(2, 2)), "ARP");
    }

    proptest! {
        #[test]
        fn no_message_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            route_matters(&bytes);
        }
    }
}
