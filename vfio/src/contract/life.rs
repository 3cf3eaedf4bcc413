//! Resets, many threads, and the end.

use super::memory::{Memory, PAGE};
use super::regions::vendor;
use super::{Awake, COMMAND, Judged, MASTER, MEMORY, Stop, Subject, dma, ensure, skip};
use crate::function::{Error, IrqKind, RegionIndex};

pub(super) fn reset(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    if !awake.0.can_reset() {
        return skip("it cannot be reset alone");
    }
    let before = vendor(&*awake.0)?;
    for _ in 0..3 {
        awake.0.reset()?;
        let after = vendor(&*awake.0)?;
        ensure!(after == before, "its vendor was {before:02x?} and is {after:02x?}");
    }
    // It takes commands again.
    let mut command = [0; 2];
    awake.0.write(RegionIndex::Config, COMMAND, &[MEMORY | MASTER, 0])?;
    awake.0.read(RegionIndex::Config, COMMAND, &mut command)?;
    ensure!(command[0] & MASTER != 0, "after a reset it does not master the bus");
    Ok(())
}

pub(super) fn threads(subject: &dyn Subject) -> Judged {
    const ROUNDS: u64 = 50;
    let function = subject.function();
    let space = function.address_space();
    let (memory, at) = (Memory::new(4)?, dma::place(&*space)?);
    let wanted = vendor(&*function)?;
    let read = || {
        for _ in 0..ROUNDS {
            let seen = vendor(&*function)?;
            ensure!(seen == wanted, "its vendor reads {seen:02x?}");
        }
        Ok(())
    };
    let write = || {
        for round in 0..ROUNDS {
            let command = if round.is_multiple_of(2) { MASTER } else { 0 };
            function.write(RegionIndex::Config, COMMAND, &[command, 0])?;
        }
        Ok(())
    };
    let map = |number: usize| {
        let iova = at + number as u64 * 0x1_0000;
        for _ in 0..ROUNDS {
            // SAFETY: the memory outlives the threads; a map that is not taken back is a broken check.
            unsafe { space.map(iova, PAGE as u64, memory.source(number)) }?;
            space.unmap(iova, PAGE as u64)?;
        }
        Ok(())
    };
    let results: Vec<Judged> = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(read),
            scope.spawn(read),
            scope.spawn(write),
            scope.spawn(|| map(0)),
            scope.spawn(|| map(1)),
        ];
        let ended = |thread: std::thread::ScopedJoinHandle<'_, Judged>| {
            thread.join().unwrap_or_else(|_| Err(Stop::Broken("a thread panicked".to_owned())))
        };
        threads.into_iter().map(ended).collect()
    });
    results.into_iter().collect()
}

pub(super) fn gone(subject: &dyn Subject) -> Judged {
    let awake = Awake::new(subject)?;
    let function = &awake.0;
    let label = function.label().to_owned();
    let space = function.address_space();
    let (memory, at) = (Memory::new(1)?, dma::place(&*space)?);
    // SAFETY: the memory outlives the map, which the end of the subject takes away if nothing does before.
    unsafe { space.map(at, PAGE as u64, memory.source(0)) }?;
    if !subject.vanish() {
        space.unmap(at, PAGE as u64)?;
        return skip("it cannot be made to vanish");
    }
    let mut data = [0; 4];
    let read = function.read(RegionIndex::Config, 0, &mut data);
    let results = [
        ("a read", read),
        ("a write", function.write(RegionIndex::Config, COMMAND, &[0, 0])),
        ("setting interrupts", function.set_irqs(IrqKind::Intx, 0, &[None])),
        ("disabling interrupts", function.disable_irqs(IrqKind::Intx)),
        ("unmasking INTx", function.mask_intx(false)),
        ("a reset", function.reset()),
    ];
    ensure!(data == [0xff; 4], "config space reads {data:02x?}");
    for (what, result) in results {
        let text = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        ensure!(matches!(result, Err(Error::Gone { .. })), "{what} ends in {result:?}");
        ensure!(text.contains(&label), "{what} does not name the function: {text}");
    }
    // Its memory can be let go: either the map is taken back or it went with the device.
    match space.unmap(at, PAGE as u64) {
        Ok(()) | Err(Error::Gone { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
