//! Times work on a stream by the device's own clock.

use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, sys};

use super::driver_error;

pub(super) struct Stopwatch<'a> {
    stream: &'a Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn new(stream: &'a Arc<CudaStream>) -> Result<Self> {
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            stream.context().new_event(Some(flags)).map_err(driver_error)
        };
        Ok(Self { stream, start: event()?, end: event()? })
    }

    /// Milliseconds that `work` takes, which is waited for.
    ///
    /// # Errors
    /// Its own, or the driver's.
    pub(super) fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.start.record(self.stream).map_err(driver_error)?;
        work()?;
        self.end.record(self.stream).map_err(driver_error)?;
        self.start.elapsed_ms(&self.end).map_err(driver_error)
    }
}
