//! Products with packed weights, of one matrix or of a mixture's experts: `packed_<format>.cu`, and how the weights lie
//! ([`Layout`]).

mod ggml;
mod layout;
mod order;
mod tried;

use crate::gemv::Output;
use crate::operands::require;
use crate::{DevicePtr, Launch, LaunchError, Queue};

pub use ggml::{Ggml, Scaling};
pub use layout::{Layout, TILE_ROWS, scale_word};
pub use order::Order;
pub use tried::TriedWays;

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Themselves.
    Bf16,
    /// E2M1, with a power of two for each 32.
    Mxfp4,
    /// `(code - zero) * scale`, four bits.
    Int4,
    /// As `Int4`, eight bits.
    Int8,
    /// e4m3, times a scale.
    Fp8,
    /// `(code - zero) * factor + minimum`.
    Ggml(Ggml),
}

/// Which kernel: by how many positions a matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Few: items of 8.
    Skinny,
    /// Some: items of 64.
    Tiled64,
    /// Many: items of 128.
    Tiled128,
}

impl Way {
    /// The one that should be fastest for so many tokens by one matrix of so many rows. `Skinny` decodes a code for every
    /// 8 tokens, which from some 32 on is too much work; but where tiles would leave more than half of the GPU idle, less
    /// than what they waste. An estimate.
    pub fn dense(tokens: usize, rows: usize, multiprocessors: u32) -> Self {
        let tiled = if tokens <= 64 { Way::Tiled64 } else { Way::Tiled128 };
        let blocks = tokens.div_ceil(tiled.item_rows() as usize) * rows.div_ceil(tiled.block_rows() as usize);
        let leaves_idle = 2 * blocks <= multiprocessors as usize;
        if tokens <= 32 || tokens <= 128 && leaves_idle { Way::Skinny } else { tiled }
    }

    /// The most positions of an item.
    pub fn item_rows(self) -> u32 {
        match self {
            Way::Skinny => 8,
            Way::Tiled64 => 64,
            Way::Tiled128 => 128,
        }
    }

    /// Rows of weights a block: `ROWS` of packed/tiled.cuh.
    fn block_rows(self) -> u32 {
        match self {
            Way::Skinny => 16,
            Way::Tiled64 => 256,
            Way::Tiled128 => 128,
        }
    }
}

/// What becomes of the rows of a tile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// They are stored.
    None,
    /// Row `n` is a gate, and row `rows / 2 + n` its up: `silu(gate) * up` is stored.
    SiluMul,
    /// Likewise `(up + 1) * gate * sigmoid(alpha * gate)`, after `gate` was capped at `limit` and `up` clamped to
    /// `-limit..=limit`.
    ClampedSwiglu { alpha: f32, limit: f32 },
}

/// Whose rows are multiplied, and by which matrix.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// So many rows of x, all by the one matrix.
    Dense {
        tokens: u32,
        /// Elements from a row of y to the next, a multiple of 8: more than it has where others stand beside them.
        stride: u32,
    },
    /// What [`crate::route::Route`] found for this way, at most `items` items.
    Experts {
        /// The part of its plan that goes this way.
        plan: DevicePtr,
        /// Its slots.
        slots: DevicePtr,
        items: u32,
        /// Rows of x are tokens, with so many slots each; 0: rows are positions.
        top: u32,
        /// Rows of y are slots; else positions.
        scatters: bool,
        /// f32 `[slots]` that x is multiplied by, or [`DevicePtr::NULL`].
        input_weights: DevicePtr,
    },
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// `[.., rows]`, or half as many columns where the activation takes two; aligned to 16 bytes.
    pub y: DevicePtr,
    pub output: Output,
    /// bf16 `[.., columns]`, aligned to 16 bytes.
    pub x: DevicePtr,
    /// Of all matrices, one after the other; aligned to 16 bytes.
    pub codes: DevicePtr,
    /// Likewise. Nothing for [`Format::Bf16`].
    pub scales: DevicePtr,
    /// f32 `[matrices, rows]`, or [`DevicePtr::NULL`].
    pub bias: DevicePtr,
    /// Of each matrix.
    pub layout: Layout,
    pub activation: Activation,
    pub way: Way,
    pub work: Work,
}

