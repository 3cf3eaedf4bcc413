//! A server of four root complexes and a hundred functions beside its VFs.

use std::fmt::Write as _;

/// Describes it, with so many VFs on its eight ports; each port can have 64. With 384 VFs it has 500 functions.
///
/// In each complex: what belongs to it, a dual-port card, a switch with four NVMe disks, and a GPU with its sound. The switch of
/// the third has no ACS. `eno1` is the way in.
pub fn large(vfs: [u16; 8]) -> String {
    let mut text = String::new();
    let mut group = 0;
    for (complex, vfs) in vfs.chunks_exact(2).enumerate() {
        let mut machine = Complex { text: &mut text, group: &mut group, number: complex };
        let Some(bus) = u8::try_from(complex).ok().and_then(|complex| complex.checked_mul(0x40)) else {
            break;
        };
        machine.own(bus);
        machine.card(bus, vfs);
        machine.disks(bus);
        machine.gpu(bus);
    }
    text
}

struct Complex<'a> {
    text: &'a mut String,
    group: &'a mut u32,
    number: usize,
}

impl Complex<'_> {
    /// A function, in a group of its own unless `shared`.
    fn line(&mut self, depth: usize, shared: bool, function: &str) {
        if !shared {
            *self.group += 1;
        }
        let indent = "  ".repeat(depth);
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{indent}{function} group={} numa={}", self.group, self.number / 2);
    }

    /// What a complex has by itself: 13 functions.
    fn own(&mut self, bus: u8) {
        let _ = writeln!(self.text, "iommu ivhd{}", self.number);
        for (place, what) in [
            ("00.0", "1022:1480 060000 port=none"),
            ("00.2", "1022:1481 080600 port=none"),
            ("01.0", "1022:1482 060000 port=none"),
            ("02.0", "1022:1482 060000 port=none"),
            ("03.0", "1022:1482 060000 port=none"),
            ("04.0", "1022:1482 060000 port=none"),
        ] {
            self.line(0, false, &format!("{bus:02x}:{place} {what}"));
        }
        self.line(0, false, &format!("{bus:02x}:07.1 1022:1484 060400 port=root acs=5f/1d driver=pcieport"));
        let below = bus + 1;
        for (function, what) in [
            (0, "1022:1485 130000"),
            (2, "1022:1498 108000 driver=ccp"),
            (3, "1022:148c 0c0330 driver=xhci_hcd"),
            (4, "1022:7901 010601 driver=ahci"),
        ] {
            self.line(1, false, &format!("{below:02x}:00.{function} {what} acs=5f/1d multi reset=flr"));
        }
        self.line(0, false, &format!("{bus:02x}:08.1 1022:1483 060400 port=root acs=5f/1d driver=pcieport"));
        let below = bus + 2;
        let net = if self.number == 0 { "eno1".to_owned() } else { format!("eno{}", self.number + 1) };
        self.line(1, false, &format!("{below:02x}:00.0 8086:1533 020000 driver=igb reset=flr net={net}"));
    }

    /// A card of two ports with VFs: 1 port of the root, 2 PFs, and the VFs.
    fn card(&mut self, bus: u8, vfs: &[u16]) {
        self.line(0, false, &format!("{bus:02x}:01.1 1022:1483 060400 port=root acs=5f/1d driver=pcieport"));
        let below = bus + 0x10;
        for (port, there) in (0_u16..).zip(vfs) {
            let name = format!("ens{}f{port}", self.number + 1);
            self.line(
                1,
                false,
                &format!("{below:02x}:00.{port} 8086:1592 020000 multi acs=0/0 driver=ice reset=flr net={name} vfs={there}/64"),
            );
            for vf in 0..*there {
                // Alternative routing IDs: 8 bits of function.
                let id = 8 + port * 64 + vf;
                let (device, function) = (id >> 3, id & 7);
                self.line(
                    1,
                    false,
                    &format!("{below:02x}:{device:02x}.{function} 8086:1889 020000 reset=flr vf={vf}"),
                );
            }
        }
    }

    /// A switch with four disks: 1 root port, 5 of the switch, 4 disks.
    fn disks(&mut self, bus: u8) {
        self.line(0, false, &format!("{bus:02x}:03.1 1022:1483 060400 port=root acs=5f/1d driver=pcieport"));
        let (up, down) = (bus + 0x20, bus + 0x21);
        self.line(1, false, &format!("{up:02x}:00.0 10b5:9797 060400 port=up driver=pcieport"));
        let (acs, joined) = if self.number == 2 { ("none", true) } else { ("5f/1d", false) };
        for disk in 0..4 {
            let port =
                format!("{down:02x}:{disk:02x}.0 10b5:9797 060400 port=down acs={acs} driver=pcieport");
            self.line(2, joined && disk > 0, &port);
            let (below, name) =
                (u16::from(down) + 1 + u16::try_from(disk).unwrap_or(0), self.number * 4 + disk);
            let nvme = format!("{below:02x}:00.0 144d:a824 010802 driver=nvme reset=flr disk=nvme{name}n1");
            self.line(3, joined, &nvme);
        }
    }

    /// A GPU and its sound behind a root port: 3 functions.
    fn gpu(&mut self, bus: u8) {
        self.line(0, false, &format!("{bus:02x}:05.1 1022:1483 060400 port=root acs=5f/1d driver=pcieport"));
        let below = bus + 0x30;
        self.line(1, false, &format!("{below:02x}:00.0 10de:2235 030200 multi driver=nvidia reset=flr,bus"));
        self.line(
            1,
            true,
            &format!("{below:02x}:00.1 10de:1aef 040300 multi driver=snd_hda_intel reset=flr,bus"),
        );
    }
}
