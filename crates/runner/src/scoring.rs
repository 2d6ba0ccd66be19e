//! A step in which prompt tokens are scored. Every one of them takes a row of logits, and a chunk's rows together would be
//! gigabytes; so the step is run in parts, each with few enough rows, and what is wanted of a part's rows is taken before
//! the next one runs.
//!
//! A part is a smaller chunk, and a row's result does not depend on how its sequence was cut: so neither do scores.

use candle_core::Tensor;
use plimsoll_core::{PromptLogprobs, PromptScores, SampleFault, Sampled, SeqSlot, StepOutput, StepPlan};
use plimsoll_nn::ForwardBatch;
use plimsoll_ops::sample::{TokenScore, WantedScore, score};

use crate::batch::PlanFault;
use crate::runner::{Runner, StepError};
use crate::slots::Slots;
use crate::split::split;

/// What a row of logits is for.
#[derive(Clone, Copy)]
enum RowUse {
    Score(SeqSlot, WantedScore),
    Sample(SeqSlot, u32),
}

impl Runner {
    pub(crate) fn run_scoring(&mut self, plan: &StepPlan, batch: ForwardBatch) -> Result<StepOutput, StepError> {
        let uses = row_uses(plan, &self.slots)?;
        let mut uses = uses.as_slice();
        let mut output = Outcome::new(plan);
        for part in parts(batch, self.most_logit_rows) {
            let logits = self.forward(&part)?;
            let (of_part, others) = uses.split_at(part.logit_rows.len());
            self.take_rows(of_part, &logits, &mut output)?;
            uses = others;
        }
        Ok(StepOutput { step: plan.step, samples: output.samples, scores: output.scores })
    }

    /// Scores and samples by the rows of `logits`, which are used as `uses` says.
    fn take_rows(&mut self, uses: &[RowUse], logits: &Tensor, output: &mut Outcome) -> Result<(), StepError> {
        let mut first = 0;
        for run in uses.chunk_by(|a, b| is_score(a) == is_score(b)) {
            let rows = logits.narrow(0, first, run.len())?;
            first += run.len();
            let samplers = run.iter().filter_map(|row| match row {
                RowUse::Sample(slot, index) => Some((*slot, *index)),
                RowUse::Score(..) => None,
            });
            let samplers: Vec<_> = samplers.collect();
            if !samplers.is_empty() {
                output.samples.extend(self.sample(&samplers, &rows)?);
                continue;
            }
            let wanted = run.iter().filter_map(|row| match row {
                RowUse::Score(slot, wanted) => Some((*slot, *wanted)),
                RowUse::Sample(..) => None,
            });
            let (slots, wanted): (Vec<_>, Vec<_>) = wanted.unzip();
            slots.into_iter().zip(score(&rows, &wanted)?).for_each(|(slot, scored)| output.add(slot, scored));
        }
        Ok(())
    }
}

fn is_score(row: &RowUse) -> bool {
    matches!(row, RowUse::Score(..))
}

/// What each of a batch's rows of logits is for, in their order.
fn row_uses(plan: &StepPlan, slots: &Slots) -> Result<Vec<RowUse>, PlanFault> {
    let mut uses = Vec::new();
    for seq in &plan.seqs {
        if let Some(span) = seq.scores {
            uses.extend(slots.get(seq.slot)?.wanted_scores(span).map(|wanted| RowUse::Score(seq.slot, wanted)));
        }
        uses.extend(seq.sample.map(|index| RowUse::Sample(seq.slot, index)));
    }
    Ok(uses)
}

/// The batch in parts of at most `most_rows` rows of logits each.
fn parts(batch: ForwardBatch, most_rows: usize) -> Vec<ForwardBatch> {
    let mut parts = Vec::new();
    let mut rest = batch;
    while rest.logit_rows.len() > most_rows {
        let cut = rest.logit_rows[most_rows - 1] as usize + 1;
        let Some((part, others)) = split(&rest, cut) else { break };
        parts.push(part);
        rest = others;
    }
    parts.push(rest);
    parts
}

/// What a step has brought so far.
struct Outcome {
    samples: Vec<Sampled>,
    /// An entry for every sequence that is scored, from the start.
    scores: Vec<PromptScores>,
}

impl Outcome {
    fn new(plan: &StepPlan) -> Self {
        let scored = plan.seqs.iter().filter(|seq| seq.scores.is_some());
        let scores = scored.map(|seq| PromptScores { slot: seq.slot, logprobs: Ok(Vec::new()) }).collect();
        Self { samples: Vec::new(), scores }
    }

    /// Adds the score of a sequence's next token. One that has none spoils the sequence.
    fn add(&mut self, slot: SeqSlot, scored: Option<TokenScore>) {
        let Some(entry) = self.scores.iter_mut().find(|entry| entry.slot == slot) else { return };
        match (scored, &mut entry.logprobs) {
            (Some(TokenScore { logprob, rank, top }), Ok(all)) => all.push(PromptLogprobs { logprob, rank, top }),
            (None, _) => entry.logprobs = Err(SampleFault::NonFiniteLogits),
            (Some(_), Err(_)) => {}
        }
    }
}
