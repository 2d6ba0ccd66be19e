//! The ops between the matrix products and the attention, and the sampler: `cargo bench -p plimsoll-ops --bench rows`.

use candle_core::{Device, Tensor};
use plimsoll_ops::activation::{gelu_tanh_mul, silu_mul};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::{KvDtype, LayerCache, kv_write};
use plimsoll_ops::norm::{add_rms_norm, rms_norm};
use plimsoll_ops::rope::{RopeTable, rope};
use plimsoll_ops::sample::{SampleParams, sample};

fn main() {
    // Several calls a sample: reading the clock may take longer than the smallest of them. What they return is dropped
    // at once, as in a model, so that its memory is taken up again.
    divan::Divan::default().sample_size(20).sample_count(30).config_with_args().main();
}

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 3f32, shape, &Device::Cpu).unwrap()
}

const TOKENS: [usize; 3] = [1, 32, 512];

#[divan::bench(args = TOKENS)]
fn rms_norm_576(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let (x, weight) = (random((tokens, 576)), random(576));
    bencher.bench(|| drop(rms_norm(&x, &weight, 1e-5).unwrap()));
}

#[divan::bench(args = TOKENS)]
fn add_rms_norm_576(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let (x, residual, weight) = (random((tokens, 576)), random((tokens, 576)), random(576));
    bencher.bench(|| drop(add_rms_norm(&x, &residual, &weight, 1e-5).unwrap()));
}

#[divan::bench(args = TOKENS)]
fn rope_9_heads_of_64(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let freqs: Vec<f32> = (0..32).map(|i| 10_000f32.powf(-i as f32 / 32.0)).collect();
    let table = RopeTable::new(&freqs, 1.0, 8192);
    let (x, positions) = (random((tokens, 9, 64)), (0..tokens as u32).collect::<Vec<_>>());
    bencher.bench(|| drop(rope(&x, &positions, &table).unwrap()));
}

#[divan::bench(args = TOKENS)]
fn silu_mul_1536(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let x = random((tokens, 3072));
    bencher.bench(|| drop(silu_mul(&x).unwrap()));
}

#[divan::bench(args = TOKENS)]
fn gelu_tanh_mul_2048(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let x = random((tokens, 4096));
    bencher.bench(|| drop(gelu_tanh_mul(&x).unwrap()));
}

#[divan::bench(args = TOKENS)]
fn kv_write_3_heads_of_64_f16(bencher: divan::Bencher<'_, '_>, tokens: usize) {
    let cache = LayerCache::new(100, 3, 16, 64, KvDtype::F16, &Device::Cpu).unwrap();
    let batch =
        PagedBatch { block_size: 16, slot_mapping: (0..tokens as u32).map(|i| i * 3).collect(), ..Default::default() };
    let (k, v) = (random((tokens, 3, 64)), random((tokens, 3, 64)));
    bencher.bench(|| kv_write(&k, &v, &cache, &batch).unwrap());
}

fn sample_32(bencher: divan::Bencher<'_, '_>, vocab: usize, params: SampleParams<'_>) {
    let logits = random((32, vocab));
    let rows: Vec<SampleParams<'_>> = (0..32).map(|index| SampleParams { index, ..params }).collect();
    bencher.bench(|| drop(sample(&logits, &rows).unwrap()));
}

const VOCABULARIES: [usize; 2] = [49_152, 262_144];

#[divan::bench(args = VOCABULARIES)]
fn sample_32_greedy(bencher: divan::Bencher<'_, '_>, vocab: usize) {
    sample_32(bencher, vocab, SampleParams::default());
}

#[divan::bench(args = VOCABULARIES)]
fn sample_32_greedy_logprobs(bencher: divan::Bencher<'_, '_>, vocab: usize) {
    sample_32(bencher, vocab, SampleParams { logprobs: Some(5), ..Default::default() });
}

#[divan::bench(args = VOCABULARIES)]
fn sample_32_plain(bencher: divan::Bencher<'_, '_>, vocab: usize) {
    sample_32(bencher, vocab, SampleParams { temperature: 1.0, ..Default::default() });
}

#[divan::bench(args = VOCABULARIES)]
fn sample_32_top_k_40_top_p(bencher: divan::Bencher<'_, '_>, vocab: usize) {
    sample_32(bencher, vocab, SampleParams { temperature: 0.7, top_k: 40, top_p: 0.9, ..Default::default() });
}

#[divan::bench(args = VOCABULARIES)]
fn sample_32_top_p(bencher: divan::Bencher<'_, '_>, vocab: usize) {
    sample_32(bencher, vocab, SampleParams { temperature: 0.7, top_p: 0.9, ..Default::default() });
}
