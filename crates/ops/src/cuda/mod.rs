//! What the ops share on a GPU: the opened devices with their kernels and matrix products, and the addresses of tensors.

mod arena;
mod bias;
mod lt_problem;
mod matmul;
mod packed_ways;
mod preflight;
mod stopwatch;
mod transfer;
mod trials;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _, DeviceRepr, sys};
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Storage, Tensor, bail};
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::packed::Packed;
use plimsoll_kernels::{DevicePtr, LaunchError};

use crate::gpu::{GpuInfo, Unavailable};
use arena::Arena;
pub(crate) use bias::{Bias, upload_bias};
use matmul::Matmul;
pub(crate) use matmul::{Inputs, Operands, Product};
use packed_ways::PackedWays;
pub use preflight::{count, pci_address};
pub use transfer::{Inbox, Mark, PinnedWords};
use trials::Trials;

/// What [`Cuda::scratch`] holds: a part of what a Hopper's L2 cache does.
pub(crate) const SCRATCH_BYTES: usize = 32 << 20;

/// An opened GPU.
pub(crate) struct Cuda {
    device: CudaDevice,
    queue: CudaQueue,
    /// For copies from the host, beside the work of the one stream.
    copies: Arc<CudaStream>,
    matmul: Mutex<Matmul>,
    packed_ways: Mutex<PackedWays>,
    arena: Mutex<Option<Arena>>,
    /// u8; once it was asked for.
    scratch: Mutex<Option<Tensor>>,
}

/// All of them; a handful at most.
static OPENED: Mutex<Vec<(DeviceId, Arc<Cuda>)>> = Mutex::new(Vec::new());

/// See [`crate::gpu::open`].
///
/// # Errors
/// As said there.
pub fn open(ordinal: usize) -> std::result::Result<Device, Unavailable> {
    preflight::check(ordinal)?;
    let opened = Device::new_cuda_with_stream(ordinal).and_then(|device| {
        let cuda = Cuda::new(device.as_cuda_device()?.clone())?;
        OPENED.lock().unwrap_or_else(PoisonError::into_inner).push((cuda.device.id(), Arc::new(cuda)));
        Ok(device)
    });
    opened.map_err(|error| Unavailable(format!("GPU {ordinal} cannot be used: {error}")))
}

/// See [`crate::gpu::info`].
///
/// # Errors
/// As said there.
pub fn info(device: &Device) -> Result<GpuInfo> {
    use plimsoll_kernels::Queue;
    let cuda = Cuda::of(device)?;
    let context = cuda.stream().context().clone();
    let (major, minor) = context.compute_capability().map_err(driver_error)?;
    let (free, total) = context.mem_get_info().map_err(driver_error)?;
    Ok(GpuInfo {
        name: context.name().map_err(driver_error)?,
        compute_capability: (major as u32, minor as u32),
        multiprocessors: cuda.queue.multiprocessors(),
        total_memory: total as u64,
        free_memory: free as u64,
    })
}

/// A new tensor whose elements are whatever the memory held: write every one before it is read.
///
/// # Errors
/// The GPU is out of memory, or was not opened by [`open`].
pub fn empty(device: &Device, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    Cuda::of(device)?.empty(shape, dtype)
}

/// Blocks until all that was queued is done.
///
/// # Errors
/// Some of it failed.
pub fn synchronize(device: &Device) -> Result<()> {
    Cuda::of(device)?.stream().synchronize().map_err(driver_error)
}

/// Runs `work` with its activations in `memory`, bf16, one beside the other as far as it reaches, instead of allocated and
/// freed. They are not to be used afterwards.
///
/// # Errors
/// Those of `work`, or `device` was not opened by [`open`].
pub fn in_arena<T>(device: &Device, memory: &Tensor, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let cuda = Cuda::of(device)?;
    let set = |arena| *cuda.arena.lock().unwrap_or_else(PoisonError::into_inner) = arena;
    set(Some(Arena::new(memory.clone())));
    let result = work();
    set(None);
    result
}

/// Whether new shapes of products are tried out from now on: while a model is made ready, and not when requests wait.
///
/// # Errors
/// `device` was not opened by [`open`].
pub fn set_trying(device: &Device, tries: bool) -> Result<()> {
    let cuda = Cuda::of(device)?;
    cuda.matmul.lock().unwrap_or_else(PoisonError::into_inner).trials.are_on = tries;
    cuda.packed_ways.lock().unwrap_or_else(PoisonError::into_inner).trials.are_on = tries;
    Ok(())
}

