//! Functions that break the contract, each in one way: the suite must notice every one of them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::OnFake;
use crate::contract::{CHECKS, Subject, Verdict};
use crate::fake::Fake;
use crate::function::{
    DmaSource, Error, IoAddressSpace, IrqInfo, IrqKind, MmapArea, PciFunction, Region, RegionIndex,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    ReadsBeyondItsEnd,
    LeavesTheBufferAlone,
    ForgetsItsCommands,
    MapsTheNextPage,
    TakesNeighboursAway,
    MixesVectorsUp,
    TakesAnyVector,
    EnablesTwoKinds,
    NeverMasks,
    NeverUnmasks,
    IsDeafToResample,
    IsDeadAfterAReset,
    KeepsWhatIsUnmapped,
    MapsTwice,
    MapsAnywhere,
    IsNotGone,
}

struct Bad {
    defect: Defect,
    fake: Arc<Fake>,
    space: Arc<BadSpace>,
}

struct BadSpace {
    defect: Defect,
    fake: Arc<Fake>,
}

impl Bad {
    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn hide(&self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Gone { .. }) if self.has(Defect::IsNotGone) => Ok(()),
            result => result,
        }
    }
}

impl PciFunction for Bad {
    fn label(&self) -> &str {
        self.fake.label()
    }

    fn region(&self, index: RegionIndex) -> Option<&Region> {
        self.fake.region(index)
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let before = data.to_vec();
        let result = self.fake.read(index, offset, data);
        match result {
            Err(Error::Invalid { .. }) if self.has(Defect::ReadsBeyondItsEnd) => Ok(()),
            Err(_) if self.has(Defect::LeavesTheBufferAlone) => {
                data.copy_from_slice(&before);
                result
            }
            _ => self.hide(result),
        }
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> Result<(), Error> {
        if self.has(Defect::ForgetsItsCommands) && index == RegionIndex::Config && offset == 4 {
            return Ok(());
        }
        self.hide(self.fake.write(index, offset, data))
    }

    fn mmap_source(&self, index: RegionIndex, area: MmapArea) -> Result<(BorrowedFd<'_>, u64), Error> {
        let (fd, offset) = self.fake.mmap_source(index, area)?;
        Ok((fd, offset + if self.has(Defect::MapsTheNextPage) { 4096 } else { 0 }))
    }

    fn irq_info(&self, kind: IrqKind) -> IrqInfo {
        self.fake.irq_info(kind)
    }

    fn set_irqs(&self, kind: IrqKind, first: u32, triggers: &[Option<BorrowedFd<'_>>]) -> Result<(), Error> {
        if self.has(Defect::TakesNeighboursAway) && matches!(triggers.first(), Some(None)) {
            self.fake.disable_irqs(kind)?;
        }
        if self.has(Defect::EnablesTwoKinds) {
            for other in
                [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix].into_iter().filter(|other| *other != kind)
            {
                self.fake.disable_irqs(other)?;
            }
        }
        if self.has(Defect::MixesVectorsUp) && triggers.len() > 1 {
            let turned: Vec<_> = triggers.iter().copied().rev().collect();
            return self.fake.set_irqs(kind, first, &turned);
        }
        let result = self.fake.set_irqs(kind, first, triggers);
        if self.has(Defect::TakesAnyVector) && first >= self.irq_info(kind).count {
            Ok(())
        } else {
            self.hide(result)
        }
    }

    fn disable_irqs(&self, kind: IrqKind) -> Result<(), Error> {
        self.hide(self.fake.disable_irqs(kind))
    }

    fn set_intx_unmask(&self, resample: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        self.fake.set_intx_unmask(resample.filter(|_| !self.has(Defect::IsDeafToResample)))
    }

    fn mask_intx(&self, masked: bool) -> Result<(), Error> {
        let ignored = if masked { Defect::NeverMasks } else { Defect::NeverUnmasks };
        if self.has(ignored) { Ok(()) } else { self.hide(self.fake.mask_intx(masked)) }
    }

    fn can_reset(&self) -> bool {
        true
    }

    fn reset(&self) -> Result<(), Error> {
        if self.has(Defect::IsDeadAfterAReset) {
            self.fake.lose_link();
            return Ok(());
        }
        self.hide(self.fake.reset())
    }

    fn address_space(&self) -> Arc<dyn IoAddressSpace> {
        Arc::clone(&self.space) as _
    }
}

impl IoAddressSpace for BadSpace {
    fn iova_ranges(&self) -> Vec<std::ops::RangeInclusive<u64>> {
        self.fake.space().iova_ranges()
    }

    unsafe fn map(&self, iova: u64, size: u64, source: DmaSource<'_>) -> Result<(), Error> {
        // SAFETY: what the caller promises, and in these tests memory that is kept mapped until the end of the check.
        let result = unsafe { self.fake.space().map(iova, size, source) };
        let valid = self.iova_ranges().iter().any(|range| range.contains(&iova));
        match self.defect {
            Defect::MapsTwice if valid => Ok(()),
            Defect::MapsAnywhere if !valid => Ok(()),
            _ => result,
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> Result<(), Error> {
        if self.defect == Defect::KeepsWhatIsUnmapped { Ok(()) } else { self.fake.space().unmap(iova, size) }
    }
}

struct OnBad {
    device: OnFake,
    bad: Arc<Bad>,
}

impl Subject for OnBad {
    fn function(&self) -> Arc<dyn PciFunction> {
        Arc::clone(&self.bad) as _
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
        self.device.vanish()
    }
}

#[test]
fn every_breach_of_the_contract_is_noticed() {
    let breaches = [
        (Defect::ReadsBeyondItsEnd, "out of bounds"),
        (Defect::LeavesTheBufferAlone, "out of bounds"),
        (Defect::ForgetsItsCommands, "bus mastering is written"),
        (Defect::MapsTheNextPage, "a mapping and an access"),
        (Defect::TakesNeighboursAway, "neighbours"),
        (Defect::MixesVectorsUp, "its own eventfd"),
        (Defect::TakesAnyVector, "does not exist"),
        (Defect::EnablesTwoKinds, "only one kind"),
        (Defect::NeverMasks, "INTx masks itself"),
        (Defect::NeverUnmasks, "INTx masks itself"),
        (Defect::IsDeafToResample, "by an eventfd"),
        (Defect::IsDeadAfterAReset, "a reset"),
        (Defect::KeepsWhatIsUnmapped, "exact ranges"),
        (Defect::MapsTwice, "exact ranges"),
        (Defect::MapsAnywhere, "not valid"),
        (Defect::IsNotGone, "gone"),
    ];
    for (defect, name) in breaches {
        let fake = Arc::new(Fake::nic().iova(&[0..=0xff_ffff_ffff]));
        let space = Arc::new(BadSpace { defect, fake: Arc::clone(&fake) });
        let bad = Arc::new(Bad { defect, fake: Arc::clone(&fake), space });
        let subject = OnBad { device: OnFake(fake), bad };
        let check = CHECKS.iter().find(|check| check.name.contains(name)).unwrap();
        let verdict = check.run(&subject);
        assert!(matches!(verdict, Verdict::Broken(_)), "{defect:?}: {}: {verdict:?}", check.name);
    }
}
