//! The op against a naive attention in f64, and against itself: batched and single, chunked and whole, in one thread
//! and many.

use std::slice::from_ref;

use candle_core::{DType, Device};

use super::*;
use crate::kv_write::{KvDtype, kv_write};
use crate::testing::Random;

const DTYPES: [KvDtype; 4] = [KvDtype::F32, KvDtype::F16, KvDtype::BF16, KvDtype::Fp8];

/// A sequence's queries, keys and values at every position, `[positions, heads, dim]` each, k and v as the cache rounds.
#[derive(Clone)]
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Shape {
    heads: Heads,
    block_size: usize,
    dtype: KvDtype,
    params: AttentionParams,
    /// Every head has one, of its own.
    has_sinks: bool,
}

impl Shape {
    fn new(query: usize, kv: usize, dim: usize, block_size: usize, dtype: KvDtype) -> Shape {
        let params = AttentionParams { scale: 1.0 / (dim as f32).sqrt(), window: None, chunk: None, softcap: None };
        Shape { heads: Heads { query, kv, dim }, block_size, dtype, params, has_sinks: false }
    }

    fn sequence(&self, positions: usize, random: &mut Random) -> Sequence {
        let Heads { query, kv, dim } = self.heads;
        let mut round = |n: usize| {
            let data = Tensor::new(random.normals(n, 1.0), &Device::Cpu).unwrap().to_dtype(self.dtype.dtype()).unwrap();
            data.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
        };
        let (k, v) = (round(positions * kv * dim), round(positions * kv * dim));
        // Larger queries make the softmax uneven, so that maxima move from tile to tile.
        Sequence { q: random.normals(positions * query * dim, 2.5), k, v }
    }

    /// Attends `queries[i]` (positions) of `seqs[i]` in one batch, over a cache that is NaN wherever nothing was written.
    fn attend(&self, seqs: &[&Sequence], queries: &[Range], setup: Setup) -> Vec<f32> {
        let (q, cache, batch) = self.layout(seqs, queries);
        let sinks = self.has_sinks.then(|| (0..self.heads.query).map(sink).collect());
        let Setup { level, threads } = setup;
        let op = PagedAttention { batch: &batch, params: &self.params, sinks, level, threads };
        floats(&q.apply_op3_no_bwd(&cache.k, &cache.v, &op).unwrap())
    }

    fn layout(&self, seqs: &[&Sequence], queries: &[Range]) -> (Tensor, LayerCache, PagedBatch) {
        let Heads { query, kv, dim } = self.heads;
        let size = self.block_size;
        let mut random = Random::new(queries.iter().map(|r| r.end as u64).sum());
        let mut free: Vec<u32> = (0..queries.iter().map(|r| r.end.div_ceil(size) + 2).sum::<usize>() as u32).collect();
        let num_blocks = free.len();
        let mut batch =
            PagedBatch { block_size: size, cu_seqlens: vec![0], block_offsets: vec![0], ..Default::default() };
        let (mut q, mut k, mut v, mut slots) = (vec![], vec![], vec![], vec![]);
        for (seq, range) in seqs.iter().zip(queries) {
            q.extend_from_slice(&seq.q[range.start * query * dim..range.end * query * dim]);
            // Blocks wholly before the window are gone, or some of them still there.
            let gone = random.below(self.params.first_visible(range.start) / size + 1);
            let blocks: Vec<u32> =
                (gone..range.end.div_ceil(size)).map(|_| free.swap_remove(random.below(free.len()))).collect();
            for position in gone * size..range.end {
                slots.push(blocks[position / size - gone] * size as u32 + (position % size) as u32);
                k.extend_from_slice(&seq.k[position * kv * dim..(position + 1) * kv * dim]);
                v.extend_from_slice(&seq.v[position * kv * dim..(position + 1) * kv * dim]);
            }
            batch.cu_seqlens.push(batch.cu_seqlens.last().unwrap() + (range.end - range.start) as u32);
            batch.seq_lens.push(range.end as u32);
            batch.first_block.push(gone as u32);
            batch.blocks.extend(blocks);
            batch.block_offsets.push(batch.blocks.len() as u32);
        }
        let nan = Tensor::full(f32::NAN, (num_blocks, kv, size, dim), &Device::Cpu).unwrap();
        let nan = || nan.to_dtype(self.dtype.dtype()).unwrap().copy().unwrap();
        let cache = LayerCache { k: nan(), v: nan() };
        let written = slots.len();
        batch.slot_mapping = slots;
        let tensor = |data: Vec<f32>, shape| Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        kv_write(&tensor(k, (written, kv, dim)), &tensor(v, (written, kv, dim)), &cache, &batch).unwrap();
        (tensor(q, (*batch.cu_seqlens.last().unwrap() as usize, query, dim)), cache, batch)
    }

