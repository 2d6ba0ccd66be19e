//! What happens to blocks: sharing of prefixes, windows, preemption, and release.

mod common;

use common::{Harness, config, request, request_with, row};
use plimsoll_core::{CacheConfig, KvGroup, Request, SampleFault};
use plimsoll_sched::{Policy, SchedulerConfig};
use plimsoll_sim::{NullConfig, NullExecutor};

fn groups(groups: &[(Option<u32>, u32)]) -> CacheConfig {
    let group = |&(window, num_blocks): &(Option<u32>, u32)| KvGroup { window, num_blocks };
    CacheConfig { block_size: 4, groups: groups.iter().map(group).collect() }
}

#[test]
fn a_prompt_that_was_seen_is_computed_from_where_it_differs() {
    let shared: Vec<u32> = (0..12).collect();
    let prompt = |tail: &[u32]| [shared.as_slice(), tail].concat();
    // (second prompt, cached tokens)
    let cases = [
        (prompt(&[50, 51]), 12),
        (prompt(&[]), 8),
        (prompt(&[12, 13]), 12),
        (prompt(&[12, 13, 14, 15, 16]), 12),
        (shared[..6].to_vec(), 4),
        (vec![9, 9, 9, 9, 9, 9], 0),
    ];
    for (second, cached) in cases {
        for prefix_caching in [true, false] {
            let mut harness = Harness::new(SchedulerConfig { prefix_caching, ..config(64) });
            harness.add(request_with(prompt(&[12, 13]), 1, 2));
            harness.run(10);
            harness.add(request_with(second.clone(), 2, 2));
            let expected = if prefix_caching { cached } else { 0 };
            assert_eq!(harness.turn()[0], row(2, expected, 16.min(second.len() as u32 - expected)), "{second:?}");
            harness.run(10);
            assert_eq!(harness.stories[&2].cached_tokens, Some(expected));
            let stats = harness.scheduler.stats();
            assert_eq!(stats.prefix_hit_tokens, u64::from(expected));
            let queried = if prefix_caching { 14 + second.len() as u64 } else { 0 };
            assert_eq!(stats.prefix_queried_tokens, queried);
        }
    }
}

#[test]
fn generated_tokens_are_found_by_the_next_turn_of_a_conversation() {
    let mut harness = Harness::new(config(64));
    let first = request(1, 6, 7);
    harness.add(first.clone());
    harness.run(20);
    // 13 tokens, of which 12 were computed: the last sampled one never was.
    let next = [first.prompt.as_slice(), &harness.stories[&1].tokens, &[1, 2, 3]].concat();
    harness.add(request_with(next, 2, 1));
    assert_eq!(harness.turn(), [row(2, 12, 4)]);
}

#[test]
fn a_running_sequence_shares_what_is_committed_and_nothing_in_flight() {
    let prompt: Vec<u32> = (0..22).collect();
    let mut harness = Harness::overlapped(config(64));
    harness.add(request_with(prompt.clone(), 1, 9));
    assert_eq!(harness.plan(), [row(1, 0, 16)]);
    harness.add(request_with(prompt.clone(), 2, 9));
    assert_eq!(harness.plan(), [row(1, 16, 6), row(2, 0, 10)], "the first chunk is still in flight");
    harness.commit();
    harness.add(request_with(prompt, 3, 9));
    let now_shared = [row(1, 22, 1), row(2, 10, 12), row(3, 16, 3)];
    assert_eq!(harness.plan(), now_shared, "now it can be shared, and the second is still in flight");
    harness.commit();
    harness.run(100);
}

#[test]
fn a_windowed_group_needs_blocks_for_the_window_only() {
    // 200 tokens through windows of 8 and 1, in pools of 3 and 1 blocks; the full group holds all.
    let cache = groups(&[(None, 50), (Some(8), 3), (Some(1), 1)]);
    for depth in [1, 2] {
        let null = NullConfig { max_in_flight: depth, ..NullConfig::default() };
        let mut harness = Harness::with_device(SchedulerConfig { cache: cache.clone(), ..config(1) }, null);
        let request = request(1, 150, 51);
        harness.add(request.clone());
        harness.run(500);
        harness.assert_as_alone(&request);
    }
}

