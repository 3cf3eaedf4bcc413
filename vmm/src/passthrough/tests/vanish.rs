//! A device that vanishes while a guest uses it, for each policy.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfio::fake::Fake;

use super::super::testing::vm;
use crate::Outcome;
use crate::machine::{Begun, Machine};
use crate::spec::{
    Boot, Console, ConsoleDevice, CpuSpec, MemorySpec, OnDeviceError, OnReset, Resources, Slot, Starts,
    VmSpec,
};

/// Asks function 01:00.0 for its vendor, for ever: says A once when it answers, and G and no more when it reads all ones.
const GUEST: [u8; 46] = [
    0xb3, 0x00, // mov bl, 0
    0xb8, 0x00, 0x00, 0x01, 0x80, // ask: mov eax, 0x80010000
    0x66, 0xba, 0xf8, 0x0c, 0xef, // mov dx, 0xcf8; out dx, eax
    0x66, 0xba, 0xfc, 0x0c, 0xed, // mov dx, 0xcfc; in eax, dx
    0x83, 0xf8, 0xff, 0x74, 0x0f, // cmp eax, -1; je gone
    0x84, 0xdb, 0x75, 0xe8, // test bl, bl; jnz ask
    0xb3, 0x01, // mov bl, 1
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, // mov dx, 0x3f8; mov al, 'A'; out dx, al
    0xeb, 0xdd, // jmp ask
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x47, 0xee, // gone: mov dx, 0x3f8; mov al, 'G'; out dx, al
    0xeb, 0xfe, // jmp .
];

/// An ELF file with a PVH note that enters `code` at 1 MiB.
fn kernel(code: &[u8]) -> File {
    const START: u64 = 1 << 20;
    let note = [&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0], b"Xen\0".as_slice(), &[0, 0, 0x10, 0]].concat();
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    bytes.extend([START, 64, 0].map(u64::to_le_bytes).as_flattened());
    bytes.extend([0, 0, 64, 56, 2, 64, 0, 0].map(u16::to_le_bytes).as_flattened());
    let mut offset = 64 + 2 * 56;
    for (kind, address, content) in [(4_u32, 0, note.as_slice()), (1, START, code)] {
        let length = content.len() as u64;
        bytes.extend([kind, 7].map(u32::to_le_bytes).as_flattened());
        bytes.extend([offset, address, address, length, length, 4].map(u64::to_le_bytes).as_flattened());
        offset += length;
    }
    bytes.extend(note);
    bytes.extend(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// Each letter that the guest says, as it comes.
fn listen(mut console: impl Read + Send + 'static) -> Receiver<u8> {
    let (say, heard) = channel();
    std::thread::spawn(move || {
        let mut letter = [0];
        while console.read_exact(&mut letter).is_ok() && say.send(letter[0]).is_ok() {}
    });
    heard
}

/// What is logged, for a test to read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a guest until its device has vanished and the policy has come to what `until` says: how it ended, and the log.
fn vanish(policy: OnDeviceError, heard_after: &[u8], until: &str) -> Option<(Outcome, String)> {
    vm()?;
    let spec = VmSpec {
        name: "vanish".into(),
        cpus: CpuSpec { sockets: 1, cores: 1, threads: 1 },
        affinity: Vec::new(),
        memory: MemorySpec { size: 64 << 20, hugepages: None, prefault: false },
        starts: Starts::AfterFirmware,
        cmdline: String::new(),
        on_reset: OnReset::Restart,
        on_device_error: policy,
        memory_policy: Default::default(),
        on_panic: None,
        watchdog: None,
        hotplug_ports: 0,
    };
    let machine = Machine::new(spec, Begun::begin(|| None).unwrap()).unwrap();
    let handle = machine.handle();
    let fake = Arc::new(Fake::nic().named("0000:65:10.2"));
    let (reader, writer) = std::io::pipe().unwrap();
    let resources = Resources {
        boot: Boot::Kernel { kernel: kernel(&GUEST), initrd: None },
        console: Console {
            device: ConsoleDevice::Serial,
            input: None,
            output: Some(writer.into()),
            log: None,
        },
        slots: vec![Slot { name: "lan".into(), functions: vec![Arc::clone(&fake) as _], rom: false }],
        virtio: Vec::new(),
    };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guest =
        std::thread::spawn(move || tracing::subscriber::with_default(subscriber, || machine.run(resources)));
    let heard = listen(reader);
    let next = || heard.recv_timeout(Duration::from_secs(20)).ok();
    assert_eq!(next(), Some(b'A'), "the guest finds the device: {}", log.text());
    fake.vanish();
    for letter in heard_after {
        assert_eq!(next(), Some(*letter), "{policy:?}: {}", log.text());
    }
    let mut tries = 0;
    while !log.text().contains(until) && !guest.is_finished() && tries < 1000 {
        std::thread::sleep(Duration::from_millis(10));
        tries += 1;
    }
    handle.stop();
    let outcome = guest.join().unwrap().unwrap();
    Some((outcome, log.text()))
}

#[test]
fn policy_stop_ends_the_guest_and_names_the_device() {
    let Some((outcome, _)) = vanish(OnDeviceError::Stop, b"", "never said") else { return };
    let Outcome::DeviceError { device, what } = outcome else { panic!("{outcome:?}") };
    assert_eq!(device, "0000:65:10.2");
    assert!(what.contains("it is gone"), "{what}");
}

#[test]
fn policy_ignore_leaves_a_guest_that_reads_ones() {
    let Some((outcome, log)) = vanish(OnDeviceError::Ignore, b"G", "ignored") else { return };
    assert_eq!(outcome, Outcome::Stopped);
    assert!(log.contains("0000:65:10.2: it is gone") && log.contains("on-device-error: ignore"), "{log}");
    assert_eq!(log.matches("it is gone").count(), 1, "said once: {log}");
}

#[test]
fn policy_detach_takes_it_out_and_goes_on() {
    let Some((outcome, log)) = vanish(OnDeviceError::Detach, b"G", "taken from the guest") else { return };
    assert_eq!(outcome, Outcome::Stopped);
    assert!(log.contains("0000:65:10.2: it is gone") && log.contains("on-device-error: detach"), "{log}");
}

#[test]
fn policy_reset_starts_the_guest_again_without_it() {
    // The guest says so twice: before the reset and after.
    let Some((outcome, log)) = vanish(OnDeviceError::Reset, b"G", "The guest resets") else { return };
    assert_eq!(outcome, Outcome::Stopped);
    assert!(log.contains("0000:65:10.2: it is gone") && log.contains("on-device-error: reset"), "{log}");
    assert_eq!(log.matches("The guest resets").count(), 1, "{log}");
}
