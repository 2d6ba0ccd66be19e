//! A storm of requests over a device that checks every plan against a shadow of the KV cache: stop tokens, faults,
//! preemption, prefix hits and clients that leave, with one and with two steps in flight.

mod common;

use std::collections::VecDeque;
use std::sync::mpsc;

use common::*;
use plimsoll_core::{Request, TokenEvent};
use plimsoll_engine::{EngineConfig, StreamEnd, spawn};
use plimsoll_sched::{Scheduler, SchedulerConfig};
use plimsoll_sim::{CheckedExecutor, NullConfig, NullExecutor};

/// What the null device gives to a request that nobody cancels.
fn expected(config: &NullConfig, request: &Request) -> Vec<u32> {
    let mut tokens = Vec::new();
    for index in 0..request.stop.max_tokens {
        let Ok(token) = NullExecutor::token(config, request, index) else { break };
        tokens.push(token);
        if request.stop.stop_token_ids.contains(&token) {
            break;
        }
    }
    tokens
}

fn storm(max_in_flight: usize) {
    let null = NullConfig {
        vocab_size: 1000,
        stop_probability: 0.03,
        fault_probability: 0.002,
        max_in_flight,
        ..NullConfig::default()
    };
    // Blocks for little more than the longest sequence: prompts share a prefix, so some run at once nonetheless.
    let config = SchedulerConfig { prefix_caching: true, max_model_len: 300, ..scheduler_config(32, 80) };
    let null_executor = NullExecutor::new(null.clone());
    let checked =
        CheckedExecutor::new(null_executor, &config.cache, config.max_num_seqs, config.max_num_batched_tokens);
    let (open, gate) = mpsc::channel();
    let scheduler = Scheduler::new(config).expect("a valid configuration");
    let engine =
        spawn(scheduler, Box::new(GatedExecutor { inner: checked, gate }), EngineConfig::default()).expect("a thread");
    let handle = &engine.handle;
    let requests = (0..2000u64).map(|seed| {
        let id = handle.next_request_id();
        let mut request = request(id, seed, 1 + (seed * 17 % 200) as usize, 1 + (seed * 7 % 60) as u32);
        request.stop.stop_token_ids = vec![999];
        request
    });
    let mut streams: VecDeque<_> =
        requests.map(|request| (request.clone(), handle.submit(request).expect("the engine has room"))).collect();
    // These leave before the first step is done, others (below) at any time.
    streams.drain(..20);
    drop(open);
    let mut kept = Vec::new();
    for (at, (request, mut stream)) in streams.into_iter().enumerate() {
        if at % 5 == 2 {
            stream.blocking_recv();
        } else {
            kept.push((request, stream));
        }
    }
    for (request, stream) in &mut kept {
        let events = read_all(stream);
        assert_eq!(stream.end(), Some(&StreamEnd::Finished), "{:?}", handle.stats());
        assert_eq!(tokens_of(&events), expected(&null, request));
        let has_ended = finish_of(&events).is_some() || matches!(events.last(), Some(TokenEvent::Failed(_)));
        assert!(has_ended);
    }
    let stats = wait_for(handle, "the end", |s| s.live_requests == 0 && blocks_used(s) == 0);
    assert!(
        stats.scheduler.preemptions > 0 && stats.steps.failed_requests > 0 && stats.steps.cancelled_requests >= 20,
        "{stats:?}"
    );
    handle.drain();
    assert_eq!(engine.join(), Ok(()));
}

#[test]
fn a_storm_in_lockstep() {
    storm(1);
}

#[test]
fn a_storm_with_two_steps_in_flight() {
    storm(2);
}
