//! Sampling on a GPU: the rows' parameters as words that are uploaded with a step, the launch, and the results.
//!
//! The stages are those of the CPU; the draw is another one (Gumbel noise of seed, index and token id), so a seed gives
//! another text on a GPU than on a CPU.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use plimsoll_kernels::sample::{MOST_LOGPROBS, NONE, SEEN, Sample, SampleRow};

use super::{SampleParams, SampleResult};
use crate::cuda::{Cuda, address, launch_error};

/// One row, and what a GPU must know besides.
#[derive(Clone, Copy, Debug)]
pub struct GpuSampleParams<'a> {
    pub params: SampleParams<'a>,
    /// Where the sampled token is kept for the next step.
    pub slot: u32,
    /// Whether the slot's last token is missing in `params.counts`, because the host does not know it yet.
    pub counts_lack_last: bool,
}

/// The sampling of one step.
#[derive(Clone, Debug)]
pub struct GpuSampling {
    words: Vec<u32>,
    regions: Regions,
    rows: usize,
    vocab: usize,
    /// Each row's [`SampleParams::logprobs`].
    logprobs: Vec<Option<u32>>,
}

/// Where the arrays lie in the words.
#[derive(Clone, Debug)]
struct Regions {
    rows: Range<usize>,
    tokens: Range<usize>,
    seen: Range<usize>,
    biases: Range<usize>,
    banned: Range<usize>,
    masks: Range<usize>,
}

/// The arrays, as they grow row by row.
#[derive(Default)]
struct Lists {
    rows: Vec<u32>,
    tokens: Vec<u32>,
    seen: Vec<u32>,
    biases: Vec<u32>,
    banned: Vec<u32>,
    masks: Vec<u32>,
}

