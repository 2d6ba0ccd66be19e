//! Which block holds which stretch of one sequence, in one KV group.

use plimsoll_core::{BlockId, GroupTables};

/// Blocks of logical indices (position / block_size) `first..end`, without gaps.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    first: u32,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// Logical index of the first block; above 0 where a window let blocks go.
    pub(crate) fn first(&self) -> u32 {
        self.first
    }

    /// One past the logical index of the last block.
    pub(crate) fn end(&self) -> u32 {
        self.first + self.blocks.len() as u32
    }

    pub(crate) fn get(&self, index: u32) -> Option<BlockId> {
        self.blocks.get(index.checked_sub(self.first)? as usize).copied()
    }

    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub(crate) fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// Makes an empty table begin at logical index `first`.
    pub(crate) fn start_at(&mut self, first: u32) {
        assert!(self.blocks.is_empty(), "a table with blocks in it cannot begin elsewhere");
        self.first = first;
    }

    /// Takes out the blocks before logical index `first`, lowest first.
    pub(crate) fn drain_before(&mut self, first: u32) -> impl Iterator<Item = BlockId> + '_ {
        let count = first.saturating_sub(self.first).min(self.blocks.len() as u32);
        self.first += count;
        self.blocks.drain(..count as usize)
    }

    /// Takes out all blocks, last first, and begins at 0 again.
    pub(crate) fn drain_all(&mut self) -> impl Iterator<Item = BlockId> + '_ {
        self.first = 0;
        self.blocks.drain(..).rev()
    }

    /// Appends this table's blocks before logical index `end` to `out` as one row.
    pub(crate) fn write_row(&self, end: u32, out: &mut GroupTables) {
        out.first_block.push(self.first);
        out.blocks.extend_from_slice(&self.blocks[..(end - self.first) as usize]);
        out.offsets.push(out.blocks.len() as u32);
    }
}
