//! An engine with nothing to do sleeps. Alone in its file: it looks at the process's threads.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use common::*;
use plimsoll_engine::EngineConfig;

/// `/proc` folder of the engine's thread.
fn engine_thread() -> PathBuf {
    let tasks = fs::read_dir("/proc/self/task").expect("proc is mounted").map(|task| task.expect("a task").path());
    let is_engine = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|c| c == "plimsoll-engine\n");
    tasks.into_iter().find(is_engine).expect("the engine's thread")
}

/// Its state and how often it was switched in.
fn activity() -> (String, Vec<String>) {
    let status = fs::read_to_string(engine_thread().join("status")).expect("the thread lives");
    let field = |name: &str| status.lines().find(|line| line.starts_with(name)).expect("a field").to_owned();
    (field("State:"), vec![field("voluntary_ctxt_switches"), field("nonvoluntary_ctxt_switches")])
}

#[test]
fn an_idle_engine_sleeps_until_a_request_comes() {
    let engine = start(SeedExecutor::lockstep(), EngineConfig::default());
    for seed in 0..3 {
        assert_eq!(tokens_of(&read_all(&mut submit(&engine.handle, seed, 9, 50))), expected_tokens(seed, 50));
        wait_for(&engine.handle, "rest", |s| s.live_requests == 0 && activity().0.contains("sleeping"));
        let before = activity();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(activity(), before, "the engine's thread ran with nothing to do");
    }
}
