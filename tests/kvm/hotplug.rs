//! Devices that come and go while a guest runs: its test drives the slot as the hotplug driver of a kernel does.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfio::IrqKind;
use vfio::fake::Fake;
use vmm::Outcome;
use vmm::control::Recent;
use vmm::disk::{Access, Chain, DiskImage, Format, Rules};
use vmm::legacy::ConsoleOutput;
use vmm::machine::{Change, Changed, DeviceSource, Error, Handle};
use vmm::spec::{NewDevice, Slot, VirtioSlot};
use vmm::virtio::blk::{Block, BlockSpec};
use vmm::virtio::console::{Console as HvcConsole, Keyboard};
use vmm::virtio::rng::Rng;

use crate::machine::{PATIENCE, available};
use crate::passthrough::InProcess;

/// A host with a card for the name `card`, a source of entropy, and perhaps an image for `disk root`.
struct Host {
    fake: Arc<Fake>,
    image: Option<PathBuf>,
    given_back: Mutex<Vec<String>>,
}

impl DeviceSource for Host {
    fn open(&self, name: &str, _: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<NewDevice, String> {
        let name = name.to_owned();
        match name.as_str() {
            "card" => Ok(NewDevice::Functions(Slot {
                name,
                functions: vec![Arc::clone(&self.fake) as _],
                rom: false,
            })),
            "crowd" => {
                let functions = (0..9).map(|_| Arc::new(Fake::nic()) as _).collect();
                Ok(NewDevice::Functions(Slot { name, functions, rom: false }))
            }
            "rng" => Ok(NewDevice::Virtio(VirtioSlot { name, device: Box::new(Rng) })),
            "root" => {
                let path = self.image.as_ref().ok_or("This host has no image")?;
                let device = Box::new(Block::new(BlockSpec {
                    image: open(path).map_err(|error| error.to_string())?,
                    read_only: false,
                    serial: name,
                    path: path.display().to_string(),
                    queues: 1,
                }));
                Ok(NewDevice::Virtio(VirtioSlot { name: "disk root".into(), device }))
            }
            _ => Err(format!("This host has no `{name}`")),
        }
    }

    fn give_back(&self, name: &str) -> Result<(), String> {
        // Closed: it and the test's own are all there are.
        if name == "card" {
            assert_eq!(Arc::strong_count(&self.fake), 2, "somebody holds the function still");
            assert_eq!(self.fake.space().maps(), [], "guest memory is mapped for it still");
        }
        self.given_back.lock().unwrap().push(name.to_owned());
        Ok(())
    }
}

fn host(fake: &Arc<Fake>) -> Arc<Host> {
    Arc::new(Host { fake: Arc::clone(fake), image: None, given_back: Mutex::default() })
}

/// Nobody else has it, or this fails.
fn open(path: &Path) -> Result<Box<dyn DiskImage>, vmm::disk::Error> {
    Chain::open(path, Format::Raw, &Rules::new(Access::Write))?.image()
}

fn change(handle: &Handle, change: Change, within: Duration) -> Result<Changed, String> {
    handle.change(change, within).recv_timeout(PATIENCE).unwrap()
}

fn remove(handle: &Handle, name: &str) -> Result<Changed, String> {
    change(handle, Change::Remove { name: name.into(), force: false }, PATIENCE)
}

fn add(handle: &Handle, name: &str) -> Result<Changed, String> {
    change(handle, Change::Add { name: name.into() }, PATIENCE)
}

#[test]
fn a_function_comes_and_goes_ten_times_and_interrupts_after_it() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let host = host(&fake);
    let cmdline = "test=hotplug rounds=10 then=device";
    let source = Some(Arc::clone(&host) as _);
    let mut guest = InProcess::start_pluggable(cmdline, 1, &[&fake], Vec::new(), (0, source));
    guest.wait_for("slot on, interrupted 0\n");
    let id = format!("{:x}", fake_id(&fake));
    for round in 1..=10 {
        // By its key, or with the section of the file that has it.
        let name = ["card", "nic card", "pci card"][round % 3];
        assert_eq!(remove(&guest.handle, name), Ok(Changed::Removed));
        assert_eq!(host.given_back.lock().unwrap().len(), round);
        guest.wait_for("button; interrupted 1\n");
        guest.wait_for("link 0, reads ffffffff\n");
        guest.wait_for("present 0\n");
        assert!(remove(&guest.handle, "card").unwrap_err().contains("has no device `card`; it has none"));
        assert_eq!(add(&guest.handle, "card"), Ok(Changed::Added));
        guest.wait_for("card; reads ffffffff\n");
        guest.wait_for(&format!("on; reads {id}\n"));
        assert!(add(&guest.handle, "card").unwrap_err().contains("has `card` already"));
        assert_ne!(fake.space().maps(), [], "guest memory is mapped for it");
    }
    guest.wait_for("device 100 reads 600df00d\n");
    guest.wait_for("armed\n");
    assert!(fake.fire(IrqKind::Msix, 0));
    guest.wait_for("interrupt; masked one not\n");
    assert!(fake.fire(IrqKind::Msix, 1));
    guest.wait_for("unmasked; pending 0\n");
    guest.wait_for("memory at c01000\n");
    fake.dma_write(0xc0_1000, &0x600d_da7a_u64.to_le_bytes()).unwrap();
    guest.wait_for("written\n");
    assert_eq!(guest.end(), Outcome::PowerOff);
    assert_eq!(fake.space().maps(), []);
    drop(host);
    assert_eq!(Arc::strong_count(&fake), 1);
}

