//! The suite against the fake and against a vfio-user server.

mod bad;

use super::*;
use crate::fake::Fake;

pub(crate) struct OnFake(pub(crate) Arc<Fake>);

impl Subject for OnFake {
    fn function(&self) -> Arc<dyn PciFunction> {
        Arc::clone(&self.0) as _
    }

    fn scratch(&self) -> Option<(RegionIndex, u64)> {
        Some((RegionIndex::Bar(0), 0x1010))
    }

    fn fire(&self, kind: IrqKind, vector: u32) -> bool {
        self.0.fire(kind, vector);
        true
    }

    fn lower_pin(&self) {
        self.0.lower_pin();
    }

    fn copy(&self, from: u64, to: u64, length: usize) -> bool {
        let mut data = vec![0; length];
        let _ = self.0.dma_read(from, &mut data).and_then(|()| self.0.dma_write(to, &data));
        true
    }

    fn vanish(&self) -> bool {
        self.0.vanish();
        true
    }
}

/// Runs all checks, each on a function of its own; none may be skipped but those named.
pub(crate) fn all_hold(make: impl Fn() -> Box<dyn Subject>, skipped: &[&str]) {
    let broken: Vec<_> = CHECKS
        .iter()
        .map(|check| (check.name, check.run(&*make())))
        .filter(|(name, verdict)| match verdict {
            Verdict::Held => false,
            Verdict::Skipped(_) => !skipped.contains(name),
            Verdict::Broken(_) => true,
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_fake_keeps_the_contract() {
    let ranges = [0..=0xfedf_ffff, 0xfef0_0000..=0xff_ffff_ffff];
    all_hold(|| Box::new(OnFake(Arc::new(Fake::nic().iova(&ranges)))), &[]);
}
