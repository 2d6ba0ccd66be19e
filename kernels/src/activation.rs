//! Gated activations over the packed output of a gate-up projection, and plain sums.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

const MOST_THREADS: u32 = 256;

/// What a gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

/// `out = activation(gate) * up`.
#[derive(Clone, Copy, Debug)]
pub struct GatedMul {
    pub activation: Activation,
    /// bf16 `[tokens, width]`.
    pub out: DevicePtr,
    /// bf16 `[tokens, 2 * width]`: a token's gates, then its ups.
    pub gate_up: DevicePtr,
    pub tokens: u32,
    /// A multiple of 8.
    pub width: u32,
}

impl GatedMul {
    /// # Errors
    /// `width` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let kernel = match self.activation {
            Activation::Silu => "silu_mul_bf16",
            Activation::GeluTanh => "gelu_tanh_mul_bf16",
        };
        require_vectors(kernel, "width", self.width.into())?;
        if self.tokens == 0 {
            return Ok(());
        }
        let threads = threads_for(self.width / 8, MOST_THREADS);
        queue.launch(&Launch {
            kernel,
            grid: [self.tokens, (self.width / 8).div_ceil(threads), 1],
            threads,
            shared_bytes: 0,
            args: &[self.out.into(), self.gate_up.into(), self.width.into()],
        })
    }
}

/// `out = x + y`, rounded to bf16.
#[derive(Clone, Copy, Debug)]
pub struct Add {
    /// bf16 `[count]`; may be `x` or `y`.
    pub out: DevicePtr,
    /// bf16 `[count]`.
    pub x: DevicePtr,
    /// bf16 `[count]`.
    pub y: DevicePtr,
    /// A multiple of 8.
    pub count: u64,
}

impl Add {
    /// # Errors
    /// `count` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "add_bf16";
        if self.count == 0 {
            return Ok(());
        }
        require_vectors(KERNEL, "count", self.count)?;
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [(self.count / 8).div_ceil(MOST_THREADS.into()) as u32, 1, 1],
            threads: MOST_THREADS,
            shared_bytes: 0,
            args: &[self.out.into(), self.x.into(), self.y.into(), self.count.into()],
        })
    }
}
