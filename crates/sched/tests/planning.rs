//! What is planned, step by step: chunks, the order of work within a step, policies, and the bounds of the queue.

mod common;

use common::{Harness, config, order_of_begin, request, row};
use plimsoll_core::{CacheConfig, FinishReason, KvGroup, Request, RequestId, SampleFault};
use plimsoll_sched::{AddError, ConfigError, Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::NullConfig;

#[test]
fn a_prompt_is_computed_in_chunks_of_the_budget_and_then_a_token_a_step() {
    // (prompt, max_tokens, rows as (start, len))
    type Case<'a> = (u32, u32, &'a [(u32, u32)]);
    let cases: [Case<'_>; 5] = [
        (1, 1, &[(0, 1)]),
        (16, 1, &[(0, 16)]),
        (17, 1, &[(0, 16), (16, 1)]),
        (40, 3, &[(0, 16), (16, 16), (32, 8), (40, 1), (41, 1)]),
        (5, 2, &[(0, 5), (5, 1)]),
    ];
    for (prompt, max_tokens, expected) in cases {
        let mut harness = Harness::new(config(64));
        let request = request(1, prompt, max_tokens);
        harness.add(request.clone());
        let steps = harness.run(100);
        let expected: Vec<_> = expected.iter().map(|&(start, len)| vec![row(1, start, len)]).collect();
        assert_eq!(steps, expected, "prompt {prompt}, max_tokens {max_tokens}");
        harness.assert_as_alone(&request);
    }
}

#[test]
fn decodes_come_first_then_the_prefill_in_progress_then_new_ones() {
    let mut harness = Harness::new(config(64));
    harness.add(request(1, 3, 10));
    assert_eq!(harness.turn(), [row(1, 0, 3)]);
    harness.add(request(2, 20, 10));
    harness.add(request(3, 4, 10));
    assert_eq!(harness.turn(), [row(1, 3, 1), row(2, 0, 15)]);
    harness.add(request(4, 30, 10));
    assert_eq!(harness.turn(), [row(1, 4, 1), row(2, 15, 5), row(3, 0, 4), row(4, 0, 6)]);
    assert_eq!(harness.turn(), [row(1, 5, 1), row(2, 20, 1), row(3, 4, 1), row(4, 6, 13)]);
}

#[test]
fn a_step_of_decodes_alone_may_fill_the_budget() {
    let mut harness = Harness::new(SchedulerConfig { max_num_batched_tokens: 4, ..config(64) });
    (1..=6).for_each(|id| harness.add(request(id, 2, 6)));
    let steps = harness.run(100);
    assert!(steps.iter().any(|rows| rows.len() == 4 && rows.iter().all(|row| row.start >= 2)));
    assert!(steps.iter().all(|rows| rows.iter().map(|row| row.len).sum::<u32>() <= 4));
}

#[test]
fn slots_bound_the_running_sequences() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 2, ..config(64) });
    (1..=3).for_each(|id| harness.add(request(id, 2, 3)));
    assert_eq!(harness.turn(), [row(1, 0, 2), row(2, 0, 2)]);
    assert_eq!((harness.scheduler.stats().running, harness.scheduler.stats().waiting), (2, 1));
    assert_eq!(order_of_begin(&harness.run(100)), [1, 2, 3]);
}

#[test]
fn generation_ends_at_max_tokens_at_the_context_and_at_stop_tokens() {
    let null = NullConfig { stop_probability: 0.2, ..NullConfig::default() };
    let mut harness = Harness::with_device(SchedulerConfig { max_model_len: 32, ..config(64) }, null);
    let with_stops = |id, min_tokens| {
        let mut request = request(id, 2, 100);
        request.stop.stop_token_ids = vec![31_999, 7];
        request.stop.min_tokens = min_tokens;
        request
    };
    // A device that may sample nothing else samples a stop token early; it does not count before its time.
    let mut stops_alone = with_stops(5, 3);
    stops_alone.sampling.allowed_token_ids = Some(vec![7]);
    let requests = [request(1, 4, 3), request(2, 30, 100), with_stops(3, 0), with_stops(4, 12), stops_alone];
    requests.iter().for_each(|request| harness.add(request.clone()));
    harness.run(100);
    requests.iter().for_each(|request| harness.assert_as_alone(request));
    let stories = &harness.stories;
    assert_eq!((stories[&1].tokens.len(), stories[&1].finish), (3, Some(FinishReason::Length)));
    assert_eq!((stories[&2].tokens.len(), stories[&2].finish), (2, Some(FinishReason::Length)));
    assert_eq!((stories[&3].tokens.last(), stories[&3].finish), (Some(&31_999), Some(FinishReason::Stop)));
    assert!(stories[&4].tokens.len() > 12, "{:?}", stories[&4]);
    assert_eq!((stories[&5].tokens.as_slice(), stories[&5].finish), ([7; 4].as_slice(), Some(FinishReason::Stop)));
}

