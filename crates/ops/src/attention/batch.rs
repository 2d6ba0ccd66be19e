//! A step's layout in the paged cache, and the check that nothing in it leads outside.

use candle_core::{Result, Tensor, bail};
use plimsoll_kernels::attention::{KvGroup, PlanSize};

use super::AttentionParams;

/// A step's layout for one KV group, shared by all layers of the group. Sequence `s` has the query tokens
/// `cu_seqlens[s]..cu_seqlens[s + 1]`, the last of them at position `seq_lens[s] - 1`.
#[derive(Clone, Debug, Default)]
pub struct PagedBatch {
    /// Tokens a block.
    pub block_size: usize,
    /// `[seqs + 1]` query tokens, packed.
    pub cu_seqlens: Vec<u32>,
    /// `[seqs]` tokens in KV once this step's are written.
    pub seq_lens: Vec<u32>,
    /// `[seqs + 1]` into `blocks`.
    pub block_offsets: Vec<u32>,
    /// The block tables' rows, packed.
    pub blocks: Vec<u32>,
    /// `[seqs]` logical index (position / block_size) of each row's first block: above 0 where a window let blocks go.
    pub first_block: Vec<u32>,
    /// `[tokens]` block * block_size + offset: where each token's k and v go.
    pub slot_mapping: Vec<u32>,
    /// What the kernels read instead, where the step runs on a GPU.
    pub on_device: Option<PagedTensors>,
}

/// A step's layout for one KV group in a GPU's memory.
#[derive(Clone, Debug)]
pub struct PagedTensors {
    /// u32 `[tokens]`: [`PagedBatch::slot_mapping`]; `u32::MAX` for a token that is written nowhere.
    pub slot_mapping: Tensor,
    /// u32: [`PagedBatch::blocks`].
    pub blocks: Tensor,
    /// u32 `[size.words()]`: the attention's work, cut into pieces.
    pub plan: Tensor,
    pub size: PlanSize,
    /// What the group's layers have in common.
    pub group: KvGroup,
    /// f32, for the pieces' results; shared by all layers and groups.
    pub workspace: Tensor,
}

impl PagedBatch {
    /// Number of sequences.
    pub fn num_seqs(&self) -> usize {
        self.seq_lens.len()
    }

    /// Query tokens of a sequence: the first's index in the batch, how many, and the first's position.
    pub(super) fn queries(&self, seq: usize) -> Queries {
        let (from, to) = (self.cu_seqlens[seq] as usize, self.cu_seqlens[seq + 1] as usize);
        Queries { first: from, len: to - from, start: self.seq_lens[seq] as usize - (to - from) }
    }

    /// A sequence's blocks, and the position of the first one's first token.
    pub(super) fn table(&self, seq: usize) -> (usize, &[u32]) {
        let row = self.block_offsets[seq] as usize..self.block_offsets[seq + 1] as usize;
        (self.first_block[seq] as usize * self.block_size, &self.blocks[row])
    }

    /// # Errors
    /// The lists contradict each other, a block is not below `num_blocks`, or a position that a query sees is in no
    /// block.
    pub(super) fn check(&self, tokens: usize, num_blocks: usize, params: &AttentionParams) -> Result<()> {
        let seqs = self.num_seqs();
        if self.first_block.len() != seqs {
            bail!("paged_attention: first_block has {} entries for {seqs} sequences", self.first_block.len());
        }
        check_offsets("cu_seqlens", &self.cu_seqlens, seqs, tokens)?;
        check_offsets("block_offsets", &self.block_offsets, seqs, self.blocks.len())?;
        if let Some(block) = self.blocks.iter().find(|b| **b as usize >= num_blocks) {
            bail!("paged_attention: block {block} is outside the cache of {num_blocks} blocks");
        }
        for seq in 0..seqs {
            let len = (self.cu_seqlens[seq + 1] - self.cu_seqlens[seq]) as usize;
            let end = self.seq_lens[seq] as usize;
            if len > end {
                bail!("paged_attention: sequence {seq} has {len} query tokens, but {end} in all");
            }
            let (from, blocks) = self.table(seq);
            let visible = params.first_visible(end - len);
            if len > 0 && (visible < from || from + blocks.len() * self.block_size < end) {
                bail!(
                    "paged_attention: sequence {seq} sees positions {visible}..{end}, its {} blocks start at {from}",
                    blocks.len()
                );
            }
        }
        Ok(())
    }
}

/// See [`PagedBatch::queries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queries {
    pub(super) first: usize,
    pub(super) len: usize,
    pub(super) start: usize,
}

fn check_offsets(name: &str, offsets: &[u32], rows: usize, total: usize) -> Result<()> {
    let fits = offsets.len() == rows + 1
        && offsets[0] == 0
        && offsets.is_sorted()
        && offsets.last().is_some_and(|end| *end as usize == total);
    if !fits {
        bail!("paged_attention: {name} must rise from 0 to {total} in {} entries", rows + 1);
    }
    Ok(())
}
