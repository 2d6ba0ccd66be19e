//! The KV blocks of all groups: gives them to sequences and takes them back. Knows windows and prefixes, and nothing
//! of requests, slots or steps.

use plimsoll_core::{CacheConfig, KvGroup, TokenId};

use crate::BlockUsage;
use crate::block_pool::{Allocated, BlockPool};
use crate::block_table::BlockTable;
use crate::prefix_cache::{NodeId, PrefixCache};

/// One pool a KV group, and the prefixes under which blocks of all groups can be found.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    block_size: u32,
    groups: Vec<Group>,
    has_windows: bool,
    /// `None` where prefix caching is off.
    prefixes: Option<PrefixCache>,
}

/// What one sequence holds.
#[derive(Debug)]
pub(crate) struct SeqBlocks {
    /// One a KV group.
    pub(crate) tables: Box<[BlockTable]>,
    /// The prefixes that the sequence found or published, one for each of its first full blocks. It has a hold on the
    /// last.
    prefixes: Vec<NodeId>,
}

/// The group in which a sequence could never fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NeverFits {
    pub(crate) group: usize,
    pub(crate) needed: u32,
    pub(crate) total: u32,
}

#[derive(Debug)]
struct Group {
    window: Option<u32>,
    pool: BlockPool,
}

impl KvBlocks {
    pub(crate) fn new(config: &CacheConfig, prefix_caching: bool) -> Self {
        let group = |kv: &KvGroup| Group { window: kv.window, pool: BlockPool::new(kv.num_blocks) };
        Self {
            block_size: config.block_size,
            groups: config.groups.iter().map(group).collect(),
            has_windows: config.groups.iter().any(|kv| kv.window.is_some()),
            prefixes: prefix_caching.then(|| PrefixCache::new(config.groups.len())),
        }
    }

    /// What a sequence holds that has not begun.
    pub(crate) fn nothing(&self) -> SeqBlocks {
        SeqBlocks { tables: self.groups.iter().map(|_| BlockTable::default()).collect(), prefixes: Vec::new() }
    }

    /// Whether a sequence that computes `tokens` tokens in all can do so with every pool for itself.
    pub(crate) fn check_fits(&self, tokens: u32) -> Result<(), NeverFits> {
        for (group, kv) in self.groups.iter().enumerate() {
            let (needed, total) = (kv.working_set(tokens, self.block_size), kv.pool.total());
            if needed > total {
                return Err(NeverFits { group, needed, total });
            }
        }
        Ok(())
    }

    /// Gives a sequence that holds nothing the blocks to begin with: cached ones for the longest prefix of its known
    /// `tokens` (always less than all of them, and at most the first `cacheable`), and in full groups also new ones for the rest, so that a prompt that
    /// began never runs dry there halfway. Returns how many tokens are cached.
    ///
    /// `None`, with nothing given, if that would leave fewer than `reserve` blocks in a pool, or less than what a
    /// windowed group needs to get through the rest.
    pub(crate) fn try_begin(
        &mut self,
        blocks: &mut SeqBlocks,
        tokens: &[TokenId],
        cacheable: usize,
        reserve: u32,
    ) -> Option<u32> {
        self.find_prefix(&tokens[..cacheable.min(tokens.len() - 1)], &mut blocks.prefixes);
        let end = (tokens.len() as u32).div_ceil(self.block_size);
        if !self.can_begin(&blocks.prefixes, end, reserve) {
            blocks.prefixes.clear();
            return None;
        }
        let cached = blocks.prefixes.len() as u32;
        for (index, group) in self.groups.iter_mut().enumerate() {
            let table = &mut blocks.tables[index];
            table.start_at(group.first_needed(cached * self.block_size, self.block_size));
            for &node in &blocks.prefixes[table.first() as usize..] {
                let block = self.prefixes.as_ref().and_then(|prefixes| prefixes.block(node, index));
                let block = block.expect("a prefix that was found has its blocks");
                group.pool.acquire(block);
                table.push(block);
            }
        }
        if let (Some(prefixes), Some(&last)) = (&mut self.prefixes, blocks.prefixes.last()) {
            prefixes.hold(last);
        }
        for index in 0..self.groups.len() {
            if self.groups[index].window.is_none() {
                self.grow_table(index, &mut blocks.tables[index], end);
            }
        }
        Some(cached * self.block_size)
    }

