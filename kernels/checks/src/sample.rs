//! The sampler against the CPU's: what is deterministic to the bit or the digit, draws against a model with the same
//! noise, and against the distribution.

use candle_core::{Device, Tensor};
use plimsoll_kernels::sample::Sample;
use plimsoll_ops::sample::{SampleResult, sample as on_cpu};

use crate::arrays::{f32_bytes, u32_bytes};
use crate::sample_model::Request;
use crate::sample_run::sample;
use crate::{Case, Random, TestDevice, Timing};

type Run = fn(&dyn TestDevice, &mut Random) -> Result<(), String>;

pub(crate) fn cases() -> Vec<Case> {
    let runs: [(&str, Run); 10] = [
        ("greedy and log probabilities", greedy),
        ("draws", draws),
        ("draws with adjustments", adjusted_draws),
        ("ties", ties),
        ("large vocabulary", large),
        ("distribution", distribution),
        ("support", support),
        ("faults", faults),
        ("all banned", all_banned),
        ("extreme parameters", extremes),
    ];
    runs.into_iter().map(|(name, run)| Case { name: format!("sample/{name}"), run: Box::new(run) }).collect()
}

fn token_of(random: &mut Random, vocab: usize) -> u32 {
    // Now and then one that the vocabulary has not.
    random.below(vocab + vocab.div_ceil(20)) as u32
}

fn tokens(random: &mut Random, vocab: usize, most: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..random.below(most + 1)).map(|_| token_of(random, vocab)).collect();
    all.sort_unstable();
    all.dedup();
    random.shuffle(&mut all);
    all
}

/// Biases, masks, bans and penalties, each in about half of all requests.
fn adjustments(random: &mut Random, vocab: usize) -> Request {
    let mut request = Request::greedy();
    let mut coin = || random.below(2) == 1;
    let (bias, mask, bans, penalties, last) = (coin(), coin(), coin(), coin(), coin());
    if bias {
        request.bias = tokens(random, vocab, 30).into_iter().map(|token| (token, 4.0 * random.normal())).collect();
    }
    if mask {
        // At least one of the vocabulary.
        let allowed = tokens(random, vocab, 1 + vocab / 2).into_iter().chain([random.below(vocab) as u32]);
        request.allowed = Some(allowed.collect());
    }
    if bans {
        request.banned = tokens(random, vocab, 1 + vocab / 3);
    }
    if penalties {
        request.repetition_penalty = 1.0 + random.uniform() as f32;
        request.frequency_penalty = random.normal();
        request.presence_penalty = random.normal();
    }
    request.prompt = tokens(random, vocab, 40);
    request.output = tokens(random, vocab, 20);
    request.output.extend(request.output.clone().iter().take(5));
    request.last = last.then(|| match request.output.first().or(request.prompt.first()) {
        Some(seen) if random.below(2) == 1 => *seen,
        _ => random.below(vocab) as u32,
    });
    request
}

fn truncation(random: &mut Random, request: &mut Request, vocab: usize) {
    request.temperature = [0.3, 0.8, 1.0, 2.5][random.below(4)];
    request.top_k = [0, 1, random.between(1, 40) as u32, vocab as u32][random.below(4)];
    request.top_p = [1.0, 0.0, random.uniform() as f32, 0.95][random.below(4)];
    request.min_p = [0.0, 0.0, random.uniform() as f32 * 0.3][random.below(3)];
    request.seed = random.bits();
    request.index = random.below(5000) as u32;
}

fn cpu(logits: &[Vec<f32>], requests: &[Request]) -> Result<Vec<Option<SampleResult>>, String> {
    let counts: Vec<_> = requests.iter().map(Request::counts).collect();
    let biases: Vec<Vec<_>> = requests.iter().map(|r| r.bias.iter().map(|(t, b)| (*t, *b)).collect()).collect();
    let params: Vec<_> =
        requests.iter().zip(&counts).zip(&biases).map(|((r, counts), biases)| r.params(counts, biases)).collect();
    let logits = Tensor::new(logits.to_vec(), &Device::Cpu).map_err(|e| e.to_string())?;
    on_cpu(&logits, &params).map_err(|e| e.to_string())
}

/// Log probabilities agree to 1e-5 and their own last digits.
fn close(got: f32, want: f32) -> bool {
    (got - want).abs() <= 1e-5 + 1e-6 * want.abs() || got == want
}

fn expect_result(what: &str, got: &Option<SampleResult>, want: &Option<SampleResult>) -> Result<(), String> {
    let same = match (got, want) {
        (None, None) => true,
        (Some(got), Some(want)) => {
            let logprob = match (got.logprob, want.logprob) {
                (Some(got), Some(want)) => close(got, want),
                (got, want) => got == want,
            };
            let top = got.top.iter().zip(&want.top).all(|(got, want)| got.0 == want.0 && close(got.1, want.1));
            got.token == want.token && logprob && top && got.top.len() == want.top.len()
        }
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("{what}: {got:?}, expected {want:?}")) }
}

