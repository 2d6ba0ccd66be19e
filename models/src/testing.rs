//! What the tests of several architectures share: a batch of whole prompts, and how evenly experts are loaded.

use candle_core::Device;
use plimsoll_nn::{ForwardBatch, KvCache, ModelInfo};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::KvDtype;

/// Tokens of a prompt, and of a block.
const TOKENS: u32 = 128;

/// Prompts of tokens that differ, as the words of texts do, and a cache for them.
pub(crate) fn prompts(info: &ModelInfo, count: u32) -> (ForwardBatch, KvCache) {
    let cache =
        KvCache::new(info, &vec![count; info.groups.len()], TOKENS as usize, KvDtype::F32, &Device::Cpu).unwrap();
    let group = PagedBatch {
        block_size: TOKENS as usize,
        cu_seqlens: (0..=count).map(|seq| seq * TOKENS).collect(),
        seq_lens: vec![TOKENS; count as usize],
        block_offsets: (0..=count).collect(),
        blocks: (0..count).collect(),
        first_block: vec![0; count as usize],
        slot_mapping: (0..count * TOKENS).collect(),
        ..PagedBatch::default()
    };
    assert_eq!(info.vocab_size % 2, 0, "so that an odd factor makes no two tokens the same");
    let token = |at: u32| at * 1663 % info.vocab_size as u32;
    let batch = ForwardBatch {
        input_ids: (0..count * TOKENS).map(token).collect(),
        positions: (0..count * TOKENS).map(|at| at % TOKENS).collect(),
        groups: vec![group; info.groups.len()],
        ..ForwardBatch::default()
    };
    (batch, cache)
}

/// The variance of the experts' loads over what chance alone would give: 1 where each token's experts are drawn evenly.
pub(crate) fn imbalance(loads: &[usize]) -> f64 {
    let (experts, total) = (loads.len() as f64, loads.iter().sum::<usize>() as f64);
    let mean = total / experts;
    let squares: f64 = loads.iter().map(|&load| (load as f64 - mean).powi(2)).sum();
    squares / (experts - 1.0) / (mean * (1.0 - 1.0 / experts))
}
