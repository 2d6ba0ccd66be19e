//! Which executor runs on a device.

use candle_core::{Device, Result};
use plimsoll_core::Executor;
use plimsoll_nn::{KvCache, Model, ModelInfo};

use crate::{Runner, RunnerConfig};

/// The executor for a model and a cache that are on `device`. On a GPU it prepares the decode steps, which takes a
/// while: `progress` is told how many are done and how many there are.
///
/// # Errors
/// The GPU's memory does not suffice, or it has no kernels for the model's layers.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "there is only the CPU's"))]
pub fn executor(
    model: Box<dyn Model>,
    cache: KvCache,
    info: &ModelInfo,
    config: RunnerConfig,
    device: &Device,
    progress: impl Fn(usize, usize),
) -> Result<Box<dyn Executor>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(Box::new(crate::gpu::GpuRunner::new(model, cache, info, config, device, progress)?));
    }
    Ok(Box::new(Runner::new(model, cache, config)))
}
