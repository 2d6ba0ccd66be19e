//! The sampler against a naive one in f64 that sorts whole vocabularies, by its statistics and by its edge cases.

use candle_core::DType;

use super::*;
use crate::testing::Random;

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    Tensor::new(rows.to_vec(), &Device::Cpu).unwrap()
}

fn sample_one(logits: &[f32], params: SampleParams<'_>) -> Option<SampleResult> {
    sample(&tensor(&[logits.to_vec()]), &[params]).unwrap().pop().unwrap()
}

fn token(logits: &[f32], params: SampleParams<'_>) -> u32 {
    sample_one(logits, params).unwrap().token
}

/// The adjusted logits.
fn naive_logits(logits: &[f32], params: &SampleParams<'_>) -> Vec<f64> {
    let mut out: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for (id, logit) in out.iter_mut().enumerate() {
        let id = id as u32;
        for (_, bias) in params.logit_bias.iter().filter(|(t, _)| *t == id) {
            *logit += f64::from(*bias);
        }
        if let Some((_, generated)) = params.counts.seen().find(|(t, _)| *t == id) {
            let repetition = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= f64::from(params.frequency_penalty) * f64::from(generated);
            *logit -= if generated > 0 { f64::from(params.presence_penalty) } else { 0.0 };
        }
        if params.banned.contains(&id) || params.allowed.is_some_and(|a| !a.contains(&id)) {
            *logit = f64::NEG_INFINITY;
        }
    }
    out
}

