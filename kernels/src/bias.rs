//! Biases of products that cuBLASLt computed.

use crate::gemv::Output;
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// `y = y + bias`.
#[derive(Clone, Copy, Debug)]
pub struct AddBias {
    /// bf16 or f32 `[tokens, rows]`, in place.
    pub y: DevicePtr,
    pub output: Output,
    /// f32 `[rows]`.
    pub bias: DevicePtr,
    pub tokens: u32,
    pub rows: u32,
}

impl AddBias {
    /// # Errors
    /// The device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const THREADS: u32 = 256;
        let kernel = match self.output {
            Output::Bf16 => "add_bias_bf16",
            Output::F32 => "add_bias_f32",
        };
        if self.tokens == 0 || self.rows == 0 {
            return Ok(());
        }
        let parts = self.rows.div_ceil(4 * THREADS);
        queue.launch(&Launch {
            kernel,
            grid: [self.tokens, parts, 1],
            threads: THREADS,
            shared_bytes: 0,
            args: &[self.y.into(), self.bias.into(), self.rows.into()],
        })
    }
}
