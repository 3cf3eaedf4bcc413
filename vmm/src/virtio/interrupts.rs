//! What a device says to its driver: that a queue has something used, that its configuration changed, or that it needs a
//! reset. By MSI-X, each source with an irqfd of its own, or by the pin (virtio 1.2, 4.1.5).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pci::msix::MsixTable;
use crate::vm::vector::{Signal, Vector};
use crate::vm::{self, Vm};

/// VIRTIO_MSI_NO_VECTOR.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue has something used.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// Owners of pins are told apart by these.
static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);

/// All of one function's interrupts. Any thread may use them at any time.
///
/// Each source (a queue, or the configuration) has a `Vector` of its own: an eventfd that stays the same whatever the
/// guest writes, so that vhost can be given it once, and a route that carries the message of the table entry which the
/// driver chose for the source.
pub struct Interrupts {
    vm: Arc<Vm>,
    label: String,
    gsi: u32,
    owner: u64,
    by_vectors: AtomicBool,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    /// How often something was said, but for what vhost says by itself.
    raised: AtomicU64,
    /// The configuration's, then the queues'.
    signals: Vec<Arc<Signal>>,
    state: Mutex<State>,
}

struct State {
    table: MsixTable,
    count: u16,
    function_masked: bool,
    pin_disabled: bool,
    /// As `signals`.
    sources: Vec<Source>,
}

struct Source {
    vector: Vector,
    chosen: u16,
}

impl Interrupts {
    /// For a function with `queues` queues and a table of `vectors` entries; its pin is wired to `gsi`.
    pub(super) fn new(
        vm: &Arc<Vm>,
        label: &str,
        gsi: u32,
        queues: usize,
        vectors: u16,
    ) -> Result<Self, vm::Error> {
        let sources = (0..=queues)
            .map(|_| Ok(Source { vector: Vector::new(vm)?, chosen: NO_VECTOR }))
            .collect::<Result<Vec<_>, vm::Error>>()?;
        Ok(Self {
            vm: Arc::clone(vm),
            label: label.to_owned(),
            gsi,
            owner: NEXT_OWNER.fetch_add(1, Ordering::Relaxed),
            by_vectors: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            raised: AtomicU64::new(0),
            signals: sources.iter().map(|source| source.vector.signal()).collect(),
            state: Mutex::new(State {
                table: MsixTable::new(vectors),
                count: vectors,
                function_masked: false,
                pin_disabled: false,
                sources,
            }),
        })
    }

