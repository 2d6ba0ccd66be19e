//! The executor's contract: tickets, and plans that are wrong.

mod common;

use std::sync::Arc;

use common::*;
use plimsoll_core::{BlockId, Executor, GroupTables, ScheduledSeq, SeqSlot, SlotBinding, StepPlan, Ticket, TokenInput};

/// A good first step of one sequence of 6 tokens (blocks of 4) in slot 0.
fn plan() -> StepPlan {
    let table = |block| GroupTables {
        offsets: vec![0, 2],
        first_block: vec![0],
        blocks: vec![BlockId(block), BlockId(block + 1)],
    };
    StepPlan {
        step: 0,
        bindings: vec![SlotBinding { slot: SeqSlot(0), request: Arc::new(request(0, prompt(1, 6), 5)) }],
        seqs: vec![ScheduledSeq {
            slot: SeqSlot(0),
            start: 0,
            len: 6,
            input: TokenInput::Known,
            sample: Some(0),
            scores: None,
        }],
        tokens: prompt(1, 6),
        tables: vec![table(3), table(8)],
    }
}

fn error_of(change: impl FnOnce(&mut StepPlan)) -> String {
    let mut plan = plan();
    change(&mut plan);
    Rig::fake(&Setup::default()).runner.submit(&plan).expect_err("a wrong plan").to_string()
}

#[test]
fn a_ticket_is_waited_for_once_and_before_the_next_step() {
    let mut runner = Rig::fake(&Setup::default()).runner;
    assert!(runner.wait(Ticket(0)).is_err(), "nothing was submitted");
    let ticket = runner.submit(&plan()).expect("a good plan");
    assert!(runner.submit(&StepPlan { step: 1, ..plan() }).is_err(), "lockstep");
    assert!(runner.wait(Ticket(9)).is_err(), "another step's ticket");
    let output = runner.wait(ticket).expect("the step ran");
    assert_eq!(output.samples[0].token, Ok(greedy_oracle(&prompt(1, 6), 1)[0]));
    assert!(runner.wait(Ticket(0)).is_err(), "waited for already");
}

#[test]
fn a_chunk_that_does_not_sample_has_no_samples() {
    let mut chunk = plan();
    chunk.seqs[0].sample = None;
    let mut runner = Rig::fake(&Setup::default()).runner;
    let ticket = runner.submit(&chunk).expect("a good plan");
    assert_eq!(runner.wait(ticket).expect("the step ran").samples, []);
}

#[test]
fn every_id_of_a_plan_is_checked() {
    let has = |error: String, part: &str| assert!(error.contains(part), "{error:?} does not say {part:?}");
    has(error_of(|p| p.bindings[0].slot = SeqSlot(16)), "SeqSlot(16) is beyond the 16 that exist");
    has(error_of(|p| p.seqs[0].slot = SeqSlot(1 << 31)), "is beyond the 16 that exist");
    has(error_of(|p| p.bindings.clear()), "before a request was bound");
    has(error_of(|p| p.seqs[0].len = 0), "no input tokens");
    has(error_of(|p| p.seqs[0].len = 5), "holds 6 input tokens, its sequences take 5");
    has(error_of(|p| p.tokens[2] = VOCAB as u32), "token 89 is outside the vocabulary of 89");
    has(error_of(|p| p.seqs[0].start = u32::MAX), "beyond the 256 of --max-model-len");
    has(error_of(|p| p.seqs[0].input = TokenInput::LastSampled), "last sampled token");
    has(error_of(|p| drop(p.tables.pop())), "1 block tables, the cache 2 groups");
    has(error_of(|p| p.tables[0].offsets = vec![0, 3]), "compressed-row form");
    has(error_of(|p| p.tables[0].offsets = vec![2]), "compressed-row form");
    has(error_of(|p| p.tables[1].blocks[1] = BlockId(2000)), "block 2000 is beyond the 2000 that exist");
    has(error_of(|p| p.tables[0].first_block = vec![1]), "covers positions 4..12, the step reaches 0..6");
    has(error_of(|p| (p.tables[0].blocks.truncate(1), p.tables[0].offsets = vec![0, 1]).0), "covers positions 0..4");
}

#[test]
fn a_slot_stands_in_a_plan_once() {
    let error = error_of(|p| {
        p.seqs.push(p.seqs[0]);
        p.tokens.extend(prompt(1, 6));
        for table in &mut p.tables {
            table.offsets = vec![0, 2, 4];
            table.first_block = vec![0, 0];
            table.blocks.extend([BlockId(20), BlockId(21)]);
        }
    });
    assert!(error.contains("SeqSlot(0) stands in the plan twice"), "{error}");
}
