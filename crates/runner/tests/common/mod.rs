//! A fake model whose logits are a function of what its KV cache holds, and a driver of scheduler and runner.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use plimsoll_core::{
    CacheConfig, Executor, KvGroup, PromptLogprobs, Request, RequestId, SamplingParams, StopConditions, TokenEvent,
    TokenId, TokenLogprobs,
};
use plimsoll_nn::{ForwardBatch, KvCache, LayerInfo, Model, ModelInfo};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::{KvDtype, kv_write};
use plimsoll_runner::{Runner, RunnerConfig};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, SchedulerStats, WaitingLimits};

pub(crate) const VOCAB: usize = 89;
pub(crate) const WINDOW: u32 = 7;
/// A prompt that holds this token makes the fake model's logits infinite.
pub(crate) const POISON: TokenId = 88;

/// One full and one windowed layer, each in its own KV group.
pub(crate) fn fake_info() -> ModelInfo {
    let layer = |group| LayerInfo { kv_heads: 1, head_dim: 2, group };
    ModelInfo {
        architecture: "Fake".into(),
        layers: vec![layer(0), layer(1)],
        groups: vec![None, Some(WINDOW)],
        vocab_size: VOCAB,
        max_position_embeddings: 1024,
        hidden_size: 2,
        intermediate_size: 2,
        num_attention_heads: 1,
        experts: None,
    }
}

/// Writes each token and its position as key to both layers, reads back what each wanted row may attend to, checks
/// that the positions are those expected, and hashes the tokens into logits.
pub(crate) struct FakeModel;

impl Model for FakeModel {
    fn forward(&self, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<Tensor> {
        assert_eq!(batch.input_ids.len(), batch.positions.len());
        let keys: Vec<f32> =
            batch.input_ids.iter().zip(&batch.positions).flat_map(|(&id, &at)| [id as f32, at as f32]).collect();
        let keys = Tensor::from_vec(keys, (batch.input_ids.len(), 1, 2), &Device::Cpu)?;
        let mut seen = vec![Vec::new(); batch.logit_rows.len()];
        for layer in 0..2 {
            let (layer_cache, group) = cache.layer(layer);
            kv_write(&keys, &keys, layer_cache, &batch.groups[group])?;
            let stored = layer_cache.k.flatten_all()?.to_vec1::<f32>()?;
            for (row, seen) in batch.logit_rows.iter().zip(&mut seen) {
                let window = fake_info().groups[group];
                seen.push(visible(&stored, &batch.groups[group], *row, batch.positions[*row as usize], window));
            }
        }
        let logits: Vec<f32> = seen.iter().flat_map(|seen| fake_logits(&seen[0], &seen[1])).collect();
        Tensor::from_vec(logits, (batch.logit_rows.len(), VOCAB), &Device::Cpu)
    }
}

/// The tokens that the query at packed index `row` sees in one group.
fn visible(stored: &[f32], batch: &PagedBatch, row: u32, position: u32, window: Option<u32>) -> Vec<TokenId> {
    let seq = batch.cu_seqlens.partition_point(|&start| start <= row) - 1;
    let chunk = batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq];
    let start = batch.seq_lens[seq] - chunk;
    assert_eq!(position, start + row - batch.cu_seqlens[seq], "the positions are those of the layout");
    let blocks = &batch.blocks[batch.block_offsets[seq] as usize..batch.block_offsets[seq + 1] as usize];
    let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let at = |key: u32| {
        let block = blocks[key as usize / batch.block_size - batch.first_block[seq] as usize] as usize;
        let slot = block * batch.block_size + key as usize % batch.block_size;
        assert_eq!(stored[2 * slot + 1], key as f32, "the cache holds another position's key");
        stored[2 * slot] as TokenId
    };
    (from..=position).map(at).collect()
}

/// What the fake model thinks of the next token after `all` tokens, of which `recent` are in the window.
pub(crate) fn fake_logits(all: &[TokenId], recent: &[TokenId]) -> Vec<f32> {
    if all.contains(&POISON) {
        return vec![f32::NAN; VOCAB];
    }
    let hash = |tokens: &[TokenId]| tokens.iter().fold(7u64, |h, &t| (h * 31 + u64::from(t) + 1) % 1_000_003);
    let context = hash(all) * 3 + hash(recent) * 5;
    let logit = |v: u64| ((context * (v * v + 11 * v + 3)) % 997) as f32 / 100.0;
    // The poison comes in prompts alone.
    (0..VOCAB as u64).map(|v| if v == u64::from(POISON) { f32::NEG_INFINITY } else { logit(v) }).collect()
}

/// Greedy continuation by the definition alone: no cache, no batch.
pub(crate) fn greedy_oracle(prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let mut all = prompt.to_vec();
    for _ in 0..count {
        let recent = &all[all.len().saturating_sub(WINDOW as usize)..];
        let logits = fake_logits(&all, recent);
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).expect("a vocabulary");
        all.push(best as TokenId);
    }
    all.split_off(prompt.len())
}

/// How a test's requests are run.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) max_num_seqs: u32,
    pub(crate) max_num_batched_tokens: u32,
    pub(crate) num_blocks: [u32; 2],
    pub(crate) prefix_caching: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { max_num_seqs: 16, max_num_batched_tokens: 4096, num_blocks: [2000, 2000], prefix_caching: false }
    }
}

/// Scheduler and runner, driven by hand.
pub(crate) struct Rig {
    pub(crate) scheduler: Scheduler,
    pub(crate) runner: Runner,
}

