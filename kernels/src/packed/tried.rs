//! Which kernel multiplies one matrix with some tokens. Between few of them, when reading the weights is all that counts,
//! and many, it is open, and trials tell.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::Way;

/// Numbers of tokens that are worth a trial.
const OPEN: RangeInclusive<usize> = 33..=512;

/// More, and the kernel for few, which decodes each code for every 8 tokens, is not tried.
const MOST_SKINNY: usize = 128;

/// Fewer, and items of 128 would be half empty.
const FEWEST_WIDE: usize = 65;

/// What trials with one matrix told.
#[derive(Clone, Debug, Default)]
pub struct TriedWays {
    /// The fastest for so many tokens.
    fastest: BTreeMap<usize, Way>,
}

impl TriedWays {
    /// What is to be tried for so many tokens; nothing where that was done, or is not worth it.
    pub fn open(&self, tokens: usize) -> Vec<Way> {
        if !OPEN.contains(&tokens) || self.fastest.contains_key(&tokens) {
            return Vec::new();
        }
        let mut ways = vec![Way::Tiled64];
        if tokens <= MOST_SKINNY {
            ways.push(Way::Skinny);
        }
        if tokens >= FEWEST_WIDE {
            ways.push(Way::Tiled128);
        }
        ways
    }

    /// Notes what a trial told.
    pub fn note(&mut self, tokens: usize, fastest: Way) {
        self.fastest.insert(tokens, fastest);
    }

    /// As the nearest number of tokens from `tokens` on that was tried; [`Way::dense`] where nothing tells.
    pub fn way(&self, tokens: usize, rows: usize, multiprocessors: u32) -> Way {
        let nearest = self.fastest.range(tokens..).next().filter(|_| OPEN.contains(&tokens));
        nearest.map_or_else(|| Way::dense(tokens, rows, multiprocessors), |(_, way)| *way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_tried_goes_as_the_next_that_was() {
        let mut tried = TriedWays::default();
        tried.note(64, Way::Skinny);
        tried.note(256, Way::Tiled64);
        let way = |tokens| tried.way(tokens, 4096, 132);
        assert_eq!([48, 64, 65, 256].map(way), [Way::Skinny, Way::Skinny, Way::Tiled64, Way::Tiled64]);
        for tokens in [1, 32, 257, 4096] {
            assert_eq!(way(tokens), Way::dense(tokens, 4096, 132), "{tokens} tokens: nothing tells");
        }
        assert!(tried.open(64).is_empty() && !tried.open(65).is_empty(), "one trial each");
        assert!(tried.open(32).is_empty() && tried.open(513).is_empty());
    }

    #[test]
    fn what_is_estimated_is_among_what_is_tried() {
        for tokens in OPEN {
            for rows in [256, 4096, 28_672] {
                let ways = TriedWays::default().open(tokens);
                assert!(ways.contains(&Way::dense(tokens, rows, 132)), "{tokens} tokens, {rows} rows");
            }
        }
    }
}
