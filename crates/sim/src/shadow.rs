//! A shadow of the KV cache: for each place in each block, whose token at which position was written there last.

use plimsoll_core::{CacheConfig, TokenId};

use crate::rng::mix;

/// What attention would find at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) token: TokenId,
    pub(crate) position: u32,
    /// Stands for the token and all tokens before it: keys and values of later layers depend on all of them.
    pub(crate) prefix: u64,
}

/// A sequence's tokens as entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    entries: Vec<Entry>,
}

impl History {
    pub(crate) fn push(&mut self, token: TokenId) {
        let before = self.entries.last().map_or(0, |entry| entry.prefix);
        let prefix = mix(before.wrapping_add(1)) ^ mix(!u64::from(token));
        self.entries.push(Entry { token, position: self.len(), prefix });
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    pub(crate) fn entries(&self, from: u32, to: u32) -> &[Entry] {
        &self.entries[from as usize..to as usize]
    }
}

/// One KV group's places, `[num_blocks, block_size]`.
#[derive(Debug)]
pub(crate) struct ShadowGroup {
    pub(crate) window: Option<u32>,
    num_blocks: u32,
    block_size: u32,
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    entry: Option<Entry>,
    /// The step that wrote it last, and that step's row.
    written: Option<(u64, usize)>,
}

/// A row of a block table: blocks of logical indices from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableRow<'a> {
    pub(crate) first: u32,
    pub(crate) blocks: &'a [plimsoll_core::BlockId],
}

impl ShadowGroup {
    pub(crate) fn all(config: &CacheConfig) -> Vec<ShadowGroup> {
        let group = |kv: &plimsoll_core::KvGroup| ShadowGroup {
            window: kv.window,
            num_blocks: kv.num_blocks,
            block_size: config.block_size,
            places: vec![Place::default(); kv.num_blocks as usize * config.block_size as usize],
        };
        config.groups.iter().map(group).collect()
    }

    /// Writes a row's new tokens. Asserts that no other row of the same step wrote to the same block.
    pub(crate) fn write(&mut self, table: TableRow<'_>, entries: &[Entry], step: u64, row: usize) {
        for entry in entries {
            let place = self.locate(table, entry.position);
            let block = place - place % self.block_size as usize;
            for neighbour in &self.places[block..block + self.block_size as usize] {
                if let Some((other_step, other_row)) = neighbour.written {
                    assert!(other_step != step || other_row == row, "rows {other_row} and {row} write to one block");
                }
            }
            self.places[place] = Place { entry: Some(*entry), written: Some((step, row)) };
        }
    }

    /// Asserts that attention over `entries` would find just those, none of them written by another row meanwhile.
    pub(crate) fn read(&self, table: TableRow<'_>, entries: &[Entry], step: u64, row: usize) {
        for entry in entries {
            let place = &self.places[self.locate(table, entry.position)];
            assert_eq!(place.entry, Some(*entry), "row {row} of step {step} finds a foreign token in its window");
            if let Some((written_step, written_row)) = place.written {
                let is_own = written_step != step || written_row == row;
                assert!(is_own, "row {row} of step {step} reads what row {written_row} writes in that step");
            }
        }
    }

    fn locate(&self, table: TableRow<'_>, position: u32) -> usize {
        let index = position / self.block_size;
        assert!(index >= table.first, "position {position} is before the first block, {}", table.first);
        let block = table.blocks.get((index - table.first) as usize);
        let block = block.unwrap_or_else(|| panic!("position {position} is past the end of the table")).0;
        assert!(block < self.num_blocks, "block {block} does not exist");
        block as usize * self.block_size as usize + (position % self.block_size) as usize
    }
}
