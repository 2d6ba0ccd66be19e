//! Copies between the host and a GPU that the host does not wait for, and marks in the stream that it can wait for.

use std::ops::Range;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaStream, sys};
use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Cuda, address, driver_error};

/// Words of host memory that the GPU reads and writes by itself.
pub struct PinnedWords {
    stream: Arc<CudaStream>,
    start: *mut u32,
    len: usize,
}

// SAFETY: it owns its memory, as a `Vec` does.
unsafe impl Send for PinnedWords {}

impl PinnedWords {
    /// `len` words, all 0.
    ///
    /// # Errors
    /// The system has no such memory left.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let stream = Cuda::of(device)?.stream().clone();
        stream.context().bind_to_thread().map_err(driver_error)?;
        let len = len.max(1);
        let mut start = std::ptr::null_mut();
        // SAFETY: the context is bound; the memory is initialized before it is used.
        unsafe {
            sys::cuMemHostAlloc(&mut start, len * size_of::<u32>(), 0).result().map_err(driver_error)?;
            start.cast::<u32>().write_bytes(0, len);
        }
        Ok(Self { stream, start: start.cast(), len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// No copy from or to it may be under way: wait for a [`Mark`] after the last one.
    pub fn as_slice(&self) -> &[u32] {
        // SAFETY: `start` is `len` initialized words, unaliased by the caller's word.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// As [`PinnedWords::as_slice`].
    pub fn as_mut_slice(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Queues a copy of `from`, 4 bytes an element, contiguous, to the words from `at` on.
    ///
    /// # Errors
    /// They are longer than what is left, or the driver fails.
    pub fn download(&mut self, at: usize, from: &Tensor) -> Result<()> {
        let words = from.elem_count();
        if at + words > self.len {
            bail!("download: words {at}..{} of {}", at + words, self.len);
        }
        self.stream.context().bind_to_thread().map_err(driver_error)?;
        let from = address("download", "the source", from, from.dtype())?;
        // SAFETY: as above.
        unsafe {
            let to = self.start.add(at).cast();
            sys::cuMemcpyDtoHAsync_v2(to, from.0, words * size_of::<u32>(), self.stream.cu_stream())
        }
        .result()
        .map_err(driver_error)
    }
}

impl Drop for PinnedWords {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_ok() && self.stream.synchronize().is_ok() {
            // SAFETY: allocated by `new`, given back once, and no copy is under way.
            unsafe { sys::cuMemFreeHost(self.start.cast()) };
        }
    }
}

/// Words on their way to the GPU: written on the host, sent beside whatever the GPU is computing, and there for the work
/// that is queued after they were sent.
pub struct Inbox {
    host: PinnedWords,
    /// u32 `[host.len()]`.
    memory: Tensor,
    copies: Arc<CudaStream>,
    sent: Mark,
}

impl Inbox {
    /// Room for `len` words.
    ///
    /// # Errors
    /// There is no memory for it, on the host or on the GPU.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let cuda = Cuda::of(device)?;
        let host = PinnedWords::new(device, len)?;
        let memory = cuda.empty(host.len(), DType::U32)?;
        // Its allocation is in the order of the one stream, and it is written from another.
        cuda.stream().synchronize().map_err(driver_error)?;
        let copies = cuda.copies.clone();
        let sent = Mark::on(&copies)?;
        Ok(Self { host, memory, copies, sent })
    }

    /// Makes room for `len` words. What was there is lost, and so is the place of it.
    ///
    /// # Errors
    /// As [`Inbox::new`].
    pub fn grow(&mut self, device: &Device, len: usize) -> Result<()> {
        if self.host.len() < len {
            *self = Self::new(device, len.next_power_of_two())?;
        }
        Ok(())
    }

    /// To be written. What was sent last must have been used: wait for a [`Mark`] after that work.
    pub fn words(&mut self) -> &mut [u32] {
        self.host.as_mut_slice()
    }

    /// Where the words arrive, u32.
    pub fn memory(&self) -> &Tensor {
        &self.memory
    }

    /// Sends these words to the same places in [`Inbox::memory`]. What is queued from now on finds them there.
    ///
    /// # Errors
    /// A range is outside, or the driver fails.
    pub fn send(&self, ranges: &[Range<usize>]) -> Result<()> {
        self.copies.context().bind_to_thread().map_err(driver_error)?;
        let memory = address("send", "the memory", &self.memory, DType::U32)?;
        for range in ranges {
            if range.start > range.end || range.end > self.host.len() {
                bail!("send: words {range:?} of {}", self.host.len());
            }
            let to = memory.byte_add(range.start * size_of::<u32>());
            // SAFETY: both ranges are inside their memory. The host's is neither changed nor given back before the work
            // that reads them is done, by the caller's word; the GPU's is given back in the order of that work.
            unsafe {
                let from = self.host.start.add(range.start).cast();
                sys::cuMemcpyHtoDAsync_v2(to.0, from, range.len() * size_of::<u32>(), self.copies.cu_stream())
            }
            .result()
            .map_err(driver_error)?;
        }
        self.sent.set()?;
        // SAFETY: stream and event are alive.
        unsafe { sys::cuStreamWaitEvent(self.host.stream.cu_stream(), self.sent.event, 0) }
            .result()
            .map_err(driver_error)
    }
}

/// A place in a GPU's stream.
pub struct Mark {
    stream: Arc<CudaStream>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread that has bound the context.
unsafe impl Send for Mark {}

impl Mark {
    /// # Errors
    /// The driver fails.
    pub fn new(device: &Device) -> Result<Self> {
        Self::on(Cuda::of(device)?.stream())
    }

    fn on(stream: &Arc<CudaStream>) -> Result<Self> {
        let stream = stream.clone();
        stream.context().bind_to_thread().map_err(driver_error)?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is bound.
        unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32) }
            .result()
            .map_err(driver_error)?;
        Ok(Self { stream, event })
    }

    /// Sets the mark behind all that has been queued.
    ///
    /// # Errors
    /// The driver fails.
    pub fn set(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver_error)?;
        // SAFETY: both are alive.
        unsafe { sys::cuEventRecord(self.event, self.stream.cu_stream()) }.result().map_err(driver_error)
    }

    /// Blocks until the GPU has come to the mark.
    ///
    /// # Errors
    /// Something before the mark failed: nothing on this GPU can be trusted any more.
    pub fn wait(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver_error)?;
        // SAFETY: it is alive.
        unsafe { sys::cuEventSynchronize(self.event) }.result().map_err(driver_error)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}
