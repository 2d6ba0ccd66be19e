//! Identifiers. Each is an index or a counter; none owns anything.

/// An index into a model's vocabulary.
pub type TokenId = u32;

/// Names one request for as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A row of the executor's per-sequence state. A sequence keeps one slot from its first step to its last,
/// through preemptions; afterwards the slot is bound anew ([`crate::SlotBinding`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqSlot(pub u32);

/// A block of one KV group's pool: `block_size` tokens of every layer in that group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
