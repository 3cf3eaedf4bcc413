//! Devices that come and go while the guest runs.
//!
//! ```text
//!   add      opening ---------> plugged -------------------------> done
//!            (the host's side,  (in its slot, until the guest
//!            on a thread)       has turned that on, or time is up)
//!
//!   remove   asked -----------------------> leaving --------------> done
//!            (attention button, until the   (reset, closed, and given back
//!            guest has turned the slot off; to the host, on a thread)
//!            or at once, by force)
//! ```
//!
//! One device at a time: another request is refused meanwhile. What waits for the host waits on a thread, so that the
//! machine's loop never does; the thread is there only that long.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Error;
use super::card::{Card, same_space, spaces};
use super::events::{Events, Source};
use super::hierarchy::{Hierarchy, Leaving};
use crate::memory::GuestRam;
use crate::passthrough::{DmaMap, map_guest_ram};
use crate::pci::Devfn;
use crate::spec::NewDevice;
use crate::threads::{self, Kind};
use crate::vm::{Signal, Vm};

/// A guest that has not taken notice of the button is asked again after that long.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// The host's side of what is plugged in and taken out. Called on a thread of its own, one call at a time.
pub trait DeviceSource: Send + Sync {
    /// Prepares and opens the device that the guest's file has under this name. `kvm` gives the KVM VFIO device.
    ///
    /// # Errors
    /// What a person is to be told. The host is then as it was.
    fn open(&self, name: &str, kvm: &dyn Fn() -> Result<OwnedFd, Error>) -> Result<NewDevice, String>;

    /// A device is out of the guest and closed: the host gets it back as it was. `name` is that of its
    /// [`Slot`](crate::spec::Slot) or [`VirtioSlot`](crate::spec::VirtioSlot).
    ///
    /// # Errors
    /// What a person is to be told.
    fn give_back(&self, name: &str) -> Result<(), String>;
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Plug in what the guest's file has under this name.
    Add {
        /// Its key.
        name: String,
    },
    /// Take a device out.
    Remove {
        /// Its key; `nic lan` or `disk lan` where both have one.
        name: String,
        /// Without asking the guest.
        force: bool,
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is in its slot, and the guest has turned that on.
    Added,
    /// It is in its slot. The guest has not turned that on yet.
    Plugged,
    /// It is out of the guest, and the host has it back.
    Removed,
}

/// A request, and whom to tell what came of it: what is said is for a person.
#[derive(Debug)]
pub struct HotplugRequest {
    /// What is asked for.
    pub change: Change,
    /// How long the guest may take.
    pub within: Duration,
    /// Whom to tell.
    pub reply: Sender<Result<Changed, String>>,
}

/// What a thread has done.
enum Work {
    Opened(Result<Opened, String>),
    GivenBack(Result<(), String>),
}

struct Opened {
    card: Card,
    maps: Vec<DmaMap>,
}

enum Stage {
    Opening {
        seat: usize,
    },
    Plugged {
        seat: usize,
        until: Instant,
    },
    Asked {
        seat: usize,
        until: Instant,
        press_at: Instant,
        within: Duration,
    },
    /// The answer, where it is another one than that it was removed.
    Leaving {
        because: Option<String>,
    },
}

struct Going {
    name: String,
    reply: Sender<Result<Changed, String>>,
    within: Duration,
    stage: Stage,
}

/// The machine's parts that it works with.
pub(super) struct Parts<'a> {
    pub(super) vm: &'a Arc<Vm>,
    pub(super) ram: &'a Arc<GuestRam>,
    pub(super) hierarchy: &'a mut Hierarchy,
    pub(super) events: &'a Events,
}

/// All there is to it. Nothing is made before the first request.
#[derive(Default)]
pub(super) struct Hotplug {
    source: Option<Arc<dyn DeviceSource>>,
    /// Raised by ports and threads: there is something to look at.
    wake: Option<Arc<Signal>>,
    going: Option<Going>,
    threads: Vec<JoinHandle<()>>,
    work: Option<(Sender<Work>, Receiver<Work>)>,
}

