//! How an engine ends: drained, shut down, abandoned, or broken. No client is ever left waiting.

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;
use plimsoll_engine::{Engine, EngineConfig, EngineFault, StreamEnd, SubmitError};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn gated() -> (mpsc::Sender<()>, Engine) {
    let (open, gate) = mpsc::channel();
    (open, start(GatedExecutor { inner: SeedExecutor::lockstep(), gate }, EngineConfig::default()))
}

fn try_submit(engine: &Engine) -> Option<SubmitError> {
    engine.handle.submit(request(engine.handle.next_request_id(), 77, 4, 4)).err()
}

#[test]
fn a_drain_finishes_the_live_requests_and_refuses_new_ones() {
    let (open, engine) = gated();
    let mut streams: Vec<_> = (0..20).map(|seed| submit(&engine.handle, seed, 8, 10)).collect();
    engine.handle.drain();
    assert_eq!(try_submit(&engine), Some(SubmitError::Draining));
    let stats = engine.handle.stats();
    assert!(stats.is_draining && stats.is_alive);
    drop(open);
    for (seed, stream) in (0..).zip(&mut streams) {
        assert_eq!(tokens_of(&read_all(stream)), expected_tokens(seed, 10));
    }
    assert_eq!(block_on(engine.handle.closed()), Ok(()));
    let stats = engine.handle.stats();
    assert!(!stats.is_alive && stats.live_requests == 0 && blocks_used(&stats) == 0);
    assert_eq!(try_submit(&engine), Some(SubmitError::Draining));
    assert_eq!(engine.join(), Ok(()));
}

#[test]
fn an_idle_engine_drains_at_once() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    engine.handle.drain();
    assert_eq!(block_on(engine.handle.closed()), Ok(()));
    assert_eq!(engine.join(), Ok(()));
}

#[test]
fn a_shutdown_cancels_the_live_requests() {
    let (open, engine) = gated();
    let mut streams: Vec<_> = (0..20).map(|seed| submit(&engine.handle, seed, 8, 1000)).collect();
    open.send(()).expect("the engine runs");
    engine.handle.shutdown();
    drop(open);
    assert_eq!(block_on(engine.handle.closed()), Ok(()));
    for stream in &mut streams {
        let _some = read_all(stream);
        assert_eq!(stream.end(), Some(&StreamEnd::Shutdown));
    }
    let stats = engine.handle.stats();
    assert_eq!((blocks_used(&stats), stats.live_requests), (0, 0));
    assert_eq!(engine.join(), Ok(()));
}

#[test]
fn the_last_handle_gone_is_a_drain() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    let mut stream = submit(&engine.handle, 1, 8, 100);
    assert_eq!(engine.join(), Ok(()));
    assert_eq!(tokens_of(&read_all(&mut stream)), expected_tokens(1, 100));
}

fn check_broken(by_panic: bool) -> EngineFault {
    let (open, gate) = mpsc::channel();
    let inner = BreakingExecutor { inner: SeedExecutor::lockstep(), at: 5, by_panic };
    let engine = start(GatedExecutor { inner, gate }, EngineConfig::default());
    let mut streams: Vec<_> = (0..20).map(|seed| submit(&engine.handle, seed, 8, 1000)).collect();
    drop(open);
    for (seed, stream) in (0..).zip(&mut streams) {
        let tokens = tokens_of(&read_all(stream));
        assert_eq!(tokens, expected_tokens(seed, tokens.len() as u32), "what came before the fault stands");
        assert_eq!(stream.end(), Some(&StreamEnd::EngineFault));
    }
    let fault = block_on(engine.handle.closed()).expect_err("a fault");
    assert_eq!(try_submit(&engine), Some(SubmitError::Dead));
    let stats = engine.handle.stats();
    assert!(!stats.is_alive && stats.live_requests == 0 && stats.queued_prompt_tokens == 0);
    // Streams and drains after the end are harmless.
    drop(streams);
    engine.handle.drain();
    assert_eq!(try_submit(&engine), Some(SubmitError::Dead));
    assert_eq!(engine.join(), Err(fault.clone()));
    fault
}

#[test]
fn a_device_error_ends_the_engine_and_every_stream() {
    assert_eq!(check_broken(false), EngineFault::Device("the device failed: the cable is out".into()));
}

#[test]
fn a_panic_ends_the_engine_and_every_stream() {
    assert_eq!(check_broken(true), EngineFault::Panic("the executor's invariant".into()));
}

#[test]
fn a_device_that_hangs_shows_as_a_stall() {
    let (open, engine) = gated();
    assert_eq!(engine.handle.stats().stalled_for, Duration::ZERO, "nothing to do is no stall");
    let mut stream = submit(&engine.handle, 1, 8, 3);
    let stalled = wait_for(&engine.handle, "a stall", |s| s.stalled_for > Duration::from_millis(20));
    assert!(stalled.is_alive && stalled.live_requests == 1);
    let sent = Instant::now();
    open.send(()).expect("the engine runs");
    let moved = wait_for(&engine.handle, "a step", |s| s.steps.steps == 1);
    assert!(moved.stalled_for <= sent.elapsed(), "a step that ends starts the count anew");
    drop(open);
    assert_eq!(read_all(&mut stream).len(), 4);
    assert_eq!(wait_for(&engine.handle, "the end", |s| s.live_requests == 0).stalled_for, Duration::ZERO);
}
