//! DSDT: the devices that cannot be probed, above all the PCI host bridge (ACPI 6.5, 5.2.11.1 and 6.2;
//! PCI Firmware Specification 3.3, 4.5).

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiSpec, Decoding, Error, OEM, OEM_REVISION, OEM_TABLE, SLEEP_TYPE_S5, Windows};
use crate::layout;
use crate::legacy::ports;

/// Address of the LPC bridge, 00:1f.0, as `_ADR` has it: device, function.
const LPC_ADDRESS: u32 = 0x1f << 16;
/// `_STA`: present, enabled, shown and working (ACPI 6.5, 6.3.7).
const DEVICE_PRESENT: u8 = 0xf;
/// Ports of the power management block (ICH9 datasheet, 13.8.3).
const PM_BLOCK_LENGTH: u8 = 0x80;
/// The interface of `_OSC` for PCI host bridges (PCI Firmware Specification 3.3, 4.5.1).
const OSC_PCI: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the guest may drive itself (table 4-5): native hot-plug, PME and the PCIe capability. Not AER: errors of a real
/// device are the host's.
const OSC_GRANTED: u32 = 1 << 0 | 1 << 2 | 1 << 4;
/// Status bits in the first word of `_OSC` (ACPI 6.5, 6.2.11.1).
const OSC_UNKNOWN_UUID: u32 = 1 << 2;
const OSC_UNKNOWN_REVISION: u32 = 1 << 3;
const OSC_MASKED: u32 = 1 << 4;

pub(super) fn build(spec: &AcpiSpec) -> Result<Sdt, Error> {
    let mut aml = Vec::new();
    let sleep = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &sleep).to_aml_bytes(&mut aml);
    let host_bridge = host_bridge(&spec.windows, spec.panic_port)?;
    let chipset = chipset_resources(spec.decoding);
    let cpus: Vec<_> = (0..spec.cpus.count()).map(Processor).collect();
    let mut devices: Vec<&dyn Aml> = vec![&host_bridge, &chipset];
    devices.extend(cpus.iter().map(|cpu| cpu as &dyn Aml));
    Scope::new("\\_SB_".into(), devices).to_aml_bytes(&mut aml);

    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&aml);
    Ok(table)
}

/// AML that is made already.
struct Made(Vec<u8>);

impl Made {
    fn of(aml: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// A processor, by the uid under which the MADT lists it.
struct Processor(u32);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let name = format!("C{:03X}", self.0 & 0xfff);
        let device = [&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &self.0)];
        Device::new(name.as_str().into(), device.map(|name| name as &dyn Aml).to_vec()).to_aml_bytes(sink);
    }
}

/// The PCI Express root complex: its windows, its interrupts, and what of it the guest controls.
fn host_bridge(windows: &Windows, panic_port: bool) -> Result<Made, Error> {
    Ok(Made::of(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &bridge_windows(windows)?,
            &interrupt_routes(),
            &control_method(),
            &lpc_bridge(panic_port),
        ],
    )))
}

/// `_CRS`: all buses, the I/O ports but those of config access, and memory.
fn bridge_windows(windows: &Windows) -> Result<Made, Error> {
    let refused = |window: &Range<u64>| Error::Window(window.clone());
    let last = |window: &Range<u64>| window.end.checked_sub(1).filter(|last| *last >= window.start);
    let plain = AddressSpaceCacheable::NotCacheable;
    let low = |window: &Range<u64>| {
        let bounds = last(window)
            .and_then(|last| Some((u32::try_from(window.start).ok()?, u32::try_from(last).ok()?)));
        let (first, last) = bounds.ok_or_else(|| refused(window))?;
        Ok::<_, Error>(Made::of(&AddressSpace::new_memory(plain, true, first, last, None)))
    };
    let high = |window: &Range<u64>| {
        let last = last(window).filter(|last| last - window.start < u64::MAX);
        let last = last.ok_or_else(|| refused(window))?;
        Ok::<_, Error>(Made::of(&AddressSpace::new_memory(plain, true, window.start, last, None)))
    };

    let buses = AddressSpace::new_bus_number(0_u16, 255);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let below = AddressSpace::new_io(0_u16, 0xcf7, None);
    let above = AddressSpace::new_io(0xd00_u16, 0xffff, None);
    let low = windows.mmio32.iter().map(low).collect::<Result<Vec<_>, _>>()?;
    let high = windows.mmio64.iter().map(high).collect::<Result<Vec<_>, _>>()?;
    let mut all: Vec<&dyn Aml> = vec![&buses, &config, &below, &above];
    all.extend(low.iter().chain(&high).map(|window| window as &dyn Aml));
    Ok(Made::of(&Name::new("_CRS".into(), &ResourceTemplate::new(all))))
}

