//! Tokens a second from the engine thread to readers on a two-thread async runtime, over a device that takes no time:
//! the ceiling that the engine sets, at 1 to 4096 streams. `cargo bench -p plimsoll-engine`.

use std::time::{Duration, Instant};

use plimsoll_core::{CacheConfig, KvGroup, Request, SamplingParams, StopConditions};
use plimsoll_engine::{EngineConfig, EngineHandle, spawn};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{NullConfig, NullExecutor};

const MAX_TOKENS: u32 = 100;
const PROMPT_TOKENS: usize = 32;
const LONG_ENOUGH: Duration = Duration::from_secs(2);

fn engine_config() -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig { block_size: 16, groups: vec![KvGroup { window: None, num_blocks: 1 << 16 }] },
        max_num_seqs: 4096,
        max_num_batched_tokens: 8192,
        max_model_len: 2048,
        max_waiting: WaitingLimits { requests: 1 << 16, prompt_tokens: 1 << 32 },
        policy: Policy::Fcfs,
        prefix_caching: true,
    }
}

/// Sends requests one after the other until `until`; returns the tokens and the reads that they took.
async fn client(handle: EngineHandle, until: Instant) -> (u64, u64) {
    let (mut tokens, mut reads, mut events) = (0, 0, Vec::new());
    while Instant::now() < until {
        let id = handle.next_request_id();
        let stop = StopConditions { max_tokens: MAX_TOKENS, min_tokens: 0, stop_token_ids: Vec::new() };
        let sampling = SamplingParams { seed: id.0, ..SamplingParams::default() };
        let prompt = (0..PROMPT_TOKENS as u32).map(|i| (id.0 as u32).wrapping_mul(i) % 32_000).collect();
        let mut stream =
            handle.submit(Request { id, prompt, sampling, stop, priority: 0 }).expect("the engine has room");
        loop {
            events.clear();
            if stream.recv_many(&mut events, 64).await == 0 {
                break;
            }
            reads += 1;
            tokens += events.len() as u64;
        }
        // `Scheduled` is not a token.
        tokens -= 1;
    }
    (tokens, reads)
}

fn measure(streams: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let config = EngineConfig { max_requests: 1 << 14, ..EngineConfig::default() };
    let scheduler = Scheduler::new(engine_config()).expect("a valid configuration");
    let engine = spawn(scheduler, Box::new(NullExecutor::new(NullConfig::default())), config).expect("a thread");
    let start = Instant::now();
    let tasks: Vec<_> =
        (0..streams).map(|_| runtime.spawn(client(engine.handle.clone(), start + LONG_ENOUGH))).collect();
    let counts = tasks.into_iter().map(|task| runtime.block_on(task).expect("a client"));
    let (tokens, reads) = counts.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    let seconds = start.elapsed().as_secs_f64();
    let stats = engine.handle.stats().steps;
    println!(
        "{streams:>5} streams: {:>9.0} tokens/s, {:>5.1} tokens a read, {:>7.0} steps/s, {} overrun",
        tokens as f64 / seconds,
        tokens as f64 / reads as f64,
        stats.steps as f64 / seconds,
        stats.overrun_requests,
    );
}

fn main() {
    [1, 16, 256, 4096].into_iter().for_each(measure);
}
