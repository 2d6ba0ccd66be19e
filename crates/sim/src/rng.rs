//! Seeded pseudo-random numbers (SplitMix64: Steele, Lea and Flood, OOPSLA 2014), for workloads and null tokens.

/// A generator whose every output follows from its seed. Not for secrets.
#[derive(Clone, Debug)]
pub struct SimRng {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of 64-bit numbers whose outputs look unrelated to their inputs.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl SimRng {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A number in `0..bound`; `bound` is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        scale(self.next_u64(), bound)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        unit(self.next_u64()) < p
    }
}

/// Maps a uniform 64-bit number to `0..bound`.
pub(crate) fn scale(uniform: u64, bound: u64) -> u64 {
    ((u128::from(uniform) * u128::from(bound)) >> 64) as u64
}

/// Maps a uniform 64-bit number to `[0, 1)`.
pub(crate) fn unit(uniform: u64) -> f64 {
    (uniform >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_the_seed_and_stay_in_range() {
        let draw = |seed| {
            let mut rng = SimRng::new(seed);
            (0..1000).map(|_| rng.between(3, 9)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for value in 3..=9 {
            let count = draw(1).iter().filter(|&&drawn| drawn == value).count();
            assert!((100..200).contains(&count), "{value} came {count} times in 1000 draws over 7 values");
        }
    }

    #[test]
    fn chance_keeps_its_probability() {
        let mut rng = SimRng::new(5);
        let hits = (0..10_000).filter(|_| rng.chance(0.25)).count();
        assert!((2_300..2_700).contains(&hits), "{hits} of 10000");
        assert!(!rng.chance(0.0) && rng.chance(1.0));
    }
}