/// `_PRT`: the I/O APIC input of each pin of each device on bus 0; behind root ports the guest swizzles.
fn interrupt_routes() -> Made {
    let mut routes = PackageBuilder::new();
    for device in 0..32_u8 {
        for pin in 0..4_u8 {
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = layout::intx_gsi(device, pin);
            routes.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    Made::of(&Name::new("_PRT".into(), &routes))
}

/// `_OSC`: hands [`OSC_GRANTED`] over, whatever else is asked for.
fn control_method() -> Made {
    let word = |name: &'static str, offset: &dyn Aml| {
        Made::of(&CreateDWordField::new(&Path::new(name), &Arg(3), offset))
    };
    let set = |bit: u32| Made::of(&Or::new(&Path::new("CDW1"), &Path::new("CDW1"), &bit));
    let granted = Made::of(&And::new(&Local(0), &Path::new("CDW3"), &OSC_GRANTED));
    let is_pci = Made::of(&Equal::new(&Arg(0), &Uuid::new(OSC_PCI)));
    Made::of(&Method::new(
        "_OSC".into(),
        4,
        true, // it makes named fields
        vec![
            &word("CDW1", &ZERO),
            &If::new(
                &is_pci,
                vec![
                    &word("CDW3", &8_u8),
                    &granted,
                    &If::new(&NotEqual::new(&Arg(1), &ONE), vec![&set(OSC_UNKNOWN_REVISION)]),
                    &If::new(&NotEqual::new(&Path::new("CDW3"), &Local(0)), vec![&set(OSC_MASKED)]),
                    &Store::new(&Path::new("CDW3"), &Local(0)),
                ],
            ),
            &Else::new(vec![&set(OSC_UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// The LPC bridge and what sits behind it: COM1, the clock, and the pvpanic port where there is one.
///
/// No keyboard controller: the machine has only its reset line, and a guest that looked for a keyboard would wait.
fn lpc_bridge(panic_port: bool) -> Made {
    let address = Name::new("_ADR".into(), &LPC_ADDRESS);
    let serial = isa_device("COM1", "PNP0501", &IO::new(0x3f8, 0x3f8, 1, 8), 4);
    let clock = isa_device("RTC_", "PNP0B00", &IO::new(0x70, 0x70, 1, 2), 8);
    let panic = panic_port.then(pvpanic);
    let mut behind: Vec<&dyn Aml> = vec![&address, &serial, &clock];
    behind.extend(panic.as_ref().map(|device| device as &dyn Aml));
    Made::of(&Device::new("LPC_".into(), behind))
}

/// The port by which a guest tells of a panic (QEMU, docs/specs/pvpanic.rst).
fn pvpanic() -> Made {
    let ports = IO::new(ports::PVPANIC, ports::PVPANIC, 1, 1);
    Made::of(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &DEVICE_PRESENT),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    ))
}

/// A device with ports and an edge-triggered interrupt.
fn isa_device(name: &str, id: &str, ports: &IO, irq: u32) -> Made {
    let interrupt = Interrupt::new(true, true, false, false, irq);
    Made::of(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![ports, &interrupt])),
        ],
    ))
}

/// Motherboard resources: ECAM, which Linux demands to find reserved, and the power management block.
fn chipset_resources(decoding: Decoding) -> Made {
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let ecam = Memory32Fixed::new(true, low(decoding.ecam), low(layout::ECAM_SIZE));
    let pm = IO::new(decoding.pm_base, decoding.pm_base, 1, PM_BLOCK_LENGTH);
    Made::of(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam, &pm])),
        ],
    ))
}
