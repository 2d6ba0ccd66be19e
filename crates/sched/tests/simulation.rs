//! Thousands of steps of random loads under random configurations, on a device that checks every plan. Whatever
//! happens, each request gets the tokens that it would have got alone.
//!
//! A failure names its seed; `PLIMSOLL_SEED=<seed> cargo test -p plimsoll-sched --test simulation` runs that one alone.

mod common;

use std::collections::BTreeMap;

use common::Harness;
use plimsoll_core::{CacheConfig, KvGroup, Request, RequestId, SamplingParams, StopConditions};
use plimsoll_sched::{AddError, Policy, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{NullConfig, SimRng};

const SEEDS: u64 = 1000;
const REQUESTS: u64 = 60;

/// Says which seed failed, when a panic passes by.
struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with PLIMSOLL_SEED={}", self.0);
        }
    }
}

fn random_config(rng: &mut SimRng) -> SchedulerConfig {
    let block_size = rng.between(1, 8) as u32;
    let max_model_len = rng.between(2, 120) as u32;
    let is_tiny = rng.chance(0.6);
    let group = |rng: &mut SimRng| {
        let window = rng.chance(0.5).then(|| rng.between(1, 40) as u32);
        let whole = u64::from(max_model_len.div_ceil(block_size));
        let num_blocks = if is_tiny { rng.between(whole / 2 + 1, whole * 2) } else { whole * rng.between(4, 12) };
        KvGroup { window, num_blocks: num_blocks as u32 }
    };
    let groups = (0..rng.between(1, 3)).map(|_| group(rng)).collect();
    let max_num_seqs = rng.between(1, 10) as u32;
    SchedulerConfig {
        cache: CacheConfig { block_size, groups },
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + rng.below(40) as u32,
        max_model_len,
        max_waiting: WaitingLimits {
            requests: rng.between(1, 30) as u32,
            prompt_tokens: u64::from(max_model_len) * rng.between(1, 20),
        },
        policy: [Policy::Fcfs, Policy::Priority, Policy::ShortestPromptFirst][rng.below(3) as usize],
        prefix_caching: rng.chance(0.8),
    }
}

/// Prompts are made of few words, so that many share a prefix.
fn random_request(rng: &mut SimRng, id: u64, max_model_len: u32) -> Request {
    let longest = if rng.chance(0.2) { max_model_len + 1 } else { max_model_len.div_ceil(3) };
    let prompt_len = rng.between(1, u64::from(longest));
    let words = rng.between(1, 3);
    Request {
        id: RequestId(id),
        prompt: (0..prompt_len).map(|at| if at < 20 { 1 } else { rng.below(words) as u32 }).collect(),
        sampling: SamplingParams {
            seed: rng.next_u64(),
            prompt_logprobs: rng.chance(0.2).then_some(0),
            ..SamplingParams::default()
        },
        stop: StopConditions {
            max_tokens: rng.between(1, 100) as u32,
            min_tokens: rng.below(5) as u32,
            stop_token_ids: if rng.chance(0.5) { vec![5, 6] } else { vec![] },
        },
        priority: rng.between(0, 3) as i32 - 1,
    }
}

/// What a seed's run met, to see that the runs together meet everything.
#[derive(Debug, Default)]
struct Met {
    preemptions: u64,
    prefix_hits: u64,
    cancels: u64,
    queue_full: u64,
    steps: u64,
    finished: u64,
}

fn run_seed(seed: u64, met: &mut Met) {
    let _guard = NameSeed(seed);
    let rng = &mut SimRng::new(seed);
    let config = random_config(rng);
    let null = NullConfig {
        vocab_size: rng.between(8, 50) as u32,
        stop_probability: 0.03,
        fault_probability: if rng.chance(0.3) { 0.01 } else { 0.0 },
        max_in_flight: rng.between(1, 2) as usize,
        ..NullConfig::default()
    };
    let (load, cancels) = (rng.between(1, 100) as f64 / 100.0, rng.chance(0.5));
    let mut harness = Harness::with_device(config.clone(), null);
    let mut live: BTreeMap<u64, Request> = BTreeMap::new();
    let mut next_id = 0;
    let mut turns = 0;
    while next_id < REQUESTS || !harness.scheduler.is_idle() {
        while next_id < REQUESTS && rng.chance(load) {
            let request = random_request(rng, next_id, config.max_model_len);
            match harness.try_add(request.clone()) {
                Ok(()) => drop(live.insert(next_id, request)),
                Err(AddError::QueueFull { .. }) => met.queue_full += 1,
                Err(AddError::TooLong { .. } | AddError::TooLargeForCache { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            next_id += 1;
        }
        if cancels && !live.is_empty() && rng.chance(0.05) {
            let id = *live.keys().nth(rng.below(live.len() as u64) as usize).unwrap();
            let was_live = !harness.stories[&id].has_ended();
            assert_eq!(harness.cancel(id), was_live, "request {id}");
            let request = live.remove(&id).unwrap();
            if was_live {
                met.cancels += 1;
                harness.stories.get_mut(&id).unwrap().fault = Some(plimsoll_core::SampleFault::OutOfMemory);
            } else {
                harness.assert_as_alone(&request);
            }
        }
        harness.turn();
        turns += 1;
        assert!(turns < 60_000, "no end in sight: {:?}", harness.scheduler.stats());
    }
    for request in live.values() {
        harness.assert_as_alone(request);
        met.finished += 1;
    }
    let stats = harness.scheduler.stats();
    met.preemptions += stats.preemptions;
    met.prefix_hits += stats.prefix_hit_tokens;
    met.steps += stats.steps;
}

#[test]
fn every_request_gets_its_tokens_whatever_happens() {
    let mut met = Met::default();
    if let Ok(seed) = std::env::var("PLIMSOLL_SEED") {
        return run_seed(seed.parse().expect("PLIMSOLL_SEED is a number"), &mut met);
    }
    (0..SEEDS).for_each(|seed| run_seed(seed, &mut met));
    let counts = [met.preemptions, met.prefix_hits, met.cancels, met.queue_full, met.finished, met.steps / 20];
    assert!(counts.iter().all(|&count| count > SEEDS), "the runs met too little: {counts:?}");
}
