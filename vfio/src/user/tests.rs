//! Against the server of `vfio_user`, with a fake as its device, and against servers that misbehave.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::UserFunction;
use crate::contract::Subject;
use crate::contract::tests::{OnFake, all_hold};
use crate::fake::{Fake, Served};
use crate::function::{Error, IrqKind, PciFunction, RegionIndex};

struct OnSocket {
    function: Arc<UserFunction>,
    device: OnFake,
    served: Served,
    _folder: tempfile::TempDir,
}

impl OnSocket {
    fn new(fake: Fake) -> Self {
        let (fake, folder) = (Arc::new(fake), tempfile::tempdir().unwrap());
        let path = folder.path().join("device.sock");
        let served = Served::start(Arc::clone(&fake), &path);
        let function = UserFunction::connect(&path).unwrap();
        Self { function, device: OnFake(fake), served, _folder: folder }
    }
}

impl Subject for OnSocket {
    fn function(&self) -> Arc<dyn PciFunction> {
        Arc::clone(&self.function) as _
    }

    fn scratch(&self) -> Option<(RegionIndex, u64)> {
        self.device.scratch()
    }

    fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        self.device.fire(kind, vector)
    }

    fn lower_pin(&self) {
        self.device.lower_pin();
    }

    fn copy(&self, from: u64, to: u64, length: usize) -> bool {
        self.device.copy(from, to, length)
    }

    fn vanish(&self) -> bool {
        self.served.hang_up();
        true
    }
}

#[test]
fn a_function_behind_a_socket_keeps_the_contract() {
    all_hold(|| Box::new(OnSocket::new(Fake::nic())), &["I/O addresses that are not valid are refused"]);
}

#[test]
fn regions_and_interrupts_are_as_the_server_has_them() {
    let fake = Fake::nic().bar(2, 0x8000, 0xc).sparse(2, &[(0x1000, 0x2000), (0x6000, 0x1000)]);
    let subject = OnSocket::new(fake);
    let (function, fake) = (&subject.function, &subject.device.0);
    for index in (0..6).map(RegionIndex::Bar).chain([RegionIndex::Rom, RegionIndex::Config, RegionIndex::Vga])
    {
        assert_eq!(function.region(index), fake.region(index), "{index:?}");
    }
    for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix, IrqKind::Err, IrqKind::Req] {
        assert_eq!(function.irq_info(kind), fake.irq_info(kind), "{kind:?}");
    }
    assert!(function.can_reset());
    assert!(!OnSocket::new(Fake::nic().without_reset()).function.can_reset());
}

#[test]
fn large_accesses_are_cut_to_what_the_server_takes() {
    let subject = OnSocket::new(Fake::new().bar(0, 8 << 20, 4));
    let bar = RegionIndex::Bar(0);
    let wanted: Vec<u8> = (0..(3_u32 << 20) + 5).map(|at| (at % 251).to_le_bytes()[0]).collect();
    subject.function.write(bar, 3, &wanted).unwrap();
    let mut data = vec![0; wanted.len()];
    subject.function.read(bar, 3, &mut data).unwrap();
    assert!(data == wanted);
    assert_eq!(subject.device.0.memory_byte(0, 3 + (2 << 20)), wanted[2 << 20]);
}

#[test]
fn memory_without_a_file_is_refused_with_a_reason() {
    let subject = OnSocket::new(Fake::new());
    let mut page = vec![0_u8; 8192];
    let source = crate::DmaSource { host_address: page.as_mut_ptr(), file: None };
    // SAFETY: it is refused, so that nothing keeps the address.
    let error = unsafe { subject.function.address_space().map(0x1000, 0x1000, source) }.unwrap_err();
    assert!(error.to_string().contains("no file"), "{error}");
}

#[test]
fn a_dead_device_behind_a_living_server_is_gone() {
    let fake = Arc::new(Fake::nic());
    fake.lose_link();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.sock");
    let _served = Served::start(fake, &path);
    let error = UserFunction::connect(&path).err().unwrap();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

#[test]
fn nobody_listening_is_an_error_that_names_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let error = UserFunction::connect(&folder.path().join("none.sock")).err().unwrap().to_string();
    assert!(error.contains("none.sock: connecting to its vfio-user server: "), "{error}");
}

/// A server that is made of one connection and a closure.
fn serve(talk: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || talk(listener.accept().unwrap().0));
    (folder, path, thread)
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let (_folder, path, thread) = serve(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let started = Instant::now();
    let error = UserFunction::connect_within(&path, Duration::from_millis(50)).err().unwrap();
    assert!(matches!(error, Error::Gone { .. }) && error.to_string().contains("does not answer"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    thread.join().unwrap();
}

/// Takes one request: its header's first four bytes.
fn request(stream: &mut UnixStream) -> Option<[u8; 4]> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).ok()?;
    let [a, b, c, d, e, f, g, h, ..] = header;
    let size = usize::try_from(u32::from_ne_bytes([e, f, g, h])).unwrap();
    stream.read_exact(&mut vec![0; size - 16]).ok()?;
    Some([a, b, c, d])
}

