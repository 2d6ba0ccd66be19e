//! The search against servers whose saturation point and breakpoint are known: closed forms with sampling noise, run
//! without a clock.

use plimsoll_bench::{Answer, Constraint, RungPoint, SearchConfig, Slo, Step, Verdict, next_step};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEEDS: u64 = 60;
const MAX_CONCURRENCY: u32 = 4096;
const TTFT_LIMIT_MS: f64 = 2000.0;
/// Seconds that a request takes while there is a slot for it.
const REQUEST_S: f64 = 1.0;
const TOKENS: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A fixed number of slots; what does not fit queues until the first token comes too late.
    Plateau,
    /// A plateau, and requests that fail in great number past a concurrency.
    Cliff,
    /// Throughput falls as a power of the concurrency past its peak.
    Retrograde,
    /// A plateau whose rungs scatter three times as much.
    Noisy,
    /// A plateau; a slow mode of requests takes a share that grows with concurrency.
    Bimodal,
    /// Refuses what is over its limit, far below its capacity.
    RateLimited,
    /// Goes down past a concurrency, taking everything in flight with it, and is started again.
    Crashing,
    /// Has far more capacity than the client.
    ClientLimited,
}

const KINDS: [Kind; 8] = [
    Kind::Plateau,
    Kind::Cliff,
    Kind::Retrograde,
    Kind::Noisy,
    Kind::Bimodal,
    Kind::RateLimited,
    Kind::Crashing,
    Kind::ClientLimited,
];

/// One synthetic server.
#[derive(Clone, Copy, Debug)]
struct Server {
    kind: Kind,
    /// Requests that it works on at once.
    slots: f64,
    /// The concurrency past which service breaks.
    breaks: f64,
    /// How fast a retrograde server falls.
    fall: f64,
    /// Standard deviation of a rung's throughput, as a share of it.
    noise: f64,
    /// Spread of the logarithm of the time to the first token.
    spread: f64,
}

impl Server {
    fn new(kind: Kind, rng: &mut StdRng) -> Self {
        let slots = 2.0_f64.powf(rng.random_range(3.0..8.0));
        let beyond = rng.random_range(1.4..12.0);
        let breaks = match kind {
            Kind::RateLimited => (slots * rng.random_range(0.3..0.8)).floor(),
            _ => slots * beyond,
        };
        let noise = rng.random_range(0.002..0.009) * if kind == Kind::Noisy { 3.0 } else { 1.0 };
        Self { kind, slots, breaks, fall: rng.random_range(0.2..0.6), noise, spread: rng.random_range(0.05..0.3) }
    }

    /// Output tokens a second at `n`, on average.
    fn throughput(&self, n: f64) -> f64 {
        let rate = TOKENS / REQUEST_S;
        match self.kind {
            Kind::Retrograde if n > self.slots => rate * self.slots * (n / self.slots).powf(-self.fall),
            Kind::RateLimited => rate * n.min(self.breaks),
            _ => rate * n.min(self.slots),
        }
    }

    /// The smallest concurrency with 95% of the highest throughput.
    fn saturation(&self) -> f64 {
        0.95 * if self.kind == Kind::RateLimited { self.breaks } else { self.slots }
    }

    /// The smallest concurrency at which more than 1% of the requests are bad.
    fn breakpoint(&self) -> Option<f64> {
        match self.kind {
            Kind::ClientLimited => None,
            Kind::RateLimited => Some(self.breaks / 0.99),
            _ => Some(self.breaks),
        }
    }

    fn constraint(&self) -> Constraint {
        match self.kind {
            Kind::Cliff | Kind::Crashing => Constraint::Success,
            Kind::RateLimited => Constraint::Refused,
            _ => Constraint::Ttft,
        }
    }

    /// The shares of requests that fail, that are refused, and whose first token comes too late.
    fn bad_shares(&self, n: f64) -> (f64, f64, f64) {
        // A queue's wait grows with what is queued; its logarithm scatters. One in a hundred is late at `breaks`.
        let queued = 1.0 - normal_below(2.326 - (n / self.breaks).ln() / self.spread);
        match self.kind {
            Kind::Cliff if n > self.breaks => (0.3, 0.0, 0.0),
            Kind::Crashing if n > self.breaks => (1.0, 0.0, 0.0),
            Kind::RateLimited => (0.0, (1.0 - self.breaks / n).max(0.0), 0.0),
            Kind::Cliff | Kind::Crashing | Kind::ClientLimited => (0.0, 0.0, 0.0),
            Kind::Bimodal => (0.0, 0.0, (0.01 * (n / self.breaks).powi(4)).min(0.5)),
            Kind::Plateau | Kind::Retrograde | Kind::Noisy => (0.0, 0.0, queued),
        }
    }

    /// A rung as it would be measured: with the noise of ten batch means, and binomial counts.
    fn measure(&self, n: u32, rng: &mut StdRng) -> RungPoint {
        let at = f64::from(n);
        let (failing, refusing, late) = self.bad_shares(at);
        let batches: Vec<f64> = (0..10).map(|_| 1.0 + self.noise * 10.0_f64.sqrt() * normal(rng)).collect();
        let mean = batches.iter().sum::<f64>() / 10.0;
        let variance = batches.iter().map(|batch| (batch - mean).powi(2)).sum::<f64>() / 9.0;
        let truth = self.throughput(at) * (1.0 - failing);
        let requests = 10 * u64::from(n);
        let failures = binomial(requests, failing, rng);
        let refused = binomial(requests, refusing, rng);
        let served = requests - failures - refused;
        RungPoint {
            concurrency: n,
            throughput: truth * mean,
            half_width: Some(truth * 2.262 * (variance / 10.0).sqrt()),
            requests,
            failed: failures + refused,
            refused,
            slo_requests: served,
            ttft_violations: binomial(served, late, rng),
            tpot_violations: 0,
            client_limited: self.kind == Kind::ClientLimited && at >= self.slots / 4.0,
        }
    }
}