/// Vendor and device, as config space has them.
fn fake_id(fake: &Arc<Fake>) -> u32 {
    let mut id = [0; 4];
    vfio::PciFunction::read(&**fake, vfio::RegionIndex::Config, 0, &mut id).unwrap();
    u32::from_le_bytes(id)
}

#[test]
fn an_empty_port_takes_a_virtio_device_and_gives_it_up_by_force() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let host = host(&fake);
    let cmdline = "test=hotplug rounds=3 then=entropy";
    let source = Some(Arc::clone(&host) as _);
    let mut guest = InProcess::start_pluggable(cmdline, 1, &[], Vec::new(), (1, source));
    guest.wait_for("slot off, interrupted 0\n");
    assert!(add(&guest.handle, "disk").unwrap_err().contains("This host has no `disk`"));
    for _ in 1..=2 {
        assert_eq!(add(&guest.handle, "rng"), Ok(Changed::Added));
        guest.wait_for("on; reads 10441af4\n");
        assert!(add(&guest.handle, "card").unwrap_err().contains("All root ports of the guest are taken"));
        let force = Change::Remove { name: "rng".into(), force: true };
        assert_eq!(change(&guest.handle, force, Duration::ZERO), Ok(Changed::Removed));
        guest.wait_for("gone by surprise; link 0, reads ffffffff\n");
    }
    assert_eq!(*host.given_back.lock().unwrap(), ["rng", "rng"]);
    assert_eq!(add(&guest.handle, "rng"), Ok(Changed::Added));
    guest.gets_entropy();
    guest.wait_for("after it: negotiated, used 1\n");
    assert_eq!(guest.end(), Outcome::PowerOff);
}

#[test]
fn a_card_that_does_not_fit_its_slot_is_given_back_and_another_fits() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let host = host(&fake);
    let source = Some(Arc::clone(&host) as _);
    let cmdline = "test=hotplug rounds=1 then=entropy";
    let mut guest = InProcess::start_pluggable(cmdline, 1, &[], Vec::new(), (1, source));
    guest.wait_for("slot off, interrupted 0\n");
    let why = add(&guest.handle, "crowd").unwrap_err();
    assert!(why.contains("function 8"), "{why}");
    assert_eq!(*host.given_back.lock().unwrap(), ["crowd"]);
    assert!(remove(&guest.handle, "crowd").unwrap_err().contains("it has none"));
    assert_eq!(add(&guest.handle, "card"), Ok(Changed::Added));
    assert_eq!(*host.given_back.lock().unwrap(), ["crowd"]);
    guest.handle.stop();
    assert_eq!(guest.end(), Outcome::Stopped);
}

