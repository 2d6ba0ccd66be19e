//! The driver's times, by hand for one request and by comparison for loads.

use plimsoll_core::{CacheConfig, KvGroup, SamplingParams, StopConditions};
use plimsoll_sched::{Policy, SchedulerConfig, WaitingLimits};

use super::*;
use crate::{CostModel, NullConfig, SimRng};

const MODEL: CostModel = CostModel { step_ns: 1000.0, token_ns: 10.0, context_token_ns: 0.0, host_ns: 100.0 };

fn scheduler() -> Scheduler {
    let config = SchedulerConfig {
        cache: CacheConfig { block_size: 16, groups: vec![KvGroup { window: None, num_blocks: 512 }] },
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 256,
        max_waiting: WaitingLimits { requests: 1000, prompt_tokens: 1 << 20 },
        policy: Policy::Fcfs,
        prefix_caching: false,
    };
    Scheduler::new(config).expect("a valid configuration")
}

fn executor(max_in_flight: usize) -> CostExecutor {
    CostExecutor::new(NullConfig { max_in_flight, ..NullConfig::default() }, MODEL)
}

fn arrival(id: u64, at_ns: u64, prompt: usize, max_tokens: u32) -> Arrival {
    let request = Request {
        id: RequestId(id),
        prompt: vec![1; prompt],
        sampling: SamplingParams { seed: id, ..SamplingParams::default() },
        stop: StopConditions { max_tokens, min_tokens: 0, stop_token_ids: vec![] },
        priority: 0,
    };
    Arrival { at_ns, request }
}

#[test]
fn one_request_takes_the_time_of_its_steps() {
    let report = simulate(&mut scheduler(), &mut executor(1), vec![arrival(1, 5_000, 100, 3)]).unwrap();
    let request = &report.requests[0];
    // Chunks of 64 and 36 tokens, then two decodes, each with 100 ns of host time before it.
    let first = 5_000 + (100 + 1000 + 640) + (100 + 1000 + 360);
    assert_eq!(request.token_ns, [first, first + 1110, first + 2220]);
    assert_eq!(request.scheduled_ns, Some(5_000 + 1740));
    assert_eq!((request.ttft_ns(), request.tpot_ns()), (Some(3200), Some(1110.0)));
    assert_eq!(request.outcome, Outcome::Finished(FinishReason::Length));
    assert_eq!((report.steps, report.end_ns), (4, first + 2220));
}

#[test]
fn refusals_are_told_and_do_not_stop_the_rest() {
    let script = vec![arrival(1, 0, 400, 1), arrival(2, 0, 10, 1), arrival(2, 0, 10, 1)];
    let report = simulate(&mut scheduler(), &mut executor(1), script).unwrap();
    let outcomes: Vec<_> = report.requests.into_iter().map(|request| request.outcome).collect();
    let too_long = AddError::TooLong { prompt: 400, max_model_len: 256 };
    assert_eq!(outcomes[0], Outcome::Refused(too_long));
    assert_eq!(outcomes[1], Outcome::Finished(FinishReason::Length));
    assert_eq!(outcomes[2], Outcome::Refused(AddError::DuplicateId(RequestId(2))));
}

fn load(seed: u64, gap_ns: u64) -> Vec<Arrival> {
    let mut rng = SimRng::new(seed);
    let mut at_ns = 0;
    let mut next = |id| {
        at_ns += rng.below(2 * gap_ns + 1);
        arrival(id, at_ns, rng.between(1, 100) as usize, rng.between(1, 50) as u32)
    };
    (0..300).map(&mut next).collect()
}

fn mean_ttft(report: &SimReport) -> f64 {
    let total: u64 = report.requests.iter().map(|request| request.ttft_ns().unwrap()).sum();
    total as f64 / report.requests.len() as f64
}

#[test]
fn the_same_script_gives_the_same_report() {
    let run = || simulate(&mut scheduler(), &mut executor(2), load(1, 5_000)).unwrap();
    assert_eq!(run(), run());
}

#[test]
fn more_load_means_longer_waits_and_overlap_means_shorter_runs() {
    let run = |depth, gap| simulate(&mut scheduler(), &mut executor(depth), load(1, gap)).unwrap();
    let (calm, busy) = (run(1, 50_000), run(1, 1_000));
    assert!(mean_ttft(&busy) > 3.0 * mean_ttft(&calm), "{} and {}", mean_ttft(&busy), mean_ttft(&calm));
    let overlapped = run(2, 1_000);
    assert!(overlapped.end_ns < busy.end_ns, "{} and {}", overlapped.end_ns, busy.end_ns);
    for (one, two) in busy.requests.iter().zip(&overlapped.requests) {
        assert_eq!(one.token_ns.len(), two.token_ns.len(), "overlap changes times and nothing else");
    }
}