    /// The position up to which a sequence could be covered while `reserve` blocks stay in each pool.
    pub(crate) fn reach(&self, blocks: &SeqBlocks, reserve: u32) -> u64 {
        let reach = |(group, table): (&Group, &BlockTable)| {
            let end = table.end() + group.pool.available().saturating_sub(reserve);
            u64::from(end) * u64::from(self.block_size)
        };
        self.groups.iter().zip(&blocks.tables).map(reach).min().expect("there is a group")
    }

    /// Covers positions before `end`, which is within [`KvBlocks::reach`].
    pub(crate) fn grow(&mut self, blocks: &mut SeqBlocks, end: u32) {
        let end = end.div_ceil(self.block_size);
        for (index, table) in blocks.tables.iter_mut().enumerate() {
            if table.end() < end {
                self.grow_table(index, table, end);
            }
        }
    }

    /// Appends the rows of a sequence whose step ends before position `end` to a plan's tables.
    pub(crate) fn write_rows(&self, blocks: &SeqBlocks, end: u32, out: &mut [plimsoll_core::GroupTables]) {
        let end = end.div_ceil(self.block_size);
        for (table, out) in blocks.tables.iter().zip(out) {
            table.write_row(end, out);
        }
    }

    /// Takes note that the first `computed` of a sequence's `tokens` are in the cache for certain: offers its new full
    /// blocks to others, and lets go of those that no query from there on can reach.
    pub(crate) fn advance(&mut self, blocks: &mut SeqBlocks, tokens: &[TokenId], computed: u32) {
        if self.prefixes.is_some() {
            while (blocks.prefixes.len() as u32 + 1) * self.block_size <= computed {
                self.publish_next(blocks, tokens);
            }
        }
        if self.has_windows {
            for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
                let first = group.first_needed(computed, self.block_size);
                if first > table.first() {
                    table.drain_before(first).for_each(|block| group.pool.release(block));
                }
            }
        }
    }

    /// Takes all blocks back; the tail is evicted first, since a prefix is of use without it and not the reverse.
    pub(crate) fn release(&mut self, blocks: &mut SeqBlocks) {
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            table.drain_all().for_each(|block| group.pool.release(block));
        }
        if let (Some(prefixes), Some(&last)) = (&mut self.prefixes, blocks.prefixes.last()) {
            prefixes.drop_hold(last);
        }
        blocks.prefixes.clear();
    }

    /// Withdraws all prefixes of a sequence, shared ones too: what they hold is not to be trusted.
    pub(crate) fn distrust(&mut self, blocks: &SeqBlocks) {
        let Some(prefixes) = &mut self.prefixes else { return };
        for &node in &blocks.prefixes {
            for (index, group) in self.groups.iter_mut().enumerate() {
                if let Some(block) = prefixes.take_block(node, index) {
                    group.pool.withdraw(block);
                }
            }
        }
    }

    pub(crate) fn usage(&self) -> Vec<BlockUsage> {
        self.groups.iter().map(|group| group.pool.usage()).collect()
    }

    /// The invariant that is checked on every step.
    pub(crate) fn check_sums(&self) {
        self.groups.iter().for_each(|group| group.pool.check_sum());
    }

    /// Asserts everything, given what all sequences hold.
    pub(crate) fn check<'a>(&self, all: impl Iterator<Item = &'a SeqBlocks> + Clone) {
        for (index, group) in self.groups.iter().enumerate() {
            let mut refs = vec![0; group.pool.total() as usize];
            for blocks in all.clone() {
                blocks.tables[index].blocks().iter().for_each(|block| refs[block.0 as usize] += 1);
            }
            group.pool.check(&refs);
        }
        if let Some(prefixes) = &self.prefixes {
            prefixes.check(all.filter_map(|blocks| blocks.prefixes.last().copied()));
        }
    }

    /// Finds the longest prefix of `tokens` of which every full group has all blocks and
    /// every windowed group those that the next query reaches.
    fn find_prefix(&mut self, tokens: &[TokenId], found: &mut Vec<NodeId>) {
        assert!(found.is_empty(), "a sequence that begins holds no prefix");
        let Some(prefixes) = &mut self.prefixes else { return };
        let has_all = |prefixes: &PrefixCache, node: NodeId| {
            let mut full = self.groups.iter().enumerate().filter(|(_, group)| group.window.is_none());
            full.all(|(index, _)| prefixes.block(node, index).is_some())
        };
        for tokens in tokens.chunks_exact(self.block_size as usize) {
            match prefixes.child(found.last().copied(), tokens) {
                Some(node) if has_all(prefixes, node) => found.push(node),
                _ => break,
            }
        }
        // A missing block spoils every prefix whose window reaches it: the next candidate ends right before it.
        while let Some(missing) = self.last_missing(found) {
            found.truncate(missing);
        }
    }

    /// The last block that some windowed group lacks to go on after the prefix `found`.
    fn last_missing(&self, found: &[NodeId]) -> Option<usize> {
        let prefixes = self.prefixes.as_ref()?;
        let next = found.len() as u32 * self.block_size;
        let missing = |(index, group): (usize, &Group)| {
            let first = group.first_needed(next, self.block_size) as usize;
            (first..found.len()).rev().find(|&at| prefixes.block(found[at], index).is_none())
        };
        let windowed = self.groups.iter().enumerate().filter(|(_, group)| group.window.is_some());
        windowed.filter_map(missing).max()
    }

    fn can_begin(&self, found: &[NodeId], end: u32, reserve: u32) -> bool {
        let cached = found.len() as u32;
        self.groups.iter().enumerate().all(|(index, group)| {
            let first = group.first_needed(cached * self.block_size, self.block_size);
            let is_idle = |&&node: &&NodeId| {
                let block = self.prefixes.as_ref().and_then(|prefixes| prefixes.block(node, index));
                block.is_some_and(|block| group.pool.is_idle(block))
            };
            let idle = found[first as usize..].iter().filter(is_idle).count() as u32;
            let rest = end - cached;
            let needed = match group.window {
                None => rest,
                Some(_) => rest.min(group.working_set(u32::MAX, self.block_size) - (cached - first)),
            };
            group.pool.available() - idle >= needed + reserve
        })
    }

    fn publish_next(&mut self, blocks: &mut SeqBlocks, tokens: &[TokenId]) {
        let Some(prefixes) = &mut self.prefixes else { return };
        let index = blocks.prefixes.len();
        let parent = blocks.prefixes.last().copied();
        let size = self.block_size as usize;
        let node = prefixes.hold_child(parent, &tokens[index * size..(index + 1) * size]);
        if let Some(parent) = parent {
            prefixes.drop_hold(parent);
        }
        blocks.prefixes.push(node);
        for (group_index, (group, table)) in self.groups.iter_mut().zip(&blocks.tables).enumerate() {
            if prefixes.block(node, group_index).is_none() {
                let block = table.get(index as u32).expect("a block is published before its window lets it go");
                group.pool.publish(block, node);
                prefixes.set_block(node, group_index, block);
            }
        }
    }

    fn grow_table(&mut self, group: usize, table: &mut BlockTable, end: u32) {
        while table.end() < end {
            let allocated = self.groups[group].pool.allocate();
            let Allocated { block, evicted } = allocated.expect("a block that was counted as available");
            if let (Some(prefixes), Some(node)) = (&mut self.prefixes, evicted) {
                prefixes.take_block(node, group);
            }
            table.push(block);
        }
    }
}

impl Group {
    /// Logical index of the first block that a query at position `next`, or any later one, can reach.
    fn first_needed(&self, next: u32, block_size: u32) -> u32 {
        self.window.map_or(0, |window| next.saturating_sub(window - 1) / block_size)
    }

    /// Blocks that suffice for a sequence of `tokens` to go through one token at a time, alone.
    fn working_set(&self, tokens: u32, block_size: u32) -> u32 {
        let all = tokens.div_ceil(block_size);
        self.window.map_or(all, |window| all.min((window - 1).div_ceil(block_size) + 1))
    }
}

#[cfg(test)]
mod tests;
