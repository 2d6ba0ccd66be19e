//! Products of a weight matrix with at most eight tokens.

use crate::operands::{require, require_vectors};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// Of one launch.
pub const MOST_TOKENS: u32 = 8;

/// What the sums are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Bf16,
    F32,
}

/// `y = x w^T + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    /// bf16 or f32 `[tokens, rows]`.
    pub y: DevicePtr,
    pub output: Output,
    /// bf16 `[tokens, columns]`, aligned to 16 bytes.
    pub x: DevicePtr,
    /// bf16 `[rows, columns]`, aligned to 16 bytes.
    pub w: DevicePtr,
    /// f32 `[rows]`, or [`DevicePtr::NULL`].
    pub bias: DevicePtr,
    /// 1 to [`MOST_TOKENS`].
    pub tokens: u32,
    pub rows: u32,
    /// A multiple of 8.
    pub columns: u32,
}

impl Gemv {
    /// # Errors
    /// Sizes are out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const ROWS_A_BLOCK: u32 = 16;
        let kernel = match self.output {
            Output::Bf16 => "gemv_bf16",
            Output::F32 => "gemv_f32",
        };
        require_vectors(kernel, "columns", self.columns.into())?;
        require(kernel, (1..=MOST_TOKENS).contains(&self.tokens), || {
            format!("{} tokens, expected 1 to {MOST_TOKENS}; use a matrix product for more", self.tokens)
        })?;
        if self.rows == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel,
            grid: [self.rows.div_ceil(ROWS_A_BLOCK), 1, 1],
            threads: 256,
            shared_bytes: 0,
            args: &[
                self.y.into(),
                self.x.into(),
                self.w.into(),
                self.bias.into(),
                self.tokens.into(),
                self.rows.into(),
                self.columns.into(),
            ],
        })
    }
}
