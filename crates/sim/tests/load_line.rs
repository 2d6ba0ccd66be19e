//! What the load line is for: offered three times what it carries, a server that turns the rest away goes on serving as
//! well as at its best, and one that lets everybody in serves nobody in time.

use plimsoll_core::{CacheConfig, FinishReason, KvGroup, Request, RequestId, SamplingParams, StopConditions};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{
    Arrival, CostExecutor, CostModel, NullConfig, Outcome, RequestTiming, SimReport, SimRng, simulate_behind_door,
};

const SECOND: f64 = 1e9;
/// Requests arrive for so long; what ends in the first quarter is not counted.
const ARRIVALS_S: f64 = 60.0;

/// Limits of service, ns.
const TTFT: f64 = 0.5 * SECOND;
const TPOT: f64 = 0.06 * SECOND;

fn scheduler() -> Scheduler {
    let config = SchedulerConfig {
        cache: CacheConfig { block_size: 16, groups: vec![KvGroup { window: None, num_blocks: 1024 }] },
        max_num_seqs: 256,
        max_num_batched_tokens: 512,
        max_model_len: 256,
        max_waiting: WaitingLimits { requests: 8192, prompt_tokens: 1 << 21 },
        policy: Policy::Fcfs,
        prefix_caching: false,
    };
    Scheduler::new(config).expect("a valid configuration")
}

/// Poisson arrivals of the reference workload: prompts of 1 to 63 tokens, 100 tokens at most.
fn arrivals(seed: u64, per_second: f64) -> Vec<Arrival> {
    let mut rng = SimRng::new(seed);
    let (mut at, mut all) = (0.0, Vec::new());
    loop {
        let uniform = (rng.below(1 << 53) + 1) as f64 / (1u64 << 53) as f64;
        at -= uniform.ln() / per_second * SECOND;
        if at > ARRIVALS_S * SECOND {
            return all;
        }
        let id = all.len() as u64;
        let request = Request {
            id: RequestId(id),
            prompt: vec![1; rng.between(1, 63) as usize],
            sampling: SamplingParams { seed: id, ..SamplingParams::default() },
            stop: StopConditions { max_tokens: rng.between(20, 100) as u32, min_tokens: 0, stop_token_ids: vec![] },
            priority: 0,
        };
        all.push(Arrival { at_ns: at as u64, request });
    }
}

fn run(seed: u64, per_second: f64, places: usize) -> SimReport {
    let model = CostModel { step_ns: 6e6, token_ns: 1.5e5, context_token_ns: 300.0, host_ns: 1e5 };
    let mut executor = CostExecutor::new(NullConfig { max_in_flight: 2, ..NullConfig::default() }, model);
    simulate_behind_door(&mut scheduler(), &mut executor, arrivals(seed, per_second), places).unwrap()
}

/// Requests a second that ended while others arrived, of those that `counts`.
fn rate(report: &SimReport, counts: impl Fn(&RequestTiming) -> bool) -> f64 {
    let window = ARRIVALS_S / 4.0 * SECOND..ARRIVALS_S * SECOND;
    let ended = |request: &&RequestTiming| {
        request.outcome == Outcome::Finished(FinishReason::Length)
            && request.token_ns.last().is_some_and(|&end| window.contains(&(end as f64)))
    };
    report.requests.iter().filter(ended).filter(|request| counts(request)).count() as f64 / (0.75 * ARRIVALS_S)
}

fn throughput(report: &SimReport) -> f64 {
    rate(report, |_| true)
}

fn goodput(report: &SimReport) -> f64 {
    let in_time = |request: &RequestTiming| {
        request.ttft_ns().is_some_and(|ttft| ttft as f64 <= TTFT) && request.tpot_ns().is_none_or(|tpot| tpot <= TPOT)
    };
    rate(report, in_time)
}

/// The smallest number of places that gives 95% of the highest throughput, and that throughput.
fn saturation(seed: u64) -> (usize, f64) {
    let ladder: Vec<usize> = (0..=32).map(|half_octaves| 2f64.powf(f64::from(half_octaves) / 4.0) as usize).collect();
    let rungs: Vec<(usize, f64)> = ladder.into_iter().map(|n| (n, throughput(&run(seed, 1000.0, n)))).collect();
    let most = rungs.iter().fold(0.0, |most: f64, rung| most.max(rung.1));
    rungs.into_iter().find(|rung| rung.1 >= 0.95 * most).expect("the highest is one of them")
}

#[test]
fn goodput_at_three_times_the_load_stays_with_the_line_and_falls_without() {
    for seed in [1, 2, 3] {
        let (line, most) = saturation(seed);
        let offered = [0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0].map(|share| share * most);
        let best = offered.iter().fold(0.0, |best: f64, &rate| best.max(goodput(&run(seed, rate, usize::MAX))));
        let with = run(seed, 3.0 * most, line);
        let without = run(seed, 3.0 * most, usize::MAX);
        let (held, lost) = (goodput(&with) / best, goodput(&without) / best);
        println!(
            "seed {seed}: line {line}, {most:.1} req/s, best goodput {best:.1}, with {held:.2}, without {lost:.2}"
        );
        assert!(held >= 0.9, "seed {seed}: with the line {held}");
        assert!(lost < 0.5, "seed {seed}: without the line {lost}");
        let admitted = with.requests.iter().filter(|request| request.outcome != Outcome::TurnedAway);
        let finished = |request: &RequestTiming| request.outcome == Outcome::Finished(FinishReason::Length);
        assert!(
            admitted.clone().count() > 100 && admitted.clone().all(finished),
            "seed {seed}: who is let in is served"
        );
    }
}
