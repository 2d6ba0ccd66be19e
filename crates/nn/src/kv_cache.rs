//! The paged KV cache of all layers.

use candle_core::Device;
use plimsoll_ops::kv_write::{KvDtype, LayerCache};

use crate::ModelInfo;

/// Keys and values of every layer, in blocks. Layers of one KV group have the same number of blocks and are addressed
/// through the same block tables; whose blocks are whose is the scheduler's affair.
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// Each layer's KV group.
    groups: Vec<usize>,
    dtype: KvDtype,
}

impl KvCache {
    /// Allocates `blocks_per_group[g]` blocks of `block_size` tokens for every layer of group `g`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(
        info: &ModelInfo,
        blocks_per_group: &[u32],
        block_size: usize,
        dtype: KvDtype,
        device: &Device,
    ) -> candle_core::Result<Self> {
        assert_eq!(blocks_per_group.len(), info.groups.len(), "a block count for each KV group");
        let layer = |l: &crate::LayerInfo| {
            let num_blocks = blocks_per_group[l.group] as usize;
            LayerCache::new(num_blocks, l.kv_heads, block_size, l.head_dim, dtype, device)
        };
        Ok(Self {
            layers: info.layers.iter().map(layer).collect::<candle_core::Result<_>>()?,
            groups: info.layers.iter().map(|l| l.group).collect(),
            dtype,
        })
    }

    /// What its elements are.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Layer `index`'s cache, and the KV group whose block tables address it.
    pub fn layer(&self, index: usize) -> (&LayerCache, usize) {
        (&self.layers[index], self.groups[index])
    }
}