/// Each token's probability.
fn naive_distribution(logits: &[f32], params: &SampleParams<'_>) -> Vec<f64> {
    let logits = naive_logits(logits, params);
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = logits.iter().map(|l| ((l - max) / f64::from(params.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].partial_cmp(&weights[*a]).unwrap());
    if params.top_k > 0 {
        order.iter().skip(params.top_k as usize).for_each(|id| weights[*id] = 0.0);
    }
    let total: f64 = weights.iter().sum();
    let mut before = 0.0;
    for (rank, id) in order.iter().enumerate() {
        let weight = weights[*id];
        if (rank > 0 && before >= f64::from(params.top_p) * total) || weight < f64::from(params.min_p) {
            weights[*id] = 0.0;
        }
        before += weight;
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Pearson's test of many draws: none outside the support, and a statistic within 4 deviations of its expectation.
fn check_distribution(logits: &[f32], params: SampleParams<'_>) {
    const DRAWS: u32 = 20_000;
    let expected = naive_distribution(logits, &params);
    let rows: Vec<SampleParams<'_>> = (0..DRAWS).map(|index| SampleParams { index, ..params }).collect();
    let logits = Tensor::new(logits, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let batch = logits.broadcast_as((1000, expected.len())).unwrap().contiguous().unwrap();
    let mut seen = vec![0.0; expected.len()];
    for rows in rows.chunks(1000) {
        for result in sample(&batch, rows).unwrap() {
            seen[result.unwrap().token as usize] += 1.0;
        }
    }
    let (mut statistic, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (p, n) in expected.iter().zip(&seen) {
        assert!(*n == 0.0 || *p > 0.0, "a token outside the support: {params:?}");
        let mean = p * f64::from(DRAWS);
        if mean >= 5.0 {
            statistic += (n - mean).powi(2) / mean;
            bins += 1.0;
        } else {
            rare = (rare.0 + mean, rare.1 + n);
        }
    }
    if rare.0 >= 5.0 {
        statistic += f64::powi(rare.1 - rare.0, 2) / rare.0;
        bins += 1.0;
    }
    let freedom: f64 = bins - 1.0;
    assert!(statistic <= freedom + 4.0 * (2.0 * freedom).sqrt() + 1e-9, "{statistic} for {freedom}: {params:?}");
}

fn counts(prompt: &[u32], output: &[u32]) -> TokenCounts {
    let mut counts = TokenCounts::new();
    counts.add_prompt(prompt);
    output.iter().for_each(|t| counts.add_output(*t));
    counts
}

#[test]
fn draws_follow_the_distribution() {
    let mut random = Random::new(81);
    let counts = counts(&[1, 2, 3, 70], &[2, 2, 9, 9, 9]);
    for (i, vocab) in [8, 300, 1000].into_iter().enumerate() {
        let logits = random.normals(vocab, 2.0);
        let base = SampleParams { temperature: 1.0, seed: 100 + i as u64, counts: &counts, ..Default::default() };
        check_distribution(&logits, base);
        check_distribution(&logits, SampleParams { temperature: 0.6, ..base });
        check_distribution(&logits, SampleParams { temperature: 1.7, min_p: 0.05, ..base });
        check_distribution(&logits, SampleParams { top_k: 5, ..base });
        check_distribution(&logits, SampleParams { top_k: 200, temperature: 1.5, ..base });
        check_distribution(&logits, SampleParams { top_p: 0.9, ..base });
        check_distribution(&logits, SampleParams { top_p: 0.999, temperature: 3.0, ..base });
        check_distribution(&logits, SampleParams { top_k: 50, top_p: 0.8, min_p: 0.1, temperature: 1.3, ..base });
        check_distribution(&logits, SampleParams { repetition_penalty: 1.5, ..base });
        check_distribution(&logits, SampleParams { frequency_penalty: 0.7, presence_penalty: -0.4, ..base });
        check_distribution(&logits, SampleParams { logit_bias: &[(1, 2.0), (4, -100.0), (1, 0.5)], ..base });
        check_distribution(&logits, SampleParams { allowed: Some(&[0, 3, 5]), banned: &[3, 4], top_p: 0.99, ..base });
        check_distribution(&logits, SampleParams { banned: &[0, 1, 2], min_p: 0.02, ..base });
    }
}

#[test]
fn a_draw_depends_on_seed_and_index_alone() {
    let mut random = Random::new(82);
    let rows: Vec<Vec<f32>> = (0..9).map(|_| random.normals(500, 1.0)).collect();
    let params = |i: usize| SampleParams {
        temperature: 1.0,
        top_p: [1.0, 0.95][i % 2],
        seed: i as u64,
        index: 3 * i as u32,
        logprobs: Some(2),
        ..Default::default()
    };
    let all: Vec<_> = (0..9).map(params).collect();
    let together = sample(&tensor(&rows), &all).unwrap();
    for i in (0..9).rev() {
        assert_eq!(sample_one(&rows[i], params(i)), together[i]);
    }
    let draws = |seed: u64| -> Vec<u32> {
        (0..50)
            .map(|index| token(&rows[0], SampleParams { temperature: 1.0, seed, index, ..Default::default() }))
            .collect()
    };
    assert_eq!(draws(5), draws(5));
    assert_ne!(draws(5), draws(6));
    // Neighbouring seeds are no shifted copies of each other.
    assert_ne!(draws(5)[1..], draws(6)[..49]);
}

#[test]
fn uniforms_are_uniform_over_index_and_over_seed() {
    for by_seed in [false, true] {
        let mut bins = [0f64; 64];
        for i in 0..64_000u32 {
            let u = if by_seed { draw::uniform(u64::from(i), 0) } else { draw::uniform(0, i) };
            assert!((0.0..1.0).contains(&u));
            bins[(u * 64.0) as usize] += 1.0;
        }
        let statistic: f64 = bins.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
        assert!(statistic < 63.0 + 4.0 * 126f64.sqrt(), "{statistic}");
    }
}

#[test]
fn greedy_takes_the_largest_and_of_equals_the_lowest_id() {
    let mut random = Random::new(83);
    for vocab in [1, 2, 63, 513, 49_152] {
        let mut logits = random.normals(vocab, 1.0);
        let (a, b) = (random.below(vocab), random.below(vocab));
        (logits[a], logits[b]) = (50.0, 50.0);
        assert_eq!(token(&logits, SampleParams::default()), a.min(b) as u32);
        // As do the smallest temperature and nuclei of one.
        for params in [
            SampleParams { temperature: -1.0, ..Default::default() },
            SampleParams { temperature: f32::NAN, ..Default::default() },
            SampleParams { temperature: 1.0, top_k: 1, ..Default::default() },
            SampleParams { temperature: 1.0, top_p: 0.0, ..Default::default() },
        ] {
            assert_eq!(token(&logits, params), a.min(b) as u32);
        }
    }
    let logits = [1.0, 3.0, 2.0];
    assert_eq!(token(&logits, SampleParams { temperature: 1e-42, ..Default::default() }), 1);
    assert_eq!(token(&logits, SampleParams { temperature: 1.0, min_p: 7.0, ..Default::default() }), 1);
}

#[test]
fn greedy_with_penalties_matches_the_naive_argmax() {
    let mut random = Random::new(84);
    let counts = counts(&[5, 6], &[7, 7, 8]);
    for _ in 0..50 {
        let logits = random.normals(12, 1.0);
        let params = SampleParams {
            counts: &counts,
            repetition_penalty: 1.0 + random.uniform() as f32,
            frequency_penalty: random.normal(1.0),
            presence_penalty: random.normal(1.0),
            logit_bias: &[(7, 1.5)],
            banned: &[0],
            ..Default::default()
        };
        let naive = naive_logits(&logits, &params);
        let best = (0..12).max_by(|a, b| naive[*a].partial_cmp(&naive[*b]).unwrap()).unwrap();
        assert_eq!(token(&logits, params), best as u32);
    }
}

#[test]
fn log_probabilities_are_of_the_adjusted_logits_without_temperature() {
    let mut random = Random::new(85);
    let counts = counts(&[1], &[2]);
    for (temperature, top_k) in [(0.0, 0), (2.0, 3)] {
        let logits = random.normals(3000, 3.0);
        let params = SampleParams {
            temperature,
            top_k,
            counts: &counts,
            frequency_penalty: 1.0,
            repetition_penalty: 1.2,
            logit_bias: &[(17, 4.0)],
            logprobs: Some(5),
            ..Default::default()
        };
        let result = sample_one(&logits, params).unwrap();
        let plain = SampleParams { temperature: 1.0, top_k: 0, ..params };
        let probabilities = naive_distribution(&logits, &plain);
        let check = |id: u32, logprob: f32| {
            let want = probabilities[id as usize].ln();
            assert!((want - f64::from(logprob)).abs() < 1e-5, "{logprob}, expected {want}");
        };
        check(result.token, result.logprob.unwrap());
        assert_eq!(result.top.len(), 5);
        result.top.iter().for_each(|(id, logprob)| check(*id, *logprob));
        assert!(result.top.is_sorted_by(|a, b| a.1 >= b.1));
        let better = probabilities.iter().filter(|p| p.ln() > f64::from(result.top[4].1) + 1e-5).count();
        assert_eq!(better, 4);
        assert_eq!(sample_one(&logits, SampleParams { logprobs: None, ..params }).unwrap().logprob, None);
        let none = sample_one(&logits, SampleParams { logprobs: Some(0), ..params }).unwrap();
        assert!(none.logprob.is_some() && none.top.is_empty());
    }
    // More than there are, or than are possible.
    let all = sample_one(&[1.0, 2.0], SampleParams { logprobs: Some(u32::MAX), ..Default::default() }).unwrap();
    assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
    let params = SampleParams { logprobs: Some(3), allowed: Some(&[2]), ..Default::default() };
    assert_eq!(sample_one(&[1.0, 2.0, 0.5], params).unwrap().top, [(2, 0.0)]);
}

#[test]
fn rows_that_are_not_finite_fail_alone() {
    let good = vec![0.0, 1.0, 2.0];
    let rows = [
        good.clone(),
        vec![0.0, f32::NAN, 2.0],
        vec![f32::NEG_INFINITY, 1.0, 0.0],
        vec![0.0, 1.0, f32::INFINITY],
        vec![f32::NEG_INFINITY; 3],
        good,
    ];
    for temperature in [0.0, 1.0] {
        // A poisoned row fails even where the poison is not among the allowed.
        let params = SampleParams { temperature, allowed: Some(&[0, 2]), top_k: 1, ..Default::default() };
        let tokens: Vec<Option<u32>> =
            sample(&tensor(&rows), &[params; 6]).unwrap().into_iter().map(|r| r.map(|r| r.token)).collect();
        assert_eq!(tokens, [Some(2), None, Some(2), None, None, Some(2)]);
    }
}

#[test]
fn where_all_is_banned_bans_do_not_count() {
    let logits = [1.0, 3.0, 2.0];
    let base = SampleParams::default();
    assert_eq!(token(&logits, SampleParams { banned: &[1], ..base }), 2);
    assert_eq!(token(&logits, SampleParams { banned: &[2, 1, 0, 1], ..base }), 1);
    assert_eq!(token(&logits, SampleParams { allowed: Some(&[0, 2]), banned: &[2, 0], ..base }), 2);
    assert_eq!(token(&logits, SampleParams { allowed: Some(&[0]), banned: &[0], temperature: 1.0, ..base }), 0);
    // A ban outweighs a bias; nothing allowed but what the model rules out is no token at all.
    assert_eq!(token(&logits, SampleParams { banned: &[0], logit_bias: &[(0, 1e30)], ..base }), 1);
    let ruled_out = SampleParams { allowed: Some(&[0]), ..base };
    assert_eq!(sample_one(&[f32::NEG_INFINITY, 1.0], ruled_out), None);
}

#[test]
fn extreme_parameters_give_possible_tokens() {
    let logits = [1.0, -3.0, 2.0, 0.0];
    let seen = counts(&[0, 1, 2, 3], &[0, 1]);
    let base = SampleParams { temperature: 1.0, logprobs: Some(4), counts: &seen, ..Default::default() };
    let bias = [(3, f32::MAX), (3, f32::MAX)];
    assert_eq!(token(&logits, SampleParams { logit_bias: &bias, ..base }), 3);
    assert_eq!(token(&logits, SampleParams { logit_bias: &[(3, f32::INFINITY)], top_p: 0.9, ..base }), 3);
    let negative = [(0, f32::NEG_INFINITY), (2, f32::MIN), (3, f32::MIN)];
    assert_eq!(token(&logits, SampleParams { logit_bias: &negative, ..base }), 1);
    for params in [
        SampleParams { repetition_penalty: 1e-38, ..base },
        SampleParams { repetition_penalty: 0.0, ..base },
        SampleParams { repetition_penalty: f32::MAX, ..base },
        SampleParams { frequency_penalty: f32::MAX, presence_penalty: f32::MAX, ..base },
        SampleParams { temperature: f32::MAX, ..base },
        SampleParams { temperature: f32::INFINITY, top_k: u32::MAX, ..base },
        SampleParams { top_k: u32::MAX, top_p: 0.5, ..base },
        SampleParams { top_p: f32::NAN, min_p: f32::NAN, ..base },
        SampleParams { logit_bias: &[(9, 1.0)], banned: &[4, u32::MAX], allowed: Some(&[2, 77]), ..base },
    ] {
        for index in 0..200 {
            let result = sample_one(&logits, SampleParams { index, ..params }).unwrap();
            assert!(result.token < 4 && result.logprob.unwrap() <= 0.0, "{result:?} of {params:?}");
            assert!(result.top.iter().all(|(_, p)| !p.is_nan()));
        }
    }
}

#[test]
fn every_level_draws_alike() {
    let mut random = Random::new(86);
    let logits = random.normals(5000, 2.0);
    let base = SampleParams { temperature: 1.0, ..Default::default() };
    for level in Level::available() {
        let differing = (0..300)
            .flat_map(|index| [SampleParams { index, ..base }, SampleParams { index, top_p: 0.9, ..base }])
            .filter(|params| sample_row(level, &logits, params) != sample_row(Level::Portable, &logits, params))
            .count();
        // Weights differ in their last bits, which may move a draw at a border, but hardly ever does.
        assert!(differing <= 2, "{level:?}: {differing}");
    }
}

#[test]
fn counts_remember_prompt_and_output_and_forget() {
    let mut counts = counts(&[4, 4, 1], &[4, 8, 8]);
    assert_eq!(counts.seen().collect::<Vec<_>>(), [(1, 0), (4, 1), (8, 2)]);
    counts.clear();
    assert_eq!(counts, TokenCounts::default());
}

#[test]
fn wrong_operands_are_refused_by_name() {
    let logits = tensor(&[vec![1.0, 2.0], vec![3.0, 4.0]]);
    let row = SampleParams::default();
    let message = |logits: &Tensor, rows: &[SampleParams<'_>]| sample(logits, rows).unwrap_err().to_string();
    assert!(message(&logits, &[row]).contains("sample: logits are [2, 2], expected [1, vocab]"));
    assert!(message(&logits.t().unwrap(), &[row; 2]).contains("sample: logits"));
    assert!(message(&logits.to_dtype(DType::F16).unwrap(), &[row; 2]).contains("logits is F16"));
    let empty = Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap();
    assert!(message(&empty, &[row; 2]).contains("expected [2, vocab]"));
    assert_eq!(sample(&Tensor::zeros((0, 5), DType::F32, &Device::Cpu).unwrap(), &[]).unwrap(), []);
}