impl Hotplug {
    pub(super) fn new(source: Option<Arc<dyn DeviceSource>>) -> Self {
        Self { source, ..Self::default() }
    }

    /// Somebody asks.
    pub(super) fn request(&mut self, request: HotplugRequest, parts: &mut Parts<'_>) {
        let HotplugRequest { change, within, reply } = request;
        if let Some(going) = &self.going {
            let why = format!("`{}` is being added or removed; ask again when that has ended", going.name);
            let _ = reply.send(Err(why));
            return;
        }
        let begun = match change {
            Change::Add { name } => self.begin_add(&name, parts).map(|stage| (name, stage)),
            Change::Remove { name, force } => self.begin_remove(&name, force, within, parts),
        };
        match begun {
            Ok((name, stage)) => self.going = Some(Going { name, reply, within, stage }),
            Err(why) => {
                let _ = reply.send(Err(why));
            }
        }
        self.look(parts);
    }

    fn begin_add(&mut self, name: &str, parts: &mut Parts<'_>) -> Result<Stage, String> {
        let Some(source) = self.source.clone() else {
            return Err("This machine takes no devices while it runs".into());
        };
        if let Ok(seat) = parts.hierarchy.seat_of(name) {
            let whole = parts.hierarchy.name_of(seat).unwrap_or(name);
            return Err(format!("The guest has `{whole}` already"));
        }
        let Some((seat, port)) = parts.hierarchy.free_seat() else {
            return Err(
                "All root ports of the guest are taken; remove a device, or start it with more `hotplug-ports`".into()
            );
        };
        let (wake, results) = self.channel(parts.events)?;
        let (vm, ram, mapped) = (Arc::clone(parts.vm), Arc::clone(parts.ram), parts.hierarchy.mapped());
        let asked = name.to_owned();
        self.spawn(move || {
            let made = open(&*source, &asked, &vm, &ram, &mapped, port);
            let _ = results.send(Work::Opened(made));
            wake.raise();
        })?;
        Ok(Stage::Opening { seat })
    }

    fn begin_remove(
        &mut self,
        name: &str,
        force: bool,
        within: Duration,
        parts: &mut Parts<'_>,
    ) -> Result<(String, Stage), String> {
        let seat = parts.hierarchy.seat_of(name)?;
        let whole = parts.hierarchy.name_of(seat).unwrap_or(name).to_owned();
        if parts.hierarchy.stays(seat) {
            return Err(format!(
                "`{whole}` cannot be removed while the guest runs: it is there from start to end"
            ));
        }
        let (wake, _) = self.channel(parts.events)?;
        let now = Instant::now();
        if force {
            tracing::info!("{whole}: taken out of the guest without its leave");
            let leaving = parts.hierarchy.unplug(seat, parts.events);
            self.leave(&whole, leaving, parts)?;
            return Ok((whole, Stage::Leaving { because: None }));
        }
        let Some(bridge) = parts.hierarchy.bridge(seat) else { return Err("There is no such port".into()) };
        bridge.ask_back(wake);
        let (until, press_at) = (later(now, within), later(now, PRESS_AGAIN));
        Ok((whole, Stage::Asked { seat, until, press_at, within }))
    }

    /// The signal and the way for results, made at the first request.
    fn channel(&mut self, events: &Events) -> Result<(Arc<Signal>, Sender<Work>), String> {
        let wake = match &self.wake {
            Some(wake) => Arc::clone(wake),
            None => {
                let failed = |error| format!("Making an eventfd for hotplug: {error}");
                let wake = Arc::new(Signal::new().map_err(failed)?);
                events.watch(wake.fd(), Source::Hotplug).map_err(failed)?;
                Arc::clone(self.wake.insert(wake))
            }
        };
        let (results, _) = self.work.get_or_insert_with(mpsc::channel);
        Ok((wake, results.clone()))
    }

