//! Root mean square normalisation of rows, alone and fused with the residual additions around it.

use crate::operands::{require, require_vectors, threads_for};
use crate::{Arg, DevicePtr, Launch, LaunchError, Queue};

/// A thread holds 4 vectors of 8 elements, and a block has at most this many threads.
const MOST_THREADS: u32 = 512;
const HELD: u32 = 4;

/// The longest row.
pub const MOST_HIDDEN: u32 = MOST_THREADS * HELD * 8;

/// `out = rms_norm(x) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// bf16 `[rows, hidden]`; may be `x`.
    pub out: DevicePtr,
    /// bf16 `[rows, hidden]`.
    pub x: DevicePtr,
    /// f32 `[hidden]`.
    pub weight: DevicePtr,
    pub rows: u32,
    /// A multiple of 8, at most [`MOST_HIDDEN`].
    pub hidden: u32,
    pub eps: f32,
}

impl RmsNorm {
    /// # Errors
    /// `hidden` is out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let args = [self.out.into(), self.x.into(), self.weight.into(), self.hidden.into(), self.eps.into()];
        launch(queue, "rms_norm_bf16", self.rows, self.hidden, &args)
    }
}

/// `residual += branch`, rounded to bf16, and `normed = rms_norm(residual) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct AddRmsNorm {
    /// bf16 `[rows, hidden]`; may be `branch`.
    pub normed: DevicePtr,
    /// bf16 `[rows, hidden]`, updated in place.
    pub residual: DevicePtr,
    /// bf16 `[rows, hidden]`.
    pub branch: DevicePtr,
    /// f32 `[hidden]`.
    pub weight: DevicePtr,
    pub rows: u32,
    /// A multiple of 8, at most [`MOST_HIDDEN`].
    pub hidden: u32,
    pub eps: f32,
}

impl AddRmsNorm {
    /// # Errors
    /// `hidden` is out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let args = [
            self.normed.into(),
            self.residual.into(),
            self.branch.into(),
            self.weight.into(),
            self.hidden.into(),
            self.eps.into(),
        ];
        launch(queue, "add_rms_norm_bf16", self.rows, self.hidden, &args)
    }
}

/// `residual += rms_norm(branch) * post`, rounded to bf16 once, and `normed = rms_norm(residual) * weight`: the norms
/// after one block and before the next, where both are there.
#[derive(Clone, Copy, Debug)]
pub struct SandwichNorm {
    /// bf16 `[rows, hidden]`; may be `branch`.
    pub normed: DevicePtr,
    /// bf16 `[rows, hidden]`, updated in place.
    pub residual: DevicePtr,
    /// bf16 `[rows, hidden]`.
    pub branch: DevicePtr,
    /// f32 `[hidden]`: of the branch's norm.
    pub post: DevicePtr,
    /// f32 `[hidden]`: of the residual's norm.
    pub weight: DevicePtr,
    pub rows: u32,
    /// A multiple of 8, at most [`MOST_HIDDEN`].
    pub hidden: u32,
    pub eps: f32,
}

impl SandwichNorm {
    /// # Errors
    /// `hidden` is out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let args = [
            self.normed.into(),
            self.residual.into(),
            self.branch.into(),
            self.post.into(),
            self.weight.into(),
            self.hidden.into(),
            self.eps.into(),
        ];
        launch(queue, "sandwich_norm_bf16", self.rows, self.hidden, &args)
    }
}

fn launch(queue: &dyn Queue, kernel: &'static str, rows: u32, hidden: u32, args: &[Arg]) -> Result<(), LaunchError> {
    require_vectors(kernel, "hidden", hidden.into())?;
    require(kernel, hidden <= MOST_HIDDEN, || format!("hidden is {hidden}, expected at most {MOST_HIDDEN}"))?;
    if rows == 0 {
        return Ok(());
    }
    let threads = threads_for((hidden / 8).div_ceil(HELD), MOST_THREADS);
    queue.launch(&Launch { kernel, grid: [rows, 1, 1], threads, shared_bytes: 0, args })
}
