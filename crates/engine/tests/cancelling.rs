//! Clients that go away or do not keep up.

mod common;

use std::sync::mpsc;

use common::*;
use plimsoll_engine::{EngineConfig, StreamEnd, SubmitError};

#[test]
fn dropping_a_stream_frees_its_blocks_at_the_next_step() {
    let (open, gate) = mpsc::channel();
    let engine = start(GatedExecutor { inner: SeedExecutor::lockstep(), gate }, EngineConfig::default());
    let mut kept = submit(&engine.handle, 1, 16, 100);
    let dropped = submit(&engine.handle, 2, 16, 100);
    // The first step may have begun before the second request came.
    (0..2).for_each(|_| open.send(()).expect("the engine runs"));
    let before = wait_for(&engine.handle, "both running", |s| s.steps.steps == 2 && s.scheduler.running == 2);
    drop(dropped);
    // One step may be under way and one more may have been planned before the drop was seen.
    (0..2).for_each(|_| open.send(()).expect("the engine runs"));
    let after = wait_for(&engine.handle, "one of two cancelled", |s| s.steps.cancelled_requests == 1);
    assert_eq!(after.scheduler.running, 1);
    assert!(after.steps.steps <= before.steps.steps + 2);
    assert!(blocks_used(&after) < blocks_used(&before));
    assert_eq!(after.live_requests, 1);
    drop(open);
    assert_eq!(tokens_of(&read_all(&mut kept)), expected_tokens(1, 100));
    wait_for(&engine.handle, "all blocks free", |s| blocks_used(s) == 0 && s.live_requests == 0);
}

#[test]
fn a_cancel_needs_no_place_in_a_full_engine() {
    let (open, gate) = mpsc::channel();
    let config = EngineConfig { max_requests: 20, ..EngineConfig::default() };
    let engine = start(GatedExecutor { inner: SeedExecutor::lockstep(), gate }, config);
    let streams: Vec<_> = (0..20).map(|seed| submit(&engine.handle, seed, 8, 50)).collect();
    let another = || engine.handle.submit(request(engine.handle.next_request_id(), 99, 8, 5));
    assert_eq!(another().err(), Some(SubmitError::QueueFull));
    drop(streams);
    drop(open);
    wait_for(&engine.handle, "room", |s| s.live_requests == 0 && blocks_used(s) == 0);
    let mut late = another().expect("room again");
    assert_eq!(tokens_of(&read_all(&mut late)), expected_tokens(99, 5));
    assert_eq!(engine.handle.stats().steps.cancelled_requests, 20);
}

#[test]
fn a_request_may_be_cancelled_before_the_engine_saw_it() {
    let (open, gate) = mpsc::channel();
    let engine = start(GatedExecutor { inner: SeedExecutor::lockstep(), gate }, EngineConfig::default());
    let mut first = submit(&engine.handle, 1, 8, 5);
    // The engine is inside its first step; these come and go meanwhile.
    (0..100).for_each(|seed| drop(submit(&engine.handle, seed, 8, 50)));
    drop(open);
    assert_eq!(tokens_of(&read_all(&mut first)), expected_tokens(1, 5));
    let stats = wait_for(&engine.handle, "all gone", |s| s.live_requests == 0 && s.steps.cancelled_requests == 100);
    assert_eq!((stats.queued_prompt_tokens, blocks_used(&stats)), (0, 0));
}

#[test]
fn a_client_that_does_not_read_is_cancelled_and_told() {
    let config = EngineConfig { event_capacity: 10, ..EngineConfig::default() };
    let engine = start(SeedExecutor::lockstep(), config);
    let mut asleep = submit(&engine.handle, 3, 8, 5000);
    let mut awake = submit(&engine.handle, 4, 8, 9);
    wait_for(&engine.handle, "the overrun", |s| s.steps.overrun_requests == 1 && s.live_requests == 0);
    assert_eq!(tokens_of(&read_all(&mut awake)), expected_tokens(4, 9));
    assert_eq!(awake.end(), Some(&StreamEnd::Finished), "at most 10 events: it cannot overrun");
    let events = read_all(&mut asleep);
    assert_eq!(tokens_of(&events), expected_tokens(3, 9), "what fitted is still there");
    assert_eq!(asleep.end(), Some(&StreamEnd::Overrun));
    wait_for(&engine.handle, "all blocks free", |s| blocks_used(s) == 0);
}

#[test]
fn queued_prompt_tokens_are_bounded_at_the_door() {
    let (open, gate) = mpsc::channel();
    let config = EngineConfig { max_queued_tokens: 100, ..EngineConfig::default() };
    let engine = start(GatedExecutor { inner: SeedExecutor::lockstep(), gate }, config);
    let mut streams = vec![submit(&engine.handle, 1, 90, 5)];
    let refused = engine.handle.submit(request(engine.handle.next_request_id(), 2, 90, 5)).err();
    assert_eq!(refused, Some(SubmitError::QueueFull));
    open.send(()).expect("the engine runs");
    wait_for(&engine.handle, "the first prompt begun", |s| s.queued_prompt_tokens == 0);
    streams.push(submit(&engine.handle, 2, 90, 5));
    drop(open);
    streams.iter_mut().for_each(|stream| assert_eq!(tokens_of(&read_all(stream)).len(), 5));
}
