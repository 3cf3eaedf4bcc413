//! Taps are made by /dev/net/tun, not by netlink (Documentation/networking/tuntap.rst).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Makes a tap that stays when nobody has it open, and gives its first queue: to close that takes the kernel as long as to make it.
pub(crate) fn make(name: &str, multi_queue: bool, vnet_hdr: bool) -> io::Result<OwnedFd> {
    let tap = attach(name, multi_queue, vnet_hdr)?;
    tap.persist()?;
    tap.as_fd().try_clone_to_owned()
}

/// Opens queues of a tap that was made with the header of virtio-net: one, or several of one with `multi_queue`.
pub fn open(name: &str, multi_queue: bool, queues: u16) -> io::Result<Vec<OwnedFd>> {
    (0..queues).map(|_| attach(name, multi_queue, true)?.as_fd().try_clone_to_owned()).collect()
}

/// Opens queues of a macvtap by the index of its link.
pub fn open_macvtap(index: u32, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let open = || OpenOptions::new().read(true).write(true).open(format!("/dev/tap{index}"));
    (0..queues).map(|_| Ok(OwnedFd::from(open()?))).collect()
}

fn attach(name: &str, multi_queue: bool, vnet_hdr: bool) -> io::Result<SyncDevice> {
    // Up it comes when it is where it belongs, or is already.
    let tap = DeviceBuilder::new().name(name).layer(Layer::L2).inherit_enable_state();
    // With the header of virtio-net: what tun-rs calls offload.
    tap.with(|tap| {
        tap.multi_queue(multi_queue).offload(vnet_hdr);
    })
    .build_sync()
}