    /// The device's name, for logs.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The configuration changed: the driver is to read it again.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.signal(0, ISR_CONFIG);
    }

    /// The device cannot go on until its driver resets it: DEVICE_NEEDS_RESET. Said once.
    pub fn fail(&self, why: impl std::fmt::Display) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            tracing::warn!("{}: it stops until the guest's driver resets it: {why}", self.label);
            self.signal(0, ISR_CONFIG);
        }
    }

    /// It has failed.
    pub fn has_failed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// What tells the driver of one queue.
    pub(super) fn of_queue(self: &Arc<Self>, queue: u16) -> QueueInterrupt {
        QueueInterrupt { interrupts: Arc::clone(self), source: usize::from(queue).saturating_add(1) }
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether they go by vectors; else by the pin.
    pub(super) fn by_vectors(&self) -> bool {
        self.by_vectors.load(Ordering::Acquire)
    }

    /// How often it has interrupted, but for what vhost did by itself.
    pub(super) fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }

    fn signal(&self, source: usize, isr: u8) {
        self.raised.fetch_add(1, Ordering::Relaxed);
        if self.by_vectors.load(Ordering::Acquire) {
            if let Some(signal) = self.signals.get(source) {
                signal.raise();
            }
        } else {
            self.isr.fetch_or(isr, Ordering::AcqRel);
            self.drive_pin(&self.lock());
        }
    }

    /// The ISR status, which reading clears; the pin falls.
    pub(super) fn take_isr(&self) -> u8 {
        let state = self.lock();
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.drive_pin(&state);
        isr
    }

    /// The pin's level follows from the ISR status, under the lock: levels must not overtake each other.
    fn drive_pin(&self, state: &State) {
        let asserted = !self.by_vectors.load(Ordering::Acquire)
            && !state.pin_disabled
            && self.isr.load(Ordering::Acquire) != 0;
        if let Err(error) = self.vm.set_shared_line(self.gsi, self.owner, asserted) {
            tracing::error!("{}: its interrupt pin: {error}", self.label);
        }
    }

    /// What the guest has written to the MSI-X capability and the command register.
    pub(super) fn configure(&self, enabled: bool, function_masked: bool, pin_disabled: bool) {
        let mut state = self.lock();
        let switched = self.by_vectors.swap(enabled, Ordering::AcqRel) != enabled;
        if switched || state.function_masked != function_masked {
            state.function_masked = function_masked;
            self.update(&mut state, |_| true);
            if switched {
                self.isr.store(0, Ordering::Release);
                state.sources.iter().for_each(|source| source.vector.forget());
            }
        }
        state.pin_disabled = pin_disabled;
        self.drive_pin(&state);
    }

    /// Which vector a source uses: `None` for the configuration.
    pub(super) fn chosen(&self, queue: Option<u16>) -> u16 {
        let source = queue.map_or(0, |queue| usize::from(queue).saturating_add(1));
        self.lock().sources.get(source).map_or(NO_VECTOR, |source| source.chosen)
    }

    /// The driver chooses a vector; one that there is not becomes none.
    pub(super) fn choose(&self, queue: Option<u16>, vector: u16) {
        let source = queue.map_or(0, |queue| usize::from(queue).saturating_add(1));
        let mut state = self.lock();
        let chosen = if vector < state.count { vector } else { NO_VECTOR };
        if let Some(source) = state.sources.get_mut(source) {
            if source.chosen == NO_VECTOR {
                // Nobody was to be told of what was said until now.
                source.vector.forget();
            }
            source.chosen = chosen;
        }
        self.update(&mut state, |changed| changed == chosen || changed == NO_VECTOR);
    }

    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.lock().table.read(offset, data);
    }

    pub(super) fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let changed = state.table.write(offset, data);
        self.update(&mut state, |vector| changed.contains(&vector));
    }

    /// The pending bits: a vector's is set while one of its sources was signalled and is held.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        data.fill(0);
        let pending = |source: &&Source| source.chosen != NO_VECTOR && source.vector.is_pending();
        for source in state.sources.iter().filter(pending) {
            let at = u64::from(source.chosen / 8).checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
                *byte |= 1 << (source.chosen % 8);
            }
        }
    }

    /// A reset of the device by its driver: no source has a vector, nothing is said. The table stays as it is.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        self.needs_reset.store(false, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        state.sources.iter_mut().for_each(|source| source.chosen = NO_VECTOR);
        self.update(&mut state, |_| true);
        state.sources.iter().for_each(|source| source.vector.forget());
        self.drive_pin(&state);
    }

    /// A reset of the function: the table too.
    pub(super) fn power_on(&self) {
        self.lock().table.reset();
        self.configure(false, false, false);
        self.reset();
    }

    /// Brings the sources whose vector `concerns` to what the table, the masks and the driver's choice say.
    fn update(&self, state: &mut State, concerns: impl Fn(u16) -> bool) {
        let enabled = self.by_vectors.load(Ordering::Acquire) && !state.function_masked;
        for source in state.sources.iter_mut().filter(|source| concerns(source.chosen)) {
            let message = match state.table.entry(source.chosen) {
                Some((message, false)) if enabled => Some(message),
                _ => None,
            };
            let result = match message {
                Some(message) => source.vector.deliver(message),
                None => source.vector.hold(),
            };
            if let Err(error) = result {
                tracing::warn!("{}: MSI-X vector {}: {error}", self.label, source.chosen);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        if let Err(error) = self.vm.set_shared_line(self.gsi, self.owner, false) {
            tracing::debug!("{}: its interrupt pin: {error}", self.label);
        }
    }
}

/// Tells the driver that a queue has something used.
#[derive(Clone)]
pub struct QueueInterrupt {
    interrupts: Arc<Interrupts>,
    source: usize,
}

impl QueueInterrupt {
    /// Says so. Costs a system call: ask [`Ring::needs_interrupt`](super::Ring::needs_interrupt) before.
    pub fn signal(&self) {
        self.interrupts.signal(self.source, ISR_QUEUE);
    }

    /// What a part of the kernel may signal instead, without us: `None` while the guest uses the pin.
    pub fn direct(&self) -> Option<Arc<Signal>> {
        let by_vectors = self.interrupts.by_vectors.load(Ordering::Acquire);
        self.interrupts.signals.get(self.source).filter(|_| by_vectors).cloned()
    }
}
