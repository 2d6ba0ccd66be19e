//! Each rule of the contract, broken once.

use plimsoll_core::{BlockId, GroupTables, KvGroup, RequestId, SamplingParams, SeqSlot, StopConditions};

use super::*;
use crate::{NullConfig, NullExecutor};

const BLOCK: u32 = 2;
const MAX_TOKENS: u32 = 8;

fn executor(window: Option<u32>) -> CheckedExecutor<NullExecutor> {
    let cache = CacheConfig { block_size: BLOCK, groups: vec![KvGroup { window, num_blocks: 8 }] };
    let inner = NullExecutor::new(NullConfig { max_in_flight: 2, ..NullConfig::default() });
    CheckedExecutor::new(inner, &cache, 2, MAX_TOKENS)
}

fn request(id: u64, prompt: &[u32]) -> Arc<Request> {
    let stop = StopConditions { max_tokens: 8, min_tokens: 0, stop_token_ids: vec![] };
    let sampling = SamplingParams::default();
    Arc::new(Request { id: RequestId(id), prompt: prompt.to_vec(), sampling, stop, priority: 0 })
}

/// A plan of rows (slot, start, input tokens, sample, first block, blocks); no tokens means the last sampled one.
type TestRow<'a> = (u32, u32, &'a [u32], Option<u32>, u32, &'a [u32]);

fn plan(step: u64, bindings: &[(u32, &Arc<Request>)], rows: &[TestRow<'_>]) -> StepPlan {
    let mut tables = GroupTables { offsets: vec![0], ..GroupTables::default() };
    let mut plan = StepPlan { step, ..StepPlan::default() };
    for &(slot, request) in bindings {
        plan.bindings.push(SlotBinding { slot: SeqSlot(slot), request: Arc::clone(request) });
    }
    for &(slot, start, tokens, sample, first_block, blocks) in rows {
        let (input, tokens) = match tokens {
            [] => (TokenInput::LastSampled, [0].as_slice()),
            tokens => (TokenInput::Known, tokens),
        };
        plan.tokens.extend(tokens);
        let (slot, len) = (SeqSlot(slot), tokens.len() as u32);
        plan.seqs.push(ScheduledSeq { slot, start, len, input, sample, scores: None });
        tables.first_block.push(first_block);
        tables.blocks.extend(blocks.iter().copied().map(BlockId));
        tables.offsets.push(tables.blocks.len() as u32);
    }
    plan.tables.push(tables);
    plan
}

fn run(executor: &mut CheckedExecutor<NullExecutor>, plans: Vec<StepPlan>) {
    for plan in plans {
        let ticket = executor.submit(&plan).unwrap();
        executor.wait(ticket).unwrap();
    }
}

#[test]
fn right_plans_pass() {
    let (a, b) = (request(1, &[10, 11, 12]), request(2, &[10, 11, 13]));
    let mut executor = executor(None);
    run(
        &mut executor,
        vec![
            plan(0, &[(0, &a)], &[(0, 0, &[10, 11], None, 0, &[4])]),
            plan(1, &[], &[(0, 2, &[12], Some(0), 0, &[4, 5])]),
            // The second request shares the first block; the first goes on with its own last token.
            plan(2, &[(1, &b)], &[(0, 3, &[], Some(1), 0, &[4, 5]), (1, 2, &[13], Some(0), 0, &[4, 6])]),
            // A new request in the first slot, over the first one's second block.
            plan(3, &[(0, &b)], &[(0, 0, &[10, 11, 13], Some(0), 0, &[7, 5])]),
        ],
    );
}

#[test]
fn a_window_excuses_what_is_out_of_reach_and_nothing_else() {
    let a = request(1, &[10, 11, 12, 13, 14]);
    let steps = |first_block, blocks: &'static [u32]| {
        vec![
            plan(0, &[(0, &a)], &[(0, 0, &[10, 11, 12, 13], None, 0, &[0, 1])]),
            plan(1, &[], &[(0, 4, &[14], Some(0), first_block, blocks)]),
        ]
    };
    run(&mut executor(Some(3)), steps(1, &[1, 2]));
    let out_of_table = || run(&mut executor(Some(4)), steps(1, &[1, 2]));
    std::panic::catch_unwind(out_of_table).expect_err("position 1 is in reach of position 4, and is in block 0");
}

