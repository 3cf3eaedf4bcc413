//! The flash chip on this machine's KVM, and firmware files that are not what they should be.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::Action;
use crate::bus::BusDevice;

const SIZE: usize = 0x4000;
const AT: u64 = 0xffc0_0000;

fn variables() -> Vec<u8> {
    let mut image = vec![0xff; SIZE];
    image[..16].fill(0);
    image[VOLUME_LENGTH..VOLUME_LENGTH + 8].copy_from_slice(&(SIZE as u64).to_le_bytes());
    image[VOLUME_SIGNATURE].copy_from_slice(b"_FVH");
    image
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn flash(file: &File) -> Option<Flash> {
    let vm = match Vm::new() {
        Ok(vm) => Arc::new(vm),
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    // A lock belongs to the open file: the one before gives it up.
    file.unlock().unwrap();
    let store = VariableStore::open(file.try_clone().unwrap(), SIZE as u64).unwrap();
    Some(Flash::new(&vm, store, AT).unwrap())
}

fn read(flash: &Flash, offset: u64) -> u8 {
    let mut byte = [0xaa];
    flash.read(offset, &mut byte);
    byte[0]
}

fn write(flash: &Flash, offset: u64, bytes: &[u8]) {
    for byte in bytes {
        assert_eq!(flash.write(offset, &[*byte]), Action::None);
    }
}

#[test]
fn firmware_finds_a_chip_that_can_be_written() {
    let Some(flash) = flash(&file(&variables())) else { return };
    // What QemuFlashDetected does, at the first byte that is none of the commands.
    let original = read(&flash, 16);
    write(&flash, 16, &[0x50]);
    assert_eq!(read(&flash, 16), original);
    write(&flash, 16, &[0x70]);
    assert_eq!(read(&flash, 16), 0);
    write(&flash, 16, &[0x10, original, 0x70]);
    assert_eq!(read(&flash, 16), READY_BIT);
    write(&flash, 16, &[0xff]);
    assert_eq!(read(&flash, 16), original);
}

const READY_BIT: u8 = 0x80;

#[test]
fn what_is_programmed_and_erased_stays() {
    let file = file(&variables());
    let Some(chip) = flash(&file) else { return };
    for (offset, byte) in (0x1000..).zip(*b"variable") {
        write(&chip, offset, &[0x10, byte]);
    }
    write(&chip, 0x1007, &[0xff]);
    write(&chip, 0x2345, &[0x20, 0xd0]);
    write(&chip, 0x2000, &[0x40, 0x55, 0xff]);
    // Neither a confirmation nor a block.
    write(&chip, 0x1000, &[0x20, 0xff]);
    assert_eq!(read(&chip, 0) & 0x30, 0x30);
    write(&chip, 0, &[0xff]);
    let mut expected = variables();
    expected[0x1000..0x1008].copy_from_slice(b"variable");
    expected[0x2000] = 0x55;
    // As after a crash: nothing was closed.
    drop(chip);
    assert!(file.metadata().unwrap().len() > SIZE as u64);
    let chip = flash(&file).unwrap();
    let mut there = vec![0; SIZE];
    chip.read(0, &mut there);
    assert_eq!(there, expected);
    chip.close();
    let mut kept = vec![0; SIZE];
    file.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!((kept, file.metadata().unwrap().len()), (expected, SIZE as u64));
}

#[test]
fn a_disk_that_is_full_is_told_and_nothing_is_lost_when_there_is_room_again() {
    // The log cannot be appended to a file that is open for reading only.
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(named.path(), variables()).unwrap();
    let reader = File::open(named.path()).unwrap();
    let Some(chip) = flash(&reader) else { return };
    write(&chip, 0x1000, &[0x10, 1, 0xff]);
    write(&chip, 0x1000, &[0x70]);
    assert_eq!(read(&chip, 0x1000) & 0x10, 0x10);
    write(&chip, 0x1000, &[0xff]);
    assert_eq!(read(&chip, 0x1000), 1, "the guest goes on with it");
}

#[test]
fn identity_and_query_say_what_the_chip_is() {
    let Some(flash) = flash(&file(&variables())) else { return };
    write(&flash, 0, &[0x90]);
    assert_eq!([read(&flash, 0), read(&flash, 1)], [0x89, 0x18]);
    write(&flash, 0, &[0x98]);
    assert_eq!([0x10, 0x11, 0x12].map(|at| read(&flash, at)), *b"QRY");
    assert_eq!([0x2d, 0x2e, 0x2f, 0x30].map(|at| read(&flash, at)), [3, 0, 0x10, 0]);
}

#[test]
fn files_that_are_no_firmware_are_refused() {
    let code = |length: usize| {
        let mut code = vec![0; length];
        code[VOLUME_LENGTH..VOLUME_LENGTH + 8].copy_from_slice(&0x1000_u64.to_le_bytes());
        code[VOLUME_SIGNATURE].copy_from_slice(b"_FVH");
        file(&code)
    };
    let good = variables();
    let whole = 0x10_0000;
    assert_eq!(sizes(&code(whole - SIZE), &file(&good)).unwrap(), (0xf_c000, 0x4000));
    let says = |code: &File, variables: &[u8], words: &str| {
        let error = sizes(code, &file(variables)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(&code(whole), &good, "do not go together");
    says(&code(whole - SIZE), &good[..SIZE - 1], "cut off");
    says(&code(whole - SIZE), b"short", "too short");
    says(&code(whole - SIZE), &vec![0; SIZE], "no UEFI firmware");
    says(&file(&vec![0; whole - SIZE]), &good, "The firmware's code is no UEFI firmware");
    says(&code(16 * whole - SIZE), &good, "do not go together");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is written, the store has what the guest reads, and nothing panics.
    #[test]
    fn no_access_can_panic(
        accesses in prop::collection::vec(
            (0..SIZE as u64 + 8, prop_oneof![Just(0x10_u8), Just(0x20), Just(0xd0), Just(0xff), any::<u8>()], 1..9_usize),
            0..100,
        ),
    ) {
        let file = file(&variables());
        let Some(chip) = flash(&file) else { return Ok(()) };
        for (offset, byte, length) in accesses {
            prop_assert_eq!(chip.write(offset, &vec![byte; length]), Action::None);
            let mut data = vec![0; length];
            chip.read(offset, &mut data);
        }
        chip.close();
        let (mut kept, mut there) = (vec![0; SIZE], vec![0; SIZE]);
        file.read_exact_at(&mut kept, 0).unwrap();
        chip.read(0, &mut there);
        prop_assert_eq!(kept, there);
    }
}
