//! The function's configuration space: identity, BAR, MSI-X, PCI Express and virtio's own capabilities (4.1.2, 4.1.4).

use super::{BAR, NOTIFY_MULTIPLIER, area};
use crate::pci::config_space::offset;
use crate::pci::{BarKind, BarSpec, ConfigSpace, Header, Identity, LayoutError};
use crate::virtio::Class;

/// Red Hat, under whose vendor ID all virtio devices are; IDs from 0x1040 on are virtio 1.
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

/// Capability IDs.
const VENDOR_SPECIFIC: u8 = 0x09;
const PCI_EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// `cfg_type` of virtio's capabilities.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Length of the common configuration with `queue_notify_data`'s predecessor as its last field.
const COMMON_LENGTH: u64 = 56;

/// Where in config space the driver's window to the BAR is (4.1.4.9).
pub(super) struct ConfigWindow {
    pub(super) bar: u16,
    pub(super) offset: u16,
    pub(super) length: u16,
    pub(super) data: u16,
}

/// Where the capabilities that do something are.
pub(super) struct Capabilities {
    pub(super) msix: u16,
    pub(super) window: ConfigWindow,
}

/// Lays it all out for a device with `vectors` MSI-X vectors.
pub(super) fn lay_out(class: Class, vectors: u16) -> Result<(ConfigSpace, Capabilities), LayoutError> {
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE_BASE.saturating_add(class.id()),
        revision: 1,
        class: class.pci_class(),
        subsystem: Some((VENDOR, SUBSYSTEM)),
    };
    let mut space = ConfigSpace::new(Header::Endpoint, identity);
    space.define_u8(offset::INTERRUPT_PIN, 1, 0);
    let kind = BarKind::Memory32 { prefetchable: false };
    space.add_bar(BarSpec { index: BAR, kind, size: area::SIZE })?;
    let msix = msix(&mut space, vectors)?;
    express(&mut space)?;
    for (kind, start, length) in [
        (COMMON_CFG, area::COMMON, COMMON_LENGTH),
        (ISR_CFG, area::ISR, 1),
        (DEVICE_CFG, area::DEVICE, area::EACH),
    ] {
        space.add_capability(VENDOR_SPECIFIC, &virtio(kind, start, length, &[]))?;
    }
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    space.add_capability(VENDOR_SPECIFIC, &virtio(NOTIFY_CFG, area::NOTIFY, area::EACH, &multiplier))?;
    let at = space.add_capability(VENDOR_SPECIFIC, &virtio(PCI_CFG, 0, 0, &[0; 4]))?;
    let window = ConfigWindow { bar: at + 4, offset: at + 8, length: at + 12, data: at + 16 };
    space.define_u8(window.bar, 0, 0xff);
    for register in [window.offset, window.length, window.data] {
        space.define_u32(register, 0, u32::MAX);
    }
    Ok((space, Capabilities { msix, window }))
}

/// The body of a `struct virtio_pci_cap`, behind ID and next pointer.
fn virtio(kind: u8, start: u64, length: u64, rest: &[u8]) -> Vec<u8> {
    let word = |value: u64| u32::try_from(value).unwrap_or(0).to_le_bytes();
    let own_length = u8::try_from(rest.len().saturating_add(16)).unwrap_or(16);
    let mut body = vec![own_length, kind, BAR, 0, 0, 0];
    body.extend(word(start));
    body.extend(word(length));
    body.extend(rest);
    body
}

/// MSI-X (PCIe 7.7.2): enable and function mask are the guest's to write.
fn msix(space: &mut ConfigSpace, vectors: u16) -> Result<u16, LayoutError> {
    let place = |start: u64| (u32::try_from(start).unwrap_or(0) | u32::from(BAR)).to_le_bytes();
    let last = vectors.saturating_sub(1);
    let mut body = last.to_le_bytes().to_vec();
    body.extend(place(area::TABLE));
    body.extend(place(area::PENDING));
    let at = space.add_capability(MSIX, &body)?;
    space.define_u16(at + 2, last, 0xc000);
    Ok(at)
}

/// PCI Express (7.5.3): an endpoint of version 2, as behind a root port there is nothing else.
fn express(space: &mut ConfigSpace) -> Result<(), LayoutError> {
    /// 2.5 GT/s, one lane: what is not a wire has no speed.
    const LINK: u16 = 0x11;
    let at = space.add_capability(PCI_EXPRESS, &[0; 0x3a])?;
    space.define_u16(at + 0x02, 2, 0);
    // Role-based error reporting.
    space.define_u32(at + 0x04, 1 << 15, 0);
    space.define_u16(at + 0x08, 0, 0x70ff);
    space.clears_u16(at + 0x0a, 0x000f);
    space.define_u32(at + 0x0c, LINK.into(), 0);
    space.define_u16(at + 0x10, 0, 0x00c3);
    space.define_u16(at + 0x12, LINK, 0);
    Ok(())
}