/// Everything that became of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) prompt: Vec<PromptLogprobs>,
    pub(crate) has_failed: bool,
    pub(crate) cached_tokens: u32,
}

impl Rig {
    pub(crate) fn fake(setup: &Setup) -> Self {
        Self::over(&fake_info(), Box::new(FakeModel), setup, &setup.num_blocks, KvDtype::F32)
    }

    pub(crate) fn over(info: &ModelInfo, model: Box<dyn Model>, setup: &Setup, blocks: &[u32], dtype: KvDtype) -> Self {
        const BLOCK_SIZE: u32 = 4;
        const MAX_MODEL_LEN: u32 = 256;
        let groups = info.groups.iter().zip(blocks).map(|(&window, &num_blocks)| KvGroup { window, num_blocks });
        let cache = CacheConfig { block_size: BLOCK_SIZE, groups: groups.collect() };
        let kv = KvCache::new(info, blocks, BLOCK_SIZE as usize, dtype, &Device::Cpu).expect("memory");
        let config = RunnerConfig {
            max_num_batched_tokens: setup.max_num_batched_tokens,
            max_num_seqs: setup.max_num_seqs,
            max_model_len: MAX_MODEL_LEN,
            vocab_size: info.vocab_size as u32,
            cache: cache.clone(),
        };
        let scheduler = Scheduler::new(SchedulerConfig {
            cache,
            max_num_seqs: setup.max_num_seqs,
            max_num_batched_tokens: setup.max_num_batched_tokens,
            max_model_len: MAX_MODEL_LEN,
            max_waiting: WaitingLimits { requests: 1000, prompt_tokens: 1 << 20 },
            policy: Policy::Fcfs,
            prefix_caching: setup.prefix_caching,
        });
        Self { scheduler: scheduler.expect("a valid configuration"), runner: Runner::new(model, kv, config) }
    }

    /// Runs all requests to their ends; outcomes in the order of the requests.
    pub(crate) fn run(&mut self, requests: &[Request]) -> Vec<Outcome> {
        requests.iter().for_each(|request| self.scheduler.add(request.clone()).expect("room"));
        let mut outcomes: HashMap<RequestId, Outcome> = HashMap::new();
        while let Some(plan) = self.scheduler.plan() {
            let ticket = self.runner.submit(&plan).expect("a good plan");
            let output = self.runner.wait(ticket).expect("the step ran");
            for (id, event) in self.scheduler.commit(output) {
                record(outcomes.entry(id).or_default(), event);
            }
        }
        self.scheduler.check_integrity();
        requests.iter().map(|request| outcomes.remove(&request.id).expect("every request has events")).collect()
    }

    /// Runs the requests one after the other, each alone.
    pub(crate) fn run_singly(&mut self, requests: &[Request]) -> Vec<Outcome> {
        requests.iter().flat_map(|request| self.run(std::slice::from_ref(request))).collect()
    }

    pub(crate) fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }
}

fn record(outcome: &mut Outcome, event: TokenEvent) {
    match event {
        TokenEvent::Scheduled { cached_tokens } => outcome.cached_tokens = cached_tokens,
        TokenEvent::Prompt(logprobs) => outcome.prompt.extend(logprobs),
        TokenEvent::Token { token, logprobs, .. } => {
            outcome.tokens.push(token);
            outcome.logprobs.extend(logprobs.map(|logprobs| *logprobs));
        }
        TokenEvent::Failed(_) => outcome.has_failed = true,
    }
}

/// Fails at the first request whose outcomes differ.
pub(crate) fn assert_same(outcomes: &[Outcome], expected: &[Outcome]) {
    assert_eq!(outcomes.len(), expected.len());
    for (at, (outcome, expected)) in outcomes.iter().zip(expected).enumerate() {
        assert_eq!(outcome, expected, "request {at}");
    }
}

/// Greedy.
pub(crate) fn request(id: u64, prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop: StopConditions { max_tokens, min_tokens: 0, stop_token_ids: Vec::new() },
        priority: 0,
    }
}

/// A prompt without the poison, different for each seed.
pub(crate) fn prompt(seed: u64, len: usize) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32 % (VOCAB as u32 - 1)
    };
    (0..len).map(|_| next()).collect()
}

/// A mixed crowd: greedy and seeded sampling, penalties, biases, log probabilities, short and long.
pub(crate) fn crowd(count: u64) -> Vec<Request> {
    let make = |i: u64| {
        let mut request = request(i, prompt(i, 1 + (i as usize * 29) % 70), 5 + (i as u32 * 17) % 40);
        let sampling = &mut request.sampling;
        sampling.seed = i;
        sampling.logprobs = i.is_multiple_of(2).then_some(3);
        if !i.is_multiple_of(3) {
            sampling.temperature = 0.5 + (i % 4) as f32 / 4.0;
            (sampling.top_k, sampling.top_p) = (20 * (i % 2) as u32, 0.95);
        }
        if i % 4 == 1 {
            (sampling.repetition_penalty, sampling.frequency_penalty) = (1.3, 0.4);
        }
        if i % 5 == 2 {
            sampling.presence_penalty = 0.7;
            sampling.logit_bias = vec![(3, 2.0), (4, -2.0)];
        }
        if i % 7 == 3 {
            sampling.allowed_token_ids = Some((10..40).collect());
        }
        if i % 6 == 4 {
            request.stop.stop_token_ids = (0..30).collect();
            request.stop.min_tokens = 4;
        }
        request
    };
    (0..count).map(make).collect()
}
