//! Queries made longer with their position.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// `q[t]` times `ln(1 + floor((position + 1) / floor_scale)) * attn_scale + 1`.
#[derive(Clone, Copy, Debug)]
pub struct ScaleQueries {
    /// bf16 `[tokens, width]`, in place.
    pub q: DevicePtr,
    /// u32 `[tokens]`.
    pub positions: DevicePtr,
    pub tokens: u32,
    /// Heads times head dimension: a multiple of 8.
    pub width: u32,
    /// Above 0.
    pub floor_scale: f32,
    pub attn_scale: f32,
}

impl ScaleQueries {
    /// # Errors
    /// `width` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "scale_queries_bf16";
        require_vectors(KERNEL, "width", self.width.into())?;
        if self.tokens == 0 {
            return Ok(());
        }
        let threads = threads_for(self.width / 8, 256);
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.tokens, (self.width / 8).div_ceil(threads), 1],
            threads,
            shared_bytes: 0,
            args: &[
                self.q.into(),
                self.positions.into(),
                self.width.into(),
                self.floor_scale.into(),
                self.attn_scale.into(),
            ],
        })
    }
}
