//! Committing a step: sampled tokens become known, sequences end, and what was computed can be shared.

use plimsoll_core::{FinishReason, PromptScores, RequestId, SampleFault, Sampled, StepOutput, TokenEvent, TokenId};

use super::Scheduler;
use crate::sequence::{SeqIndex, Sequence, State};
use crate::step::{Flight, Row};

impl Scheduler {
    /// Takes in the outcome of the oldest step in flight and returns the news, in order for each request.
    pub fn commit(&mut self, output: StepOutput) -> Vec<(RequestId, TokenEvent)> {
        let mut events = Vec::with_capacity(self.begun.len() + output.samples.len());
        self.commit_into(output, &mut events);
        events
    }

    /// As [`Scheduler::commit`], appending to `events`.
    ///
    /// # Panics
    /// If the output is not that of the oldest step in flight: the executor broke its contract.
    pub fn commit_into(&mut self, output: StepOutput, events: &mut Vec<(RequestId, TokenEvent)>) {
        let Flight { step, rows } = self.in_flight.pop_front().expect("a commit without a plan in flight");
        assert_eq!(step, output.step, "steps are committed in order");
        self.report_begun(events);

        let mut samples = output.samples.into_iter();
        let mut scores = output.scores.into_iter();
        let mut has_ended = false;
        for &row in &rows {
            let sampled = row.samples.then(|| samples.next().expect("a sample for every row that asked for one"));
            let scored = row.scores.then(|| scores.next().expect("scores for every row that asked for them"));
            has_ended |= self.commit_row(row, scored, sampled, events);
        }
        assert!(samples.next().is_none(), "more samples than were asked for");
        assert!(scores.next().is_none(), "more scores than were asked for");
        if has_ended {
            let seqs = &self.seqs;
            self.running.retain(|&index| seqs.get(index).is_some_and(|seq| seq.state == State::Running));
        }
        self.spare_rows.push(rows);
        self.kv.check_sums();
    }

    /// Tells of sequences that began, save those that were cancelled in the meantime.
    fn report_begun(&mut self, events: &mut Vec<(RequestId, TokenEvent)>) {
        for (id, cached_tokens) in self.begun.drain(..) {
            let seq = self.by_id.get(&id).map(|&index| &self.seqs[index]);
            if seq.is_some_and(|seq| seq.state != State::Ended) {
                events.push((id, TokenEvent::Scheduled { cached_tokens }));
            }
        }
    }

    /// Returns whether the sequence ended with this row.
    fn commit_row(
        &mut self,
        row: Row,
        scored: Option<PromptScores>,
        sampled: Option<Sampled>,
        events: &mut Vec<(RequestId, TokenEvent)>,
    ) -> bool {
        let seq = &mut self.seqs[row.seq];
        seq.in_flight -= 1;
        if let Some(sampled) = &sampled {
            assert_eq!(Some(sampled.slot), seq.slot, "samples are in the plan's order");
        }
        if let Some(scored) = &scored {
            assert_eq!(Some(scored.slot), seq.slot, "scores are in the plan's order");
        }
        if seq.state == State::Ended {
            self.release_if_landed(row.seq);
            return false;
        }
        let (id, mut fault) = (seq.id(), sampled.as_ref().and_then(|sampled| sampled.token.err()));
        match scored.map(|scored| scored.logprobs) {
            Some(Ok(logprobs)) => events.push((id, TokenEvent::Prompt(logprobs))),
            Some(Err(score_fault)) => fault = Some(score_fault),
            None => {}
        }
        if let Some(fault) = fault {
            self.fail(row.seq, fault, events);
            return true;
        }
        if row.epoch == seq.epoch {
            self.kv.advance(&mut seq.blocks, &seq.tokens, row.end);
        }
        let Some(Sampled { token: Ok(token), logprobs, .. }) = sampled else { return false };
        let finish = finish_reason(seq, token);
        seq.tokens.push(token);
        self.counters.generated_tokens += 1;
        events.push((id, TokenEvent::Token { token, logprobs, finish }));
        if finish.is_some() {
            self.end(row.seq);
        }
        finish.is_some()
    }

    fn fail(&mut self, index: SeqIndex, fault: SampleFault, events: &mut Vec<(RequestId, TokenEvent)>) {
        self.kv.distrust(&self.seqs[index].blocks);
        events.push((self.seqs[index].id(), TokenEvent::Failed(fault)));
        self.end(index);
    }

    /// Ends a sequence in the middle of a commit, which clears the list of running ones when it is done.
    fn end(&mut self, index: SeqIndex) {
        if self.seqs[index].state == State::Waiting {
            self.waiting.remove(&self.seqs[index]);
        }
        self.seqs[index].state = State::Ended;
        self.release_if_landed(index);
    }
}

/// Why a sequence ends with `token`, if it does.
fn finish_reason(seq: &Sequence, token: TokenId) -> Option<FinishReason> {
    let stop = &seq.request.stop;
    let generated = seq.generated();
    if generated >= stop.min_tokens && stop.stop_token_ids.contains(&token) {
        Some(FinishReason::Stop)
    } else if generated + 1 == seq.max_sampled {
        Some(FinishReason::Length)
    } else {
        None
    }
}
