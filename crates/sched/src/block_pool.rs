//! One KV group's blocks: free, used (by a count of sequences), or cached (used by none, kept for its prefix).

use plimsoll_core::BlockId;

use crate::BlockUsage;
use crate::lru::LruList;
use crate::prefix_cache::NodeId;

/// Ref-counted blocks `0..num_blocks`. Each is in exactly one of three states; `free + cached + used = total`.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    /// Cached blocks, the one that went idle first at the front.
    idle: LruList,
    used: u32,
}

#[derive(Clone, Debug, Default)]
struct Block {
    refs: u32,
    /// The prefix under which the block can be found.
    prefix: Option<NodeId>,
}

/// A block of undefined content, with one reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allocated {
    pub(crate) block: BlockId,
    /// The prefix that it was evicted from.
    pub(crate) evicted: Option<NodeId>,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks as usize],
            free: (0..num_blocks).rev().map(BlockId).collect(),
            idle: LruList::new(num_blocks),
            used: 0,
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that [`BlockPool::allocate`] can give: free ones, and cached ones, which it evicts.
    pub(crate) fn available(&self) -> u32 {
        self.free.len() as u32 + self.idle.len()
    }

    pub(crate) fn usage(&self) -> BlockUsage {
        BlockUsage { total: self.total(), free: self.free.len() as u32, cached: self.idle.len(), used: self.used }
    }

    /// A free block, or else the cached one that is idle for longest.
    pub(crate) fn allocate(&mut self) -> Option<Allocated> {
        let block = self.free.pop().or_else(|| self.idle.pop_oldest())?;
        let state = &mut self.blocks[block.0 as usize];
        assert_eq!(state.refs, 0, "block {} was handed out while in use", block.0);
        state.refs = 1;
        self.used += 1;
        Some(Allocated { block, evicted: state.prefix.take() })
    }

    pub(crate) fn is_idle(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].refs == 0
    }

    /// Takes one more reference to a block that stands under a prefix.
    pub(crate) fn acquire(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.0 as usize];
        if state.refs == 0 {
            self.idle.remove(block);
            self.used += 1;
        }
        state.refs += 1;
    }

    /// Gives one reference back. With the last one the block becomes cached, or free if it stands under no prefix.
    pub(crate) fn release(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.0 as usize];
        assert!(state.refs > 0, "block {} was released more often than it was taken", block.0);
        state.refs -= 1;
        if state.refs == 0 {
            self.used -= 1;
            match state.prefix {
                Some(_) => self.idle.push_newest(block),
                None => self.free.push(block),
            }
        }
    }

    /// Notes that a block in use can now be found under `prefix`.
    pub(crate) fn publish(&mut self, block: BlockId, prefix: NodeId) {
        let state = &mut self.blocks[block.0 as usize];
        assert!(state.refs > 0, "block {} was published by nobody", block.0);
        assert!(state.prefix.is_none(), "block {} was published twice", block.0);
        state.prefix = Some(prefix);
    }

    /// Notes that a block can no longer be found; those who use it keep it.
    pub(crate) fn withdraw(&mut self, block: BlockId) {
        let state = &mut self.blocks[block.0 as usize];
        assert!(state.prefix.take().is_some(), "block {} was withdrawn but not published", block.0);
        if state.refs == 0 {
            self.idle.remove(block);
            self.free.push(block);
        }
    }

    /// The invariant that is checked on every step.
    pub(crate) fn check_sum(&self) {
        let BlockUsage { total, free, cached, used } = self.usage();
        assert_eq!(free + cached + used, total, "free {free} + cached {cached} + used {used} blocks");
    }

    /// Asserts everything about the pool; `refs` is how often each block stands in a block table.
    pub(crate) fn check(&self, refs: &[u32]) {
        self.check_sum();
        assert!(self.blocks.iter().map(|block| &block.refs).eq(refs), "reference counts and block tables differ");
        assert_eq!(refs.iter().filter(|&&refs| refs > 0).count() as u32, self.used, "count of used blocks");
        let mut listed = vec![false; self.blocks.len()];
        let free = self.free.iter().map(|&block| (block, false));
        let idle = self.idle.iter().map(|block| (block, true));
        for (block, has_prefix) in free.chain(idle) {
            let state = &self.blocks[block.0 as usize];
            assert!(state.refs == 0 && !listed[block.0 as usize], "block {} is given back twice or held", block.0);
            assert_eq!(state.prefix.is_some(), has_prefix, "block {} is cached if it has a prefix", block.0);
            listed[block.0 as usize] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::PrefixCache;
    use proptest::prelude::*;

    /// Distinct prefixes, one a name.
    fn prefixes<const N: usize>() -> [NodeId; N] {
        let mut cache = PrefixCache::new(1);
        std::array::from_fn(|name| cache.hold_child(None, &[name as u32]))
    }

    fn take(pool: &mut BlockPool) -> BlockId {
        pool.allocate().expect("the test left a block").block
    }

    #[test]
    fn takes_free_blocks_first_and_then_evicts_the_longest_idle() {
        let [a, b] = prefixes();
        let mut pool = BlockPool::new(3);
        let blocks = [take(&mut pool), take(&mut pool), take(&mut pool)];
        pool.publish(blocks[0], a);
        pool.publish(blocks[1], b);
        for at in [1, 2, 0] {
            pool.release(blocks[at]);
        }
        assert_eq!(pool.usage(), BlockUsage { total: 3, free: 1, cached: 2, used: 0 });
        assert_eq!(pool.allocate(), Some(Allocated { block: blocks[2], evicted: None }));
        assert_eq!(pool.allocate(), Some(Allocated { block: blocks[1], evicted: Some(b) }));
        pool.acquire(blocks[0]);
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn a_withdrawn_block_is_free_as_soon_as_nobody_uses_it() {
        let [a, b] = prefixes();
        let mut pool = BlockPool::new(2);
        let (idle, used) = (take(&mut pool), take(&mut pool));
        pool.publish(idle, a);
        pool.publish(used, b);
        pool.release(idle);
        pool.withdraw(idle);
        pool.withdraw(used);
        assert_eq!(pool.usage(), BlockUsage { total: 2, free: 1, cached: 0, used: 1 });
        pool.release(used);
        assert_eq!(pool.usage(), BlockUsage { total: 2, free: 2, cached: 0, used: 0 });
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn a_double_release_is_loud() {
        let mut pool = BlockPool::new(1);
        let block = take(&mut pool);
        pool.release(block);
        pool.release(block);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Allocate,
        Acquire(usize),
        Release(usize),
        Publish(usize),
        Withdraw(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Allocate),
            2 => any::<usize>().prop_map(Op::Acquire),
            4 => any::<usize>().prop_map(Op::Release),
            3 => any::<usize>().prop_map(Op::Publish),
            1 => any::<usize>().prop_map(Op::Withdraw),
        ]
    }

    proptest! {
        /// Against a model that only knows which references are out and which blocks are published: a block never has
        /// two owners, evictions are told, and the pool runs dry only when every block is used.
        #[test]
        fn agrees_with_a_model(num_blocks in 1..9u32, ops in prop::collection::vec(op(), 1..200)) {
            let [prefix] = prefixes();
            let mut pool = BlockPool::new(num_blocks);
            let mut held: Vec<BlockId> = Vec::new();
            let mut published: Vec<BlockId> = Vec::new();
            for op in ops {
                match op {
                    Op::Allocate => match pool.allocate() {
                        Some(Allocated { block, evicted }) => {
                            prop_assert!(!held.contains(&block));
                            prop_assert_eq!(published.contains(&block), evicted.is_some());
                            published.retain(|&other| other != block);
                            held.push(block);
                        }
                        None => prop_assert!((0..num_blocks).all(|block| held.contains(&BlockId(block)))),
                    },
                    Op::Acquire(at) => if !published.is_empty() {
                        let block = published[at % published.len()];
                        prop_assert_eq!(pool.is_idle(block), !held.contains(&block));
                        pool.acquire(block);
                        held.push(block);
                    },
                    Op::Release(at) => if !held.is_empty() {
                        pool.release(held.swap_remove(at % held.len()));
                    },
                    Op::Publish(at) => if !held.is_empty() {
                        let block = held[at % held.len()];
                        if !published.contains(&block) {
                            pool.publish(block, prefix);
                            published.push(block);
                        }
                    },
                    Op::Withdraw(at) => if !published.is_empty() {
                        pool.withdraw(published.swap_remove(at % published.len()));
                    },
                }
                let mut refs = vec![0; num_blocks as usize];
                held.iter().for_each(|block| refs[block.0 as usize] += 1);
                pool.check(&refs);
            }
        }
    }
}