impl Packed {
    /// # Errors
    /// Sizes that the kernels were not made for, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let kernel = self.kernel();
        let Layout { rows, columns, .. } = self.layout;
        let checked = self.layout.check();
        require(kernel, checked.is_ok(), || checked.err().unwrap_or_default())?;
        let gated = self.activation != Activation::None;
        require(kernel, !gated || rows.is_multiple_of(32), || {
            format!("{rows} rows of gates and ups, expected a multiple of 32")
        })?;
        // Few positions: a tile of gates and the one of their ups are one block's.
        let tiles = if gated && self.way == Way::Skinny { 2 } else { 1 };
        let blocks = (rows as u32).div_ceil(tiles * self.way.block_rows());
        let (grid, positions) = match self.work {
            Work::Dense { tokens, .. } => ([tokens.div_ceil(self.way.item_rows()), blocks, 1], tokens),
            Work::Experts { items, .. } => ([blocks, items, 1], 0),
        };
        require(kernel, grid[1] <= u32::from(u16::MAX), || format!("a grid of {grid:?} blocks is too large"))?;
        if grid[0] == 0 || grid[1] == 0 {
            return Ok(());
        }
        let none = DevicePtr::NULL;
        let (plan, slots, top, scatters, input_weights) = match self.work {
            Work::Dense { .. } => (none, none, 0, false, none),
            Work::Experts { plan, slots, top, scatters, input_weights, .. } => {
                (plan, slots, top, scatters, input_weights)
            }
        };
        let width = if gated { rows / 2 } else { rows } as u32;
        let stride = if let Work::Dense { stride, .. } = self.work { stride } else { width };
        require(kernel, stride >= width && stride.is_multiple_of(8), || {
            format!("rows of y {stride} elements apart: a multiple of 8 from {width} on is needed")
        })?;
        let (activation, alpha, limit) = match self.activation {
            Activation::None => (0u32, 0.0, 0.0),
            Activation::SiluMul => (1, 0.0, 0.0),
            Activation::ClampedSwiglu { alpha, limit } => (2, alpha, limit),
        };
        queue.launch(&Launch {
            kernel,
            grid,
            threads: 256,
            shared_bytes: self.shared_bytes(),
            args: &[
                self.y.into(),
                self.x.into(),
                self.codes.into(),
                self.scales.into(),
                self.bias.into(),
                plan.into(),
                slots.into(),
                input_weights.into(),
                positions.into(),
                (rows as u32).into(),
                (columns as u32).into(),
                self.layout.scaling().into(),
                top.into(),
                u32::from(scatters).into(),
                activation.into(),
                alpha.into(),
                limit.into(),
                u32::from(self.output == Output::F32).into(),
                stride.into(),
            ],
        })
    }

    /// The constants of `Tiled` in packed/tiled.cuh.
    fn shared_bytes(&self) -> u32 {
        let x = match self.way {
            Way::Skinny => return 0,
            Way::Tiled64 => 8 << 10,
            Way::Tiled128 => 16 << 10,
        };
        let tiles = self.way.block_rows() / 16;
        let codes = tiles * 128 * self.layout.format.bits() as u32;
        let scales = match self.layout.format {
            Format::Bf16 => 0,
            Format::Mxfp4 => tiles * 32,
            Format::Ggml(ggml) => tiles * 16 * ggml.scale_parts(),
            _ => tiles * 128,
        };
        let stage = x + codes + scales;
        let stages = match stage {
            0..=0x6000 => 4,
            0x6001..=0x8000 => 3,
            _ => 2,
        };
        stages * stage
    }

    fn kernel(&self) -> &'static str {
        let [skinny, tiled64, tiled128] = match self.layout.format {
            Format::Bf16 => ["packed_skinny_bf16", "packed_tiled64_bf16", "packed_tiled128_bf16"],
            Format::Mxfp4 => ["packed_skinny_mxfp4", "packed_tiled64_mxfp4", "packed_tiled128_mxfp4"],
            Format::Int4 => ["packed_skinny_int4", "packed_tiled64_int4", "packed_tiled128_int4"],
            Format::Int8 => ["packed_skinny_int8", "packed_tiled64_int8", "packed_tiled128_int8"],
            Format::Fp8 => ["packed_skinny_fp8", "packed_tiled64_fp8", "packed_tiled128_fp8"],
            Format::Ggml(Ggml::Q2K | Ggml::Q3K) => ["packed_skinny_q3", "packed_tiled64_q3", "packed_tiled128_q3"],
            Format::Ggml(Ggml::Q4_0 | Ggml::Q4_1 | Ggml::Q4K) => {
                ["packed_skinny_q4", "packed_tiled64_q4", "packed_tiled128_q4"]
            }
            Format::Ggml(Ggml::Q5_0 | Ggml::Q5_1 | Ggml::Q5K) => {
                ["packed_skinny_q5", "packed_tiled64_q5", "packed_tiled128_q5"]
            }
            Format::Ggml(Ggml::Q6K) => ["packed_skinny_q6", "packed_tiled64_q6", "packed_tiled128_q6"],
            Format::Ggml(Ggml::Q8_0) => ["packed_skinny_q8", "packed_tiled64_q8", "packed_tiled128_q8"],
        };
        match self.way {
            Way::Skinny => skinny,
            Way::Tiled64 => tiled64,
            Way::Tiled128 => tiled128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_s_way_leaves_no_gpu_half_idle_that_another_would_fill() {
        use Way::{Skinny, Tiled64, Tiled128};
        for (tokens, rows, multiprocessors, way) in [
            (1, 28_672, 132, Skinny),
            (32, 28_672, 132, Skinny),
            // 16, 32 and 112 blocks of 256 rows.
            (33, 4096, 132, Skinny),
            (64, 4096, 132, Skinny),
            (64, 8192, 132, Skinny),
            (64, 28_672, 132, Tiled64),
            (64, 4096, 20, Tiled64),
            // 32, 64 and 68 blocks of 128 rows.
            (65, 4096, 132, Skinny),
            (128, 4096, 132, Skinny),
            (128, 8192, 132, Skinny),
            (128, 8704, 132, Tiled128),
            (65, 28_672, 132, Tiled128),
            (129, 4096, 132, Tiled128),
            (4096, 4096, 132, Tiled128),
        ] {
            assert_eq!(Way::dense(tokens, rows, multiprocessors), way, "{tokens} tokens, {rows} rows");
        }
    }
}
