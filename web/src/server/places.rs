//! How many are served at once: a bounded number of connections, and of one address a smaller one. Where all are taken, the
//! one that has been idle for longest makes room.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// How much is served at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address; of IPv6 that of its network of 64 bits.
    pub of_one: usize,
}

impl Default for Limits {
    /// A connection takes some 40 KiB with TLS: 20 MiB at most.
    fn default() -> Self {
        Self { connections: 512, of_one: 96 }
    }
}

/// The places there are.
pub(super) struct Places {
    limits: Limits,
    clock: AtomicU64,
    taken: Mutex<BTreeMap<u64, Arc<Seat>>>,
}

struct Seat {
    of: Option<IpAddr>,
    /// Requests that are being answered.
    busy: AtomicUsize,
    /// By the clock of [`Places`]: when it last became idle.
    touched: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
}

/// One of them, until it is dropped.
pub(super) struct Place {
    number: u64,
    seat: Arc<Seat>,
    places: Arc<Places>,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, clock: AtomicU64::new(0), taken: Mutex::default() }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// A place, or none where all are busy.
    pub(super) fn take(self: &Arc<Self>, from: Option<IpAddr>) -> Option<Place> {
        let of = from.map(network);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let same = taken.values().filter(|seat| of.is_some() && seat.of == of).count();
        if same >= self.limits.of_one && !evict(&mut taken, |seat| seat.of == of) {
            return None;
        }
        if taken.len() >= self.limits.connections && !evict(&mut taken, |_| true) {
            return None;
        }
        let number = self.now();
        let seat =
            Arc::new(Seat { of, busy: 0.into(), touched: AtomicU64::new(number), task: Mutex::default() });
        taken.insert(number, Arc::clone(&seat));
        Some(Place { number, seat, places: Arc::clone(self) })
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Ends the one that has been idle for longest; false where none is.
fn evict(taken: &mut BTreeMap<u64, Arc<Seat>>, may: impl Fn(&Seat) -> bool) -> bool {
    let idle = |seat: &Seat| seat.busy.load(Ordering::Relaxed) == 0;
    let candidates = taken.iter().filter(|(_, seat)| may(seat) && idle(seat));
    let Some(number) =
        candidates.min_by_key(|(_, seat)| seat.touched.load(Ordering::Relaxed)).map(|(number, _)| *number)
    else {
        return false;
    };
    if let Some(seat) = taken.remove(&number)
        && let Some(task) = seat.task.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        task.abort();
    }
    true
}

/// One machine has a whole network of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Place {
    /// A task that has this place.
    pub(super) fn spawn<F, T>(self, serve: F)
    where
        F: FnOnce(Arc<Place>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let seat = Arc::clone(&self.seat);
        // Held while the task is made: it must not be looked for before it is there.
        let mut task = seat.task.lock().unwrap_or_else(PoisonError::into_inner);
        let spawned = tokio::spawn(serve(Arc::new(self)));
        *task = Some(spawned.abort_handle());
    }

    /// A request is being answered until this is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.seat.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// A request that is being answered.
pub(super) struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.seat.touched.store(self.0.places.now(), Ordering::Relaxed);
        self.0.seat.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[tokio::test]
    async fn who_has_been_idle_for_longest_makes_room_and_who_is_busy_does_not() {
        let places = Arc::new(Places::new(Limits { connections: 4, of_one: 2 }));
        let (first, second) = (places.take(address(1)).unwrap(), places.take(address(1)).unwrap());
        let first = Arc::new(first);
        let busy = first.busy();
        // The second one is idle: it goes.
        let third = Arc::new(places.take(address(1)).unwrap());
        assert_eq!(places.count(), 2);
        let also_busy = third.busy();
        assert!(places.take(address(1)).is_none(), "both are busy");
        let others: Vec<_> = (2..4).map(|last| places.take(address(last)).unwrap()).collect();
        assert_eq!(places.count(), 4);
        let one_more = places.take(address(9)).unwrap();
        assert_eq!(places.count(), 4);
        drop((busy, also_busy, first, second, third, others, one_more));
        assert_eq!(places.count(), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one_machine() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