fn greedy(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for vocab in [1, 31, 512, 5003] {
        let logits: Vec<Vec<f32>> = (0..6).map(|_| random.normals(vocab, 3.0)).collect();
        let mut requests: Vec<Request> = (0..6).map(|_| adjustments(random, vocab)).collect();
        for request in &mut requests {
            request.logprobs = [None, Some(0), Some(1), Some(5), Some(20)][random.below(5)];
            request.temperature = [0.0, -1.0, f32::NAN][random.below(3)];
        }
        let got = sample(device, &logits, &requests)?;
        for (i, (got, want)) in got.iter().zip(&cpu(&logits, &requests)?).enumerate() {
            expect_result(&format!("vocabulary {vocab}, {:?}", requests[i]), got, want)?;
        }
    }
    Ok(())
}

/// The same token as the model's, wherever rounding cannot decide, which `least` requests at least must allow.
fn expect_draws(
    device: &dyn TestDevice,
    logits: &[Vec<f32>],
    requests: &[Request],
    least: usize,
) -> Result<(), String> {
    let results = sample(device, logits, requests)?;
    // The model is the CPU's definition, or the CPU would draw what it does not keep.
    let cpu = cpu(logits, requests)?;
    let mut compared = 0;
    for ((row, request), (got, cpu)) in logits.iter().zip(requests).zip(results.iter().zip(&cpu)) {
        let (Some(got), Some(cpu)) = (got, cpu) else { return Err(format!("no token: {got:?}, {cpu:?}, {request:?}")) };
        let adjusted = request.adjusted(row);
        let kept = request.kept(&adjusted);
        if kept.close {
            continue;
        }
        compared += 1;
        if kept.tokens.iter().all(|(token, _)| *token != cpu.token) {
            return Err(format!("the CPU drew {}, which the model does not keep: {request:?}", cpu.token));
        }
        let want = request.draw(&adjusted, kept.tokens.iter().map(|(token, _)| *token));
        if got.token != want {
            return Err(format!("vocabulary {}: {}, expected {want}: {request:?}", row.len(), got.token));
        }
    }
    if compared < least { Err(format!("only {compared} draws could be compared")) } else { Ok(()) }
}

fn draws(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for vocab in [1, 31, 512, 5003] {
        let logits: Vec<Vec<f32>> = (0..12).map(|i| random.normals(vocab, [1.0, 4.0][i % 2])).collect();
        let mut requests = vec![Request::greedy(); 12];
        requests.iter_mut().for_each(|request| truncation(random, request, vocab));
        expect_draws(device, &logits, &requests, requests.len() / 2)?;
    }
    Ok(())
}

fn adjusted_draws(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for vocab in [31, 512, 5003] {
        let logits: Vec<Vec<f32>> = (0..8).map(|_| random.normals(vocab, 2.0)).collect();
        let mut requests: Vec<Request> = (0..8).map(|_| adjustments(random, vocab)).collect();
        for request in &mut requests {
            truncation(random, request, vocab);
            request.logprobs = [None, Some(3)][random.below(2)];
        }
        expect_draws(device, &logits, &requests, requests.len() / 2)?;
    }
    Ok(())
}

/// Few distinct logits: whole bins of equals, listed or too many for the list; ids decide.
fn ties(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (vocab, values) in [(300, 3), (5003, 1), (5003, 2)] {
        let logits: Vec<Vec<f32>> =
            (0..6).map(|_| (0..vocab).map(|_| random.below(values) as f32 - 0.0).collect()).collect();
        let mut requests = vec![Request::greedy(); 6];
        for (i, request) in requests.iter_mut().enumerate() {
            request.temperature = 1.0;
            request.seed = random.bits();
            request.top_k = if i % 2 == 0 { random.between(1, vocab - 1) as u32 } else { 0 };
            request.top_p = if i % 3 == 0 { 1.0 } else { random.uniform() as f32 };
            request.logprobs = Some(20);
        }
        expect_draws(device, &logits, &requests, requests.len() / 2)?;
        let (got, want) = (sample(device, &logits, &requests)?, cpu(&logits, &requests)?);
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            let ids = |result: &SampleResult| result.top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            if ids(got) != ids(want) {
                return Err(format!("vocabulary {vocab}: {:?}, expected {:?}", got.top, want.top));
            }
        }
    }
    Ok(())
}