#[test]
fn windowed_groups_hold_as_many_blocks_as_the_window_reaches() {
    let mut harness = Harness::new(SchedulerConfig { cache: groups(&[(None, 64), (Some(6), 64)]), ..config(1) });
    harness.add(request(1, 2, 100));
    for computed in 2..90u32 {
        harness.turn();
        let used: Vec<_> = harness.scheduler.stats().blocks.iter().map(|blocks| blocks.used).collect();
        let first = computed.saturating_sub(5) / 4;
        assert_eq!(used, [computed.div_ceil(4), computed.div_ceil(4) - first], "{computed} computed");
    }
}

#[test]
fn the_latest_gives_way_when_blocks_run_out_and_resumes_with_the_same_tokens() {
    let requests = [request(1, 8, 30), request(2, 8, 30)];
    for prefix_caching in [false, true] {
        let mut harness = Harness::new(SchedulerConfig { prefix_caching, ..config(10) });
        requests.iter().for_each(|request| harness.add(request.clone()));
        let steps = harness.run(200);
        let absent = |id| steps.iter().filter(|rows| rows.iter().all(|row| row.id != id)).count();
        let first_end = steps.iter().rposition(|rows| rows.iter().any(|row| row.id == 1)).unwrap();
        assert!(steps[..first_end].iter().all(|rows| rows.iter().any(|row| row.id == 1)), "the first never waits");
        assert!(absent(2) > 5, "the second does");
        assert!(harness.scheduler.stats().preemptions > 0);
        requests.iter().for_each(|request| harness.assert_as_alone(request));
    }
}

#[test]
fn a_preempted_sequence_recomputes_what_it_knows_before_anyone_new_begins() {
    let mut harness = Harness::new(SchedulerConfig { prefix_caching: false, ..config(8) });
    harness.add(request(1, 8, 17));
    harness.add(request(2, 8, 17));
    harness.turn();
    harness.add(request(3, 2, 2));
    let steps = harness.run(200);
    // Together they fill 8 blocks with 16 tokens each; the first then takes all that it needs.
    let resumed = steps.iter().flatten().find(|row| row.id == 2 && row.start == 0).expect("it begins anew");
    assert_eq!(resumed.len, 16, "the prompt and the generated tokens, as far as the budget goes");
    assert_eq!(harness.scheduler.stats().preemptions, 1);
    let begins: Vec<_> = steps.iter().flatten().filter(|row| row.start == 0).map(|row| row.id).collect();
    assert_eq!(begins, [2, 3], "the new one waits behind the preempted one");
}

#[test]
fn the_lowest_priority_gives_way_under_the_priority_policy() {
    let prioritized = |id, priority| Request { priority, ..request(id, 8, 17) };
    let mut harness = Harness::new(SchedulerConfig { policy: Policy::Priority, prefix_caching: false, ..config(8) });
    harness.add(prioritized(1, 9));
    harness.add(prioritized(2, 0));
    let steps = harness.run(200);
    let recomputed: Vec<_> = steps[1..].iter().flatten().filter(|row| row.start == 0).map(|row| row.id).collect();
    assert_eq!(recomputed, [1], "it came first and matters least");
}

#[test]
fn preemption_while_steps_overlap_keeps_the_sample_in_flight() {
    let requests = [request(1, 8, 30), request(2, 7, 30), request(3, 9, 30)];
    let mut harness = Harness::overlapped(SchedulerConfig { prefix_caching: false, ..config(11) });
    requests.iter().for_each(|request| harness.add(request.clone()));
    harness.run(500);
    assert!(harness.scheduler.stats().preemptions > 0);
    requests.iter().for_each(|request| harness.assert_as_alone(request));
}

#[test]
fn no_step_is_wasted_past_max_tokens() {
    for depth in [1, 2] {
        let null = NullConfig { max_in_flight: depth, ..NullConfig::default() };
        let mut harness = Harness::with_device(config(64), null);
        harness.add(request(1, 4, 5));
        let steps = harness.run(100);
        assert_eq!(steps.len(), 5, "a step a token, whatever overlaps: {steps:?}");
    }
}

#[test]
fn rows_in_flight_behind_a_stop_token_are_dropped_and_hold_their_blocks_until_then() {
    let null = NullConfig { max_in_flight: 2, stop_probability: 1.0, ..NullConfig::default() };
    let mut harness = Harness::with_device(config(64), null);
    let mut stopping = request(1, 4, 50);
    stopping.stop.stop_token_ids = vec![3];
    harness.add(stopping);
    assert_eq!(harness.plan(), [row(1, 0, 4)]);
    assert_eq!(harness.plan(), [row(1, 4, 1)], "nobody knows yet that it has stopped");
    harness.commit();
    assert_eq!(harness.stories[&1].tokens, [3]);
    assert_eq!(harness.scheduler.stats().blocks[0].used, 2);
    assert_eq!(harness.plan(), []);
    harness.commit();
    assert_eq!(harness.stories[&1].tokens, [3], "what followed is dropped");
    assert_eq!(harness.scheduler.stats().blocks[0].used, 0);
    assert!(harness.scheduler.is_idle());
}