#[test]
fn a_fault_ends_its_request_alone() {
    let null = NullConfig { fault_probability: 0.05, ..NullConfig::default() };
    for max_in_flight in [1, 2] {
        let mut harness = Harness::with_device(config(64), NullConfig { max_in_flight, ..null.clone() });
        let requests: Vec<_> = (1..=40).map(|id| request(id, 5, 10)).collect();
        requests.iter().for_each(|request| harness.add(request.clone()));
        harness.run(1000);
        requests.iter().for_each(|request| harness.assert_as_alone(request));
        let faults = harness.stories.values().filter(|story| story.fault.is_some()).count();
        assert!((5..35).contains(&faults), "{faults} of 40 failed");
        assert!(harness.stories.values().all(|story| matches!(story.fault, None | Some(SampleFault::NonFiniteLogits))));
    }
}

#[test]
fn policies_order_those_who_wait() {
    // (policy, requests as (prompt, priority) in order of arrival, order of begin)
    type Case<'a> = (Policy, &'a [(u32, i32)], &'a [u64]);
    let cases: [Case<'_>; 4] = [
        (Policy::Fcfs, &[(9, 5), (3, 0), (6, -1)], &[1, 2, 3]),
        (Policy::Priority, &[(9, 5), (3, 0), (6, -1), (2, 0)], &[3, 2, 4, 1]),
        (Policy::ShortestPromptFirst, &[(9, 0), (3, 0), (6, 0), (3, 0)], &[2, 4, 3, 1]),
        (Policy::ShortestPromptFirst, &[(3, 0), (3, 0)], &[1, 2]),
    ];
    for (policy, requests, expected) in cases {
        let mut harness = Harness::new(SchedulerConfig { policy, max_num_seqs: 1, ..config(64) });
        for (id, &(prompt, priority)) in (1..).zip(requests) {
            harness.add(Request { priority, ..request(id, prompt, 2) });
        }
        assert_eq!(order_of_begin(&harness.run(100)), expected, "{policy:?} {requests:?}");
    }
}

/// A stream of short prompts that alone would fill the one slot forever, and a long one before it. Returns after how
/// many steps the long one begins.
fn steps_until_the_long_one_begins(policy: Policy) -> Option<usize> {
    let mut harness = Harness::new(SchedulerConfig { policy, max_num_seqs: 1, ..config(64) });
    harness.add(request(1, 2, 2));
    harness.add(Request { priority: 1, ..request(2, 200, 1) });
    (0..200).position(|step| {
        harness.add(request(3 + step, 2, 2));
        harness.turn().iter().any(|row| row.id == 2)
    })
}

#[test]
fn ageing_bounds_how_long_a_long_prompt_is_overtaken() {
    assert_eq!(steps_until_the_long_one_begins(Policy::Fcfs), Some(2));
    // 198 tokens longer than the others, which gain 16 a step: after 13 steps no newcomer overtakes it.
    let steps = steps_until_the_long_one_begins(Policy::ShortestPromptFirst).expect("it begins");
    assert!((13..=13 * 2 + 4).contains(&steps), "began after {steps} steps");
    assert_eq!(steps_until_the_long_one_begins(Policy::Priority), None, "strict priority starves, as documented");
}

#[test]
fn prefills_never_starve_decodes() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 8, ..config(512) });
    (1..=4).for_each(|id| harness.add(request(id, 2, 60)));
    harness.turn();
    for id in 5..5 + 59 {
        harness.add(request(id, 100, 1));
        let rows = harness.turn();
        assert!((1..=4).all(|id| rows.iter().any(|row| row.id == id)), "a decode sat out: {rows:?}");
        assert_eq!(rows.iter().map(|row| row.len).sum::<u32>(), 16, "the prefill takes the rest: {rows:?}");
    }
    assert!((1..=4).all(|id| harness.stories[&id].has_ended()));
}