fn large(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let vocab = 70_001;
    let logits: Vec<Vec<f32>> = [0.02, 2.0, 6.0].iter().map(|scale| random.normals(vocab, *scale)).collect();
    let mut requests = vec![Request::greedy(); 3];
    for request in &mut requests {
        truncation(random, request, vocab);
        request.temperature = 1.0;
        request.logprobs = Some(5);
    }
    requests[0].top_p = 0.9;
    // Sums of so many weights are often too close to call; a plain draw never is.
    requests[2] = Request { temperature: 1.0, logprobs: Some(5), ..Request::greedy() };
    expect_draws(device, &logits, &requests, 1)
}

/// Many draws of one distribution.
struct Draws {
    probabilities: Vec<f64>,
    seen: Vec<f64>,
}

fn many(device: &dyn TestDevice, logits: &[f32], request: &Request, count: u32) -> Result<Draws, String> {
    let requests: Vec<Request> = (0..count).map(|index| Request { index, ..request.clone() }).collect();
    let mut draws = Draws { probabilities: vec![0.0; logits.len()], seen: vec![0.0; logits.len()] };
    for (token, probability) in request.kept(&request.adjusted(logits)).tokens {
        draws.probabilities[token as usize] = probability;
    }
    for result in sample(device, &vec![logits.to_vec(); requests.len()], &requests)? {
        draws.seen[result.ok_or("no token")?.token as usize] += 1.0;
    }
    Ok(draws)
}

/// Pearson's test: within 6 deviations of what is expected of it.
fn distribution(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    const DRAWS: u32 = 300;
    let logits = random.normals(16, 1.0);
    let request = Request { temperature: 1.5, top_k: 9, seed: random.bits(), ..Request::greedy() };
    let draws = many(device, &logits, &request, DRAWS)?;
    let means = draws.probabilities.iter().map(|p| p * f64::from(DRAWS));
    let bins: Vec<(f64, f64)> = means.zip(draws.seen).filter(|(mean, _)| *mean >= 4.0).collect();
    let statistic: f64 = bins.iter().map(|(mean, seen)| (seen - mean).powi(2) / mean).sum();
    let freedom = bins.len() as f64;
    if statistic > freedom + 6.0 * (2.0 * freedom).sqrt() {
        return Err(format!("{statistic} for {freedom} degrees of freedom: {request:?}"));
    }
    Ok(())
}

/// Every kept token comes out, and no other.
fn support(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    // Nearly uniform, so that each of some five is drawn in a hundred.
    let logits: Vec<f32> = (0..30).map(|_| random.uniform() as f32 * 0.2).collect();
    let base = Request { temperature: 1.0, seed: random.bits(), ..Request::greedy() };
    let requests = [
        Request { top_k: 5, ..base.clone() },
        Request { top_p: 0.15, ..base.clone() },
        Request { min_p: 0.97, ..base },
    ];
    for request in requests {
        let draws = many(device, &logits, &request, 100)?;
        let wrong = draws.probabilities.iter().zip(&draws.seen).position(|(p, seen)| (*p > 0.0) != (*seen > 0.0));
        if let Some(token) = wrong {
            let (p, seen) = (draws.probabilities[token], draws.seen[token]);
            return Err(format!("token {token} of probability {p} was drawn {seen} times: {request:?}"));
        }
    }
    Ok(())
}

fn faults(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for vocab in [4, 3000] {
        let good = random.normals(vocab, 1.0);
        let mut logits = vec![good; 8];
        let at = random.below(vocab - 1);
        logits[1][at] = f32::NAN;
        logits[2][at] = f32::NEG_INFINITY;
        logits[3][at] = f32::INFINITY;
        logits[4].fill(f32::NEG_INFINITY);
        logits[5][at] = -f32::NAN;
        logits[6][at] = f32::NAN;
        let allowed = Some(vec![vocab as u32 - 1]);
        let base = Request { temperature: [0.0, 1.0][random.below(2)], ..Request::greedy() };
        let mut requests = vec![base.clone(); 8];
        // A poisoned row fails even where the poison is masked, biased or banned.
        requests[1].allowed = allowed;
        requests[5].bias.insert(at as u32, f32::NEG_INFINITY);
        requests[6].banned.push(at as u32);
        // Nothing allowed but what the model rules out.
        logits[7][at] = f32::NEG_INFINITY;
        requests[7].allowed = Some(vec![at as u32]);
        let got = sample(device, &logits, &requests)?;
        let want = cpu(&logits, &requests)?;
        let tokens = |results: &[Option<SampleResult>]| results.iter().map(Option::is_some).collect::<Vec<_>>();
        if tokens(&got) != [true, false, true, false, false, false, false, false] || tokens(&got) != tokens(&want) {
            return Err(format!("vocabulary {vocab}: {got:?}, expected {want:?}"));
        }
    }
    Ok(())
}