#[test]
fn cancelling_frees_at_once_or_with_the_last_step_in_flight() {
    let mut harness = Harness::overlapped(config(64));
    (1..=3).for_each(|id| harness.add(request(id, 6, 50)));
    harness.add(request(4, 50, 50));
    harness.turn();
    harness.add(request(5, 50, 50));
    assert!(harness.cancel(5), "one that waits");
    assert!(harness.cancel(2), "one that runs and is in flight");
    assert!(!harness.cancel(2) && !harness.cancel(77), "once only");
    assert_eq!(harness.scheduler.stats().running, 2);
    let news = harness.stories[&2].clone();
    for _ in 0..4 {
        harness.turn();
    }
    assert_eq!(harness.stories[&2], news, "no news after a cancel");
    [1, 3, 4].into_iter().for_each(|id| assert!(harness.cancel(id)));
    harness.run(3);
    assert_eq!(harness.scheduler.stats().blocks[0].used, 0);

    let mut lockstep = Harness::new(config(64));
    lockstep.add(request(1, 6, 50));
    lockstep.turn();
    assert!(lockstep.cancel(1));
    assert!(lockstep.scheduler.is_idle() && lockstep.scheduler.stats().blocks[0].used == 0);
}

#[test]
fn a_cancel_before_the_first_commit_leaves_no_news() {
    let mut harness = Harness::new(config(64));
    harness.add(request(1, 6, 5));
    harness.plan();
    assert!(harness.cancel(1));
    harness.commit();
    assert_eq!(harness.stories[&1], common::Story::default());
    assert!(harness.scheduler.is_idle());
}

#[test]
fn what_a_failed_request_computed_is_not_shared() {
    let null = NullConfig { fault_probability: 0.3, ..NullConfig::default() };
    let fails = |id: &u64| NullExecutor::token(&null, &request(*id, 20, 1), 0).is_err();
    let failing = (1..).find(fails).unwrap();
    let healthy = (1..).find(|id| !fails(id)).unwrap();
    for (first, cached) in [(failing, 0), (healthy, 16)] {
        let mut harness = Harness::with_device(config(64), null.clone());
        // Two chunks, of which the first is committed and could be shared until the second one fails.
        harness.add(request(first, 20, 1));
        harness.run(5);
        let fault = (first == failing).then_some(SampleFault::NonFiniteLogits);
        assert_eq!(harness.stories[&first].fault, fault);
        harness.add(request_with(request(first, 20, 1).prompt, 1000, 1));
        assert_eq!(harness.turn(), [row(1000, cached, 16.min(20 - cached))]);
    }
}

#[test]
fn a_new_prompt_does_not_begin_where_it_would_soon_be_preempted() {
    let mut harness = Harness::new(SchedulerConfig { prefix_caching: false, ..config(10) });
    harness.add(request(1, 14, 20));
    harness.turn();
    // 4 of 10 blocks are used. The second needs 6, which are there, but not one more for the first to grow into.
    harness.add(request(2, 22, 2));
    assert_eq!(harness.turn(), [row(1, 14, 1)]);
    harness.run(100);
    assert_eq!(harness.scheduler.stats().preemptions, 0);
}

#[test]
fn a_prefill_leaves_those_who_decode_room_to_grow() {
    // In flight, a chunk's blocks are held even where the window has passed them by: it must not take all of them,
    // wherever in a block the other sequence stands just then.
    for prompt in 2..10 {
        let cache = groups(&[(None, 64), (Some(8), 8)]);
        let mut harness = Harness::overlapped(SchedulerConfig { cache, max_num_batched_tokens: 32, ..config(1) });
        harness.add(request(1, prompt, 60));
        harness.turn();
        harness.add(request(2, 150, 2));
        let steps = harness.run(200);
        assert_eq!(harness.scheduler.stats().preemptions, 0, "beside a prompt of {prompt}");
        assert!(steps[..59].iter().all(|rows| rows[0].id == 1), "the decode takes part in every step");
        assert!(steps.iter().flatten().any(|row| row.id == 2 && row.len > 8), "the prefill takes what it may");
    }
}
