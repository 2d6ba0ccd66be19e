//! What attention should give, and how far off a right answer may be.

use candle_core::{Device, Tensor};
use plimsoll_ops::attention::{AttentionParams, PagedBatch, paged_attention};
use plimsoll_ops::kv_write::LayerCache;

use super::setup::{Batch, Setup};
use crate::arrays::to_bf16;

/// Weights are rounded to bf16 before they multiply values (each off by 2^-8 of itself at most) and so is the result;
/// the rest, scores of some hundreds included, is far below.
const ERROR: f32 = 1.01 / 256.0;

/// Every element of `got` is within the error that rounding may cause there: of `sum(weight * |value|)`, and of the
/// result.
pub(super) fn compare(got: &[u8], batch: &Batch, setup: &Setup) -> Result<(), String> {
    let want = attend(batch, setup, &batch.v);
    let size = attend(batch, setup, &batch.v.iter().map(|v| v.abs()).collect::<Vec<f32>>());
    let got = to_bf16(got);
    if got.len() != want.len() {
        return Err(format!("{} values, expected {}", got.len(), want.len()));
    }
    for (i, ((got, want), size)) in got.iter().zip(&want).zip(&size).enumerate() {
        let error = (got - want).abs();
        if error.is_nan() || error > ERROR * (size + want.abs()) + 1e-6 {
            let (row, column) = (i / setup.dim, i % setup.dim);
            let (token, head) = (row / setup.heads, row % setup.heads);
            return Err(format!("token {token}, head {head}, column {column}: {got}, expected {want}"));
        }
    }
    Ok(())
}

fn attend(batch: &Batch, setup: &Setup, v: &[f32]) -> Vec<f32> {
    if setup.sinks { naive(batch, setup, v) } else { cpu_op(batch, setup, v) }
}

fn cpu_op(batch: &Batch, setup: &Setup, v: &[f32]) -> Vec<f32> {
    let tensor = |data: &[f32], shape: &[usize]| Tensor::from_slice(data, shape, &Device::Cpu).expect("of this shape");
    let cache_shape = [batch.num_blocks, setup.kv_heads, setup.block_size, setup.dim];
    let cache = LayerCache { k: tensor(&batch.k, &cache_shape), v: tensor(v, &cache_shape) };
    let tokens = batch.q.len() / (setup.heads * setup.dim);
    let paged = PagedBatch {
        block_size: setup.block_size,
        cu_seqlens: batch.cu_seqlens.clone(),
        seq_lens: batch.seq_lens.clone(),
        block_offsets: batch.block_offsets.clone(),
        blocks: batch.blocks.clone(),
        first_block: batch.first_block.clone(),
        ..PagedBatch::default()
    };
    let params = AttentionParams {
        scale: setup.scale(),
        window: setup.window.map(|w| w as u32),
        chunk: setup.chunk.map(|c| c as u32),
        softcap: setup.softcap,
    };
    let q = tensor(&batch.q, &[tokens, setup.heads, setup.dim]);
    let out = paged_attention(&q, &cache, &paged, &params).expect("a batch that fits");
    out.flatten_all().and_then(|out| out.to_vec1()).expect("f32")
}

fn naive(batch: &Batch, setup: &Setup, v: &[f32]) -> Vec<f32> {
    let Setup { heads, kv_heads, dim, .. } = *setup;
    let mut out = Vec::with_capacity(batch.q.len());
    for (seq, (before, tokens)) in batch.seqs.iter().enumerate() {
        for token in 0..*tokens {
            for head in 0..heads {
                let row = (batch.cu_seqlens[seq] as usize + token) * heads + head;
                let q = &batch.q[row * dim..][..dim];
                let position = before + token;
                let rows = setup.first_visible(position)..position + 1;
                let rows = rows.map(|p| cache_row(batch, setup, seq, head / (heads / kv_heads), p));
                let sink = setup.sinks.then(|| f64::from(batch.sinks[head]));
                out.extend(softmax_sum(q, rows.collect(), &batch.k, v, setup, sink));
            }
        }
    }
    out
}

/// Where in the cache a position's elements begin.
fn cache_row(batch: &Batch, setup: &Setup, seq: usize, kv_head: usize, position: usize) -> usize {
    let logical = position / setup.block_size - batch.first_block[seq] as usize;
    let block = batch.blocks[batch.block_offsets[seq] as usize + logical] as usize;
    ((block * setup.kv_heads + kv_head) * setup.block_size + position % setup.block_size) * setup.dim
}

fn softmax_sum(q: &[f32], rows: Vec<usize>, k: &[f32], v: &[f32], setup: &Setup, sink: Option<f64>) -> Vec<f32> {
    let score = |row: &usize| {
        let dot: f64 = q.iter().zip(&k[*row..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let scaled = dot * f64::from(setup.scale());
        setup.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = rows.iter().map(score).collect();
    let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - most).exp());
    let column = |c: usize| rows.iter().zip(&weights).map(|(row, w)| w * f64::from(v[row + c])).sum::<f64>() / sum;
    (0..setup.dim).map(|c| column(c) as f32).collect()
}
