//! Opening a GPU, and asking it what it has. In a build without CUDA there is none, and each answer says so.

/// Whether this build can use a GPU at all.
pub const IS_BUILT: bool = cfg!(feature = "cuda");

/// Why there is no GPU to use: one line that says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// What a GPU is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// As the driver names it.
    pub name: String,
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub total_memory: u64,
    /// Bytes free now, this process's own allocations taken.
    pub free_memory: u64,
}

/// Opens GPU number `ordinal` and loads all kernels for it. All work on it goes through one stream, in order; use it
/// from one thread at a time.
///
/// # Errors
/// This build has no CUDA, the machine has no driver, library or such GPU, or the GPU is too old.
#[cfg(not(feature = "cuda"))]
pub fn open(_ordinal: usize) -> Result<candle_core::Device, Unavailable> {
    Err(Unavailable("this program was built without CUDA; build it with --features cuda".to_owned()))
}

/// How many GPUs the driver lists, whether or not each can be opened.
///
/// # Errors
/// This build has no CUDA, or the machine has no driver or library.
#[cfg(not(feature = "cuda"))]
pub fn count() -> Result<usize, Unavailable> {
    open(0).map(|_| 0)
}

/// Where GPU number `ordinal` stands on the PCI bus, as `00000000:17:00.0`: by this other libraries of NVIDIA know it,
/// which number GPUs in an order of their own.
///
/// # Errors
/// As [`open`].
#[cfg(not(feature = "cuda"))]
pub fn pci_address(ordinal: usize) -> Result<String, Unavailable> {
    open(ordinal).map(|_| String::new())
}

/// What an opened GPU is and has.
///
/// # Errors
/// `device` is not one that [`open`] gave, or the driver fails.
#[cfg(not(feature = "cuda"))]
pub fn info(_device: &candle_core::Device) -> candle_core::Result<GpuInfo> {
    candle_core::bail!("this program was built without CUDA")
}

/// Gives memory that nothing uses back to the system, so that it can be had in other pieces.
///
/// # Errors
/// As [`info`].
#[cfg(not(feature = "cuda"))]
pub fn give_back_free_memory(_device: &candle_core::Device) -> candle_core::Result<()> {
    candle_core::bail!("this program was built without CUDA")
}

#[cfg(feature = "cuda")]
pub use crate::cuda::{
    Inbox, Mark, PinnedWords, count, empty, give_back_free_memory, in_arena, info, is_out_of_memory, open, pci_address,
    set_trying, synchronize,
};
