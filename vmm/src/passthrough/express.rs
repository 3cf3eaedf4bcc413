//! The PCI Express capability of a function behind one of our root ports (PCIe 6.0, 7.5.3).

use vfio::PciFunction;

use super::Error;
use super::config::ConfigSpace;

/// Device Capabilities: function level reset.
const FLR: u32 = 1 << 28;
/// Device Control: the byte and bit that ask for one.
pub(super) const INITIATE_FLR: (u16, u8) = (9, 0x80);

/// Takes the capability over. `true` in the answer if the guest may ask for a function level reset, `None` if it is cut off.
pub(super) fn take(
    config: &mut ConfigSpace,
    function: &dyn PciFunction,
    at: u16,
) -> Result<Option<(u16, bool)>, Error> {
    if at + 0x14 > 0x100 {
        return Ok(None);
    }
    let flags = config.u16(at + 2);
    let kind = match flags >> 4 & 0xf {
        kind @ (0 | 1) => kind,
        // An endpoint that is part of the host's root complex has a link here, as it sits behind a root port.
        9 => {
            fill_in_link(config, at);
            0
        }
        _ => {
            let why = "it is a PCI Express port; only endpoints can be passed through";
            return Err(Error::unusable(function.label(), why));
        }
    };
    config.emulate_u16(at + 2, flags & 0xf | kind << 4, 0);

    // Without phantom functions: the IOMMU would not know them.
    let mut device = config.u32(at + 4) & !(3 << 3);
    if !function.can_reset() {
        device &= !FLR;
    }
    config.emulate_u32(at + 4, device, 0);
    config.emulate_bits(at + 9, INITIATE_FLR.1 | 1 << 1, 0, 0);

    // The link is the host's: no power management of it, and no control over it.
    let link = config.u32(at + 0x0c) & !(3 << 10 | 1 << 18);
    config.emulate_u32(at + 0x0c, link, 0);
    config.emulate_u16(at + 0x10, 0, 0);
    if flags & 0xf >= 2 && at + 0x3c <= 0x100 {
        take_version_2(config, at);
    }
    Ok(Some((at, device & FLR != 0)))
}

/// Hides what needs the host's ports: ARI forwarding, TPH, LTR, OBFF, 10-bit tags, emergency power reduction.
fn take_version_2(config: &mut ConfigSpace, at: u16) {
    let hidden = 1 << 5 | 1 << 11 | 3 << 12 | 3 << 16 | 3 << 18 | 3 << 24 | 1 << 26;
    config.emulate_u32(at + 0x24, config.u32(at + 0x24) & !hidden, 0);
    config.emulate_bits(at + 0x28, 1 << 5, 0, 0);
    // LTR, emergency power reduction, 10-bit tags, OBFF.
    config.emulate_bits(at + 0x29, 0x7c, 0, 0);
    config.emulate(at + 0x2c, 4);
    config.emulate_u16(at + 0x30, 0, 0);
}

fn fill_in_link(config: &mut ConfigSpace, at: u16) {
    // One lane at 2.5 GT/s: what it says has no effect, but none at all would look broken.
    config.emulate_u32(at + 0x0c, 0x11, 0);
    config.emulate_u16(at + 0x12, 0x11, 0);
}
