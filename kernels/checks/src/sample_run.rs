//! Runs the device's sampler on requests: packs them into its arrays, and takes apart what it wrote.

use std::collections::BTreeMap;

use plimsoll_kernels::sample::{MOST_LOGPROBS, NONE, SEEN, Sample, SampleRow};
use plimsoll_ops::sample::SampleResult;

use crate::arrays::{Output, expect_same, f32_bytes, to_f32, to_u32, u32_bytes};
use crate::sample_model::Request;
use crate::{TestDevice, poisoned};

/// The arrays that rows name parts of.
#[derive(Default)]
struct Arrays {
    rows: Vec<u8>,
    tokens: Vec<u32>,
    seen: Vec<u32>,
    biases: Vec<f32>,
    banned: Vec<u32>,
    masks: Vec<u32>,
}

impl Arrays {
    fn push(&mut self, request: &Request, slot: u32, vocab: usize) {
        let row = SampleRow {
            mask: self.push_mask(request, vocab),
            first_adjustment: self.tokens.len() as u32,
            adjustments: self.push_adjustments(request),
            first_banned: self.banned.len() as u32,
            banned: request.banned.len() as u32,
            ..request.record(slot)
        };
        self.banned.extend(&request.banned);
        self.rows.extend(row.to_bytes());
    }

    fn push_mask(&mut self, request: &Request, vocab: usize) -> u32 {
        let Some(allowed) = &request.allowed else { return NONE };
        let words = vocab.div_ceil(32);
        let first = self.masks.len();
        self.masks.resize(first + words, 0);
        for token in allowed.iter().filter(|token| (**token as usize) < vocab) {
            self.masks[first + *token as usize / 32] |= 1 << (token % 32);
        }
        (first / words) as u32
    }

    fn push_adjustments(&mut self, request: &Request) -> u32 {
        let mut merged: BTreeMap<u32, (u32, f32)> =
            request.bias.iter().map(|(token, bias)| (*token, (0, *bias))).collect();
        for (token, generated) in request.seen(false) {
            merged.entry(token).or_insert((0, 0.0)).0 = SEEN | generated;
        }
        for (token, (seen, bias)) in &merged {
            self.tokens.push(*token);
            self.seen.push(*seen);
            self.biases.push(*bias);
        }
        merged.len() as u32
    }
}

/// Samples each request from its row of logits; a skipped row comes first and another last. `None` stands for a fault.
///
/// # Errors
/// The device refuses, or wrote where it must not, or the table of last tokens does not hold what was sampled.
pub(crate) fn sample(
    device: &dyn TestDevice,
    logits: &[Vec<f32>],
    requests: &[Request],
) -> Result<Vec<Option<SampleResult>>, String> {
    let (vocab, count) = (logits[0].len(), requests.len() + 2);
    // Slots in another order than rows, with one before and one after that nobody has.
    let slot = |row: usize| 1 + (row + 1) % requests.len();
    let mut last = vec![0; requests.len() + 2];
    let mut arrays = Arrays::default();
    arrays.rows.extend(SampleRow::SKIPPED.to_bytes());
    for (row, request) in requests.iter().enumerate() {
        last[slot(row)] = request.last.unwrap_or(0);
        arrays.push(request, slot(row) as u32, vocab);
    }
    arrays.rows.extend(SampleRow::SKIPPED.to_bytes());
    let skipped = vec![f32::NAN; vocab];
    let all: Vec<f32> = std::iter::once(&skipped).chain(logits).chain([&skipped]).flatten().copied().collect();

    let words = |len: usize| Output::new(device, 4 * len);
    let list = MOST_LOGPROBS as usize;
    let (tokens, faults, logprobs) = (words(count), words(count), words(count));
    let (top_ids, top_logprobs) = (words(count * list), words(count * list));
    let last_tokens = Output::holding(device, &u32_bytes(&last));
    let adjusted = Output::holding(device, &f32_bytes(&all));
    let banned = arrays.banned.len() as u32;
    let queue = device.queue();
    let workspace = Output::new(device, Sample::workspace_bytes(queue, count as u32, vocab as u32, banned));
    let or_one = |array: &[u32]| device.upload(&if array.is_empty() { poisoned(4) } else { u32_bytes(array) });
    let op = Sample {
        logits: adjusted.at,
        rows: device.upload(&arrays.rows),
        adjust_tokens: or_one(&arrays.tokens),
        adjust_seen: or_one(&arrays.seen),
        adjust_biases: device.upload(&if arrays.biases.is_empty() { poisoned(4) } else { f32_bytes(&arrays.biases) }),
        banned: or_one(&arrays.banned),
        masks: or_one(&arrays.masks),
        last_tokens: last_tokens.at,
        tokens: tokens.at,
        faults: faults.at,
        logprobs: logprobs.at,
        top_ids: top_ids.at,
        top_logprobs: top_logprobs.at,
        workspace: workspace.at,
        count: count as u32,
        vocab: vocab as u32,
        slots: last.len() as u32,
    };
    op.run(queue).map_err(|e| e.to_string())?;

    adjusted.read(device)?;
    workspace.read(device)?;
    let (tokens, faults) = (to_u32(&tokens.read(device)?), to_u32(&faults.read(device)?));
    let logprobs = to_f32(&logprobs.read(device)?);
    let (top_ids, top_logprobs) = (to_u32(&top_ids.read(device)?), to_f32(&top_logprobs.read(device)?));
    for row in [0, count - 1] {
        if tokens[row] != u32::MAX || faults[row] != u32::MAX || top_ids[row * list] != u32::MAX {
            return Err("a skipped row was written".into());
        }
    }
    let mut results = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let row = i + 1;
        let top = top_ids[row * list..][..list].iter().copied().zip(top_logprobs[row * list..][..list].iter().copied());
        let result = match faults[row] {
            0 => Some(SampleResult {
                token: tokens[row],
                logprob: request.logprobs.map(|_| logprobs[row]),
                top: top.take_while(|(id, _)| *id != u32::MAX).collect(),
            }),
            1 if tokens[row] == u32::MAX => None,
            fault => return Err(format!("row {i}: fault {fault}, token {}", tokens[row])),
        };
        last[slot(i)] = result.as_ref().map_or(last[slot(i)], |result| result.token);
        if request.logprobs.is_none() && !logprobs[row].is_nan() {
            return Err(format!("row {i}: a log probability nobody asked for"));
        }
        results.push(result);
    }
    expect_same("last tokens", &to_u32(&last_tokens.read(device)?), &last)?;
    Ok(results)
}
