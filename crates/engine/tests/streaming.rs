//! What a client of the engine reads.

mod common;

use common::*;
use plimsoll_core::{FinishReason, SampleFault, TokenEvent};
use plimsoll_engine::{EngineConfig, StreamEnd, SubmitError};
use plimsoll_sched::AddError;

#[test]
fn events_come_in_order_and_end_with_a_reason() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut stream = submit(&engine.handle, 5, 100, 20);
    let timed: Vec<_> = std::iter::from_fn(|| stream.blocking_recv()).collect();
    assert!(timed.is_sorted_by_key(|event| event.at));
    let events: Vec<_> = timed.into_iter().map(|timed| timed.event).collect();
    assert_eq!(events[0], TokenEvent::Scheduled { cached_tokens: 0 });
    assert_eq!(tokens_of(&events), expected_tokens(5, 20));
    assert_eq!(events.len(), 21);
    assert_eq!(finish_of(&events), Some(FinishReason::Length));
    assert_eq!(stream.end(), Some(&StreamEnd::Finished));
    assert_eq!(stream.try_recv(), None);
    let stats = wait_for(&engine.handle, "the finished request", |s| s.steps.finished_requests == 1);
    // 100 prompt tokens in chunks of 64, then 19 decoded ones; the 20th is never fed back.
    assert_eq!((stats.steps.computed_tokens, stats.steps.generated_tokens, stats.steps.steps), (119, 20, 21));
    assert_eq!((stats.live_requests, stats.queued_prompt_tokens), (0, 0));
}

#[test]
fn a_stop_token_ends_the_stream_at_once() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut stopping = request(engine.handle.next_request_id(), 9, 3, 50);
    stopping.stop.stop_token_ids = vec![token(9, 4)];
    let events = read_all(&mut engine.handle.submit(stopping).expect("room"));
    assert_eq!(tokens_of(&events), expected_tokens(9, 5));
    assert_eq!(finish_of(&events), Some(FinishReason::Stop));
}

#[test]
fn two_steps_in_flight_give_the_same_events_as_one() {
    let run = |executor: SeedExecutor| {
        let engine = start(executor, EngineConfig::default());
        let lengths = (0..40u64).map(|seed| (seed, 1 + (seed as usize * 37) % 150, 1 + (seed as u32 * 13) % 40));
        let mut streams: Vec<_> = lengths
            .map(|(seed, prompt, max)| {
                let mut request = request(engine.handle.next_request_id(), seed, prompt, max);
                // Some stop early, while their next step is in flight already.
                request.stop.stop_token_ids = if seed % 3 == 0 { vec![token(seed, 5)] } else { Vec::new() };
                engine.handle.submit(request).expect("room")
            })
            .collect();
        let events: Vec<_> = streams.iter_mut().map(read_all).collect();
        wait_for(&engine.handle, "all blocks free", |s| s.live_requests == 0 && blocks_used(s) == 0);
        events
    };
    let (lockstep, overlapped) = (run(SeedExecutor::lockstep()), run(SeedExecutor::overlapped()));
    assert_eq!(lockstep, overlapped);
    assert_eq!(tokens_of(&lockstep[1]), expected_tokens(1, 14));
}

#[test]
fn a_fault_of_one_sequence_leaves_the_others_alone() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut good = submit(&engine.handle, 1, 5, 30);
    let mut bad = submit(&engine.handle, FAULTY_SEED, 5, 30);
    let events = read_all(&mut bad);
    assert_eq!(events.last(), Some(&TokenEvent::Failed(SampleFault::NonFiniteLogits)));
    assert_eq!(tokens_of(&events), expected_tokens(FAULTY_SEED, 1));
    assert_eq!(bad.end(), Some(&StreamEnd::Finished));
    assert_eq!(tokens_of(&read_all(&mut good)), expected_tokens(1, 30));
    wait_for(&engine.handle, "the failure counted", |s| s.steps.failed_requests == 1 && blocks_used(s) == 0);
}

#[test]
fn a_late_reader_gets_everything_in_one_call() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut stream = submit(&engine.handle, 2, 5, 500);
    wait_for(&engine.handle, "the request's end", |s| s.steps.finished_requests == 1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut events = Vec::new();
    assert_eq!(runtime.block_on(stream.recv_many(&mut events, 1000)), 501);
    assert_eq!(runtime.block_on(stream.recv_many(&mut events, 1000)), 0);
    assert_eq!(runtime.block_on(stream.recv()), None);
}

#[test]
fn what_the_scheduler_cannot_take_is_refused_with_its_reason() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut stream = submit(&engine.handle, 0, 20_000, 5);
    assert_eq!(read_all(&mut stream), []);
    assert_eq!(stream.end(), Some(&StreamEnd::Refused(AddError::TooLong { prompt: 20_000, max_model_len: 10_000 })));
    let stats = wait_for(&engine.handle, "the refusal", |s| s.steps.refused_requests == 1);
    assert!(stats.is_alive && stats.live_requests == 0);
}

#[test]
fn token_ids_outside_the_vocabulary_are_refused_at_the_door() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig { vocab_size: 100, ..EngineConfig::default() });
    let base = || request(engine.handle.next_request_id(), 0, 3, 5);
    let mut bad = [base(), base(), base(), base()];
    bad[0].prompt[1] = 100;
    bad[1].stop.stop_token_ids = vec![100];
    bad[2].sampling.logit_bias = vec![(5, 1.0), (100, 1.0)];
    bad[3].sampling.allowed_token_ids = Some(vec![3, 100]);
    for request in bad {
        let refused = engine.handle.submit(request).expect_err("token 100 does not exist");
        assert_eq!(refused, SubmitError::TokenOutsideVocabulary { token: 100, vocab_size: 100 });
    }
    assert_eq!(engine.handle.stats().live_requests, 0);
}
