//! Guest RAM for devices.

use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vfio::PciFunction;
use vfio::fake::{Call, Fake, Served};
use vfio::user::UserFunction;

use super::super::{Error, map_guest_ram};
use crate::memory::GuestRam;
use crate::spec::MemorySpec;

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&MemorySpec { size, hugepages: None, prefault: false }).unwrap()
}

#[test]
fn all_of_it_is_mapped_in_whole_gibibytes_and_taken_back() {
    let fake = Fake::new();
    let memory = ram((3 << 30) + (1 << 20));
    map_guest_ram(&memory, &[fake.address_space()]).unwrap();
    let (gib, mib) = (1 << 30, 1 << 20);
    let pieces = [(0, gib), (gib, gib), (4 * gib, gib), (5 * gib, mib)];
    assert_eq!(fake.calls(), pieces.map(|(at, size)| Call::DmaMap(at, size)));
    drop(memory);
    assert_eq!(fake.calls(), pieces.map(|(at, size)| Call::DmaUnmap(at, size)));
}

#[test]
fn addresses_that_the_iommu_does_not_take_are_named() {
    let fake = Fake::new().iova(&[0..=0xfedf_ffff, 0xfef0_0000..=0xfc_ffff_ffff]);
    let fits = ram(3 << 30);
    map_guest_ram(&fits, &[fake.address_space()]).unwrap();
    fake.calls();
    fake.space().allow(&[0..=0xfedf_ffff]);
    let error = map_guest_ram(&fits, &[fake.address_space()]).unwrap_err();
    assert!(matches!(error, Error::Iova { .. }));
    let text = error.to_string();
    assert!(text.contains("0x100000000-0x13fffffff") && text.contains("0x0-0xfedfffff"), "{text}");
    assert_eq!(fake.calls(), [], "nothing is mapped before the check");
}

#[test]
fn a_hole_in_the_middle_of_memory_is_an_error_that_says_where() {
    // A reserved region below 4 GiB (RMRR), beside the hole that messages leave.
    let fake = Fake::new().iova(&[0..=0x2fff_ffff, 0x3010_0000..=0xfedf_ffff, 0xfef0_0000..=0xff_ffff_ffff]);
    let text = map_guest_ram(&ram(1 << 30), &[fake.address_space()]).unwrap_err().to_string();
    for part in ["0x0-0x3fffffff", "0x0-0x2fffffff", "0x30100000-0xfedfffff", "give the guest less memory"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(fake.calls(), [], "nothing is mapped before the check");
    // Below the hole there is nothing in the way.
    let memory = ram(512 << 20);
    map_guest_ram(&memory, &[fake.address_space()]).unwrap();
    assert_eq!(fake.space().maps(), [(0, 512 << 20)]);
}

#[test]
fn the_hole_of_messages_is_none_of_guest_memory() {
    // RAM ends at 2 GiB and goes on at 4 GiB.
    let fake = Fake::new().iova(&[0..=0xfedf_ffff, 0xfef0_0000..=0xff_ffff_ffff]);
    let memory = ram(3 << 30);
    map_guest_ram(&memory, &[fake.address_space()]).unwrap();
    assert_eq!(fake.space().maps().len(), 3);
    // What the device writes at a guest address is at that guest address.
    let command = [4, 0];
    fake.write(vfio::RegionIndex::Config, 4, &command).unwrap();
    fake.dma_write((4 << 30) + 5, b"from the device").unwrap();
    let mut seen = [0; 15];
    let region = memory.regions().find(|region| region.guest_address == 4 << 30).unwrap();
    rustix::io::pread(region.file, &mut seen, region.file_offset + 5).unwrap();
    assert_eq!(&seen, b"from the device");
    assert!(fake.dma_write((2 << 30) - 4, &[1; 8]).is_err(), "there is nothing behind low memory");
}

#[test]
fn memory_that_cannot_be_mapped_leaves_nothing_mapped() {
    let fake = Fake::new();
    let other = ram(1 << 20);
    // Something sits where the second piece is to go.
    let source = other.regions().next().unwrap();
    let source = vfio::DmaSource { host_address: source.host_address, file: None };
    // SAFETY: `other` lives longer than the fake uses it.
    unsafe { fake.address_space().map(1 << 30, 1 << 20, source) }.unwrap();
    let memory = ram(2 << 30);
    let text = map_guest_ram(&memory, &[fake.address_space()]).unwrap_err().to_string();
    assert!(text.contains("mapping 0x40000000 bytes at I/O address 0x40000000"), "{text}");
    assert_eq!(fake.space().maps(), [(1 << 30, 1 << 20)]);
}

/// Runs this test again in a process of its own, as what follows is for the whole process.
fn apart(name: &str, limit: [u64; 2]) {
    let limits = limit.map(|limit| limit.to_string()).join(" ");
    let name = format!("passthrough::tests::dma::{name}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &name, "--nocapture"]).env(LIMITS, limits).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

const LIMITS: &str = "THROUGHWAY_TEST_MEMLOCK";

/// In the process of its own: without the right to lock more than RLIMIT_MEMLOCK says.
fn confined() -> bool {
    let Ok(limits) = std::env::var(LIMITS) else { return false };
    let limits: Vec<u64> = limits.split(' ').map(|limit| limit.parse().unwrap()).collect();
    setrlimit(Resource::Memlock, Rlimit { current: Some(limits[0]), maximum: Some(limits[1]) }).unwrap();
    // SAFETY: changes who this process is, and no memory. Who is not root already has neither the right to do that nor
    // the capability to be rid of.
    let _ = unsafe { libc::setuid(65534) };
    true
}

#[test]
fn a_limit_of_locked_memory_that_is_too_low_is_named_with_what_to_do() {
    if !confined() {
        return apart(
            "a_limit_of_locked_memory_that_is_too_low_is_named_with_what_to_do",
            [64 << 10, 1 << 20],
        );
    }
    let fake = Fake::new();
    let error = map_guest_ram(&ram(4 << 20), &[fake.address_space()]).unwrap_err();
    let Error::Function(vfio::Error::Memlock { needed, limit, .. }) = &error else { panic!("{error}") };
    assert!(*needed >= 4 << 20 && *limit == 1 << 20, "{error}");
    // A server behind a socket pins nothing.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("device.sock");
    let _served = Served::start(Arc::new(Fake::nic()), &path);
    let served = UserFunction::connect(&path).unwrap();
    map_guest_ram(&ram(4 << 20), &[served.address_space()]).unwrap();
    let text = error.to_string();
    assert!(text.contains("LimitMEMLOCK=") && text.contains("ulimit -l"), "{text}");
    assert_eq!(fake.calls(), [], "nothing is mapped before the check");
}

#[test]
fn a_limit_of_locked_memory_is_raised_as_far_as_needed() {
    if !confined() {
        return apart("a_limit_of_locked_memory_is_raised_as_far_as_needed", [64 << 10, 6 << 20]);
    }
    let fake = Fake::new();
    map_guest_ram(&ram(2 << 20), &[fake.address_space()]).unwrap();
    let limit = getrlimit(Resource::Memlock).current.unwrap();
    assert!((2 << 20..3 << 20).contains(&limit), "{limit}");
    // Two address spaces pin it twice.
    let spaces = [Fake::new().address_space(), Fake::new().address_space()];
    map_guest_ram(&ram(2 << 20), &spaces).unwrap();
    assert!(getrlimit(Resource::Memlock).current.unwrap() >= 4 << 20);
}
