//! What a memory plan promises, the scheduler and the runner can keep with it.

mod common;

use common::*;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan};

const SEQS: u32 = 16;

fn limits(setup: &Setup, budget: u64) -> MemoryLimits {
    MemoryLimits {
        budget: MemoryBudget::KvCache(budget),
        max_model_len: 256,
        max_num_seqs: setup.max_num_seqs,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        block_size: 4,
        steps_in_flight: 1,
        kv_dtype: KvDtype::F32,
        activation_bytes: 4,
        captured_tokens: 0,
        overhead: 0,
    }
}

fn rig(setup: &Setup, plan: &MemoryPlan) -> Rig {
    Rig::over(&fake_info(), Box::new(FakeModel), setup, &plan.blocks_per_group(), KvDtype::F32)
}

#[test]
fn the_least_memory_holds_one_longest_request() {
    for max_num_batched_tokens in [16, 50, 1000] {
        let setup = Setup { max_num_batched_tokens, ..Setup::default() };
        let nothing = MemoryPlan::new(&fake_info(), 0, &limits(&setup, 0));
        let Err(MemoryError::KvCacheTooSmall { needed, .. }) = nothing else { panic!("{nothing:?}") };
        let plan = MemoryPlan::new(&fake_info(), 0, &limits(&setup, needed)).expect("what the error asked for");
        assert_eq!((plan.kv_cache, plan.full_length_requests), (needed, 1));
        let requests: Vec<_> = (0..3).map(|i| request(i, prompt(i, 200), 56)).collect();
        for (request, outcome) in requests.iter().zip(rig(&setup, &plan).run(&requests)) {
            assert_eq!(outcome.tokens, greedy_oracle(&request.prompt, 56));
        }
    }
}

#[test]
fn windows_sized_for_all_sequences_never_preempt() {
    for max_num_batched_tokens in [16, 64, 300] {
        let setup = Setup { max_num_seqs: SEQS, max_num_batched_tokens, ..Setup::default() };
        let plan = MemoryPlan::new(&fake_info(), 0, &limits(&setup, 1 << 20)).expect("ample");
        assert!(plan.groups[1].num_blocks < plan.groups[0].num_blocks / 10, "{plan}");
        let requests: Vec<_> = (0..40).map(|i| request(i, prompt(i, 10 + 4 * i as usize), 80)).collect();
        let mut rig = rig(&setup, &plan);
        rig.run(&requests);
        assert_eq!(rig.stats().preemptions, 0, "{max_num_batched_tokens} tokens a step");
    }
}
