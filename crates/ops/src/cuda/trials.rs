//! Finds out which of several ways to compute the same is fastest, by trying each: while a model is made ready.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

use super::stopwatch::Stopwatch;
use super::{driver_error, is_out_of_memory};

/// Larger than any GPU's cache: written between tries, so that weights are read from memory as in a model's step.
const FLUSH_BYTES: usize = 128 << 20;

/// Each way is tried so often; its best time counts.
const TRIES: usize = 3;

/// Whether there are to be trials, and where.
pub(super) struct Trials {
    stream: Arc<CudaStream>,
    pub(super) are_on: bool,
}

impl Trials {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, are_on: true }
    }

    /// The fastest of `ways`, of which there is one at least, and all of which give the same; `run` queues one. All are
    /// waited for. One that fails is passed over; where memory lacks for trials, it is the first.
    ///
    /// # Errors
    /// All of them fail, for the last one's reason.
    pub(super) fn fastest<W: Copy>(&self, ways: &[W], run: impl Fn(W) -> Result<()>) -> Result<W> {
        // SAFETY: only written.
        let mut flushed = match unsafe { self.stream.alloc::<u8>(FLUSH_BYTES) }.map_err(driver_error) {
            Err(error) if is_out_of_memory(&error) => return Ok(ways[0]),
            flushed => flushed?,
        };
        let (mut best, mut failed) = (None, None);
        for &way in ways {
            match self.time(&mut flushed, || run(way)) {
                Ok(took) if best.is_some_and(|(least, _)| took >= least) => {}
                Ok(took) => best = Some((took, way)),
                Err(error) => failed = Some(error),
            }
        }
        match (best, failed) {
            (None, Some(error)) => Err(error),
            (best, _) => Ok(best.map_or(ways[0], |(_, way)| way)),
        }
    }

    /// The least of the milliseconds that `work` takes.
    fn time(&self, flushed: &mut CudaSlice<u8>, work: impl Fn() -> Result<()>) -> Result<f32> {
        let stopwatch = Stopwatch::new(&self.stream)?;
        let mut least = f32::INFINITY;
        for _ in 0..TRIES {
            self.stream.memset_zeros(flushed).map_err(driver_error)?;
            least = least.min(stopwatch.time(&work)?);
        }
        Ok(least)
    }
}
