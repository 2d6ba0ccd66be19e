//! Which of the packed kernels multiplies one matrix with some tokens. Where that is open, which is between few tokens,
//! when reading the weights is all that counts, and many, it is found out by trials when a shape first comes up while the
//! server starts; for numbers of tokens that did not come up then, by the nearest greater one that did.

use std::collections::{BTreeMap, HashMap};

use candle_core::Result;
use plimsoll_kernels::Queue as _;
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Format, Packed, Way};

use super::launch_error;
use super::trials::Trials;

/// Numbers of tokens that are tried.
const TRIED_TOKENS: std::ops::RangeInclusive<usize> = 33..=512;

/// More, and the kernel for few, which decodes each code for every 8 tokens, is not tried.
const MOST_SKINNY_TOKENS: usize = 128;

/// Fewer, and one of 128 would be half empty.
const FEWEST_WIDE_TOKENS: usize = 65;

pub(super) struct PackedWays {
    pub(super) trials: Trials,
    /// By number of tokens.
    chosen: HashMap<Matrix, BTreeMap<usize, Way>>,
}

/// Of a product, all but its tokens that decides how fast it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Matrix {
    format: Format,
    rows: usize,
    columns: usize,
    group: usize,
    is_wide: bool,
}

impl PackedWays {
    pub(super) fn new(trials: Trials) -> Self {
        Self { trials, chosen: HashMap::new() }
    }

    /// Queues `op`, a product of one matrix with so many tokens, whichever way it names.
    ///
    /// # Errors
    /// Sizes that the kernels were not made for, or the device refuses.
    pub(super) fn run(&mut self, queue: &CudaQueue, op: Packed, tokens: usize) -> Result<()> {
        let launch = |way| Packed { way, ..op }.run(queue).map_err(launch_error);
        let matrix = Matrix {
            format: op.layout.format,
            rows: op.layout.rows,
            columns: op.layout.columns,
            group: op.layout.group,
            is_wide: op.output == Output::F32,
        };
        let chosen = self.chosen.entry(matrix).or_default();
        if self.trials.are_on && TRIED_TOKENS.contains(&tokens) && !chosen.contains_key(&tokens) {
            chosen.insert(tokens, self.trials.fastest(&candidates(tokens), launch)?);
        }
        launch(choose(chosen, tokens, op.layout.rows, queue.multiprocessors()))
    }
}

fn candidates(tokens: usize) -> Vec<Way> {
    let mut ways = vec![Way::Tiled64];
    if tokens <= MOST_SKINNY_TOKENS {
        ways.push(Way::Skinny);
    }
    if tokens >= FEWEST_WIDE_TOKENS {
        ways.push(Way::Tiled128);
    }
    ways
}

/// Of the ways that trials chose for the same matrix, or an estimate.
fn choose(chosen: &BTreeMap<usize, Way>, tokens: usize, rows: usize, multiprocessors: u32) -> Way {
    let nearest = chosen.range(tokens..).next().filter(|_| TRIED_TOKENS.contains(&tokens));
    nearest.map_or_else(|| Way::dense(tokens, rows, multiprocessors), |(_, way)| *way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_tried_goes_as_the_next_that_was() {
        let chosen = BTreeMap::from([(64, Way::Skinny), (256, Way::Tiled64)]);
        let way = |tokens| choose(&chosen, tokens, 4096, 132);
        assert_eq!([48, 64, 65, 256].map(way), [Way::Skinny, Way::Skinny, Way::Tiled64, Way::Tiled64]);
        for tokens in [1, 32, 257, 4096] {
            assert_eq!(way(tokens), Way::dense(tokens, 4096, 132), "{tokens} tokens: nothing tells");
        }
    }

    #[test]
    fn what_is_estimated_is_among_what_is_tried() {
        for tokens in TRIED_TOKENS {
            for rows in [256, 4096, 28_672] {
                assert!(candidates(tokens).contains(&Way::dense(tokens, rows, 132)), "{tokens} tokens, {rows} rows");
            }
        }
    }
}