/// Whether an operation failed for want of the GPU's memory, and nothing else is wrong.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let text = format!("{error:?}");
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| text.contains(name))
}

/// Gives memory that nothing uses back to the system, so that it can be had in other pieces.
///
/// # Errors
/// The driver fails.
pub fn give_back_free_memory(device: &Device) -> Result<()> {
    synchronize(device)?;
    let cuda = Cuda::of(device)?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is open, and all its work is done.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, cuda.stream().context().cu_device())
            .result()
            .and_then(|()| sys::cuMemPoolTrimTo(pool, 0).result())
    }
    .map_err(driver_error)
}

impl Cuda {
    fn new(device: CudaDevice) -> Result<Self> {
        // SAFETY: all work on this device goes through its one stream, so nothing needs the events. Captured launches
        // must not wait for events from before the capture.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        keep_freed_memory(&stream).map_err(driver_error)?;
        let queue = CudaQueue::new(stream.clone()).map_err(driver_error)?;
        let copies = stream.context().new_stream().map_err(driver_error)?;
        let packed_ways = Mutex::new(PackedWays::new(Trials::new(stream.clone())));
        let matmul = Mutex::new(Matmul::new(stream)?);
        Ok(Self { device, queue, copies, matmul, packed_ways, arena: Mutex::new(None), scratch: Mutex::new(None) })
    }

    /// The opened GPU that a tensor's device is.
    ///
    /// # Errors
    /// It was not opened by [`open`].
    pub(crate) fn of(device: &Device) -> Result<Arc<Self>> {
        let id = device.as_cuda_device()?.id();
        let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        match opened.iter().find(|(known, _)| *known == id) {
            Some((_, cuda)) => Ok(cuda.clone()),
            None => bail!("this GPU was not opened by gpu::open, so its kernels are not loaded"),
        }
    }

    /// Where kernels are launched.
    pub(crate) fn queue(&self) -> &CudaQueue {
        &self.queue
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        self.queue.stream()
    }

    /// `y = x W^T + bias`: `x` bf16 `[m, k]`, `weight` bf16 `[n, k]`, `bias` `[n]`, `y` `[m, n]`, bf16 or f32; all
    /// contiguous.
    ///
    /// # Errors
    /// Other shapes or layouts, or a device failure.
    pub(crate) fn matmul(&self, x: &Tensor, weight: &Tensor, bias: Option<&Bias>, y: &Tensor) -> Result<()> {
        if y.dims() != [x.dim(0)?, weight.dim(0)?] {
            bail!("linear: x is {:?}, weight {:?}, y {:?}", x.shape(), weight.shape(), y.shape());
        }
        self.matmul_to(x, weight, bias, address("linear", "y", y, y.dtype())?, y.dtype())
    }

    /// As [`Cuda::matmul`], to memory with room for `[m, n]` of `out`.
    ///
    /// # Errors
    /// As said there.
    pub(crate) fn matmul_to(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Bias>,
        y: DevicePtr,
        out: DType,
    ) -> Result<()> {
        let ((m, k), (n, columns)) = (x.dims2()?, weight.dims2()?);
        if k != columns || bias.is_some_and(|bias| bias.tensor().dims() != [n]) {
            let bias = bias.map(|bias| bias.tensor().shape());
            bail!("linear: x is {:?}, weight {:?}, bias {bias:?}", x.shape(), weight.shape());
        }
        if m == 0 {
            return Ok(());
        }
        let address_of_bias = |dtype| bias.map_or(Ok(DevicePtr::NULL), |bias| bias.address(dtype));
        let operands = Operands {
            x: address("linear", "x", x, DType::BF16)?,
            weight: address("linear", "weight", weight, DType::BF16)?,
            x_scales: DevicePtr::NULL,
            weight_scales: DevicePtr::NULL,
            bias: address_of_bias(DType::F32)?,
            bias_as_y: address_of_bias(out)?,
            y,
        };
        let product = Product { m, n, k, pitch: n, inputs: Inputs::Bf16, out, has_bias: bias.is_some() };
        self.multiply(operands, product)
    }

    /// Queues a product.
    ///
    /// # Errors
    /// cuBLASLt has no way to compute it, or the device fails.
    pub(crate) fn multiply(&self, operands: Operands, product: Product) -> Result<()> {
        self.matmul.lock().unwrap_or_else(PoisonError::into_inner).run(&self.queue, operands, product)
    }