fn reply(to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).unwrap().to_ne_bytes();
    [to.as_slice(), &size, &[1, 0, 0, 0, 0, 0, 0, 0], payload].concat()
}

/// A server with nothing but a vendor, which ends after that was asked for.
fn short_lived(mut stream: UnixStream) {
    while let Some(to) = request(&mut stream) {
        let vendor = to[2] == 9;
        let answer: &[u8] = match to[2] {
            1 => &[0, 0, 1, 0],
            4 => &[16, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
            // All regions have 256 bytes.
            5 => &[[32, 0, 0, 0].as_slice(), &[0; 13], &[1], &[0; 14]].concat(),
            9 => &[[0; 16].as_slice(), &[0x86, 0x80]].concat(),
            _ => &[],
        };
        stream.write_all(&reply(to, answer)).unwrap();
        if vendor {
            return;
        }
    }
}

#[test]
fn a_server_that_ends_is_heard_of_without_asking() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let (_folder, path, thread) = serve(move |stream| {
        let open = stream.try_clone().unwrap();
        short_lived(stream);
        let _ = ended.recv();
        drop(open);
    });
    let function = UserFunction::connect(&path).unwrap();
    let error = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    function.set_irqs(IrqKind::Err, 0, &[Some(error.as_fd())]).unwrap();
    let heard = |seconds| {
        let wait = Timespec { tv_sec: seconds, tv_nsec: 20_000_000 };
        poll(&mut [PollFd::new(&error, PollFlags::IN)], Some(&wait)).unwrap() == 1
    };
    assert!(!heard(0));
    drop(end);
    assert!(heard(10));
    let mut vendor = [0; 2];
    let result = function.read(RegionIndex::Config, 0, &mut vendor);
    assert!(matches!(result, Err(Error::Gone { .. })) && vendor == [0xff; 2]);
    let late = function.set_irqs(IrqKind::Err, 0, &[Some(error.as_fd())]);
    assert!(matches!(late, Err(Error::Gone { .. })), "{late:?}");
    thread.join().unwrap();
}

#[test]
fn a_server_of_another_version_is_refused() {
    let (_folder, path, thread) = serve(|mut stream| {
        let to = request(&mut stream).unwrap();
        stream.write_all(&reply(to, &[1, 0, 0, 0])).unwrap();
    });
    let error = UserFunction::connect(&path).err().unwrap();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_command_of_the_servers_is_refused_and_the_answer_still_found() {
    let (_folder, path, thread) = serve(|mut stream| {
        let to = request(&mut stream).unwrap();
        // VFIO_USER_DMA_READ, and then what was asked for: a version, of a server that hangs up.
        let size = 32_u32.to_ne_bytes();
        let read = [&[9, 9, 11, 0], size.as_slice(), &[0; 8], &[0; 16]].concat();
        stream.write_all(&read).unwrap();
        stream.write_all(&reply(to, &[0, 0, 1, 0])).unwrap();
        let mut refusal = [0; 16];
        stream.read_exact(&mut refusal).unwrap();
        assert_eq!(refusal[..12], [9, 9, 11, 0, 16, 0, 0, 0, 0x21, 0, 0, 0]);
        request(&mut stream).unwrap();
    });
    let error = UserFunction::connect(&path).err().unwrap();
    assert!(error.to_string().contains("asking what it can do: its server hung up"), "{error}");
    thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_server_that_answers_anything_breaks_nothing(
        answers in proptest::collection::vec((0_u8..8, proptest::collection::vec(0_u8..40, 0..96)), 0..40),
    ) {
        let (_folder, path, thread) = serve(move |mut stream| {
            for (kind, payload) in answers {
                let Some(to) = request(&mut stream) else { return };
                let bytes = match (kind, to[2]) {
                    (0, _) => payload,
                    // Mostly what leads on: a version, a PCI device that can be reset.
                    (_, 1) => reply(to, &[0, 0, 1, 0]),
                    (1..6, 4) => reply(to, &[16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]),
                    (1..4, 5) => reply(to, &[&payload, [0; 32].as_slice()].concat()[..32]),
                    _ => reply(to, &payload),
                };
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        if let Ok(function) = UserFunction::connect_within(&path, Duration::from_millis(50)) {
            let mut data = [0; 64];
            let _ = function.read(RegionIndex::Config, 0, &mut data);
            let _ = function.write(RegionIndex::Bar(0), 0, &data);
            let _ = function.set_irqs(IrqKind::Msix, 0, &[None]);
            let _ = function.reset();
        }
        thread.join().unwrap();
    }
}
