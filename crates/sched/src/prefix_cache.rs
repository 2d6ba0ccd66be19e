//! Finds blocks by the tokens that they hold and all tokens before them.
//!
//! A tree: a node stands for one block's worth of tokens after its parent, and so for one prefix. Children are found
//! through a hash table whose keys hold the parent and the tokens themselves, so that a hash collision costs a
//! comparison and can never serve one client another's context.

use std::collections::HashMap;
use std::sync::Arc;

use plimsoll_core::{BlockId, TokenId};

/// A prefix of full blocks. Valid while something keeps it: see [`PrefixCache::hold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// The key's first word for a node without a parent.
const ROOT: u32 = u32::MAX;

/// All known prefixes, and for each the block of each KV group that holds its last tokens, where there is one.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    num_groups: usize,
    nodes: Vec<Node>,
    /// `[nodes, groups]`.
    blocks: Vec<Option<BlockId>>,
    vacant: Vec<NodeId>,
    children: HashMap<Arc<[u32]>, NodeId>,
    key: Vec<u32>,
}

#[derive(Debug)]
struct Node {
    /// The parent's index or [`ROOT`], then the tokens; empty in a vacant node.
    key: Arc<[u32]>,
    /// Children, blocks and holders. A node goes with the last of them.
    refs: u32,
}

impl PrefixCache {
    pub(crate) fn new(num_groups: usize) -> Self {
        Self {
            num_groups,
            nodes: Vec::new(),
            blocks: Vec::new(),
            vacant: Vec::new(),
            children: HashMap::new(),
            key: Vec::new(),
        }
    }

    /// The node of `tokens`, one block's worth, after `parent`.
    pub(crate) fn child(&mut self, parent: Option<NodeId>, tokens: &[TokenId]) -> Option<NodeId> {
        self.set_key(parent, tokens);
        self.children.get(self.key.as_slice()).copied()
    }

    /// As [`PrefixCache::child`], made if missing, with a hold on it for the caller.
    pub(crate) fn hold_child(&mut self, parent: Option<NodeId>, tokens: &[TokenId]) -> NodeId {
        let node = self.child(parent, tokens).unwrap_or_else(|| self.insert(parent));
        self.hold(node);
        node
    }

    /// Keeps a node, and with it all its ancestors, until [`PrefixCache::drop_hold`].
    pub(crate) fn hold(&mut self, node: NodeId) {
        self.nodes[node.0 as usize].refs += 1;
    }

    pub(crate) fn drop_hold(&mut self, node: NodeId) {
        let mut next = Some(node);
        while let Some(NodeId(index)) = next.take() {
            let node = &mut self.nodes[index as usize];
            assert!(node.refs > 0, "prefix node {index} was dropped more often than held");
            node.refs -= 1;
            if node.refs == 0 {
                self.children.remove(&node.key);
                next = (node.key[0] != ROOT).then_some(NodeId(node.key[0]));
                node.key = Arc::default();
                self.vacant.push(NodeId(index));
            }
        }
    }

    /// The block of `group` that holds the node's tokens.
    pub(crate) fn block(&self, node: NodeId, group: usize) -> Option<BlockId> {
        self.blocks[node.0 as usize * self.num_groups + group]
    }

    /// Enters a block where there was none.
    pub(crate) fn set_block(&mut self, node: NodeId, group: usize, block: BlockId) {
        let before = self.blocks[node.0 as usize * self.num_groups + group].replace(block);
        assert!(before.is_none(), "a prefix has one block a group");
        self.hold(node);
    }

    /// Takes the node's block in `group` out, if there is one.
    pub(crate) fn take_block(&mut self, node: NodeId, group: usize) -> Option<BlockId> {
        let block = self.blocks[node.0 as usize * self.num_groups + group].take()?;
        self.drop_hold(node);
        Some(block)
    }

    fn set_key(&mut self, parent: Option<NodeId>, tokens: &[TokenId]) {
        self.key.clear();
        self.key.push(parent.map_or(ROOT, |node| node.0));
        self.key.extend_from_slice(tokens);
    }

    /// Makes the node that `self.key` describes.
    fn insert(&mut self, parent: Option<NodeId>) -> NodeId {
        let key: Arc<[u32]> = self.key.as_slice().into();
        let node = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(Node { key: Arc::default(), refs: 0 });
            self.blocks.resize(self.nodes.len() * self.num_groups, None);
            NodeId(self.nodes.len() as u32 - 1)
        });
        self.nodes[node.0 as usize].key = Arc::clone(&key);
        self.children.insert(key, node);
        if let Some(parent) = parent {
            self.hold(parent);
        }
        node
    }

    /// Asserts that reference counts are what children, blocks and `holders` make them.
    pub(crate) fn check(&self, holders: impl Iterator<Item = NodeId>) {
        let mut refs = vec![0; self.nodes.len()];
        holders.for_each(|node| refs[node.0 as usize] += 1);
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.key.is_empty()) {
            let blocks = &self.blocks[index * self.num_groups..][..self.num_groups];
            refs[index] += blocks.iter().flatten().count() as u32;
            if node.key[0] != ROOT {
                refs[node.key[0] as usize] += 1;
            }
            assert_eq!(self.children.get(&node.key), Some(&NodeId(index as u32)), "prefix node {index} is lost");
        }
        for (index, node) in self.nodes.iter().enumerate() {
            assert_eq!(node.refs, refs[index], "references to prefix node {index}");
            assert_eq!(node.refs == 0, node.key.is_empty(), "prefix node {index} outlived its use");
        }
        assert_eq!(self.children.len() + self.vacant.len(), self.nodes.len(), "live and vacant prefix nodes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_differ_by_tokens_and_by_all_that_went_before() {
        let mut cache = PrefixCache::new(1);
        let a = cache.hold_child(None, &[1, 2]);
        let b = cache.hold_child(None, &[3, 4]);
        let (ac, bc) = (cache.hold_child(Some(a), &[5, 6]), cache.hold_child(Some(b), &[5, 6]));
        assert!(ac != bc && a != b);
        assert_eq!(cache.child(Some(a), &[5, 6]), Some(ac));
        assert_eq!(cache.child(None, &[5, 6]), None);
        cache.check([a, b, ac, bc].into_iter());
    }

    #[test]
    fn a_node_goes_with_its_last_holder_block_and_child() {
        let mut cache = PrefixCache::new(2);
        let parent = cache.hold_child(None, &[1]);
        let child = cache.hold_child(Some(parent), &[2]);
        cache.drop_hold(parent);
        cache.set_block(child, 1, BlockId(7));
        cache.drop_hold(child);
        assert_eq!(cache.child(None, &[1]), Some(parent), "kept by its child");
        assert_eq!((cache.block(child, 0), cache.block(child, 1)), (None, Some(BlockId(7))));
        assert_eq!((cache.take_block(child, 0), cache.take_block(child, 1)), (None, Some(BlockId(7))));
        assert_eq!((cache.child(None, &[1]), cache.child(Some(parent), &[2])), (None, None));
        cache.check(std::iter::empty());
    }
}
