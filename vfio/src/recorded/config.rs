//! Config space of a function: what says how it is connected and what it keeps apart.

use super::{Line, Port};

/// 4096 bytes of a PCI Express function, 256 of a conventional one.
pub(super) fn space(line: &Line) -> Vec<u8> {
    let kind: Option<u8> = match line.port {
        Port::Conventional => None,
        Port::Endpoint => Some(0),
        Port::Root => Some(4),
        Port::Up => Some(5),
        Port::Down => Some(6),
        Port::ToPci => Some(7),
        Port::Inside => Some(9),
    };
    let mut bytes = vec![0; if kind.is_some() { 4096 } else { 256 }];
    let mut put = |at: usize, data: &[u8]| {
        if let Some(there) = bytes.get_mut(at..at + data.len()) {
            there.copy_from_slice(data);
        }
    };
    // A VF's IDs read all ones (SR-IOV 1.1, 3.4.1.1).
    let (vendor, device) = if line.vf.is_some() { (0xffff, 0xffff) } else { (line.vendor, line.device) };
    put(0x00, &vendor.to_le_bytes());
    put(0x02, &device.to_le_bytes());
    let class = line.class.to_le_bytes();
    put(0x08, &[1, class[0], class[1], class[2]]);
    let bridge = line.class >> 8 == 0x0604;
    put(0x0e, &[u8::from(line.multi) << 7 | u8::from(bridge)]);
    if let Some(kind) = kind {
        // MSI stands before PCI Express in the list.
        put(0x06, &[1 << 4]);
        put(0x34, &[0x40]);
        put(0x40, &[0x05, 0x50]);
        put(0x50, &[0x10, 0, kind << 4 | 2, 0]);
    }
    if let Some((capability, control)) = line.acs {
        // Advanced error reporting stands before ACS.
        put(0x100, &0x1401_0001_u32.to_le_bytes());
        put(0x140, &0x0001_000d_u32.to_le_bytes());
        put(0x144, &capability.to_le_bytes());
        put(0x146, &control.to_le_bytes());
    }
    bytes
}
