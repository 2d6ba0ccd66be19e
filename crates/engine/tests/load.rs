//! Many requests from many threads, and what they leave behind: nothing.

mod common;

use std::collections::VecDeque;
use std::thread;

use common::*;
use plimsoll_engine::{EngineConfig, EngineHandle, EngineStats, EventStream, spawn};

fn check(stream: &mut EventStream, seed: u64, max_tokens: u32) {
    assert_eq!(tokens_of(&read_all(stream)), expected_tokens(seed, max_tokens), "seed {seed}");
}

/// Keeps `window` requests in the engine until `count` are done; every tenth is dropped half read.
fn client(handle: &EngineHandle, first_seed: u64, count: u64, window: usize) {
    let mut live: VecDeque<(u64, u32, EventStream)> = VecDeque::new();
    for seed in first_seed..first_seed + count {
        if live.len() == window {
            let (seed, max_tokens, mut stream) = live.pop_front().expect("a full window");
            check(&mut stream, seed, max_tokens);
        }
        let max_tokens = 1 + (seed % 6) as u32;
        let mut stream = submit(handle, seed, 1 + (seed % 30) as usize, max_tokens);
        if seed % 10 == 0 {
            stream.blocking_recv().expect("a first event");
        } else {
            live.push_back((seed, max_tokens, stream));
        }
    }
    live.into_iter().for_each(|(seed, max_tokens, mut stream)| check(&mut stream, seed, max_tokens));
}

fn run_clients(handle: &EngineHandle, threads: u64, each: u64, window: usize) {
    thread::scope(|scope| {
        for t in 0..threads {
            scope.spawn(move || client(handle, t * each, each, window));
        }
    });
}

fn ended(stats: &EngineStats) -> u64 {
    stats.steps.finished_requests + stats.steps.cancelled_requests
}

#[test]
fn ten_thousand_requests_from_many_threads() {
    // 16 clients with 8 each, and the one that each may have just dropped: exactly what fits. None is ever refused.
    let config = EngineConfig { max_requests: 16 * 9, ..EngineConfig::default() };
    let scheduler = scheduler(32, 2000);
    let engine = spawn(scheduler, Box::new(SeedExecutor::overlapped()), config).expect("a thread");
    run_clients(&engine.handle, 16, 625, 8);
    let stats = wait_for(&engine.handle, "the end", |s| ended(s) == 10_000 && s.live_requests == 0);
    assert_eq!((stats.steps.refused_requests, stats.steps.overrun_requests, blocks_used(&stats)), (0, 0, 0));
}

#[test]
fn a_hundred_thousand_requests_leave_nothing_behind() {
    let scheduler = scheduler(64, 2000);
    let engine = spawn(scheduler, Box::new(SeedExecutor::lockstep()), EngineConfig::default()).expect("a thread");
    run_clients(&engine.handle, 4, 12_500, 50);
    let before = resident_bytes();
    run_clients(&engine.handle, 4, 12_500, 50);
    let stats = wait_for(&engine.handle, "the end", |s| ended(s) == 100_000 && s.live_requests == 0);
    assert_eq!((stats.scheduler.waiting, stats.scheduler.preempted, stats.scheduler.steps_in_flight), (0, 0, 0));
    assert_eq!((stats.queued_prompt_tokens, blocks_used(&stats)), (0, 0));
    // Had each of the later 50,000 left 100 bytes, it would show.
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < 5_000_000, "the process grew by {growth} bytes");
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * 4096
}

#[cfg(not(target_os = "linux"))]
fn resident_bytes() -> u64 {
    0
}
