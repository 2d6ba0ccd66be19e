//! One request's progress, and the store of all that are in the scheduler.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use plimsoll_core::{PromptSpan, Request, RequestId, SeqSlot, TokenId};

use crate::kv_blocks::SeqBlocks;

/// Where a sequence is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not begun, or preempted (it has a slot then).
    Waiting,
    /// Takes part in steps.
    Running,
    /// Finished, failed or cancelled; keeps slot and blocks while steps in flight use them.
    Ended,
}

/// Place in a queue: lower rank first, then earlier arrival.
pub(crate) type Rank = (i64, u64);

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) request: Arc<Request>,
    /// As in `request`, here because every step asks for it.
    pub(crate) prompt_len: u32,
    pub(crate) state: State,
    pub(crate) slot: Option<SeqSlot>,
    /// Prompt and generated tokens whose values are known.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) blocks: SeqBlocks,
    /// Tokens in the KV cache once all planned steps have run.
    pub(crate) computed: u32,
    /// Tokens that were sampled, or will be once all planned steps have run.
    pub(crate) sampled: u32,
    /// Leading prompt tokens whose log probabilities were reported, or will be once all planned steps have run. The
    /// first has none and is never waited for. Stays 0 where none are wanted.
    pub(crate) scored: u32,
    /// Generated tokens at most: `max_tokens`, or what the context leaves.
    pub(crate) max_sampled: u32,
    /// Steps planned and not committed that this sequence is in.
    pub(crate) in_flight: u32,
    /// Counts preemptions, so that a step in flight across one does not advance what begins anew.
    pub(crate) epoch: u32,
    /// The last step that it was planned in.
    pub(crate) last_step: Option<u64>,
    pub(crate) waiting_rank: Rank,
    pub(crate) running_rank: Rank,
}

impl Sequence {
    pub(crate) fn id(&self) -> RequestId {
        self.request.id
    }

    /// Tokens that it will have once all planned steps have run, known or not.
    pub(crate) fn promised(&self) -> u32 {
        self.prompt_len + self.sampled
    }

    /// Input tokens that it waits to have computed; 0 where nothing is left to do but to commit its last sample.
    pub(crate) fn pending(&self) -> u32 {
        match self.sampled < self.max_sampled {
            true => self.promised() - self.computed,
            false => 0,
        }
    }

    /// Known tokens within which a cached prefix may be taken: what is not computed cannot be scored.
    pub(crate) fn cacheable(&self) -> usize {
        match self.request.sampling.prompt_logprobs {
            Some(_) if self.scored < self.prompt_len => self.scored.saturating_sub(1) as usize,
            _ => self.tokens.len(),
        }
    }

    /// The prompt tokens to score in a step that computes `start..end`.
    pub(crate) fn to_score(&self, start: u32, end: u32) -> Option<PromptSpan> {
        self.request.sampling.prompt_logprobs?;
        let (from, to) = ((start + 1).max(self.scored), (end + 1).min(self.prompt_len));
        (from < to).then_some(PromptSpan { from, to })
    }

    /// Generated tokens whose values are known.
    pub(crate) fn generated(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt_len
    }
}

/// Names a sequence while it is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SeqIndex(u32);

/// All sequences between `add` and the commit of their last step.
#[derive(Debug, Default)]
pub(crate) struct SeqStore {
    entries: Vec<Option<Sequence>>,
    vacant: Vec<SeqIndex>,
}

impl SeqStore {
    pub(crate) fn insert(&mut self, seq: Sequence) -> SeqIndex {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            SeqIndex(self.entries.len() as u32 - 1)
        });
        self.entries[index.0 as usize] = Some(seq);
        index
    }

    pub(crate) fn remove(&mut self, index: SeqIndex) -> Sequence {
        self.vacant.push(index);
        self.entries[index.0 as usize].take().expect("a sequence is removed once")
    }

    pub(crate) fn get(&self, index: SeqIndex) -> Option<&Sequence> {
        self.entries[index.0 as usize].as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.entries.iter().flatten()
    }
}

impl Index<SeqIndex> for SeqStore {
    type Output = Sequence;

    fn index(&self, index: SeqIndex) -> &Sequence {
        self.entries[index.0 as usize].as_ref().expect("an index of a sequence that is in the store")
    }
}

impl IndexMut<SeqIndex> for SeqStore {
    fn index_mut(&mut self, index: SeqIndex) -> &mut Sequence {
        self.entries[index.0 as usize].as_mut().expect("an index of a sequence that is in the store")
    }
}
