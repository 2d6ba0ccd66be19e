//! What is done to logits before they become probabilities: bias, masks, penalties.

use std::borrow::Cow;

use super::{SampleParams, scan};
use crate::simd::Level;

/// The adjusted logits and the largest of them, `None` if no token is possible. They are finite, or negative infinity for
/// impossible tokens. `max` is the largest of `raw`.
pub(super) fn adjust<'a>(
    level: Level,
    raw: &'a [f32],
    max: f32,
    params: &SampleParams<'_>,
) -> Option<(Cow<'a, [f32]>, f32)> {
    if params.logit_bias.is_empty()
        && params.allowed.is_none()
        && params.banned.is_empty()
        && (!params.uses_counts() || params.counts.seen().next().is_none())
    {
        return Some((Cow::Borrowed(raw), max));
    }
    let mut logits = match params.allowed {
        Some(allowed) => only(raw, allowed),
        None => raw.to_vec(),
    };
    for (token, bias) in params.logit_bias {
        update(&mut logits, *token, |logit| logit + bias);
    }
    if params.uses_counts() {
        for (token, generated) in params.counts.seen() {
            update(&mut logits, token, |logit| penalized(logit, generated, params));
        }
    }
    let unbanned = params.banned.iter().map(|token| logits.get(*token as usize).copied()).collect::<Vec<_>>();
    for token in params.banned {
        update(&mut logits, *token, |_| f32::NEG_INFINITY);
    }
    let mut max = scan::finite_max(level, &logits);
    if max.is_none() {
        // Nothing but banned tokens was possible: a banned one is better than none.
        for (token, logit) in params.banned.iter().zip(unbanned) {
            update(&mut logits, *token, |now| logit.unwrap_or(now));
        }
        max = scan::finite_max(level, &logits);
    }
    Some((Cow::Owned(logits), max?))
}

fn only(raw: &[f32], allowed: &[u32]) -> Vec<f32> {
    let mut logits = vec![f32::NEG_INFINITY; raw.len()];
    for token in allowed {
        update(&mut logits, *token, |_| raw[*token as usize]);
    }
    logits
}

fn penalized(logit: f32, generated: u32, params: &SampleParams<'_>) -> f32 {
    let repetition = params.repetition_penalty;
    let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
    if generated == 0 {
        return logit;
    }
    logit - params.frequency_penalty * generated as f32 - params.presence_penalty
}

/// Replaces a token's logit, kept finite above; what is no number any more is impossible.
fn update(logits: &mut [f32], token: u32, f: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        let value = f(*logit);
        *logit = if value.is_nan() { f32::NEG_INFINITY } else { value.min(f32::MAX) };
    }
}