/// Runs good steps, then a bad one that must panic with a message that holds `expected`.
fn assert_caught(expected: &str, good: Vec<StepPlan>, bad: StepPlan) {
    let mut executor = executor(None);
    run(&mut executor, good);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| executor.submit(&bad)));
    let message = caught.expect_err(expected);
    let message = message.downcast_ref::<String>().map(String::as_str).or(message.downcast_ref::<&str>().copied());
    assert!(message.is_some_and(|message| message.contains(expected)), "{message:?} is not about '{expected}'");
}

#[test]
fn wrong_plans_are_caught() {
    let (a, b) = (request(1, &[10, 11, 12]), request(2, &[20, 21, 22]));
    let prefill = || plan(0, &[(0, &a)], &[(0, 0, &[10, 11, 12], Some(0), 0, &[4, 5])]);
    let other = || plan(1, &[(1, &b)], &[(1, 0, &[20, 21, 22], Some(0), 0, &[6, 7])]);
    let cases: Vec<(&str, Vec<StepPlan>, StepPlan)> = vec![
        ("steps count up", vec![], plan(3, &[(0, &a)], &[(0, 0, &[10], None, 0, &[4])])),
        ("is not bound", vec![], plan(0, &[], &[(0, 0, &[10], None, 0, &[4])])),
        ("in step 0 twice", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10], None, 0, &[4]), (0, 1, &[11], None, 0, &[4])])),
        ("wrong input tokens", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10, 12], None, 0, &[4])])),
        ("samples after its last", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10, 11], Some(0), 0, &[4])])),
        ("samples after its last", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10, 11, 12], None, 0, &[4, 5])])),
        ("the last sampled token", vec![], plan(0, &[(0, &a)], &[(0, 0, &[], None, 0, &[4])])),
        ("past what was sampled", vec![prefill()], plan(1, &[], &[(0, 4, &[], Some(1), 0, &[4, 5, 6])])),
        ("foreign token", vec![], plan(0, &[(0, &a)], &[(0, 1, &[11, 12], Some(0), 0, &[4, 5])])),
        ("foreign token", vec![prefill(), other()], plan(2, &[], &[(0, 3, &[], Some(1), 0, &[6, 5])])),
        ("past the end of the table", vec![prefill()], plan(1, &[], &[(0, 3, &[], Some(1), 0, &[4])])),
        ("before the first block", vec![prefill()], plan(1, &[], &[(0, 3, &[], Some(1), 1, &[5])])),
        ("does not exist", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10, 11], None, 0, &[8])])),
        ("over the budget", vec![], plan(0, &[(0, &a)], &[(0, 0, &[10; 9], None, 0, &[4])])),
        (
            "write to one block",
            vec![],
            plan(0, &[(0, &a), (1, &b)], &[(0, 0, &[10], None, 0, &[4]), (1, 0, &[20], None, 0, &[4])]),
        ),
    ];
    for (expected, good, bad) in cases {
        assert_caught(expected, good, bad);
    }
}

#[test]
fn a_row_may_not_read_what_another_writes_in_the_same_step() {
    let (a, b) = (request(1, &[10, 11, 12]), request(2, &[10, 11, 13]));
    let rows: &[TestRow<'_>] = &[(0, 0, &[10, 11, 12], Some(0), 0, &[4, 5]), (1, 2, &[13], Some(0), 0, &[4, 6])];
    assert_caught("reads what row 0 writes", vec![], plan(0, &[(0, &a), (1, &b)], rows));
}
