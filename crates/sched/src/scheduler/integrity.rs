//! The full self-check: everything that is stored twice or implied must agree.

use std::collections::BTreeSet;

use super::Scheduler;
use crate::sequence::{Sequence, State};

impl Scheduler {
    /// Asserts every invariant; takes time in proportion to blocks and sequences. For tests, and for when idle.
    ///
    /// # Panics
    /// If anything is inconsistent: the process should refuse new work and end.
    pub fn check_integrity(&self) {
        self.kv.check(self.seqs.iter().map(|seq| &seq.blocks));
        self.check_lists();
        self.check_slots();
        self.check_flights();
        self.seqs.iter().for_each(|seq| self.check_sequence(seq));
        if self.is_idle() {
            assert_eq!(self.free_slots.len(), self.config.max_num_seqs as usize, "slots leaked");
            assert!(self.kv.usage().iter().all(|blocks| blocks.used == 0), "blocks leaked");
        }
    }

    fn check_lists(&self) {
        let count = |state| self.seqs.iter().filter(|seq| seq.state == state).count();
        assert_eq!(count(State::Running), self.running.len(), "running sequences and their list");
        assert_eq!(count(State::Waiting), self.waiting.len() as usize, "waiting sequences and their queue");
        assert_eq!(self.seqs.iter().count(), self.by_id.len(), "sequences and their ids");
        for pair in self.running.windows(2) {
            assert!(self.seqs[pair[0]].running_rank < self.seqs[pair[1]].running_rank, "running list out of order");
        }
        assert!(self.running.iter().all(|&index| self.seqs[index].state == State::Running), "running list");
        assert!(self.waiting.iter().all(|index| self.seqs[index].state == State::Waiting), "waiting queue");
        for (&id, &index) in &self.by_id {
            assert_eq!(self.seqs[index].id(), id, "index of ids");
        }
        let new = self.seqs.iter().filter(|seq| seq.state == State::Waiting && seq.slot.is_none());
        let new_tokens: u64 = new.map(|seq| u64::from(seq.prompt_len)).sum();
        assert_eq!(new_tokens, self.waiting.new_prompt_tokens(), "waiting prompt tokens");
        assert!(self.waiting.num_new() <= self.config.max_waiting.requests, "waiting queue over its bound");
    }

    fn check_slots(&self) {
        let bound = self.seqs.iter().filter_map(|seq| seq.slot);
        let slots: Vec<_> = bound.chain(self.free_slots.iter().copied()).collect();
        let distinct: BTreeSet<_> = slots.iter().map(|slot| slot.0).collect();
        assert_eq!(slots.len(), self.config.max_num_seqs as usize, "bound and free slots");
        assert!(distinct.into_iter().eq(0..self.config.max_num_seqs), "a slot is bound twice");
    }

    fn check_flights(&self) {
        let rows: usize = self.in_flight.iter().map(|flight| flight.rows.len()).sum();
        let in_flight: u32 = self.seqs.iter().map(|seq| seq.in_flight).sum();
        assert_eq!(rows, in_flight as usize, "rows in flight");
        let first = self.counters.steps - self.in_flight.len() as u64;
        assert!(self.in_flight.iter().map(|flight| flight.step).eq(first..self.counters.steps), "steps in flight");
        let ended = self.seqs.iter().filter(|seq| seq.state == State::Ended);
        assert!(ended.into_iter().all(|seq| seq.in_flight > 0), "an ended sequence was not released");
    }

    fn check_sequence(&self, seq: &Sequence) {
        let id = seq.id().0;
        assert!(seq.computed <= seq.promised() && seq.sampled <= seq.max_sampled, "request {id} ran too far");
        assert!(seq.tokens.starts_with(&seq.request.prompt), "request {id} lost its prompt");
        if seq.state != State::Ended {
            let samples_in_flight = seq.promised() - seq.tokens.len() as u32;
            assert!(samples_in_flight <= seq.in_flight, "request {id} waits for a sample that is not in flight");
        }
        let covered = |table: &crate::block_table::BlockTable| {
            u64::from(table.end()) * u64::from(self.config.cache.block_size) >= u64::from(seq.computed)
        };
        match seq.state {
            State::Waiting => {
                let held: usize = seq.blocks.tables.iter().map(|table| table.blocks().len()).sum();
                assert!(held == 0 && seq.computed == 0, "request {id} waits but holds blocks");
            }
            State::Running => {
                assert!(seq.slot.is_some(), "request {id} runs without a slot");
                assert!(seq.blocks.tables.iter().all(covered), "request {id} has tokens outside its blocks");
            }
            State::Ended => {}
        }
    }
}