impl GpuSampling {
    /// Lays the rows out for logits of `vocab` columns.
    pub fn new(rows: &[GpuSampleParams<'_>], vocab: usize) -> Self {
        let mut lists = Lists::default();
        rows.iter().for_each(|row| lists.push(row, vocab));
        let mut words = Vec::new();
        let mut region = |list: Vec<u32>| {
            let start = words.len();
            words.extend(list);
            let range = start..words.len();
            words.resize(words.len().next_multiple_of(4).max(4), 0);
            range
        };
        let regions = Regions {
            rows: region(lists.rows),
            tokens: region(lists.tokens),
            seen: region(lists.seen),
            biases: region(lists.biases),
            banned: region(lists.banned),
            masks: region(lists.masks),
        };
        let logprobs = rows.iter().map(|row| row.params.logprobs).collect();
        Self { words, regions, rows: rows.len(), vocab, logprobs }
    }

    /// What is uploaded.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Words that [`GpuSampling::run`] gives.
    pub fn result_words(&self) -> usize {
        let lists = if self.wants_logprobs() { 1 + 2 * MOST_LOGPROBS as usize } else { 0 };
        self.rows * (2 + lists)
    }

    fn wants_logprobs(&self) -> bool {
        self.logprobs.iter().any(Option::is_some)
    }

    /// Queues the choice of a token for each row of `logits`, f32 `[rows, vocab]`, which are spoiled. `inputs` holds
    /// [`GpuSampling::words`]; `last_tokens` is u32 `[slots]`, and gets the tokens of sound rows. Returns u32
    /// `[self.result_words()]`, for [`GpuSampling::results`].
    ///
    /// # Errors
    /// Other shapes, or a device failure.
    pub fn run(&self, logits: &Tensor, inputs: &Tensor, last_tokens: &Tensor) -> Result<Tensor> {
        if logits.dims() != [self.rows, self.vocab] || inputs.elem_count() < self.words.len() {
            bail!("sample: logits {:?} and {:?} words for {} rows", logits.shape(), inputs.shape(), self.rows);
        }
        let cuda = Cuda::of(logits.device())?;
        let results = cuda.empty(self.result_words(), DType::U32)?;
        let input = address("sample", "the parameters", inputs, DType::U32)?;
        let output = address("sample", "the results", &results, DType::U32)?;
        let word = |at: usize| input.byte_add(at * size_of::<u32>());
        let result = |at: usize| output.byte_add(at * size_of::<u32>());
        let rows = self.rows;
        let (count, vocab, banned) = (rows as u32, self.vocab as u32, self.regions.banned.len() as u32);
        let workspace = Sample::workspace_bytes(cuda.queue(), count, vocab, banned);
        let workspace = cuda.empty(workspace.max(1), DType::U8)?;
        let sample = Sample {
            logits: address("sample", "logits", logits, DType::F32)?,
            rows: word(self.regions.rows.start),
            adjust_tokens: word(self.regions.tokens.start),
            adjust_seen: word(self.regions.seen.start),
            adjust_biases: word(self.regions.biases.start),
            banned: word(self.regions.banned.start),
            masks: word(self.regions.masks.start),
            last_tokens: address("sample", "last_tokens", last_tokens, DType::U32)?,
            tokens: result(0),
            faults: result(rows),
            logprobs: result(2 * rows),
            top_ids: result(3 * rows),
            top_logprobs: result((3 + MOST_LOGPROBS as usize) * rows),
            workspace: address("sample", "the workspace", &workspace, DType::U8)?,
            count,
            vocab,
            slots: last_tokens.elem_count() as u32,
        };
        sample.run(cuda.queue()).map_err(launch_error)?;
        Ok(results)
    }

    /// The results of words that [`GpuSampling::run`] gave; `None` for a row with a NaN, a positive infinity, or no
    /// possible token.
    pub fn results(&self, words: &[u32]) -> Vec<Option<SampleResult>> {
        let rows = self.rows;
        let most = MOST_LOGPROBS as usize;
        let result = |row: usize| {
            if words[rows + row] != 0 {
                return None;
            }
            let token = words[row];
            let Some(wanted) = self.logprobs[row] else {
                return Some(SampleResult { token, logprob: None, top: Vec::new() });
            };
            let ids = &words[3 * rows + row * most..][..most];
            let logprobs = &words[(3 + most) * rows + row * most..][..most];
            let top = ids.iter().zip(logprobs).take(wanted as usize).filter(|(id, _)| **id != NONE);
            let top = top.map(|(id, logprob)| (*id, f32::from_bits(*logprob))).collect();
            Some(SampleResult { token, logprob: Some(f32::from_bits(words[2 * rows + row])), top })
        };
        (0..rows).map(result).collect()
    }
}

impl Lists {
    fn push(&mut self, row: &GpuSampleParams<'_>, vocab: usize) {
        let params = &row.params;
        let (first_adjustment, first_banned) = (self.tokens.len() as u32, self.banned.len() as u32);
        for (token, bias, seen) in adjustments(params, vocab) {
            self.tokens.push(token);
            self.seen.push(seen);
            self.biases.push(bias.to_bits());
        }
        let mut banned: Vec<u32> = params.banned.iter().copied().filter(|token| (*token as usize) < vocab).collect();
        banned.sort_unstable();
        banned.dedup();
        self.banned.extend(banned);
        let mask = params.allowed.map_or(NONE, |allowed| self.push_mask(allowed, vocab));
        let row = SampleRow {
            seed: params.seed,
            slot: row.slot,
            index: params.index,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            logprobs: params.logprobs.unwrap_or(NONE),
            mask,
            count_last: row.counts_lack_last && params.uses_counts(),
            first_adjustment,
            adjustments: self.tokens.len() as u32 - first_adjustment,
            first_banned,
            banned: self.banned.len() as u32 - first_banned,
        };
        self.rows.extend(row.to_bytes().as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)));
    }

    fn push_mask(&mut self, allowed: &[u32], vocab: usize) -> u32 {
        let (start, width) = (self.masks.len(), vocab.div_ceil(32));
        self.masks.resize(start + width, 0);
        for token in allowed.iter().filter(|token| (**token as usize) < vocab) {
            self.masks[start + (token / 32) as usize] |= 1 << (token % 32);
        }
        (start / width) as u32
    }
}

/// What is done to single logits, by rising token: its bias, and [`SEEN`] with how often it was generated.
fn adjustments<'a>(params: &'a SampleParams<'a>, vocab: usize) -> impl Iterator<Item = (u32, f32, u32)> + 'a {
    let mut biases: Vec<(u32, f32)> = params.logit_bias.to_vec();
    biases.sort_by_key(|(token, _)| *token);
    let mut biases = biases.into_iter().peekable();
    let seen = if params.uses_counts() { Some(params.counts.seen()) } else { None };
    let mut seen = seen.into_iter().flatten().peekable();
    let next = move || {
        let token = match (biases.peek(), seen.peek()) {
            (Some((biased, _)), Some((seen, _))) => *biased.min(seen),
            (Some((token, _)), None) | (None, Some((token, _))) => *token,
            (None, None) => return None,
        };
        let mut bias = 0.0;
        while let Some((_, more)) = biases.next_if(|(biased, _)| *biased == token) {
            bias += more;
        }
        let seen = seen.next_if(|(seen, _)| *seen == token).map_or(0, |(_, count)| SEEN | count.min(SEEN - 1));
        Some((token, bias, seen))
    };
    std::iter::from_fn(next).filter(move |(token, ..)| (*token as usize) < vocab)
}