fn all_banned(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let vocab = 40;
    let logits: Vec<Vec<f32>> = (0..5).map(|_| random.normals(vocab, 1.0)).collect();
    let everything: Vec<u32> = (0..vocab as u32).collect();
    let base = Request { banned: everything.clone(), logprobs: Some(4), ..Request::greedy() };
    let mut requests = vec![base.clone(); 5];
    requests[1] = Request { allowed: Some(vec![3, 7]), banned: vec![7, 3], ..base.clone() };
    requests[2] = Request { bias: [(5, 50.0)].into(), ..base.clone() };
    requests[3] = Request { banned: everything[1..].to_vec(), bias: [(9, 50.0)].into(), ..base.clone() };
    requests[4] = Request { last: Some(2), frequency_penalty: -30.0, ..base };
    let (got, want) = (sample(device, &logits, &requests)?, cpu(&logits, &requests)?);
    for (got, want) in got.iter().zip(&want) {
        expect_result("greedy", got, want)?;
    }
    for request in &mut requests {
        (request.temperature, request.top_k) = (1.0, [0, 3][random.below(2)]);
    }
    expect_draws(device, &logits, &requests, requests.len() / 2)
}

/// Each has one token that can come out.
fn extremes(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let logits = vec![1.0, -3.0, 2.0, 0.0];
    let hot = Request { temperature: 1.0, logprobs: Some(4), output: vec![0, 1], ..Request::greedy() };
    let requests = [
        Request { temperature: 1e-42, ..hot.clone() },
        Request { top_k: 1, ..hot.clone() },
        Request { top_p: -1.0, ..hot.clone() },
        Request { min_p: 7.0, ..hot.clone() },
        Request { temperature: f32::INFINITY, top_k: 1, ..hot.clone() },
        Request { bias: [(3, f32::MAX)].into(), temperature: 0.5, ..hot.clone() },
        Request { bias: [(3, f32::INFINITY), (0, f32::NAN)].into(), top_p: 0.9, ..hot.clone() },
        Request { bias: [(0, f32::NEG_INFINITY), (2, f32::MIN), (3, f32::MIN)].into(), ..hot.clone() },
        Request { repetition_penalty: f32::MAX, bias: [(2, 9.0)].into(), top_k: 1, ..hot.clone() },
        Request { frequency_penalty: f32::MAX, presence_penalty: f32::MAX, banned: vec![2], ..hot.clone() },
        Request { bias: [(9, 1.0)].into(), banned: vec![4, u32::MAX], allowed: Some(vec![2, 77]), ..hot.clone() },
        Request { top_p: f32::NAN, min_p: f32::NAN, top_k: 1, ..hot },
    ];
    let rows = vec![logits; requests.len()];
    let (got, want) = (sample(device, &rows, &requests)?, cpu(&rows, &requests)?);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        expect_result(&format!("{:?}", requests[i]), got, want)?;
    }
    Ok(())
}

/// Greedy, plain draws, and all truncations with log probabilities, at the vocabularies of real models.
pub(crate) fn timings() -> Vec<Timing> {
    let base = Request { seed: 1, ..Request::greedy() };
    let plain = Request { temperature: 1.0, ..base.clone() };
    let cut = Request { temperature: 0.8, top_k: 64, top_p: 0.95, ..base.clone() };
    let kinds = [("greedy", base), ("drawn", plain), ("top-k 64 top-p 0.95", cut)];
    let shapes = [("llama-3.1-8b", 128_256), ("gemma-3-27b", 262_208)];
    let all = shapes.iter().flat_map(|shape| [1, 32, 256].map(|rows| (*shape, rows)));
    all.flat_map(|(shape, rows)| kinds.clone().map(|kind| timing(shape, rows, kind))).collect()
}

fn timing((model, vocab): (&str, usize), rows: usize, (kind, request): (&str, Request)) -> Timing {
    Timing {
        name: format!("sample/{model} {kind} rows={rows}"),
        bytes: 4 * (rows * vocab) as u64,
        flops: 0,
        prepare: Box::new(move |device| {
            let mut random = Random::new(1);
            let logits = random.normals(vocab, 3.0);
            let records: Vec<u8> = (0..rows).flat_map(|row| request.record(row as u32).to_bytes()).collect();
            let words = |len: usize| device.upload(&u32_bytes(&vec![0; len]));
            let (none, list) = (words(1), words(20 * rows));
            let workspace = Sample::workspace_bytes(device.queue(), rows as u32, vocab as u32, 0);
            let op = Sample {
                logits: device.upload(&f32_bytes(&logits.repeat(rows))),
                rows: device.upload(&records),
                adjust_tokens: none,
                adjust_seen: none,
                adjust_biases: none,
                banned: none,
                masks: none,
                last_tokens: words(rows),
                tokens: words(rows),
                faults: words(rows),
                logprobs: words(rows),
                top_ids: list,
                top_logprobs: list,
                workspace: words(workspace.div_ceil(4)),
                count: rows as u32,
                vocab: vocab as u32,
                slots: rows as u32,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}
