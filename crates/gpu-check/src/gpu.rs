//! The GPU as checks and timings see it: launches, and memory that lasts as long as one item.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _, sys};
use plimsoll_kernel_checks::TestDevice;
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::{DevicePtr, Queue};

use plimsoll_gpu_check::scale::Scale;

/// An opened GPU.
pub(crate) struct Gpu {
    pub(crate) device: candle_core::Device,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) queue: CudaQueue,
    pub(crate) scale: &'static Scale,
}

impl Gpu {
    pub(crate) fn open(scale: &'static Scale) -> Result<Self> {
        let device = plimsoll_ops::gpu::open(0)?;
        let stream = device.as_cuda_device()?.cuda_stream();
        let queue = CudaQueue::new(stream.clone()).context("the kernels do not load")?;
        Ok(Self { device, stream, queue, scale })
    }

    /// Bytes of its second-level cache.
    pub(crate) fn cache_bytes(&self) -> Result<u64> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        Ok(self.stream.context().attribute(attribute)?.max(0) as u64)
    }

    /// Whether later launches can be trusted: an illegal access, for one, spoils all that comes after it.
    pub(crate) fn is_well(&self) -> bool {
        self.stream.synchronize().is_ok()
    }

    pub(crate) fn memory(&self) -> Memory<'_> {
        Memory { gpu: self, buffers: RefCell::new(Vec::new()) }
    }
}

/// Buffers on the GPU, freed with the value.
pub(crate) struct Memory<'a> {
    gpu: &'a Gpu,
    buffers: RefCell<Vec<CudaSlice<u8>>>,
}

impl Memory<'_> {
    fn try_upload(&self, bytes: &[u8]) -> Result<DevicePtr> {
        let stream = &self.gpu.stream;
        // SAFETY: all of it is written at once, below, but for the byte that an empty buffer has.
        let mut buffer = unsafe { stream.alloc::<u8>(bytes.len().max(1)) }
            .with_context(|| format!("no {} bytes on the GPU", bytes.len()))?;
        if !bytes.is_empty() {
            stream.memcpy_htod(bytes, &mut buffer)?;
        }
        let at = DevicePtr(buffer.device_ptr(stream).0);
        self.buffers.borrow_mut().push(buffer);
        Ok(at)
    }

    fn try_download(&self, at: DevicePtr, len: usize) -> Result<Vec<u8>> {
        let stream = &self.gpu.stream;
        let mut bytes = vec![0; len];
        // SAFETY: the case asks for memory that it was given; the copy is over before `bytes` is handed on.
        unsafe { cudarc::driver::result::memcpy_dtoh_async(&mut bytes, at.0, stream.cu_stream()) }?;
        stream.synchronize()?;
        Ok(bytes)
    }
}

impl TestDevice for Memory<'_> {
    fn queue(&self) -> &dyn Queue {
        &self.gpu.queue
    }

    fn upload(&self, bytes: &[u8]) -> DevicePtr {
        self.try_upload(bytes).unwrap_or_else(|error| panic!("upload: {error:#}"))
    }

    fn download(&self, at: DevicePtr, len: usize) -> Vec<u8> {
        self.try_download(at, len).unwrap_or_else(|error| panic!("download: {error:#}"))
    }
}