#[test]
fn equal_requests_get_equal_service() {
    let mut harness = Harness::new(SchedulerConfig { max_num_seqs: 8, ..config(512) });
    (1..=8).for_each(|id| harness.add(request(id, 20, 40)));
    while harness.stories.values().any(|story| story.tokens.is_empty()) {
        harness.turn();
    }
    let spread = |harness: &Harness| {
        let counts: Vec<_> = harness.stories.values().map(|story| story.tokens.len()).collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    };
    let head_start = spread(&harness);
    for _ in 0..20 {
        assert_eq!(harness.turn().len(), 8, "everyone takes part in every step");
        assert_eq!(spread(&harness), head_start, "nobody falls further behind");
    }
}

#[test]
fn add_refuses_what_cannot_be_served_and_says_why() {
    let mut harness = Harness::new(SchedulerConfig { max_model_len: 64, ..config(8) });
    let too_large = AddError::TooLargeForCache { tokens: 34, group: 0, needed: 9, total: 8 };
    let cases = [
        (request(1, 0, 1), AddError::EmptyPrompt, "send at least one token"),
        (request(1, 1, 0), AddError::ZeroMaxTokens, "at least 1"),
        (request(1, 64, 1), AddError::TooLong { prompt: 64, max_model_len: 64 }, "shorten the prompt"),
        (request(1, 30, 4), too_large, "lower max_tokens"),
    ];
    for (request, expected, advice) in cases {
        let error = harness.try_add(request).unwrap_err();
        assert!(error.to_string().contains(advice), "{error}");
        assert_eq!(error, expected);
    }
    harness.add(request(1, 30, 3));
    assert_eq!(harness.try_add(request(1, 2, 2)), Err(AddError::DuplicateId(RequestId(1))));
    harness.run(100);
    assert_eq!(harness.stories[&1].tokens.len(), 3, "what just fits runs");
}

#[test]
fn the_waiting_queue_is_bounded_in_requests_and_in_tokens() {
    // (limits, prompts that fit, prompt that does not)
    let cases = [((2, 1000), [5, 5].as_slice(), 1), ((10, 300), [200, 90].as_slice(), 11)];
    for ((requests, prompt_tokens), fit, refused) in cases {
        let max_waiting = WaitingLimits { requests, prompt_tokens };
        let mut harness = Harness::new(SchedulerConfig { max_waiting, ..config(128) });
        (1..).zip(fit).for_each(|(id, &prompt)| harness.add(request(id, prompt, 1)));
        let (waiting, tokens) = (fit.len() as u32, u64::from(fit.iter().sum::<u32>()));
        assert_eq!(harness.try_add(request(9, refused, 1)), Err(AddError::QueueFull { requests: waiting, tokens }));
        harness.turn();
        assert_eq!(harness.try_add(request(9, refused, 1)), Ok(()), "who runs does not wait");
        assert!(harness.cancel(9));
        harness.run(100);
    }
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let with_group = |window, num_blocks| SchedulerConfig {
        cache: CacheConfig { block_size: 4, groups: vec![KvGroup { window, num_blocks }] },
        ..config(1)
    };
    let no_groups = CacheConfig { block_size: 4, groups: vec![] };
    let no_block_size = CacheConfig { block_size: 0, ..config(8).cache };
    let short_queue = WaitingLimits { requests: 5, prompt_tokens: 255 };
    let cases = [
        (SchedulerConfig { cache: no_block_size, ..config(8) }, ConfigError::ZeroBlockSize),
        (SchedulerConfig { cache: no_groups, ..config(8) }, ConfigError::NoGroups),
        (with_group(None, 0), ConfigError::EmptyPool { group: 0 }),
        (with_group(Some(0), 8), ConfigError::ZeroWindow { group: 0 }),
        (SchedulerConfig { max_num_seqs: 0, ..config(8) }, ConfigError::NoSeqs),
        (SchedulerConfig { max_num_seqs: 17, ..config(8) }, ConfigError::BudgetTooSmall { tokens: 16, seqs: 17 }),
        (SchedulerConfig { max_model_len: 1, ..config(8) }, ConfigError::ContextTooShort { tokens: 1 }),
        (
            SchedulerConfig { max_waiting: short_queue, ..config(8) },
            ConfigError::QueueTooSmall { requests: 5, tokens: 255, model_len: 256 },
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(Scheduler::new(config).err(), Some(expected));
    }
}