#[test]
fn a_guest_that_does_not_listen_keeps_its_device_until_it_is_taken_by_force() {
    if !available() {
        return;
    }
    let fake = Arc::new(Fake::nic());
    let host = host(&fake);
    let source = Some(Arc::clone(&host) as _);
    let output = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let output = ConsoleOutput::new(Some(output.into()), None, &Arc::new(Recent::new().unwrap())).unwrap();
    let console = Box::new(HvcConsole::new(Arc::new(Keyboard::new().unwrap()), output).unwrap());
    let console = VirtioSlot { name: "console".into(), device: console };
    let mut guest = InProcess::start_pluggable("test=obey", 1, &[&fake], vec![console], (1, source));
    guest.wait_for("ready\n");
    let force = Change::Remove { name: "console".into(), force: true };
    let stays = change(&guest.handle, force, Duration::ZERO).unwrap_err();
    assert!(stays.contains("`console` cannot be removed while the guest runs"), "{stays}");
    let request = Change::Remove { name: "card".into(), force: false };
    let asked = guest.handle.change(request.clone(), Duration::from_secs(1));
    let busy = change(&guest.handle, request, Duration::ZERO).unwrap_err();
    assert!(busy.contains("`card` is being added or removed"), "{busy}");
    let why = asked.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(why.contains("has not given `card` back within 1 s: nothing in it listens"), "{why}");
    assert_eq!(*host.given_back.lock().unwrap(), [""; 0]);
    let force = Change::Remove { name: "card".into(), force: true };
    assert_eq!(change(&guest.handle, force, Duration::ZERO), Ok(Changed::Removed));
    assert_eq!(*host.given_back.lock().unwrap(), ["card"]);
    // It is put in, and nobody turns its slot on: left on by a guest that heard nothing, the slot has power.
    assert_eq!(
        change(&guest.handle, Change::Add { name: "card".into() }, Duration::ZERO),
        Ok(Changed::Added)
    );
    let plugged = change(&guest.handle, Change::Add { name: "rng".into() }, Duration::ZERO);
    assert_eq!(plugged, Ok(Changed::Plugged), "the guest has never turned that one on");
    guest.handle.stop();
    assert_eq!(guest.end(), Outcome::Stopped);
}

#[test]
fn a_disk_in_the_middle_of_its_writes_goes_by_force_and_its_image_is_free() {
    if !available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.raw");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let (fake, given_back) = (Arc::new(Fake::nic()), Mutex::default());
    let host = Arc::new(Host { fake, image: Some(path.clone()), given_back });
    let cmdline = "test=hotplug rounds=1 then=disk blocks=256";
    let source = Some(Arc::clone(&host) as _);
    let mut guest = InProcess::start_pluggable(cmdline, 1, &[], Vec::new(), (1, source));
    guest.wait_for("slot off, interrupted 0\n");
    assert_eq!(add(&guest.handle, "root"), Ok(Changed::Added));
    guest.wait_for("durable 64\n");
    assert!(open(&path).is_err(), "the guest's");
    let force = Change::Remove { name: "root".into(), force: true };
    assert_eq!(change(&guest.handle, force, Duration::ZERO), Ok(Changed::Removed));
    assert_eq!(*host.given_back.lock().unwrap(), ["disk root"]);
    drop(open(&path).unwrap());
    assert_ne!(std::fs::read(&path).unwrap(), vec![0; 1 << 20], "what the guest wrote");
    // Nobody answered the guest's last request, and it waits for ever.
    assert!(add(&guest.handle, "root").is_ok(), "it can be had again");
    guest.handle.stop();
    assert_eq!(guest.end(), Outcome::Stopped);
    drop(open(&path).unwrap());
}
