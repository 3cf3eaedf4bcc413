//! Numbers from a seed, the awkward ones more often than others.

/// A generator (splitmix64): the same seed, the same numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).unwrap())).unwrap()
    }

    /// True once in `of`.
    pub(crate) fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// Any number; those at the edges of something often.
    pub(crate) fn number(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(8) {
            0 => 0,
            1 => u64::MAX - self.below(4),
            2 => power,
            3 => power.wrapping_sub(1 + self.below(4)),
            4 => power.wrapping_add(self.below(4)),
            5 => self.below(256),
            6 => self.next() & power.wrapping_sub(1),
            _ => self.next(),
        }
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::try_from(self.number() & 0xff).unwrap()
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::try_from(self.number() & 0xffff).unwrap()
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::try_from(self.number() & 0xffff_ffff).unwrap()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.u8()).collect()
    }

    /// Damages some bytes.
    pub(crate) fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(8) {
            if bytes.is_empty() {
                return;
            }
            let at = self.index(bytes.len());
            let with = self.number().to_be_bytes();
            let length = self.pick(&[1, 1, 2, 4, 8]);
            let source = &with[8 - length..];
            bytes[at..].iter_mut().zip(source).for_each(|(slot, byte)| *slot = *byte);
        }
    }
}
