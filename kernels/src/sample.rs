//! Samples the next token of each sequence on the device: layouts of all that goes in and comes out.
//!
//! # What goes in
//! * `logits`: f32 `[count, vocab]`, any vocabulary. They are overwritten with the adjusted logits.
//! * `rows`: `count` records of [`SampleRow::BYTES`] bytes, aligned to 16, made by [`SampleRow::to_bytes`].
//! * Adjustments, three arrays over one numbering, of which a row names a stretch: `adjust_tokens` u32, `adjust_seen` u32
//!   ([`SEEN`], set if the token is in prompt or output, plus how often it was generated) and `adjust_biases` f32. Tokens
//!   of a row are distinct: a token with both a bias and a count is one entry. Order does not matter.
//! * `banned`: u32, of which a row names a stretch. Tokens of a row are distinct.
//! * `masks`: u32 `[masks, ceil(vocab / 32)]`; bit `token % 32` of word `token / 32` is set if the token is allowed.
//! * `last_tokens`: u32 `[slots]`: the token sampled last in each slot; updated.
//!
//! Token ids outside the vocabulary are passed over. What no row names need not exist.
//!
//! # What comes out
//! * `tokens`, `faults`: u32 `[count]`. A row that has a NaN, a positive infinity or no possible token has fault 1, token
//!   `u32::MAX`, and leaves its slot and log probabilities as they were. Else fault 0.
//! * `logprobs`: f32 `[count]`, and `top_ids` u32, `top_logprobs` f32 `[count, 20]`, likeliest first, then `u32::MAX` and
//!   negative infinity: written for rows that ask for them.
//!
//! # Where it may differ from the CPU
//! Both keep the same tokens except where a sum of probabilities lies within rounding (1e-6 of the whole) of `top_p`, or a
//! weight of `min_p`; and where temperatures are so high that different logits have the same weight in f32, the CPU's
//! `top_p` takes the lower ids first, the device the larger logits. Draws use other noise than the CPU's, and so give
//! other tokens of the same distribution. Log probabilities agree to 1e-5.
//!
//! A skipped row ([`SampleRow::SKIPPED`]) writes nothing.

use crate::operands::require;
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// In `adjust_seen`: the token is in prompt or output.
pub const SEEN: u32 = 1 << 31;

/// Where a row has no mask, or wants no log probabilities.
pub const NONE: u32 = u32::MAX;

/// The most likeliest tokens a row can ask for.
pub const MOST_LOGPROBS: u32 = 20;

/// Sums of probabilities are 64-bit integers in units of 2^-44.
const MOST_VOCAB: u32 = (1 << 20) - 1;

/// One row's parameters, as the CPU's sampler defines them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow {
    pub seed: u64,
    /// Where the token goes: `last_tokens[slot]`.
    pub slot: u32,
    /// Number of the token in its output. With the seed it alone decides the draw.
    pub index: u32,
    /// Not above 0: greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// How many likeliest tokens to report, up to [`MOST_LOGPROBS`]; [`NONE`]: no log probabilities at all.
    pub logprobs: u32,
    /// Which mask, or [`NONE`].
    pub mask: u32,
    /// Whether `last_tokens[slot]` counts as generated once more than the adjustments say: they were written before that
    /// token was known.
    pub count_last: bool,
    pub first_adjustment: u32,
    pub adjustments: u32,
    pub first_banned: u32,
    pub banned: u32,
}

impl SampleRow {
    pub const BYTES: usize = 80;

    /// Greedy, with nothing else, into slot 0.
    pub const GREEDY: Self = Self {
        seed: 0,
        slot: 0,
        index: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logprobs: NONE,
        mask: NONE,
        count_last: false,
        first_adjustment: 0,
        adjustments: 0,
        first_banned: 0,
        banned: 0,
    };

    /// Padding: nothing is read or written for it.
    pub const SKIPPED: Self = Self { slot: u32::MAX, ..Self::GREEDY };

