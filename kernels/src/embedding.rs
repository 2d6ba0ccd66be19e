//! Looks up token embeddings.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// Set in an id that names a slot, whose last token is the id.
pub const FROM_SLOT: u32 = 1 << 31;

/// `out[t] = table[id(t)] * scale`.
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    /// bf16 `[tokens, hidden]`.
    pub out: DevicePtr,
    /// bf16 `[vocab, hidden]`.
    pub table: DevicePtr,
    /// u32 `[tokens]`: token ids, or slots with [`FROM_SLOT`].
    pub ids: DevicePtr,
    /// u32 `[slots]`: the token sampled last in each slot.
    pub last_tokens: DevicePtr,
    pub tokens: u32,
    /// A multiple of 8.
    pub hidden: u32,
    pub vocab: u32,
    pub slots: u32,
    pub scale: f32,
}

impl Embedding {
    /// # Errors
    /// `hidden` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "embedding_bf16";
        require_vectors(KERNEL, "hidden", self.hidden.into())?;
        if self.tokens == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.tokens, 1, 1],
            threads: threads_for(self.hidden / 8, 256),
            shared_bytes: 0,
            args: &[
                self.out.into(),
                self.table.into(),
                self.ids.into(),
                self.last_tokens.into(),
                self.hidden.into(),
                self.vocab.into(),
                self.slots.into(),
                self.scale.into(),
            ],
        })
    }
}
