//! The next token of each sequence from its row of logits: bias and masks, penalties, log probabilities, temperature,
//! truncation, and a seeded draw.
//!
//! A row's result depends on its logits and parameters alone: not on other rows, on threads, or on what was drawn
//! before ([`draw`]). This module must never know requests, text or why a token is banned.

mod adjust;
mod counts;
mod draw;
#[cfg(feature = "cuda")]
mod gpu;
mod scan;
mod score;
#[cfg(test)]
mod tests;
mod weights;

use std::sync::OnceLock;

use candle_core::{Device, Result, Storage, Tensor, bail};

pub use counts::TokenCounts;
#[cfg(feature = "cuda")]
pub use gpu::{GpuSampleParams, GpuSampling};
pub use score::{TokenScore, WantedScore, score};

use crate::operand::contiguous;
use crate::par::parallel_for;
use crate::simd::Level;

/// How one row is sampled. Stages act in the order of the fields, with the log probabilities taken after the penalties.
/// Token ids outside the vocabulary are passed over.
#[derive(Clone, Copy, Debug)]
pub struct SampleParams<'a> {
    /// Added to the named logits.
    pub logit_bias: &'a [(u32, f32)],
    /// If present, every other token is impossible.
    pub allowed: Option<&'a [u32]>,
    /// Impossible tokens; disregarded if nothing else is left.
    pub banned: &'a [u32],
    /// What the penalties count. May stay empty where there are none ([`SampleParams::uses_counts`]).
    pub counts: &'a TokenCounts,
    /// Divides positive and multiplies negative logits of tokens in prompt or output (arXiv:1909.05858). Above 0.
    pub repetition_penalty: f32,
    /// Subtracted once a generated occurrence.
    pub frequency_penalty: f32,
    /// Subtracted once from tokens generated at all.
    pub presence_penalty: f32,
    /// Report the log probability of the chosen token and of this many likeliest.
    pub logprobs: Option<u32>,
    /// Logits are divided by it; 0 takes the largest (of equals the lowest id).
    pub temperature: f32,
    /// Keep the `k` likeliest (of equals the lower ids); 0 keeps all.
    pub top_k: u32,
    /// Of those keep the fewest, likeliest first, whose probability reaches this, at least one; 1 keeps all
    /// (arXiv:1904.09751).
    pub top_p: f32,
    /// Of those drop the ones less likely than `min_p` times the likeliest; 0 drops none (arXiv:2407.01082).
    pub min_p: f32,
    /// With `index` it alone decides the draw.
    pub seed: u64,
    /// Number of the token in its sequence's output.
    pub index: u32,
}

/// Greedy, with nothing else.
impl Default for SampleParams<'static> {
    fn default() -> Self {
        static NO_COUNTS: TokenCounts = TokenCounts::new();
        Self {
            logit_bias: &[],
            allowed: None,
            banned: &[],
            counts: &NO_COUNTS,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logprobs: None,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            index: 0,
        }
    }
}

impl SampleParams<'_> {
    /// Whether a penalty reads `counts`.
    pub fn uses_counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleResult {
    pub token: u32,
    /// Natural, of the adjusted logits' softmax at temperature 1; present if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens, likeliest first (of equals the lower id first), as many as were asked for and are possible.
    pub top: Vec<(u32, f32)>,
}

/// Samples every row, in parallel.
///
/// `logits`: f32 `[rows.len(), vocab]`, contiguous; copied to the CPU from other devices. `None` stands for a row with a
/// NaN, a positive infinity, or no possible token.
///
/// # Errors
/// Another rank, dtype or layout, or an empty vocabulary.
pub fn sample(logits: &Tensor, rows: &[SampleParams<'_>]) -> Result<Vec<Option<SampleResult>>> {
    let (count, vocab) = match logits.dims() {
        &[count, vocab] if count == rows.len() && vocab > 0 => (count, vocab),
        _ => bail!("sample: logits are {:?}, expected [{}, vocab]", logits.shape(), rows.len()),
    };
    let logits = logits.to_device(&Device::Cpu)?;
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("sample: logits are not on the CPU") };
    let values = contiguous::<f32>("sample", "logits", storage, layout)?;
    let results: Vec<OnceLock<Option<SampleResult>>> = (0..count).map(|_| OnceLock::new()).collect();
    let level = Level::detect();
    parallel_for(count, |i| {
        results[i].get_or_init(|| sample_row(level, &values[i * vocab..][..vocab], &rows[i]));
    });
    Ok(results.into_iter().map(|r| r.into_inner().flatten()).collect())
}

fn sample_row(level: Level, raw: &[f32], params: &SampleParams<'_>) -> Option<SampleResult> {
    // A row of negative infinities has no possible token, and so no distribution either.
    let max = scan::finite_max(level, raw)?;
    let (logits, max) = adjust::adjust(level, raw, max, params)?;
    let token = choose(level, &logits, max, params);
    let (logprob, top) = log_probabilities(level, &logits, max, params.logprobs, token);
    Some(SampleResult { token, logprob, top })
}

fn choose(level: Level, logits: &[f32], max: f32, params: &SampleParams<'_>) -> u32 {
    // What cannot be divided by is greedy.
    if params.temperature <= 0.0 || params.temperature.is_nan() {
        return scan::position(level, logits, max);
    }
    let uniform = draw::uniform(params.seed, params.index);
    if params.top_k == 0 || params.top_k as usize >= logits.len() {
        return draw_weighted(level, logits.to_vec(), max, params, uniform) as u32;
    }
    let (logits, ids): (Vec<f32>, Vec<u32>) = scan::largest(level, logits, params.top_k as usize).into_iter().unzip();
    ids[draw_weighted(level, logits, max, params, uniform)]
}

/// The index of the chosen logit.
fn draw_weighted(level: Level, logits: Vec<f32>, max: f32, params: &SampleParams<'_>, uniform: f64) -> usize {
    let mut weights = logits;
    weights::weigh(level, &mut weights, max, params.temperature);
    if params.top_p < 1.0 {
        weights::keep_nucleus(level, &mut weights, params.top_p);
    }
    if params.min_p > 0.0 {
        // The largest weight is 1.
        weights::drop_below(&mut weights, params.min_p.min(1.0));
    }
    draw::draw(level, &weights, uniform)
}

fn log_probabilities(
    level: Level,
    logits: &[f32],
    max: f32,
    wanted: Option<u32>,
    token: u32,
) -> (Option<f32>, Vec<(u32, f32)>) {
    let Some(wanted) = wanted else { return (None, Vec::new()) };
    let log_sum = f64::from(max) + weights::exp_sum(level, logits, max).ln();
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let top = scan::largest(level, logits, logits.len().min(wanted as usize));
    let top = top.into_iter().map(|(logit, id)| (id, logprob(logit))).collect();
    (Some(logprob(logits[token as usize])), top)
}
