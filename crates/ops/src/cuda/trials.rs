//! Finds out which of several ways to compute the same is fastest, by trying each: while a model is made ready.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaStream;

use super::driver_error;
use super::stopwatch::Stopwatch;

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
    /// waited for.
    ///
    /// # Errors
    /// Those of `run`, or the device's.
    pub(super) fn fastest<W: Copy>(&self, ways: &[W], run: impl Fn(W) -> Result<()>) -> Result<W> {
        let stopwatch = Stopwatch::new(&self.stream)?;
        // SAFETY: only written.
        let mut flushed = unsafe { self.stream.alloc::<u8>(FLUSH_BYTES) }.map_err(driver_error)?;
        let mut best = (f32::INFINITY, ways[0]);
        for &way in ways {
            for _ in 0..TRIES {
                self.stream.memset_zeros(&mut flushed).map_err(driver_error)?;
                let took = stopwatch.time(|| run(way))?;
                best = if took < best.0 { (took, way) } else { best };
            }
        }
        Ok(best.1)
    }
}
