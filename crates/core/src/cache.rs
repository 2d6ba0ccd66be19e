//! The shape of the paged KV cache, as scheduler and executor agree on it at start.

/// How the KV cache is divided into groups and blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Tokens a block.
    pub block_size: u32,
    /// One entry a KV group; a sequence has one block table a group.
    pub groups: Vec<KvGroup>,
}

/// Layers that keep the same tokens share a group, and so a block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Attention reaches this many tokens back, the query's own included (a query at position `p` sees keys
    /// `p - window + 1 ..= p`); `None` sees all. Blocks wholly out of every future query's reach are freed.
    pub window: Option<u32>,
    /// Blocks in this group's pool.
    pub num_blocks: u32,
}
