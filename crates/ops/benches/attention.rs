//! Attention at the shapes of small models: `cargo bench -p plimsoll-ops --bench attention`.
//!
//! GB/s counts the keys and values that queries see, once a KV head: what a decode step has to read.

use candle_core::{Device, Tensor};
use divan::counter::BytesCount;
use plimsoll_ops::attention::{AttentionParams, PagedBatch, paged_attention};
use plimsoll_ops::kv_write::{KvDtype, LayerCache};

const BLOCK_SIZE: usize = 16;

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// SmolLM2-135M.
const SMOL: Shape = Shape { heads: 9, kv_heads: 3, head_dim: 64 };
/// Gemma 3 270M.
const GEMMA: Shape = Shape { heads: 4, kv_heads: 1, head_dim: 256 };

fn main() {
    divan::main();
}

/// Sequences of `(positions before, query tokens)`, with blocks spread over the cache.
fn layout(seqs: &[(usize, usize)]) -> PagedBatch {
    let mut batch =
        PagedBatch { block_size: BLOCK_SIZE, cu_seqlens: vec![0], block_offsets: vec![0], ..PagedBatch::default() };
    let mut tokens = 0;
    for (start, len) in seqs {
        tokens += *len as u32;
        batch.cu_seqlens.push(tokens);
        batch.seq_lens.push((start + len) as u32);
        batch.first_block.push(0);
        batch.blocks.resize(batch.blocks.len() + (start + len).div_ceil(BLOCK_SIZE), 0);
        batch.block_offsets.push(batch.blocks.len() as u32);
    }
    let blocks = batch.blocks.len();
    // A stride that shares no factor with the number of blocks visits each once.
    let stride = (blocks / 3..).find(|s| gcd(*s, blocks) == 1).unwrap_or(1);
    batch.blocks.iter_mut().enumerate().for_each(|(i, block)| *block = (i * stride % blocks) as u32);
    batch
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn attend(bencher: divan::Bencher<'_, '_>, shape: Shape, dtype: KvDtype, seqs: &[(usize, usize)]) {
    let Shape { heads, kv_heads, head_dim } = shape;
    let batch = layout(seqs);
    let tokens: usize = seqs.iter().map(|(_, len)| len).sum();
    let random = |shape| Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap();
    let cache_shape = (batch.blocks.len(), kv_heads, BLOCK_SIZE, head_dim);
    let cached = || Tensor::randn(0f32, 1f32, cache_shape, &Device::Cpu).unwrap().to_dtype(dtype.dtype()).unwrap();
    let (q, cache) = (random((tokens, heads, head_dim)), LayerCache { k: cached(), v: cached() });
    let params = AttentionParams { scale: 1.0 / (head_dim as f32).sqrt(), window: None, chunk: None, softcap: None };
    let positions: usize = seqs.iter().map(|(start, len)| start + len).sum();
    let bytes = 2 * positions * kv_heads * head_dim * dtype.size_in_bytes();
    bencher.counter(BytesCount::new(bytes)).bench(|| drop(paged_attention(&q, &cache, &batch, &params).unwrap()));
}

const CONTEXTS: [usize; 4] = [100, 500, 1000, 2000];

#[divan::bench(args = CONTEXTS)]
fn decode_32_smollm2_f16(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, SMOL, KvDtype::F16, &[(context - 1, 1); 32]);
}

#[divan::bench(args = CONTEXTS)]
fn decode_32_smollm2_f32(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, SMOL, KvDtype::F32, &[(context - 1, 1); 32]);
}

#[divan::bench(args = CONTEXTS)]
fn decode_32_gemma3_f16(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, GEMMA, KvDtype::F16, &[(context - 1, 1); 32]);
}

#[divan::bench(args = CONTEXTS)]
fn decode_32_gemma3_bf16(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, GEMMA, KvDtype::BF16, &[(context - 1, 1); 32]);
}

#[divan::bench(args = [100, 2000, 8000])]
fn decode_1_smollm2_f16(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, SMOL, KvDtype::F16, &[(context - 1, 1)]);
}

#[divan::bench(args = [100, 2000, 8000])]
fn decode_1_gemma3_f16(bencher: divan::Bencher<'_, '_>, context: usize) {
    attend(bencher, GEMMA, KvDtype::F16, &[(context - 1, 1)]);
}

#[divan::bench]
fn prefill_512_smollm2_f16(bencher: divan::Bencher<'_, '_>) {
    attend(bencher, SMOL, KvDtype::F16, &[(0, 512)]);
}

#[divan::bench]
fn prefill_512_gemma3_f16(bencher: divan::Bencher<'_, '_>) {
    attend(bencher, GEMMA, KvDtype::F16, &[(0, 512)]);
}

#[divan::bench]
fn prefill_2000_beside_31_decodes_smollm2_f16(bencher: divan::Bencher<'_, '_>) {
    let mut seqs = [(500, 1); 32];
    seqs[0] = (0, 2000);
    attend(bencher, SMOL, KvDtype::F16, &seqs);
}
