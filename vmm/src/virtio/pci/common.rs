//! The common configuration (virtio 1.2, 4.1.4.3): features, status and the queues' places.

use crate::virtio::{RingLayout, feature};

/// Bits of the device status (2.1).
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

/// What a write to the status comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Nothing that concerns the device.
    Same,
    /// The driver starts over.
    Reset,
    /// FEATURES_OK stays clear.
    FeaturesRefused,
    /// DRIVER_OK.
    Ready,
}

#[derive(Clone, Copy)]
struct QueueSetup {
    most: u16,
    enabled: bool,
    layout: RingLayout,
}

impl QueueSetup {
    fn new(most: u16) -> Self {
        Self { most, enabled: false, layout: RingLayout { size: most, ..RingLayout::default() } }
    }
}

/// All of it but what [`Interrupts`](crate::virtio::Interrupts) hold.
pub(super) struct Common {
    offered: u64,
    taken: u64,
    device_select: u32,
    driver_select: u32,
    status: u8,
    select: u16,
    queues: Vec<QueueSetup>,
}

impl Common {
    pub(super) fn new(offered: u64, sizes: &[u16]) -> Self {
        let queues = sizes.iter().map(|most| QueueSetup::new(*most)).collect();
        Self { offered, taken: 0, device_select: 0, driver_select: 0, status: 0, select: 0, queues }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.most).collect();
        *self = Self::new(self.offered, &sizes);
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// What was negotiated.
    pub(super) fn features(&self) -> u64 {
        self.offered & self.taken
    }

    /// The queue that the driver looks at, where there is one of that number.
    pub(super) fn selected(&self) -> Option<u16> {
        (usize::from(self.select) < self.queues.len()).then_some(self.select)
    }

    /// The queues that the driver has enabled.
    pub(super) fn enabled(&self) -> Vec<(u16, RingLayout)> {
        let enabled = |(index, queue): (u16, &QueueSetup)| queue.enabled.then_some((index, queue.layout));
        (0..).zip(&self.queues).filter_map(enabled).collect()
    }

    /// The driver writes the status. Only a reset clears bits.
    pub(super) fn write_status(&mut self, value: u8) -> Status {
        if value == 0 {
            return Status::Reset;
        }
        let set = value & !self.status;
        self.status |= set & (ACKNOWLEDGE | DRIVER | FAILED);
        if set & FEATURES_OK != 0 {
            if self.taken & !self.offered != 0 || self.taken & feature::VERSION_1 == 0 {
                return Status::FeaturesRefused;
            }
            self.status |= FEATURES_OK;
        }
        if set & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            return Status::Ready;
        }
        Status::Same
    }

    /// The register at `at`: where it starts, its value and its width in bytes.
    pub(super) fn read(&self, at: u64) -> Option<(u64, u64, usize)> {
        let queue = self.queues.get(usize::from(self.select)).copied().unwrap_or(QueueSetup::new(0));
        let layout = queue.layout;
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        Some(match at {
            0..4 => (0, self.device_select.into(), 4),
            4..8 => (4, half(self.offered, self.device_select), 4),
            8..12 => (8, self.driver_select.into(), 4),
            12..16 => (12, half(self.taken, self.driver_select), 4),
            18..20 => (18, u64::try_from(self.queues.len()).unwrap_or(0), 2),
            22..24 => (22, self.select.into(), 2),
            24..26 => (24, layout.size.into(), 2),
            28..30 => (28, queue.enabled.into(), 2),
            30..32 => (30, self.select.into(), 2),
            32..40 => (32, layout.descriptors, 8),
            40..48 => (40, layout.available, 8),
            48..56 => (48, layout.used, 8),
            _ => return None,
        })
    }

    /// The driver writes anything but status and vectors. Of what is written at a wrong time or width nothing is taken.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let value = value(data.get(..8).unwrap_or(data));
        let narrow = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        let short = u16::try_from(value & 0xffff).unwrap_or(0);
        match (at, data.len()) {
            (0, 4) => self.device_select = narrow,
            (8, 4) => self.driver_select = narrow,
            (12, 4) if self.status & FEATURES_OK == 0 => match self.driver_select {
                0 => self.taken = self.taken & !0xffff_ffff | value,
                1 => self.taken = self.taken & 0xffff_ffff | value << 32,
                _ => {}
            },
            (22, 2) => self.select = short,
            _ => self.write_queue(at, data.len(), value, short),
        }
    }

    fn write_queue(&mut self, at: u64, length: usize, value: u64, short: u16) {
        let negotiated = self.status & FEATURES_OK != 0 && self.status & DRIVER_OK == 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.select)).filter(|queue| !queue.enabled) else {
            return;
        };
        match (at, length) {
            (24, 2) if short.is_power_of_two() && short <= queue.most => queue.layout.size = short,
            (28, 2) if short == 1 && negotiated => queue.enabled = true,
            (32..40, _) => set(&mut queue.layout.descriptors, at - 32, length, value),
            (40..48, _) => set(&mut queue.layout.available, at - 40, length, value),
            (48..56, _) => set(&mut queue.layout.used, at - 48, length, value),
            _ => {}
        }
    }
}

/// A 64-bit register, written at once or in halves.
fn set(register: &mut u64, at: u64, length: usize, value: u64) {
    match (at, length) {
        (0, 8) => *register = value,
        (0, 4) => *register = *register & !0xffff_ffff | value,
        (4, 4) => *register = *register & 0xffff_ffff | value << 32,
        _ => {}
    }
}