    fn spawn(&mut self, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
        self.threads.retain(|thread| !thread.is_finished());
        let thread = std::thread::Builder::new().name("hotplug".into()).spawn(move || {
            threads::begins(Kind::Hotplug);
            body();
        });
        self.threads.push(thread.map_err(|error| format!("Starting a thread for hotplug: {error}"))?);
        Ok(())
    }

    /// Lets a card go and gives it back to the host, on a thread.
    fn leave(&mut self, name: &str, leaving: Option<Leaving>, parts: &Parts<'_>) -> Result<(), String> {
        let (wake, results) = self.channel(parts.events)?;
        let (ram, source, name) = (Arc::clone(parts.ram), self.source.clone(), name.to_owned());
        self.spawn(move || {
            if let Some(Leaving { card, unused }) = leaving {
                card.let_go(&ram, unused);
            }
            let given_back = source.map_or(Ok(()), |source| source.give_back(&name));
            let _ = results.send(Work::GivenBack(given_back));
            wake.raise();
        })
    }

    /// The signal was raised, or time has passed.
    pub(super) fn look(&mut self, parts: &mut Parts<'_>) {
        if let Some(wake) = &self.wake {
            wake.take();
        }
        while let Some(work) = self.work.as_ref().and_then(|(_, results)| results.try_recv().ok()) {
            self.worked(work, parts);
        }
        let Some(going) = &mut self.going else { return };
        let now = Instant::now();
        match &mut going.stage {
            Stage::Opening { .. } | Stage::Leaving { .. } => {}
            Stage::Plugged { seat, until } => {
                let on = parts.hierarchy.bridge(*seat).is_some_and(|bridge| bridge.slot_state().on);
                if on || *until <= now {
                    if let Some(bridge) = parts.hierarchy.bridge(*seat) {
                        bridge.forget_waiting();
                    }
                    self.end(Ok(if on { Changed::Added } else { Changed::Plugged }));
                }
            }
            Stage::Asked { seat, until, press_at, within } => {
                let (seat, within) = (*seat, *within);
                let Some(bridge) = parts.hierarchy.bridge(seat) else { return };
                let slot = bridge.slot_state();
                if slot.settled || !slot.card {
                    self.take_out(seat, None, parts);
                } else if *until <= now {
                    bridge.forget_waiting();
                    let why = no_answer(&going.name, within, slot.listens);
                    self.end(Err(why));
                } else if *press_at <= now {
                    *press_at = later(now, PRESS_AGAIN);
                    bridge.press_again();
                }
            }
        }
    }

    fn worked(&mut self, work: Work, parts: &mut Parts<'_>) {
        let Some(Going { name, within, stage, .. }) = &mut self.going else { return };
        match (work, &mut *stage) {
            (Work::GivenBack(back), Stage::Leaving { because: Some(why) }) => {
                let why = std::mem::take(why);
                self.end(Err(match back {
                    Ok(()) => why,
                    Err(more) => format!("{why}; and giving it back: {more}"),
                }));
            }
            (Work::Opened(Err(why)), _) | (Work::GivenBack(Err(why)), _) => self.end(Err(why)),
            (Work::GivenBack(Ok(())), _) => {
                tracing::info!("{name}: it is out of the guest, and the host has it back");
                self.end(Ok(Changed::Removed));
            }
            (Work::Opened(Ok(Opened { card, maps })), Stage::Opening { seat }) => {
                let (seat, until) = (*seat, later(Instant::now(), *within));
                let Some(wake) = self.wake.clone() else { return };
                name.clone_from(&card.name);
                match parts.hierarchy.plug(seat, card, maps, wake, parts.events) {
                    Ok(()) => {
                        tracing::info!("{name}: plugged in");
                        *stage = Stage::Plugged { seat, until };
                    }
                    Err(error) => self.take_out(seat, Some(error.to_string()), parts),
                }
            }
            (Work::Opened(Ok(_)), _) => {}
        }
    }