    /// As the kernels read it.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let words = [
            self.slot,
            self.index,
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.repetition_penalty.to_bits(),
            self.frequency_penalty.to_bits(),
            self.presence_penalty.to_bits(),
            self.logprobs,
            self.mask,
            u32::from(self.count_last),
            self.first_adjustment,
            self.adjustments,
            self.first_banned,
            self.banned,
        ];
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.seed.to_ne_bytes());
        for (to, word) in bytes[8..].as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        bytes
    }
}

/// One step's sampling. The module's head tells what each array holds.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub logits: DevicePtr,
    pub rows: DevicePtr,
    pub adjust_tokens: DevicePtr,
    pub adjust_seen: DevicePtr,
    pub adjust_biases: DevicePtr,
    pub banned: DevicePtr,
    pub masks: DevicePtr,
    pub last_tokens: DevicePtr,
    pub tokens: DevicePtr,
    pub faults: DevicePtr,
    pub logprobs: DevicePtr,
    pub top_ids: DevicePtr,
    pub top_logprobs: DevicePtr,
    /// [`Sample::workspace_bytes`] bytes, aligned to 16; what is in it does not matter.
    pub workspace: DevicePtr,
    pub count: u32,
    pub vocab: u32,
    pub slots: u32,
}

impl Sample {
    /// What a step of up to `count` rows and `banned` banned tokens in all needs besides its operands.
    pub fn workspace_bytes(queue: &dyn Queue, count: u32, vocab: u32, banned: u32) -> usize {
        let parts =
            (1..=count).map(|count| u64::from(count) * u64::from(parts(queue, count, vocab))).max().unwrap_or(0);
        (parts * PART_BYTES + 4 * u64::from(banned)) as usize
    }

    /// # Errors
    /// The vocabulary is empty or too large, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        require(SCAN, (1..=MOST_VOCAB).contains(&self.vocab), || {
            format!("the vocabulary is {}, expected 1 to {MOST_VOCAB}", self.vocab)
        })?;
        if self.count == 0 {
            return Ok(());
        }
        let parts = parts(queue, self.count, self.vocab);
        let banned_logits = self.workspace.byte_add((u64::from(self.count * parts) * PART_BYTES) as usize);
        self.scan(queue, parts, banned_logits)?;
        self.finish(queue, parts, banned_logits)
    }

    fn scan(&self, queue: &dyn Queue, parts: u32, banned_logits: DevicePtr) -> Result<(), LaunchError> {
        queue.launch(&Launch {
            kernel: SCAN,
            grid: [self.count, parts, 1],
            threads: 256,
            shared_bytes: 0,
            args: &[
                self.workspace.into(),
                self.logits.into(),
                banned_logits.into(),
                self.rows.into(),
                self.masks.into(),
                self.adjust_tokens.into(),
                self.adjust_seen.into(),
                self.adjust_biases.into(),
                self.banned.into(),
                self.last_tokens.into(),
                self.vocab.into(),
                self.slots.into(),
            ],
        })
    }

    fn finish(&self, queue: &dyn Queue, parts: u32, banned_logits: DevicePtr) -> Result<(), LaunchError> {
        queue.launch(&Launch {
            kernel: "sample_finish",
            grid: [self.count, 1, 1],
            threads: 512,
            shared_bytes: 0,
            args: &[
                self.tokens.into(),
                self.logprobs.into(),
                self.top_ids.into(),
                self.top_logprobs.into(),
                self.faults.into(),
                self.last_tokens.into(),
                self.workspace.into(),
                self.logits.into(),
                banned_logits.into(),
                self.rows.into(),
                self.masks.into(),
                self.banned.into(),
                self.vocab.into(),
                self.slots.into(),
                parts.into(),
            ],
        })
    }
}

const SCAN: &str = "sample_scan";

/// Of what one block of the scan leaves for the second launch.
const PART_BYTES: u64 = 32;

/// Into how many parts a row is cut for the scan: enough blocks for the device, and enough work for a block.
fn parts(queue: &dyn Queue, count: u32, vocab: u32) -> u32 {
    const BLOCKS_A_MULTIPROCESSOR: u32 = 8;
    const LEAST_TOKENS: u32 = 2048;
    let wanted = (BLOCKS_A_MULTIPROCESSOR * queue.multiprocessors()).div_ceil(count);
    wanted.clamp(1, vocab.div_ceil(LEAST_TOKENS))
}