/// A standard normal number, by Box and Muller.
fn normal(rng: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// The standard normal distribution function: Simpson's rule over its density from far below.
fn normal_below(z: f64) -> f64 {
    const STEPS: u32 = 400;
    const FROM: f64 = -9.0;
    if z <= FROM {
        return 0.0;
    }
    let width = (z - FROM) / f64::from(STEPS);
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let weight = |i| if i == 0 || i == STEPS { 1.0 } else { 2.0 + 2.0 * f64::from(i % 2) };
    (0..=STEPS).map(|i| weight(i) * density(FROM + f64::from(i) * width)).sum::<f64>() * width / 3.0
}

fn binomial(n: u64, share: f64, rng: &mut StdRng) -> u64 {
    if share <= 0.0 { 0 } else { (0..n).filter(|_| rng.random::<f64>() < share).count() as u64 }
}

fn config() -> SearchConfig {
    let slo = Slo { ttft_ms: Some(TTFT_LIMIT_MS), ..Slo::default() };
    SearchConfig { max_concurrency: MAX_CONCURRENCY, slo, ..SearchConfig::default() }
}

/// The answer, and how many rungs it took.
fn search(mut measure: impl FnMut(u32) -> RungPoint) -> (Answer, usize) {
    let mut rungs = Vec::new();
    loop {
        match next_step(&config(), &rungs).expect("a server that serves") {
            Step::Done(answer) => return (answer, rungs.len()),
            Step::Measure(n) => rungs.push(measure(n)),
        }
        assert!(rungs.len() < 60, "no end: {rungs:?}");
    }
}

/// Within 10%, or the nearest whole concurrency where that is less.
fn near(found: f64, truth: f64) -> bool {
    (found - truth).abs() <= (0.1 * truth).max(1.0)
}

/// What is wrong with an answer, if anything is.
fn miss(server: &Server, answer: &Answer) -> Option<&'static str> {
    if !near(answer.saturation.into(), server.saturation()) {
        return Some("saturation point");
    }
    if (server.kind == Kind::ClientLimited) != (answer.verdict == Verdict::ClientLimited) {
        return Some("verdict");
    }
    match (server.breakpoint(), answer.breakpoint) {
        (None, None) => None,
        (Some(_), Some(found)) if found.constraint != server.constraint() => Some("binding constraint"),
        (Some(truth), Some(found)) => {
            let middle = f64::from(found.last_pass + found.first_fail) / 2.0;
            (!near(middle, truth)).then_some("breakpoint")
        }
        _ => Some("whether service breaks"),
    }
}

#[test]
fn the_answers_are_within_a_tenth_of_the_truth() {
    let (mut missed, mut worst, mut rungs) = (0, 0, 0);
    for (i, kind) in (0..).zip(KINDS) {
        let mut of_kind = 0;
        for seed in i * SEEDS..(i + 1) * SEEDS {
            let mut rng = StdRng::seed_from_u64(seed);
            let server = Server::new(kind, &mut rng);
            let (answer, count) = search(|n| server.measure(n, &mut rng));
            rungs += count;
            if let Some(what) = miss(&server, &answer) {
                println!("{kind:?}, seed {seed}: {what}: {server:?} {answer:?}");
                of_kind += 1;
            }
        }
        println!("{kind:?}: {of_kind} of {SEEDS} missed");
        worst = worst.max(of_kind);
        missed += of_kind;
    }
    let runs = SEEDS * KINDS.len() as u64;
    println!("{missed} of {runs} missed, {:.1} rungs a search", rungs as f64 / runs as f64);
    assert!(missed * 20 <= runs, "{missed} of {runs} missed, more than 5%");
    assert!(worst * 10 <= SEEDS, "{worst} of {SEEDS} of one kind missed, more than a tenth");
}

#[test]
fn on_a_soft_knee_the_interval_holds_the_truth() {
    let mut held = 0;
    for seed in 1000..1000 + SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let server = Server::new(Kind::Plateau, &mut rng);
        let sharpness: f64 = rng.random_range(2.0..6.0);
        // Bends from one line of the sharp knee's to the other, and has 95% of its limit at `truth`.
        let bend = |n: f64| ((n / server.slots).powf(-sharpness) + 1.0).powf(-1.0 / sharpness);
        let truth = server.slots * (0.95_f64.powf(-sharpness) - 1.0).powf(-1.0 / sharpness);
        let (answer, _) = search(|n| {
            let at = f64::from(n);
            let scale = bend(at) * server.slots / at.min(server.slots);
            let rung = server.measure(n, &mut rng);
            let half_width = rung.half_width.map(|width| width * scale);
            RungPoint { throughput: rung.throughput * scale, half_width, ttft_violations: 0, ..rung }
        });
        // Whole concurrencies.
        let interval = f64::from(answer.saturation_low) - 1.0..=f64::from(answer.saturation_high);
        if interval.contains(&truth) {
            held += 1;
        } else {
            println!("seed {seed}: {truth:.1} is outside: {server:?}, sharpness {sharpness:.1}: {answer:?}");
        }
    }
    println!("{held} of {SEEDS} intervals hold the truth");
    assert!(held * 10 >= SEEDS * 9, "{held} of {SEEDS} intervals hold the truth");
}
