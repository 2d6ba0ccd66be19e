//! Products of one packed matrix, by the kernel that trials have found fastest: when a shape first comes up while the server
//! starts.

use std::collections::HashMap;

use candle_core::Result;
use plimsoll_kernels::Queue as _;
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Format, Packed, TriedWays};

use super::launch_error;
use super::trials::Trials;

pub(super) struct PackedWays {
    pub(super) trials: Trials,
    tried: HashMap<Matrix, TriedWays>,
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
        Self { trials, tried: HashMap::new() }
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
        let tried = self.tried.entry(matrix).or_default();
        let open = tried.open(tokens);
        if self.trials.are_on && !open.is_empty() {
            tried.note(tokens, self.trials.fastest(&open, launch)?);
        }
        launch(tried.way(tokens, op.layout.rows, queue.multiprocessors()))
    }
}
