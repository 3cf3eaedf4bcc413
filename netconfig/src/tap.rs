//! Taps are made by /dev/net/tun, not by netlink (Documentation/networking/tuntap.rst).

use std::io;

use tun_rs::{DeviceBuilder, Layer};

/// Makes a tap that stays when nobody has it open.
pub(crate) fn make(name: &str, multi_queue: bool, vnet_hdr: bool) -> io::Result<()> {
    let tap = DeviceBuilder::new().name(name).layer(Layer::L2);
    // With the header of virtio-net: what tun-rs calls offload.
    tap.with(|tap| {
        tap.multi_queue(multi_queue).offload(vnet_hdr);
    })
    .build_sync()?
    .persist()
}
