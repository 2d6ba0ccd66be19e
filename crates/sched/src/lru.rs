//! A doubly linked list over block ids, oldest first, with removal from anywhere in constant time.

use plimsoll_core::BlockId;

const NONE: u32 = u32::MAX;

/// Ids in `0..capacity`, each at most once, in order of insertion.
#[derive(Debug)]
pub(crate) struct LruList {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    older: u32,
    newer: u32,
    linked: bool,
}

impl LruList {
    pub(crate) fn new(capacity: u32) -> Self {
        let unlinked = Link { older: NONE, newer: NONE, linked: false };
        Self { links: vec![unlinked; capacity as usize], oldest: NONE, newest: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Adds `block` as the newest.
    pub(crate) fn push_newest(&mut self, block: BlockId) {
        assert!(!self.links[block.0 as usize].linked, "block {} is in the list already", block.0);
        self.links[block.0 as usize] = Link { older: self.newest, newer: NONE, linked: true };
        match self.newest {
            NONE => self.oldest = block.0,
            newest => self.links[newest as usize].newer = block.0,
        }
        self.newest = block.0;
        self.len += 1;
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<BlockId> {
        let block = self.oldest()?;
        self.remove(block);
        Some(block)
    }

    pub(crate) fn remove(&mut self, block: BlockId) {
        let Link { older, newer, linked } = self.links[block.0 as usize];
        assert!(linked, "block {} is not in the list", block.0);
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.links[block.0 as usize].linked = false;
        self.len -= 1;
    }

    /// Oldest first; for checks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        std::iter::successors(self.oldest(), |block| {
            let newer = self.links[block.0 as usize].newer;
            (newer != NONE).then_some(BlockId(newer))
        })
    }

    fn oldest(&self) -> Option<BlockId> {
        (self.oldest != NONE).then_some(BlockId(self.oldest))
    }
}
