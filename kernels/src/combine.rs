//! The sum of what a token's experts made of it.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// `out[t]` is `beside[t]` and the sum over `j` of `weights[t, j] * parts[t, j]`.
#[derive(Clone, Copy, Debug)]
pub struct Combine {
    /// bf16 `[tokens, hidden]`.
    pub out: DevicePtr,
    /// bf16 `[tokens, top, hidden]`.
    pub parts: DevicePtr,
    /// f32 `[tokens, top]`, or [`DevicePtr::NULL`]: all 1.
    pub weights: DevicePtr,
    /// bf16 `[tokens, hidden]`, or [`DevicePtr::NULL`]: 0.
    pub beside: DevicePtr,
    /// u32: of how many tokens there are parts, the others' being 0; or [`DevicePtr::NULL`]: of all.
    pub num_tokens: DevicePtr,
    pub tokens: u32,
    pub top: u32,
    /// A multiple of 8.
    pub hidden: u32,
}

impl Combine {
    /// # Errors
    /// `hidden` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "combine_bf16";
        require_vectors(KERNEL, "hidden", self.hidden.into())?;
        if self.tokens == 0 {
            return Ok(());
        }
        let threads = threads_for(self.hidden / 8, 256);
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.tokens, (self.hidden / 8).div_ceil(threads), 1],
            threads,
            shared_bytes: 0,
            args: &[
                self.out.into(),
                self.parts.into(),
                self.weights.into(),
                self.beside.into(),
                self.num_tokens.into(),
                self.top.into(),
                self.hidden.into(),
            ],
        })
    }
}