    /// One query head's output, by the definition.
    fn naive(&self, seq: &Sequence, position: usize, head: usize) -> Vec<f64> {
        let Heads { query, kv, dim } = self.heads;
        let kv_head = head / (query / kv);
        let row = |data: &[f32], position: usize| -> Vec<f64> {
            data[(position * kv + kv_head) * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
        };
        let q = &seq.q[(position * query + head) * dim..][..dim];
        let chunk = self.params.chunk.unwrap_or(u32::MAX) as usize;
        let window = self.params.window.unwrap_or(u32::MAX) as usize;
        let first = (0..=position).find(|seen| seen + window > position && seen / chunk == position / chunk);
        let first = first.expect("its own position");
        let scores: Vec<f64> = (first..=position)
            .map(|j| {
                let dot: f64 = q.iter().zip(row(&seq.k, j)).map(|(q, k)| f64::from(*q) * k).sum();
                let score = dot * f64::from(self.params.scale);
                self.params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let sink = if self.has_sinks { f64::from(sink(head)) } else { f64::NEG_INFINITY };
        let max = scores.iter().copied().fold(sink, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
        let mut out = vec![0.0; dim];
        for (j, score) in (first..=position).zip(&scores) {
            for (out, v) in out.iter_mut().zip(row(&seq.v, j)) {
                *out += (score - max).exp() / sum * v;
            }
        }
        out
    }

    fn check(&self, seqs: &[&Sequence], queries: &[Range], setup: Setup, random: &mut Random) {
        let out = self.attend(seqs, queries, setup);
        let Heads { query, dim, .. } = self.heads;
        let positions = seqs.iter().zip(queries).flat_map(|(s, r)| r.clone().map(move |p| (s, p)));
        for ((seq, position), got) in positions.zip(out.chunks(query * dim)) {
            for (head, got) in got.chunks(dim).enumerate() {
                // The definition is slow: a part of long batches will do.
                if out.len() > 100_000 && random.below(8) != 0 {
                    continue;
                }
                for (want, got) in self.naive(seq, position, head).iter().zip(got) {
                    let error = (want - f64::from(*got)).abs();
                    assert!(error < 2e-5, "{setup:?}, position {position}, head {head}: {got}, expected {want}");
                }
            }
        }
    }
}

type Range = std::ops::Range<usize>;

/// A head's sink: from below all scores to above them.
fn sink(head: usize) -> f32 {
    (head * 7 % 11) as f32 * 4.0 - 20.0
}

/// What must not change the result.
#[derive(Clone, Copy, Debug)]
struct Setup {
    level: Level,
    threads: usize,
}

impl Setup {
    fn one_thread() -> Setup {
        Setup { level: Level::detect(), threads: 1 }
    }
    fn many_threads() -> Setup {
        Setup { level: Level::detect(), threads: 16 }
    }
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

/// Chunks and decodes of random lengths.
fn random_queries(random: &mut Random, longest: usize) -> Vec<Range> {
    (0..1 + random.below(4))
        .map(|_| {
            let start = if random.below(4) == 0 { 0 } else { random.below(longest) };
            let len = if random.below(2) == 0 { 1 } else { random.below(90) };
            start..start + len
        })
        .collect()
}

#[test]
fn ragged_batches_match_the_definition() {
    let mut random = Random::new(71);
    let group_shapes = [(9, 3), (4, 1), (4, 4), (8, 2), (15, 5)];
    for dtype in DTYPES {
        for dim in [64, 80, 128, 256] {
            for block_size in [8, 16, 32] {
                let (query, kv) = group_shapes[random.below(group_shapes.len())];
                let mut shape = Shape::new(query, kv, dim, block_size, dtype);
                shape.params.window = [None, Some(1), Some(17), Some(200)][random.below(4)];
                shape.params.chunk = [None, None, Some(1), Some(24), Some(150)][random.below(5)];
                shape.params.softcap = [None, None, Some(5.0)][random.below(3)];
                shape.has_sinks = random.below(2) == 0;
                let queries = random_queries(&mut random, 300);
                let seqs: Vec<Sequence> = queries.iter().map(|r| shape.sequence(r.end, &mut random)).collect();
                shape.check(&seqs.iter().collect::<Vec<_>>(), &queries, Setup::many_threads(), &mut random);
            }
        }
    }
}

#[test]
fn odd_shapes_match_the_definition_at_every_level() {
    let mut random = Random::new(72);
    for level in Level::available() {
        for (query, kv, dim, block_size) in
            [(1, 1, 4, 1), (6, 2, 20, 12), (64, 1, 16, 48), (128, 1, 8, 5), (10, 2, 96, 7)]
        {
            for dtype in DTYPES {
                let mut shape = Shape::new(query, kv, dim, block_size, dtype);
                shape.params.window = [None, Some(33)][random.below(2)];
                let seqs = [shape.sequence(70, &mut random), shape.sequence(11, &mut random)];
                shape.check(&[&seqs[0], &seqs[1]], &[30..70, 10..11], Setup { level, threads: 4 }, &mut random);
            }
        }
    }
}

#[test]
fn long_contexts_match_the_definition() {
    let mut random = Random::new(73);
    for (window, chunk) in [(None, None), (Some(512), None), (None, Some(640))] {
        let mut shape = Shape::new(4, 1, 64, 16, KvDtype::F16);
        (shape.params.window, shape.params.chunk) = (window, chunk);
        shape.has_sinks = window.is_none();
        let seq = shape.sequence(1500, &mut random);
        shape.check(&[&seq, &seq], &[1499..1500, 700..760], Setup::many_threads(), &mut random);
    }
}

#[test]
fn batched_is_single_and_chunked_is_whole_to_the_bit() {
    let mut random = Random::new(74);
    for (query, kv, dim, block_size, window, softcap, dtype) in [
        (9, 3, 64, 16, None, None, KvDtype::F16),
        (4, 1, 256, 32, Some(40), None, KvDtype::F32),
        (8, 1, 80, 8, Some(300), Some(10.0), KvDtype::BF16),
        (6, 2, 64, 16, None, None, KvDtype::Fp8),
    ] {
        let mut shape = Shape::new(query, kv, dim, block_size, dtype);
        (shape.params.window, shape.params.softcap) = (window, softcap);
        shape.params.chunk = (query == 6).then_some(130);
        shape.has_sinks = softcap.is_none();
        let seq = shape.sequence(600, &mut random);
        let others = [shape.sequence(300, &mut random), shape.sequence(77, &mut random)];
        let row = query * dim;
        for level in Level::available() {
            let one = Setup { level, threads: 1 };
            let whole = bits(&shape.attend(&[&seq], from_ref(&(0..600)), one));
            assert!(
                whole == bits(&shape.attend(&[&seq], from_ref(&(0..600)), Setup { threads: 16, ..one })),
                "threads"
            );
            let mut from = 0;
            while from < 600 {
                let to = (from + 1 + random.below(150)).min(600);
                let threads = [1, 2, 64][random.below(3)];
                let chunk = bits(&shape.attend(&[&seq], from_ref(&(from..to)), Setup { level, threads }));
                assert!(chunk == whole[from * row..to * row], "{level:?}, positions {from}..{to}");
                from = to;
            }
            for position in [0, 1, 31, 32, 255, 256, 257, 511, 599] {
                let (setup, queries) = (Setup { level, threads: 3 }, [100..300, position..position + 1, 0..77]);
                let mixed = bits(&shape.attend(&[&others[0], &seq, &others[1]], &queries, setup));
                let single = &whole[position * row..(position + 1) * row];
                assert!(mixed[200 * row..201 * row] == *single, "{level:?}, position {position} in a batch");
            }
        }
    }
}

#[test]
fn no_tokens_and_empty_sequences_are_fine() {
    let mut random = Random::new(75);
    let shape = Shape::new(2, 1, 16, 8, KvDtype::F32);
    let seq = shape.sequence(20, &mut random);
    assert!(shape.attend(&[], &[], Setup::many_threads()).is_empty());
    let alone = shape.attend(&[&seq], from_ref(&(5..20)), Setup::many_threads());
    assert!(bits(&alone) == bits(&shape.attend(&[&seq, &seq], &[3..3, 5..20], Setup::one_thread())));
}

#[test]
fn what_is_not_finite_stays_with_the_queries_that_see_it() {
    let mut random = Random::new(76);
    let shape = Shape::new(2, 1, 16, 8, KvDtype::F16);
    let clean = shape.sequence(40, &mut random);
    let expected = shape.attend(&[&clean], from_ref(&(0..40)), Setup::one_thread());
    for poison in [f32::NAN, f32::INFINITY] {
        for in_keys in [false, true] {
            let mut seq = clean.clone();
            let data = if in_keys { &mut seq.k } else { &mut seq.v };
            data[20 * 16..21 * 16].fill(poison);
            let out = shape.attend(&[&seq], from_ref(&(0..40)), Setup::many_threads());
            assert!(bits(&out[..20 * 32]) == bits(&expected[..20 * 32]), "{poison} in keys: {in_keys}");
            if poison.is_nan() || !in_keys {
                assert!(out[20 * 32..].iter().all(|x| !x.is_finite()), "{poison} in keys: {in_keys}");
            }
        }
    }
}

#[test]
fn tables_that_lead_outside_are_refused() {
    let mut random = Random::new(77);
    let mut shape = Shape::new(2, 1, 16, 8, KvDtype::F32);
    let seq = shape.sequence(40, &mut random);
    let (q, cache, good) = shape.layout(&[&seq, &seq], &[30..40, 9..10]);
    assert!(paged_attention(&q, &cache, &good, &shape.params).is_ok());
    let refused = |what: &str, change: &dyn Fn(&mut PagedBatch)| {
        let mut batch = good.clone();
        change(&mut batch);
        let error = paged_attention(&q, &cache, &batch, &shape.params).unwrap_err().to_string();
        assert!(error.starts_with("paged_attention: ") && error.contains(what), "{error}, expected {what}");
    };
    refused("outside the cache", &|b| b.blocks[3] = 11);
    refused("outside the cache", &|b| b.blocks[0] = u32::MAX);
    refused("sees positions 0..40", &|b| b.first_block[0] = 1);
    refused("sees positions", &|b| b.first_block[0] = u32::MAX);
    refused("sees positions 0..4000000", &|b| b.seq_lens[0] = 4_000_000);
    refused("10 query tokens, but 9", &|b| b.seq_lens[0] = 9);
    refused("first_block has 1", &|b| b.first_block.truncate(1));
    refused("cu_seqlens must rise", &|b| b.cu_seqlens[2] = 12);
    refused("cu_seqlens must rise", &|b| b.cu_seqlens[0] = 1);
    refused("cu_seqlens must rise", &|b| b.cu_seqlens[1] = 100);
    refused("cu_seqlens must rise", &|b| b.cu_seqlens.clear());
    refused("block_offsets must rise", &|b| b.block_offsets[2] += 1);
    refused("block_offsets must rise", &|b| b.blocks.truncate(6));
    refused("of blocks of 16", &|b| b.block_size = 16);
    shape.params.window = Some(8);
    // Position 30 sees 23..=30: the first two blocks may go, and the third may not.
    let mut batch = good.clone();
    (batch.first_block[0], batch.block_offsets[1], batch.block_offsets[2]) = (2, 3, 5);
    batch.blocks.drain(..2);
    assert!(paged_attention(&q, &cache, &batch, &shape.params).is_ok());
    (batch.first_block[0], batch.block_offsets[1], batch.block_offsets[2]) = (3, 2, 4);
    batch.blocks.remove(0);
    let error = paged_attention(&q, &cache, &batch, &shape.params).unwrap_err().to_string();
    assert!(error.contains("sees positions 23..40, its 2 blocks start at 24"), "{error}");
}

#[test]
fn wrong_operands_are_refused_by_name() {
    let mut random = Random::new(78);
    let shape = Shape::new(2, 1, 16, 8, KvDtype::BF16);
    let seq = shape.sequence(4, &mut random);
    let (q, cache, batch) = shape.layout(&[&seq], from_ref(&(0..4)));
    let refused = |what: &str, q: &Tensor, cache: &LayerCache, params: AttentionParams| {
        let error = paged_attention(q, cache, &batch, &params).unwrap_err().to_string();
        assert!(error.starts_with("paged_attention: ") && error.contains(what), "{error}, expected {what}");
    };
    let params = shape.params;
    refused("q is F16", &q.to_dtype(DType::F16).unwrap(), &cache, params);
    refused("expected [tokens, heads", &q.flatten_all().unwrap(), &cache, params);
    refused(
        "not contiguous",
        &q.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap(),
        &cache,
        params,
    );
    refused("1 heads of 16", &q.narrow(2, 0, 8).unwrap().contiguous().unwrap(), &cache, params);
    let other = LayerCache { k: cache.k.clone(), v: cache.v.to_dtype(DType::F16).unwrap() };
    refused("v's cache is F16", &q, &other, params);
    let other = LayerCache { k: cache.k.to_dtype(DType::F64).unwrap(), v: cache.v.clone() };
    refused("must be F32, F16, BF16 or F8E4M3", &q, &other, params);
    refused("out of range", &q, &cache, AttentionParams { window: Some(0), ..params });
    refused("out of range", &q, &cache, AttentionParams { chunk: Some(0), ..params });
    refused("out of range", &q, &cache, AttentionParams { softcap: Some(0.0), ..params });
    refused("out of range", &q, &cache, AttentionParams { scale: f32::NAN, ..params });
    for sinks in [Tensor::zeros(3, DType::F32, &Device::Cpu), Tensor::zeros(2, DType::BF16, &Device::Cpu)] {
        let error = paged_attention_with_sinks(&q, &cache, &batch, &params, Some(&sinks.unwrap())).unwrap_err();
        assert!(error.to_string().contains("expected F32 [2]"), "{error}");
    }
}
