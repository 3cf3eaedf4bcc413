use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::cpuid::apic_id;

fn spec(sockets: u32, cores: u32, threads: u32) -> AcpiSpec {
    AcpiSpec {
        cpus: CpuSpec { sockets, cores, threads },
        windows: Windows {
            mmio32: std::iter::once(0x8000_0000..0xE000_0000).collect(),
            mmio64: std::iter::once(0x40_0000_0000..0x80_0000_0000).collect(),
        },
        decoding: Decoding::default(),
        panic_port: false,
    }
}

/// Tables as a guest sees them: by physical address, checked before use.
struct Guest(Vec<u8>);

impl Guest {
    fn of(spec: &AcpiSpec) -> Self {
        Self(build(spec).unwrap())
    }

    fn at(&self, address: u64) -> &[u8] {
        &self.0[usize::try_from(address - TABLES.start).unwrap()..]
    }

    /// A table with a standard header, whole.
    fn table(&self, address: u64) -> &[u8] {
        let table = &self.at(address)[..u32_at(self.at(address), 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
        table
    }

    fn root(&self) -> Vec<&[u8]> {
        let rsdp = &self.0[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2));
        let xsdt = self.table(u64_at(rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        xsdt[36..].chunks(8).map(|entry| self.table(u64_at(entry, 0))).collect()
    }

    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        self.root().into_iter().find(|table| table.starts_with(signature)).unwrap()
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.find(b"FACP"), 140))
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Structures of a MADT: (type, bytes).
fn madt(table: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &table[44..];
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        let (one, others) = rest.split_at(length.into());
        found.push((kind, one));
        rest = others;
    }
    found
}

#[test]
fn the_root_leads_to_all_tables() {
    let guest = Guest::of(&spec(1, 1, 1));
    let names: Vec<_> = guest.root().iter().map(|table| &table[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
    assert_eq!(&guest.dsdt()[..4], b"DSDT");
    let mcfg = guest.find(b"MCFG");
    assert_eq!((u64_at(mcfg, 44), &mcfg[52..56]), (layout::ECAM_START, &[0, 0, 0, 255][..]));
}

#[test]
fn the_fadt_names_the_chipsets_registers() {
    let guest = Guest::of(&spec(1, 1, 1));
    let fadt = guest.find(b"FACP");
    assert_eq!(fadt.len(), 276);
    let facs = u32_at(fadt, 36).into();
    assert_eq!((facs % 64, &guest.at(facs)[..4]), (0, &b"FACS"[..]));
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    assert_eq!(&fadt[46..48], [9, 0]); // SCI_INT
    assert_eq!((u32_at(fadt, 48), fadt[52], fadt[53]), (0, 0, 0)); // no SMI command
    // Offset of the block, of its length and of its extended form; port and length.
    for (block, length, extended, port, bytes) in
        [(56, 88, 148, 0x600, 4), (64, 89, 172, 0x604, 2), (76, 91, 208, 0x608, 4), (80, 92, 220, 0x620, 16)]
    {
        assert_eq!((u32_at(fadt, block), fadt[length]), (port, bytes));
        assert_eq!((fadt[extended], fadt[extended + 1]), (1, bytes * 8));
        assert_eq!(u64_at(fadt, extended + 4), u64::from(port));
    }
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_eq!(flags & 1 << 10, 1 << 10, "reset register");
    assert_eq!((&fadt[116..120], u64_at(fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0xcf9, 6));
    assert_eq!(fadt[108], 0x32); // century
    assert_eq!(
        u16::from_le_bytes([fadt[109], fadt[110]]) & 0b11,
        1,
        "legacy devices, no keyboard controller"
    );
}

#[test]
fn the_madt_lists_processors_by_apic_id() {
    let cpus = CpuSpec { sockets: 2, cores: 3, threads: 2 };
    let guest = Guest::of(&AcpiSpec { cpus, ..spec(1, 1, 1) });
    let table = guest.find(b"APIC");
    assert_eq!((u32_at(table, 36), u32_at(table, 40)), (0xFEE0_0000, 1));
    let structures = madt(table);
    let cpu: Vec<_> =
        structures.iter().filter(|(kind, _)| *kind == 0).map(|(_, s)| (s[2], s[3], s[4])).collect();
    assert_eq!(cpu.len(), 12);
    assert_eq!(cpu[11], (11, 13, 1));
    let others: Vec<_> = structures.iter().filter(|(kind, _)| *kind != 0).map(|(_, s)| *s).collect();
    let expected: [&[u8]; 4] = [
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(others, expected);
}

#[test]
fn ids_beyond_eight_bits_are_x2apics() {
    let cpus = CpuSpec { sockets: 2, cores: 129, threads: 1 };
    let guest = Guest::of(&AcpiSpec { cpus, ..spec(1, 1, 1) });
    let structures = madt(guest.find(b"APIC"));
    let wide: Vec<_> = structures.iter().filter(|(kind, _)| *kind == 9).map(|(_, s)| *s).collect();
    assert_eq!(wide.len(), 129);
    assert_eq!((u32_at(wide[0], 4), u32_at(wide[0], 8), u32_at(wide[0], 12)), (256, 1, 129));
    assert!(structures.iter().any(|(kind, s)| *kind == 0xa && u32_at(s, 4) == !0));
}

#[test]
fn every_pin_of_bus_0_has_a_route() {
    let guest = Guest::of(&spec(1, 1, 1));
    for device in 0..32_u8 {
        for pin in 0..4_u8 {
            let mut route = Vec::new();
            let (address, gsi) = (u32::from(device) << 16 | 0xffff, layout::intx_gsi(device, pin));
            acpi_tables::aml::Package::new(vec![&address, &pin, &acpi_tables::aml::ZERO, &gsi])
                .to_aml_bytes(&mut route);
            assert!(guest.dsdt().windows(route.len()).any(|bytes| bytes == route), "{device} {pin}");
        }
    }
}

#[test]
fn windows_are_offered_as_given() {
    let guest = Guest::of(&spec(1, 1, 1));
    let has = |bytes: &[u8]| guest.dsdt().windows(bytes.len()).any(|there| there == bytes);
    // First, last, translation, length (ACPI 6.5, 6.4.3.5).
    assert!(has([0x8000_0000_u32, 0xDFFF_FFFF, 0, 0x6000_0000].map(u32::to_le_bytes).as_flattened()));
    let high = [0x40_0000_0000_u64, 0x7F_FFFF_FFFF, 0, 0x40_0000_0000].map(u64::to_le_bytes);
    assert!(has(high.as_flattened()));
    let mut without = spec(1, 1, 1);
    without.windows.mmio64.clear();
    let guest = Guest::of(&without);
    assert!(!guest.dsdt().windows(8).any(|there| there == high[0]));
}

#[test]
fn impossible_windows_are_refused() {
    let good = spec(1, 1, 1);
    for mmio32 in [0..0, 5..5, 0x8000_0000..0x1_0000_0001] {
        let windows = Windows { mmio32: vec![mmio32], ..good.windows.clone() };
        assert!(matches!(build(&AcpiSpec { windows, ..good.clone() }), Err(Error::Window(_))));
    }
    let windows = Windows { mmio64: std::iter::once(7..7).collect(), ..good.windows.clone() };
    assert!(matches!(build(&AcpiSpec { windows, ..good.clone() }), Err(Error::Window(_))));
}

#[test]
fn too_many_processors_are_refused() {
    assert!(matches!(build(&spec(4, 1024, 1)), Err(Error::TooLarge { cpus: 4096, .. })));
}

#[test]
fn a_power_off_is_sleep_type_5() {
    let guest = Guest::of(&spec(1, 1, 1));
    // Name (\_S5, Package (4) {5, 0, 0, 0})
    let s5 = [&[0x08, b'\\'][..], b"_S5_", &[0x12, 7, 4, 0x0a, SLEEP_TYPE_S5, 0, 0, 0]].concat();
    assert!(guest.dsdt().windows(s5.len()).any(|bytes| bytes == s5));
}

#[test]
fn written_tables_are_the_built_ones() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let spec = spec(1, 2, 2);
    let rsdp = write(&memory, &spec).unwrap();
    let mut there = vec![0; build(&spec).unwrap().len()];
    memory.read_slice(&mut there, GuestAddress(rsdp)).unwrap();
    assert_eq!(there, build(&spec).unwrap());
    let small = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0xE_0000)]).unwrap();
    assert!(matches!(write(&small, &spec), Err(Error::Write(_))));
}

/// Intel's compiler takes our AML apart and finds nothing to complain about when it puts it together again.
#[test]
fn iasl_understands_all_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return eprintln!("skipped: iasl is not installed (package acpica-tools)");
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = Guest::of(&spec(2, 3, 2));
    for table in guest.root().into_iter().chain([guest.dsdt()]) {
        let name = String::from_utf8_lossy(&table[..4]).to_lowercase();
        std::fs::write(folder.path().join(format!("{name}.dat")), table).unwrap();
        for (arguments, expected) in [
            (["-d", &format!("{name}.dat")], "ASL+ Optimizing Compiler/Disassembler"),
            (["-vr", &format!("{name}.dsl")], "0 Errors, 0 Warnings"),
        ] {
            let run = Command::new("iasl").args(arguments).current_dir(folder.path()).output().unwrap();
            let said = [run.stdout, run.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(run.status.success() && said.contains(expected), "iasl {arguments:?}: {said}");
        }
    }
}

/// What the firmware does with the script, to files that it put at `tables` and `rsdp`.
fn firmware_loads(loadable: &Loadable, tables: u64, rsdp: u64) -> (Vec<u8>, Vec<u8>) {
    let mut files =
        [(TABLES_FILE, tables, loadable.tables.clone()), (RSDP_FILE, rsdp, loadable.rsdp.clone())];
    let text =
        |bytes: &[u8]| String::from_utf8(bytes.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
    for entry in loadable.script.chunks(128) {
        assert_eq!(entry.len(), 128);
        let of = text(&entry[4..60]);
        let file = files.iter().position(|(name, ..)| *name == of).unwrap();
        match u32_at(entry, 0) {
            1 => {}
            2 => {
                let pointee = text(&entry[60..116]);
                let address = files.iter().find(|(name, ..)| *name == pointee).unwrap().1;
                let (at, size) = (u32_at(entry, 116) as usize, usize::from(entry[120]));
                let field = &mut files[file].2[at..at + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                assert!(u64::from_le_bytes(value) < loadable.tables.len() as u64, "the firmware checks this");
                let sum = u64::from_le_bytes(value) + address;
                field.copy_from_slice(&sum.to_le_bytes()[..size]);
            }
            3 => {
                let [result, start, length] = [60, 64, 68].map(|at| u32_at(entry, at) as usize);
                let bytes = &mut files[file].2;
                bytes[result] = bytes[result].wrapping_sub(sum(&bytes[start..start + length]));
            }
            other => panic!("{other}"),
        }
    }
    let [(_, _, tables), (_, _, rsdp)] = files;
    (tables, rsdp)
}

#[test]
fn firmware_makes_the_same_tables_wherever_it_puts_them() {
    let spec = spec(2, 3, 2);
    let loadable = loadable(&spec).unwrap();
    // As far from the start as the RSDP pushes them in the built ones.
    let (tables, rsdp) = firmware_loads(&loadable, TABLES.start + 64, TABLES.start);
    let whole = [&rsdp[..], &[0; 28], &tables].concat();
    assert_eq!(whole, build(&spec).unwrap());
    let (tables, rsdp) = firmware_loads(&loadable, 0x7fe0_0000, 0x9_f000);
    let root = usize::try_from(u64_at(&rsdp, 24) - 0x7fe0_0000).unwrap();
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), &tables[root..][..4]), (0, 0, &b"XSDT"[..]));
}