    /// Whether cuBLASLt has a way to compute a product, which a shape's first one may try, whatever the operands hold.
    ///
    /// # Errors
    /// The device fails.
    pub(crate) fn can_multiply(&self, operands: Operands, product: Product) -> Result<bool> {
        self.matmul.lock().unwrap_or_else(PoisonError::into_inner).find(&self.queue, operands, product)
    }

    /// Queues a product of one packed matrix with so many tokens, by the kernel that is fastest for them.
    ///
    /// # Errors
    /// As [`Packed::run`].
    pub(crate) fn multiply_packed(&self, op: Packed, tokens: usize) -> Result<()> {
        self.packed_ways.lock().unwrap_or_else(PoisonError::into_inner).run(&self.queue, op, tokens)
    }

    /// Whether cuBLASLt multiplies fp8 matrices with a scale for each row: on Hopper alone.
    ///
    /// # Errors
    /// The driver fails.
    pub(crate) fn has_fp8_rows(&self) -> Result<bool> {
        Ok(self.stream().context().compute_capability().map_err(driver_error)? == (9, 0))
    }

    /// The memory, u8 `[SCRATCH_BYTES]`, that ops share which fill and read it within one turn on the stream.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub(crate) fn scratch(&self) -> Result<Tensor> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = &*scratch {
            return Ok(tensor.clone());
        }
        // SAFETY: whoever reads it has filled it.
        let tensor = unsafe { Tensor::empty(SCRATCH_BYTES, DType::U8, &Device::Cuda(self.device.clone())) }?;
        Ok(scratch.insert(tensor).clone())
    }

    /// A new tensor whose elements are whatever the memory held: every one must be written.
    ///
    /// # Errors
    /// The GPU is out of memory.
    pub(crate) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let (shape, device) = (shape.into(), Device::Cuda(self.device.clone()));
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = arena.as_mut().and_then(|arena| arena.take(&shape, dtype).transpose()) {
            return tensor;
        }
        // The driver has no allocations of nothing.
        let held = if shape.elem_count() == 0 { Shape::from(1) } else { shape.clone() };
        // SAFETY: each op that asks for one writes all of it, which the kernels' checks look at.
        let tensor = unsafe { Tensor::empty(held, dtype, &device) }?;
        if shape.elem_count() == 0 { tensor.narrow(0, 0, 0)?.reshape(shape) } else { Ok(tensor) }
    }
}

/// Memory that is freed stays with the process's pool instead of going back to the system at each synchronization.
fn keep_freed_memory(stream: &Arc<CudaStream>) -> std::result::Result<(), sys::CUresult> {
    let check = |status: sys::CUresult| if status == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(status) };
    let mut pool = std::ptr::null_mut();
    let mut everything = u64::MAX;
    // SAFETY: the device is open; the attribute is a u64, as the driver's documentation says.
    unsafe {
        check(sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device()))?;
        check(sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut everything).cast(),
        ))
    }
}

/// The address of a contiguous tensor's first element.
///
/// # Errors
/// It is elsewhere, of another dtype, or has strides: the message names `op` and `operand`.
pub(crate) fn address(op: &str, operand: &str, tensor: &Tensor, dtype: DType) -> Result<DevicePtr> {
    if tensor.dtype() != dtype {
        bail!("{op}: {operand} is {:?}, convert it to {dtype:?}", tensor.dtype());
    }
    if !tensor.is_contiguous() {
        bail!("{op}: {operand} {:?} is not contiguous, call contiguous() first", tensor.shape());
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("{op}: {operand} is not on the GPU") };
    let stream = storage.device.cuda_stream();
    let start = match &storage.slice {
        CudaStorageSlice::BF16(slice) => start(slice, &stream),
        CudaStorageSlice::F16(slice) => start(slice, &stream),
        CudaStorageSlice::F32(slice) => start(slice, &stream),
        CudaStorageSlice::U32(slice) => start(slice, &stream),
        CudaStorageSlice::U8(slice) => start(slice, &stream),
        CudaStorageSlice::F8E4M3(slice) => start(slice, &stream),
        _ => bail!("{op}: {operand} is {dtype:?}, which no kernel takes"),
    };
    Ok(DevicePtr(start).byte_add(layout.start_offset() * dtype.size_in_bytes()))
}

fn start<T: DeviceRepr>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// A driver's failure as the tensor library's error.
pub(crate) fn driver_error(error: impl std::fmt::Debug) -> candle_core::Error {
    candle_core::Error::Msg(format!("the CUDA driver failed: {error:?}"))
}

/// A refused launch likewise.
pub(crate) fn launch_error(error: LaunchError) -> candle_core::Error {
    candle_core::Error::Msg(error.to_string())
}
