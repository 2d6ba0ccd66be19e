//! Norm and rotation of queries and keys, and the write of keys and values into the paged cache
//! (`rope_kv_write.cu`).

use crate::attention::{KvDtype, variant};
use crate::{DevicePtr, Launch, LaunchError, Queue};

const KERNELS: [&str; 8] = [
    "rope_kv_write_d16_bf16",
    "rope_kv_write_d32_bf16",
    "rope_kv_write_d64_bf16",
    "rope_kv_write_d128_bf16",
    "rope_kv_write_d256_bf16",
    "rope_kv_write_d64_fp8",
    "rope_kv_write_d128_fp8",
    "rope_kv_write_d256_fp8",
];

/// One layer's launch.
pub struct RopeKvWrite {
    /// bf16 `[tokens, heads, head_dim]`, written.
    pub q: DevicePtr,
    /// `[num_blocks, kv_heads, block_size, head_dim]`, written at the slots.
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    /// bf16 `[tokens, heads + 2 * kv_heads, head_dim]`: the merged projection's queries, keys and values.
    pub qkv: DevicePtr,
    /// f32 `[head_dim]`, both or neither ([`DevicePtr::NULL`]).
    pub q_norm: DevicePtr,
    /// As `q_norm`.
    pub k_norm: DevicePtr,
    /// f32 `[rotary_dim / 2]`: radians a position.
    pub inv_freq: DevicePtr,
    /// u32 `[tokens]`, below 2^24.
    pub positions: DevicePtr,
    /// u32 `[tokens]`: block * block_size + offset, or `u32::MAX` for a token that is not written.
    pub slot_mapping: DevicePtr,
    pub tokens: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// 16, 32, 64, 128 or 256; with an fp8 cache from 64.
    pub head_dim: u32,
    /// Columns of a head that turn, a multiple of 16; those after them pass through. 0: none.
    pub rotary_dim: u32,
    pub num_blocks: u32,
    pub block_size: u32,
    pub kv_dtype: KvDtype,
    /// Of the norms.
    pub eps: f32,
    /// Multiplies what turns (YaRN, arXiv:2309.00071; else 1).
    pub attention_scale: f32,
    /// A cached key is `fp8 * k_scale`; not used with a bf16 cache.
    pub k_scale: f32,
    /// As `k_scale`.
    pub v_scale: f32,
}

impl RopeKvWrite {
    /// # Errors
    /// A head_dim or rotary_dim that the kernel was not made for, one norm without the other, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let kernel = self.kernel()?;
        if self.tokens == 0 {
            return Ok(());
        }
        let (k_inv_scale, v_inv_scale) = match self.kv_dtype {
            KvDtype::Bf16 => (1.0, 1.0),
            KvDtype::Fp8 => (1.0 / self.k_scale, 1.0 / self.v_scale),
        };
        let args = [
            self.q.into(),
            self.k_cache.into(),
            self.v_cache.into(),
            self.qkv.into(),
            self.q_norm.into(),
            self.k_norm.into(),
            self.inv_freq.into(),
            self.positions.into(),
            self.slot_mapping.into(),
            (self.num_blocks * self.block_size).into(),
            self.heads.into(),
            self.kv_heads.into(),
            self.block_size.into(),
            self.rotary_dim.into(),
            self.eps.into(),
            self.attention_scale.into(),
            k_inv_scale.into(),
            v_inv_scale.into(),
        ];
        queue.launch(&Launch { kernel, grid: [self.tokens, 1, 1], threads: 256, shared_bytes: 0, args: &args })
    }

    fn kernel(&self) -> Result<&'static str, LaunchError> {
        let unsupported = |problem| LaunchError::Unsupported { kernel: "rope_kv_write", problem };
        if !self.rotary_dim.is_multiple_of(16) || self.rotary_dim > self.head_dim {
            let problem = format!(
                "rotary_dim {} with head_dim {}: a multiple of 16 up to head_dim is needed",
                self.rotary_dim, self.head_dim
            );
            return Err(unsupported(problem));
        }
        if self.q_norm.is_null() != self.k_norm.is_null() {
            return Err(unsupported("queries and keys must both have a norm, or neither".to_owned()));
        }
        Ok(KERNELS[variant(self.head_dim, self.kv_dtype).map_err(unsupported)?])
    }
}