#[test]
fn tables_name_what_the_chipset_decodes() {
    let decoding = Decoding { ecam: 0xB000_0000, pm_base: 0xb000 };
    let guest = Guest::of(&AcpiSpec { decoding, ..spec(1, 1, 1) });
    assert_eq!(u64_at(guest.find(b"MCFG"), 44), 0xB000_0000);
    let fadt = guest.find(b"FACP");
    assert_eq!([56, 64, 76, 80].map(|at| u32_at(fadt, at)), [0xb000, 0xb004, 0xb008, 0xb020]);
}

#[test]
fn a_panic_port_is_there_when_it_is_asked_for() {
    let has = |panic_port| {
        let guest = Guest::of(&AcpiSpec { panic_port, ..spec(1, 1, 1) });
        let dsdt = guest.table(u64_at(guest.find(b"FACP"), 140)).to_vec();
        // The name, and an I/O descriptor with the port as its least and its greatest (ACPI 6.5, 6.4.2.5).
        let port = [0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1];
        [&b"QEMU0001"[..], &port].map(|wanted| dsdt.windows(wanted.len()).any(|found| found == wanted))
    };
    assert_eq!(has(true), [true, true]);
    assert_eq!(has(false), [false, false]);
}

proptest! {
    #[test]
    fn any_spec_makes_sound_tables_or_an_error(
        (sockets, cores, threads) in (0_u32..5, 0_u32..300, 0_u32..3),
        low in any::<(u64, u64)>(),
        high in any::<Option<(u64, u64)>>(),
    ) {
        let low = low.0 >> 32..low.1 >> 31;
        let windows = Windows { mmio32: vec![low], mmio64: high.map(|(start, end)| start..end).into_iter().collect() };
        let cpus = CpuSpec { sockets, cores, threads };
        if let Ok(bytes) = build(&AcpiSpec { cpus, windows, decoding: Decoding::default(), panic_port: true }) {
            let guest = Guest(bytes);
            let listed = madt(guest.find(b"APIC")).into_iter().filter_map(|(kind, s)| match kind {
                0 => Some(u32::from(s[3])),
                9 => Some(u32_at(s, 4)),
                _ => None,
            });
            let expected = (0..cpus.count()).map(|index| apic_id(index, cpus));
            prop_assert!(listed.eq(expected));
        }
    }
}
