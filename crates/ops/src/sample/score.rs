//! How likely given tokens are by the logits as they are: what a prompt's tokens are scored with. Nothing is chosen.

use std::sync::OnceLock;

use candle_core::{Device, Result, Storage, Tensor, bail};

use super::{log_probabilities, scan};
use crate::operand::contiguous;
use crate::par::parallel_for;
use crate::simd::Level;

/// What is asked of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedScore {
    pub token: u32,
    /// Likeliest alternatives to report.
    pub top: u32,
}

/// What a row says of its token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural, of the softmax of the row.
    pub logprob: f32,
    /// One more than there are tokens likelier than this one.
    pub rank: u32,
    /// The likeliest tokens, likeliest first (of equals the lower id first), as many as were asked for and are possible.
    pub top: Vec<(u32, f32)>,
}

/// Scores a token in every row, in parallel.
///
/// `logits`: f32 `[wanted.len(), vocab]`, contiguous; copied to the CPU from other devices. `None` stands for a row with a
/// NaN, a positive infinity, or no possible token. A row's result equals what [`super::sample`] reports of the same row
/// without bias and penalties, to the bit.
///
/// # Errors
/// Another rank, dtype or layout, or a token outside the vocabulary.
pub fn score(logits: &Tensor, wanted: &[WantedScore]) -> Result<Vec<Option<TokenScore>>> {
    let (count, vocab) = match logits.dims() {
        &[count, vocab] if count == wanted.len() && vocab > 0 => (count, vocab),
        _ => bail!("score: logits are {:?}, expected [{}, vocab]", logits.shape(), wanted.len()),
    };
    if let Some(outside) = wanted.iter().find(|wanted| wanted.token as usize >= vocab) {
        bail!("score: token {} is outside the vocabulary of {vocab}", outside.token);
    }
    let logits = logits.to_device(&Device::Cpu)?;
    let (storage, layout) = logits.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("score: logits are not on the CPU") };
    let values = contiguous::<f32>("score", "logits", storage, layout)?;
    let results: Vec<OnceLock<Option<TokenScore>>> = (0..count).map(|_| OnceLock::new()).collect();
    let level = Level::detect();
    parallel_for(count, |i| {
        results[i].get_or_init(|| score_row(level, &values[i * vocab..][..vocab], wanted[i]));
    });
    Ok(results.into_iter().map(|r| r.into_inner().flatten()).collect())
}

fn score_row(level: Level, logits: &[f32], wanted: WantedScore) -> Option<TokenScore> {
    let max = scan::finite_max(level, logits)?;
    let (logprob, top) = log_probabilities(level, logits, max, Some(wanted.top), wanted.token);
    let own = logits[wanted.token as usize];
    let likelier = logits.iter().filter(|&&logit| logit > own).count();
    Some(TokenScore { logprob: logprob.expect("asked for"), rank: 1 + likelier as u32, top })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{SampleParams, sample};
    use crate::testing::Random;

    fn logits(random: &mut Random, rows: usize, vocab: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * vocab).map(|_| random.below(400) as f32 / 20.0 - 10.0).collect();
        Tensor::from_vec(values, (rows, vocab), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_score_is_what_sampling_reports_of_the_same_token() {
        let (rows, vocab) = (9, 700);
        let logits = logits(&mut Random::new(71), rows, vocab);
        let params = SampleParams { logprobs: Some(4), temperature: 1.0, ..SampleParams::default() };
        let params: Vec<_> = (0..rows as u32).map(|index| SampleParams { index, ..params }).collect();
        let sampled: Vec<_> = sample(&logits, &params).unwrap().into_iter().flatten().collect();
        let wanted: Vec<_> = sampled.iter().map(|s| WantedScore { token: s.token, top: 4 }).collect();
        for (score, sampled) in score(&logits, &wanted).unwrap().into_iter().zip(sampled) {
            let score = score.unwrap();
            assert_eq!((Some(score.logprob), score.top), (sampled.logprob, sampled.top));
        }
    }

    #[test]
    fn ranks_count_the_likelier_tokens_and_probabilities_sum_to_one() {
        let row = Tensor::from_vec(vec![1.0f32, 3.0, 3.0, f32::NEG_INFINITY], (1, 4), &Device::Cpu).unwrap();
        let of = |token| score(&row, &[WantedScore { token, top: 9 }]).unwrap().remove(0).unwrap();
        assert_eq!([0, 1, 2, 3].map(|token| of(token).rank), [3, 1, 1, 4]);
        assert_eq!(of(3).logprob, f32::NEG_INFINITY);
        let total: f32 = [0, 1, 2].map(|token| of(token).logprob.exp()).iter().sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        assert_eq!(of(0).top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
    }

    #[test]
    fn what_cannot_be_scored_is_told() {
        let row = Tensor::from_vec(vec![1.0f32, f32::NAN], (1, 2), &Device::Cpu).unwrap();
        assert_eq!(score(&row, &[WantedScore { token: 0, top: 0 }]).unwrap(), [None]);
        assert!(score(&row, &[WantedScore { token: 2, top: 0 }]).is_err());
        assert!(score(&row, &[]).is_err());
    }
}