    fn take_out(&mut self, seat: usize, because: Option<String>, parts: &mut Parts<'_>) {
        let Some(name) = self.going.as_ref().map(|going| going.name.clone()) else { return };
        let leaving = parts.hierarchy.unplug(seat, parts.events);
        match self.leave(&name, leaving, parts) {
            Ok(()) => {
                if let Some(going) = &mut self.going {
                    going.stage = Stage::Leaving { because };
                }
            }
            Err(why) => self.end(Err(why)),
        }
    }

    fn end(&mut self, result: Result<Changed, String>) {
        if let Some(going) = self.going.take() {
            if let Err(why) = &result {
                tracing::warn!("{}: {why}", going.name);
            }
            let _ = going.reply.send(result);
        }
    }

    /// The guest is reset: nobody in it holds a device that was asked for.
    pub(super) fn guest_was_reset(&mut self, parts: &mut Parts<'_>) {
        if let Some(Going { stage: Stage::Asked { seat, .. }, .. }) = &self.going {
            self.take_out(*seat, None, parts);
        }
    }

    /// A card whose function has failed leaves: it is closed, and stays the guest's until that ends.
    pub(super) fn detached(&mut self, leaving: Option<Leaving>, parts: &Parts<'_>) {
        let Some(Leaving { card, unused }) = leaving else { return };
        let ram = Arc::clone(parts.ram);
        if let Err(error) = self.spawn(move || card.let_go(&ram, unused)) {
            tracing::warn!("{error}");
        }
    }

    /// When to look again though nothing was raised.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.going.as_ref()?.stage {
            Stage::Plugged { until, .. } => Some(*until),
            Stage::Asked { until, press_at, .. } => Some(*until.min(press_at)),
            Stage::Opening { .. } | Stage::Leaving { .. } => None,
        }
    }

    /// The machine ends: what is under way on the host is waited for.
    pub(super) fn stop(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A hotplug thread ended by a fault of ours");
            }
        }
        // A card that was opened and not plugged in goes with its channel.
        self.work = None;
        self.end(Err("The guest has ended".into()));
    }
}

fn later(now: Instant, by: Duration) -> Instant {
    // A year is for ever, and no clock ends before.
    now + by.min(Duration::from_secs(365 * 24 * 3600))
}

fn no_answer(name: &str, within: Duration, listens: bool) -> String {
    let why = if listens {
        "its driver has not let go of it"
    } else {
        "nothing in it listens to PCI Express hotplug (is it still starting? does its kernel have pciehp?)"
    };
    format!(
        "The guest has not given `{name}` back within {} s: {why}. It keeps the device; ask again, or use force",
        within.as_secs()
    )
}

/// Opens a device, maps guest RAM for it where no other function's map serves it, and makes it a card for the port.
fn open(
    source: &dyn DeviceSource,
    name: &str,
    vm: &Arc<Vm>,
    ram: &Arc<GuestRam>,
    mapped: &[Arc<dyn vfio::IoAddressSpace>],
    port: Devfn,
) -> Result<Opened, String> {
    let device = source.open(name, &|| Ok(vm.vfio_device()?))?;
    let (whole, fresh) = match &device {
        NewDevice::Functions(slot) => (slot.name.clone(), spaces(&slot.functions)),
        NewDevice::Virtio(slot) => (slot.name.clone(), Vec::new()),
    };
    let fresh: Vec<_> =
        fresh.into_iter().filter(|space| !mapped.iter().any(|known| same_space(known, space))).collect();
    let made = map_guest_ram(ram, &fresh).map_err(Error::from).and_then(|maps| {
        match Card::new(vm, ram, port, device) {
            Ok(card) => Ok(Opened { card, maps }),
            Err(error) => {
                maps.into_iter().for_each(|map| map.end(ram));
                Err(error)
            }
        }
    });
    made.map_err(|error| match source.give_back(&whole) {
        Ok(()) => error.to_string(),
        Err(why) => format!("{error}; and giving it back: {why}"),
    })
}
