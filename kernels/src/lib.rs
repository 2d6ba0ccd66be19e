//! Plimsoll's CUDA kernels and their host side: `<op>.cu` is the kernel, `<op>.rs` beside it plans and launches it over
//! raw addresses. The same sources and the same host code run on a CPU in `emu`, which is how they are tested where
//! there is no GPU.
//!
//! This crate knows addresses, shapes and dtypes. It must never know tensors, models or requests.

pub mod activation;
pub mod attention;
pub mod block_copy;
pub mod combine;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod embedding;
pub mod fill;
pub mod fp8;
pub mod gather_rows;
pub mod gemv;
mod launch;
pub mod logits;
mod operands;
pub mod packed;
pub mod rms_norm;
pub mod rope_kv_write;
pub mod route;
pub mod sample;
pub mod temperature;

pub use launch::{Arg, DevicePtr, Launch, LaunchError, Queue};
