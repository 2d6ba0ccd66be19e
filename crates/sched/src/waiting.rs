//! The queue of sequences that do not run: preempted ones first, then new ones in the policy's order.

use std::collections::BTreeMap;

use crate::WaitingLimits;
use crate::sequence::{Rank, SeqIndex, Sequence};

/// Bounded for new requests; preempted sequences, which are at most as many as there are slots, always return.
#[derive(Debug)]
pub(crate) struct WaitingQueue {
    limits: WaitingLimits,
    queue: BTreeMap<Place, SeqIndex>,
    preempted: u32,
    new_prompt_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    is_new: bool,
    rank: Rank,
}

impl WaitingQueue {
    pub(crate) fn new(limits: WaitingLimits) -> Self {
        Self { limits, queue: BTreeMap::new(), preempted: 0, new_prompt_tokens: 0 }
    }

    /// Whether one more new request with such a prompt may wait.
    pub(crate) fn has_room(&self, prompt_tokens: usize) -> bool {
        self.num_new() < self.limits.requests
            && self.new_prompt_tokens + prompt_tokens as u64 <= self.limits.prompt_tokens
    }

    pub(crate) fn insert(&mut self, index: SeqIndex, seq: &Sequence) {
        let place = place(seq);
        match place.is_new {
            true => self.new_prompt_tokens += u64::from(seq.prompt_len),
            false => self.preempted += 1,
        }
        let before = self.queue.insert(place, index);
        assert!(before.is_none(), "two sequences wait in one place");
    }

    /// Takes out a sequence that is as it was when it was put in.
    pub(crate) fn remove(&mut self, seq: &Sequence) {
        let place = place(seq);
        match place.is_new {
            true => self.new_prompt_tokens -= u64::from(seq.prompt_len),
            false => self.preempted -= 1,
        }
        let removed = self.queue.remove(&place);
        assert!(removed.is_some(), "a waiting sequence was not in the queue");
    }

    pub(crate) fn first(&self) -> Option<SeqIndex> {
        self.queue.values().next().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn len(&self) -> u32 {
        self.queue.len() as u32
    }

    pub(crate) fn num_preempted(&self) -> u32 {
        self.preempted
    }

    pub(crate) fn num_new(&self) -> u32 {
        self.len() - self.preempted
    }

    pub(crate) fn new_prompt_tokens(&self) -> u64 {
        self.new_prompt_tokens
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SeqIndex> + '_ {
        self.queue.values().copied()
    }
}

/// Preempted sequences keep the order in which they ran.
fn place(seq: &Sequence) -> Place {
    match seq.slot {
        None => Place { is_new: true, rank: seq.waiting_rank },
        Some(_) => Place { is_new: false, rank: seq.running_rank },
    }
}
