//! The memory plan: never over budget, monotone, and helpful where it fails.

mod common;

use plimsoll_nn::{ExpertsInfo, LayerInfo, ModelInfo};
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan};
use proptest::prelude::*;

/// 18 layers, every sixth with full attention, as Gemma 3 270M has them.
fn windowed_model() -> ModelInfo {
    let layer = |index: usize| LayerInfo { kv_heads: 1, head_dim: 256, group: usize::from(index % 6 != 5) };
    ModelInfo {
        architecture: "Gemma3ForCausalLM".into(),
        layers: (0..18).map(layer).collect(),
        groups: vec![None, Some(512)],
        vocab_size: 262_144,
        max_position_embeddings: 32_768,
        hidden_size: 640,
        intermediate_size: 2048,
        num_attention_heads: 4,
        experts: None,
    }
}

fn limits(budget: MemoryBudget) -> MemoryLimits {
    MemoryLimits {
        budget,
        max_model_len: 4096,
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        block_size: 16,
        steps_in_flight: 1,
        kv_dtype: KvDtype::F16,
        activation_bytes: 4,
        captured_tokens: 0,
        overhead: 0,
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn windows_get_what_they_reach_and_full_attention_the_rest() {
    let plan = MemoryPlan::new(&windowed_model(), 0, &limits(MemoryBudget::KvCache(2048 * MIB))).expect("ample");
    let [full, windowed] = plan.groups[..] else { panic!("two groups") };
    // 64 sequences of 511 earlier tokens each and 512 new ones in all, wherever in their blocks they start.
    assert_eq!(windowed.num_blocks, (64 * (512 + 16 - 3) + 512) / 16 + 64);
    assert_eq!((full.layers, windowed.layers), (3, 15));
    // One more block of full attention would not fit.
    assert!(plan.kv_cache <= 2048 * MIB && plan.kv_cache + 3 * 16 * 1024 > 2048 * MIB);
    assert!(full.num_blocks > 10 * windowed.num_blocks);
    assert_eq!(plan.full_length_requests, 64);
}

#[test]
fn a_window_never_has_more_than_full_attention() {
    let plan =
        MemoryPlan::new(&windowed_model(), 0, &limits(MemoryBudget::KvCache(200 * MIB))).expect("enough for one");
    assert!(plan.groups[1].num_blocks <= plan.groups[0].num_blocks, "{plan}");
    assert!(plan.full_length_requests >= 1);
}

#[test]
fn the_total_budget_pays_for_weights_and_workspace_first() {
    let (info, weights) = (windowed_model(), 240 * MIB);
    let plan = MemoryPlan::new(&info, weights, &limits(MemoryBudget::Total(1024 * MIB))).expect("enough");
    assert!(plan.total() <= 1024 * MIB && plan.total() > 1023 * MIB, "{plan}");
    let alone = MemoryPlan::new(&info, weights, &limits(MemoryBudget::KvCache(1024 * MIB - weights - plan.workspace)));
    assert_eq!(Ok(plan), alone);
}

#[test]
fn errors_name_the_flag_and_a_number_that_works() {
    let info = windowed_model();
    let base = limits(MemoryBudget::KvCache(5 * MIB));
    let error = MemoryPlan::new(&info, 0, &base).expect_err("too little");
    let MemoryError::KvCacheTooSmall { needed, fitting_len, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains(&format!("lower --max-model-len to {fitting_len} or less")), "{error}");
    let with_len = |max_model_len| MemoryPlan::new(&info, 0, &MemoryLimits { max_model_len, ..base });
    assert!(with_len(fitting_len).is_ok() && with_len(fitting_len + 1).is_err());
    let with_bytes = |bytes| MemoryPlan::new(&info, 0, &limits(MemoryBudget::KvCache(bytes)));
    assert!(with_bytes(needed).is_ok() && with_bytes(needed - 1).is_err());

    let error = with_bytes(0).expect_err("nothing");
    assert!(!error.to_string().contains("--max-model-len to"), "no length fits: {error}");
    let error = MemoryPlan::new(&info, 900 * MIB, &limits(MemoryBudget::Total(800 * MIB))).expect_err("too large");
    assert!(error.to_string().contains("the weights (900.0 MiB)"), "{error}");
    let error = MemoryPlan::new(&info, 0, &MemoryLimits { max_num_seqs: 0, ..base }).expect_err("no sequences");
    assert!(error.to_string().starts_with("--max-num-seqs is 0"), "{error}");
}

#[test]
fn the_table_is_aligned() {
    let plan =
        MemoryPlan::new(&windowed_model(), 240 * MIB, &limits(MemoryBudget::KvCache(1024 * MIB))).expect("ample");
    let expected = "\
weights                            240.0 MiB
workspace (estimate)                79.8 MiB
KV cache                          1024.0 MiB
  3 layers, full attention         509.3 MiB      10865 blocks,    173840 tokens
  15 layers, window of 512         514.7 MiB       2196 blocks,     35136 tokens
total                             1343.7 MiB
room for 42 requests of 4096 tokens at once";
    assert_eq!(plan.to_string(), expected);
}

#[test]
fn absurd_models_are_refused_and_not_wrapped_around() {
    let mut info = windowed_model();
    info.vocab_size = usize::MAX / 2;
    let refused = MemoryPlan::new(&info, 0, &limits(MemoryBudget::Total(u64::MAX - 1)));
    assert!(matches!(refused, Err(MemoryError::ModelTooLarge { .. })), "{refused:?}");
}

prop_compose! {
    fn any_model()(
        windows in prop::collection::btree_set(1u32..5000, 0..3),
        has_full in any::<bool>(),
        layers in prop::collection::vec((1usize..9, 1usize..257, any::<prop::sample::Index>()), 1..30),
    ) -> ModelInfo {
        let mut groups: Vec<_> = windows.into_iter().map(Some).collect();
        if has_full || groups.is_empty() {
            groups.insert(0, None);
        }
        let layer = |(kv_heads, head_dim, group): (usize, usize, prop::sample::Index)|
            LayerInfo { kv_heads, head_dim, group: group.index(groups.len()) };
        let layers = layers.into_iter().map(layer).collect();
        ModelInfo { layers, groups, ..windowed_model() }
    }
}

prop_compose! {
    fn any_limits()(
        budget in 0u64..1 << 34,
        max_model_len in 1u32..40_000,
        max_num_seqs in 1u32..2000,
        max_num_batched_tokens in 1u32..10_000,
        block_size in 1u32..200,
        steps_in_flight in 1u32..3,
    ) -> MemoryLimits {
        let budget = MemoryBudget::KvCache(budget);
        let kv_dtype = KvDtype::BF16;
        let (activation_bytes, overhead) = (2, 1 << 20);
        MemoryLimits { budget, max_model_len, max_num_seqs, max_num_batched_tokens, block_size, steps_in_flight, kv_dtype, activation_bytes, captured_tokens: max_num_seqs, overhead }
    }
}

fn bytes_of(limits: &MemoryLimits) -> u64 {
    match limits.budget {
        MemoryBudget::KvCache(bytes) | MemoryBudget::Total(bytes) => bytes,
    }
}

proptest! {
    #[test]
    fn a_plan_keeps_to_its_budget_and_holds_a_request(info in any_model(), limits in any_limits()) {
        match MemoryPlan::new(&info, 0, &limits) {
            Ok(plan) => {
                prop_assert!(plan.kv_cache <= bytes_of(&limits));
                prop_assert!(plan.full_length_requests >= 1);
                for (group, &window) in plan.groups.iter().zip(&info.groups) {
                    let all = limits.max_model_len.div_ceil(limits.block_size);
                    let reach = window.map_or(all, |w| all.min((w - 1).div_ceil(limits.block_size) + 1));
                    prop_assert!(group.num_blocks >= reach);
                    prop_assert!(u64::from(group.num_blocks) * u64::from(limits.block_size) <= u64::from(u32::MAX));
                }
            }
            Err(MemoryError::KvCacheTooSmall { needed, fitting_len, .. }) => {
                prop_assert!(needed > bytes_of(&limits) && fitting_len < limits.max_model_len);
                let with_needed = MemoryLimits { budget: MemoryBudget::KvCache(needed), ..limits };
                prop_assert!(MemoryPlan::new(&info, 0, &with_needed).is_ok());
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn more_memory_is_never_fewer_blocks(info in any_model(), limits in any_limits(), more in 0u64..1 << 30) {
        let larger = MemoryLimits { budget: MemoryBudget::KvCache(bytes_of(&limits) + more), ..limits };
        if let Ok(plan) = MemoryPlan::new(&info, 0, &limits) {
            let with_more = MemoryPlan::new(&info, 0, &larger);
            prop_assert!(with_more.is_ok(), "{with_more:?}");
            let with_more = with_more.unwrap();
            for (before, after) in plan.groups.iter().zip(&with_more.groups) {
                prop_assert!(before.num_blocks <= after.num_blocks);
            }
            prop_assert!(plan.full_length_requests <= with_more.full_length_requests);
        }
    }
}

#[test]
fn the_experts_of_all_tokens_are_in_the_workspace() {
    let limits = limits(MemoryBudget::KvCache(1024 * MIB));
    let with = |experts| MemoryPlan::workspace_bytes(&ModelInfo { experts, ..windowed_model() }, &limits);
    let narrow = with(Some(ExpertsInfo { top: 1, intermediate_size: 64 }));
    assert_eq!(narrow, with(None), "narrower than what else stands");
    let wide = with(Some(ExpertsInfo { top: 8, intermediate_size: 768 }));
    // In place of gate and up with their product, at 512 tokens.
    assert_eq!(wide - with(None), 512 * (8 * (768 + 640) - 3 * 2048) * 4);
}
