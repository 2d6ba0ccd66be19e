//! Host time of one step: `cargo bench -p plimsoll-sched`.
//!
//! `plan_and_commit` is the scheduler alone; `with_null_device` adds the null executor, as `--device null` runs it.

use std::cell::RefCell;

use divan::Bencher;
use plimsoll_core::{
    CacheConfig, Executor, KvGroup, Request, RequestId, Sampled, SamplingParams, StepOutput, StepPlan, StopConditions,
};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{NullConfig, NullExecutor};

const SEQS: u32 = 4096;
const STEPS: u32 = 200;
const BLOCK: u32 = 16;

/// Tokens of context of each sequence, and whether there is a second KV group with a window of 512.
const CASES: &[(u32, bool)] = &[(128, false), (2048, false), (2048, true)];

fn main() {
    divan::main();
}

/// All sequences past their prefill, with blocks for all steps to come.
fn decoding(context: u32, has_window: bool) -> (Scheduler, NullExecutor) {
    let max_model_len = context + 8 * STEPS;
    let full = KvGroup { window: None, num_blocks: SEQS * max_model_len.div_ceil(BLOCK) };
    let windowed = KvGroup { window: Some(512), num_blocks: SEQS * (context.div_ceil(BLOCK) + 64) };
    let groups = if has_window { vec![full, windowed] } else { vec![full] };
    let mut scheduler = Scheduler::new(SchedulerConfig {
        cache: CacheConfig { block_size: BLOCK, groups },
        max_num_seqs: SEQS,
        max_num_batched_tokens: SEQS * context,
        max_model_len,
        max_waiting: WaitingLimits { requests: SEQS, prompt_tokens: u64::from(SEQS) * u64::from(max_model_len) },
        policy: Policy::Fcfs,
        prefix_caching: true,
    })
    .expect("a valid configuration");
    for id in 0..SEQS {
        let request = Request {
            id: RequestId(u64::from(id)),
            prompt: (0..context).map(|at| id.wrapping_mul(7919) + at).collect(),
            sampling: SamplingParams { seed: u64::from(id), ..SamplingParams::default() },
            stop: StopConditions { max_tokens: u32::MAX, min_tokens: 0, stop_token_ids: vec![2, 3] },
            priority: 0,
        };
        scheduler.add(request).expect("there is room");
    }
    let mut executor = NullExecutor::new(NullConfig::default());
    while scheduler.stats().waiting > 0 {
        step(&mut scheduler, &mut executor);
    }
    (scheduler, executor)
}

fn step(scheduler: &mut Scheduler, executor: &mut NullExecutor) {
    let plan = scheduler.plan().expect("all decode");
    let ticket = executor.submit(&plan).expect("the null device does not fail");
    let output = executor.wait(ticket).expect("the null device does not fail");
    divan::black_box(scheduler.commit(output));
    scheduler.recycle(plan);
}

fn answer(plan: &StepPlan) -> StepOutput {
    let sampled = |slot| Sampled { slot, token: Ok(plan.step as u32 + 10), logprobs: None };
    StepOutput { step: plan.step, samples: plan.seqs.iter().map(|seq| sampled(seq.slot)).collect(), scores: Vec::new() }
}

#[divan::bench(args = CASES, sample_count = STEPS, sample_size = 1)]
fn with_null_device(bencher: Bencher<'_, '_>, &(context, has_window): &(u32, bool)) {
    let (mut scheduler, mut executor) = decoding(context, has_window);
    bencher.bench_local(|| step(&mut scheduler, &mut executor));
}

/// Measures the commit of one step and the plan of the next; the device's answer is made in between, unmeasured.
#[divan::bench(args = CASES, sample_count = STEPS, sample_size = 1)]
fn plan_and_commit(bencher: Bencher<'_, '_>, &(context, has_window): &(u32, bool)) {
    let (mut scheduler, _) = decoding(context, has_window);
    let first = scheduler.plan().expect("all decode");
    let state = RefCell::new((scheduler, Some(first)));
    bencher
        .with_inputs(|| {
            let (scheduler, planned) = &mut *state.borrow_mut();
            let plan = planned.take().expect("the last measurement left a plan");
            let output = answer(&plan);
            scheduler.recycle(plan);
            output
        })
        .bench_local_values(|output| {
            let (scheduler, planned) = &mut *state.borrow_mut();
            divan::black_box(scheduler.commit(output));
            *planned = scheduler.plan();
        });
}
