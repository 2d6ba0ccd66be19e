//! Copies blocks of a layer's KV cache (`block_copy.cu`).

use crate::{DevicePtr, Launch, LaunchError, Queue};

const KERNEL: &str = "block_copy";

/// One layer's copies: block `pairs[i][0]` of K and of V onto block `pairs[i][1]`.
pub struct BlockCopy {
    /// `[num_blocks, block_bytes]`, in place.
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    /// u32 `[count, 2]`: source, destination. A destination occurs in no other pair.
    pub pairs: DevicePtr,
    pub count: u32,
    pub num_blocks: u32,
    /// Of K or of V: kv_heads * block_size * head_dim * bytes an element. A multiple of 16.
    pub block_bytes: u32,
}

impl BlockCopy {
    /// # Errors
    /// `block_bytes` is no multiple of 16, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        if self.count == 0 {
            return Ok(());
        }
        if !self.block_bytes.is_multiple_of(16) {
            let problem = format!("blocks of {} bytes, a multiple of 16 is needed", self.block_bytes);
            return Err(LaunchError::Unsupported { kernel: KERNEL, problem });
        }
        let args = [
            self.k_cache.into(),
            self.v_cache.into(),
            self.pairs.into(),
            self.num_blocks.into(),
            self.block_bytes.into(),
        ];
        queue.launch(&Launch { kernel: KERNEL, grid: [self.count, 2, 1], threads: 256, shared_bytes: 0, args: &args })
    }
}
