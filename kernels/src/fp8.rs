//! What cuBLASLt's products of fp8 matrices are handed: activations as fp8, and packed weights row by row.

use crate::operands::{require, threads_for};
use crate::packed::{Format, Layout, TILE_ROWS};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// Columns, and tokens, come in so many: what cuBLASLt asks of fp8 matrices.
pub const MULTIPLE: usize = 16;

/// Rows as e4m3 codes under a scale each, so that the largest of a row is the largest code, 448.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeRows {
    /// u8 `[padded_tokens, columns]`, aligned to 16 bytes.
    pub codes: DevicePtr,
    /// f32 `[padded_tokens]`.
    pub scales: DevicePtr,
    /// bf16 `[tokens, columns]`, aligned to 16 bytes.
    pub x: DevicePtr,
    pub tokens: u32,
    /// At least `tokens`; those that are none are zeros.
    pub padded_tokens: u32,
    /// A multiple of [`MULTIPLE`].
    pub columns: u32,
}

impl QuantizeRows {
    /// # Errors
    /// Sizes are out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "quantize_rows_fp8";
        require_columns(KERNEL, self.columns)?;
        require(KERNEL, self.padded_tokens >= self.tokens, || {
            format!("{} tokens with padding, which are fewer than {}", self.padded_tokens, self.tokens)
        })?;
        if self.padded_tokens == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.padded_tokens, 1, 1],
            threads: threads_for(self.columns / MULTIPLE as u32, 512),
            shared_bytes: 0,
            args: &[self.codes.into(), self.scales.into(), self.x.into(), self.tokens.into(), self.columns.into()],
        })
    }
}

/// Codes of [`Format::Fp8`], as [`Layout`] has them, row by row.
#[derive(Clone, Copy, Debug)]
pub struct UnpackRows {
    /// u8 `[rows, columns]`, aligned to 16 bytes.
    pub rows_out: DevicePtr,
    /// Whole tiles, aligned to 16 bytes.
    pub codes: DevicePtr,
    pub rows: u32,
    /// A multiple of 32.
    pub columns: u32,
}

impl UnpackRows {
    /// # Errors
    /// Sizes are out of range, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "unpack_rows_fp8";
        /// A warp's 64, and eight warps.
        const BLOCK_COLUMNS: u32 = 512;
        require(KERNEL, self.columns > 0 && self.columns.is_multiple_of(32), || {
            format!("{} columns, expected a multiple of 32", self.columns)
        })?;
        if self.rows == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.rows.div_ceil(TILE_ROWS as u32), self.columns.div_ceil(BLOCK_COLUMNS), 1],
            threads: 256,
            shared_bytes: 0,
            args: &[self.rows_out.into(), self.codes.into(), self.rows.into(), self.columns.into()],
        })
    }
}

/// What the codes of each row are multiplied by, of all the scales of a matrix of [`Format::Fp8`] as [`Layout`] has them;
/// `None` where a row has several.
///
/// # Panics
/// `scales` are not [`Layout::scale_bytes`].
pub fn row_factors(layout: &Layout, scales: &[u8]) -> Option<Vec<f32>> {
    assert_eq!(scales.len(), layout.scale_bytes(), "scales of a matrix");
    if layout.format != Format::Fp8 || layout.group < layout.columns {
        return None;
    }
    let factor = |row: usize| {
        let at = layout.scale_word_at(row, 0);
        // The lowest byte is the code of zero, which is 0 of fp8.
        f32::from_le_bytes([scales[at], scales[at + 1], scales[at + 2], scales[at + 3]])
    };
    Some((0..layout.rows).map(factor).collect())
}

fn require_columns(kernel: &'static str, columns: u32) -> Result<(), LaunchError> {
    require(kernel, columns > 0 && columns.is_multiple_of(MULTIPLE as u32), || {
        format!("{columns} columns, expected a multiple of {MULTIPLE}")
    })
}
