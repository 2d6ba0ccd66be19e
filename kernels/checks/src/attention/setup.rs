//! A batch of sequences over a paged cache with shuffled blocks, NaN wherever no token was written, and its launch.

use std::ops::Range;

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::attention::{Attention, AttentionPlan, KvDtype, KvGroup, PagedBatchView, PlanSize};

use super::{UNCUT, e4m3};
use crate::arrays::{Output, bf16_bytes, expect_same, f32_bytes, rounded, u32_bytes};
use crate::{Random, TestDevice, poisoned};

/// Of values in an fp8 cache.
const K_SCALE: f32 = 0.03;
const V_SCALE: f32 = 0.01;

/// A layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) block_size: usize,
    pub(super) dtype: KvDtype,
    pub(super) window: Option<usize>,
    pub(super) chunk: Option<usize>,
    pub(super) softcap: Option<f32>,
    pub(super) sinks: bool,
    /// Standard deviation of queries.
    pub(super) q_size: f32,
    /// That the plan cuts for.
    pub(super) multiprocessors: u32,
    /// Sequences, and as many tokens, that the plan has room for and the batch has not.
    pub(super) spare: u32,
}

impl Setup {
    pub(super) fn new(heads: usize, kv_heads: usize, dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            dim,
            block_size: 16,
            dtype: KvDtype::Bf16,
            window: None,
            chunk: None,
            softcap: None,
            sinks: false,
            q_size: 2.5,
            multiprocessors: UNCUT,
            spare: 0,
        }
    }

    pub(super) fn group(&self) -> KvGroup {
        KvGroup {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.dim as u32,
            block_size: self.block_size as u32,
            dtype: self.dtype,
            window: self.window.map(|w| w as u32),
            chunk: self.chunk.map(|c| c as u32),
        }
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    pub(super) fn first_visible(&self, position: usize) -> usize {
        let window = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        window.max(self.chunk.map_or(0, |c| position / c * c))
    }
}

/// Sequences as (tokens before, query tokens), their values and where the cache has them.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) seqs: Vec<(usize, usize)>,
    /// `[tokens, heads, dim]`
    pub(super) q: Vec<f32>,
    /// The caches, as f32 and as their bytes, `[num_blocks, kv_heads, block_size, dim]`.
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    k_bytes: Vec<u8>,
    v_bytes: Vec<u8>,
    pub(super) sinks: Vec<f32>,
    pub(super) num_blocks: usize,
    pub(super) cu_seqlens: Vec<u32>,
    pub(super) seq_lens: Vec<u32>,
    pub(super) block_offsets: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    pub(super) first_block: Vec<u32>,
}

impl Batch {
    pub(super) fn draw(random: &mut Random, setup: &Setup, seqs: &[(usize, usize)]) -> Self {
        let Setup { heads, kv_heads, dim, block_size, .. } = *setup;
        let blocks_of = |before: usize, tokens: usize| (before + tokens).div_ceil(block_size);
        let num_blocks = seqs.iter().map(|(before, tokens)| blocks_of(*before, *tokens)).sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        random.shuffle(&mut free);
        let cache = num_blocks * kv_heads * block_size * dim;
        let element = setup.dtype.size_in_bytes() as usize;
        let tokens: usize = seqs.iter().map(|s| s.1).sum();
        let mut batch = Self {
            seqs: seqs.to_vec(),
            q: rounded(random.normals(tokens * heads * dim, setup.q_size)),
            k: vec![f32::NAN; cache],
            v: vec![f32::NAN; cache],
            k_bytes: poisoned(cache * element),
            v_bytes: poisoned(cache * element),
            sinks: random.normals(heads, 2.0),
            num_blocks,
            cu_seqlens: vec![0],
            seq_lens: vec![],
            block_offsets: vec![0],
            blocks: vec![],
            first_block: vec![],
        };
        for (before, tokens) in seqs {
            // Blocks wholly before what the first query sees are gone, or some of them still there.
            let gone = random.below(setup.first_visible(*before) / block_size + 1);
            for logical in gone..blocks_of(*before, *tokens) {
                let block = free.pop().expect("counted");
                batch.blocks.push(block);
                let positions = logical * block_size..(before + tokens).min((logical + 1) * block_size);
                batch.fill(random, setup, block as usize, positions.len());
            }
            batch.cu_seqlens.push(batch.cu_seqlens[batch.cu_seqlens.len() - 1] + *tokens as u32);
            batch.seq_lens.push((before + tokens) as u32);
            batch.block_offsets.push(batch.blocks.len() as u32);
            batch.first_block.push(gone as u32);
        }
        batch
    }

    /// Writes the first `tokens` positions of a block.
    fn fill(&mut self, random: &mut Random, setup: &Setup, block: usize, tokens: usize) {
        let Setup { kv_heads, dim, block_size, .. } = *setup;
        for head in 0..kv_heads {
            let at = (block * kv_heads + head) * block_size * dim;
            for (values, bytes, scale) in
                [(&mut self.k, &mut self.k_bytes, K_SCALE), (&mut self.v, &mut self.v_bytes, V_SCALE)]
            {
                let drawn = random.normals(tokens * dim, 1.0);
                let (kept, encoded) = match setup.dtype {
                    KvDtype::Bf16 => (rounded(drawn.clone()), bf16_bytes(&drawn)),
                    KvDtype::Fp8 => {
                        let codes: Vec<u8> = drawn.iter().map(|x| e4m3::encode(x / scale)).collect();
                        (codes.iter().map(|code| e4m3::decode(*code) * scale).collect(), codes)
                    }
                };
                values[at..at + kept.len()].copy_from_slice(&kept);
                let at = at * setup.dtype.size_in_bytes() as usize;
                bytes[at..at + encoded.len()].copy_from_slice(&encoded);
            }
        }
    }

    /// The same cache with some of one sequence's query tokens alone.
    pub(super) fn only(&self, seq: usize, tokens: Range<usize>) -> Self {
        let row = self.q.len() / self.cu_seqlens[self.seqs.len()] as usize;
        let first = self.cu_seqlens[seq] as usize;
        let before = self.seqs[seq].0;
        let table = self.block_offsets[seq] as usize..self.block_offsets[seq + 1] as usize;
        Self {
            seqs: vec![(before + tokens.start, tokens.len())],
            q: self.q[(first + tokens.start) * row..(first + tokens.end) * row].to_vec(),
            cu_seqlens: vec![0, tokens.len() as u32],
            seq_lens: vec![(before + tokens.end) as u32],
            block_offsets: vec![0, table.len() as u32],
            blocks: self.blocks[table].to_vec(),
            first_block: vec![self.first_block[seq]],
            ..self.clone()
        }
    }

    pub(super) fn view(&self) -> PagedBatchView<'_> {
        PagedBatchView {
            cu_seqlens: &self.cu_seqlens,
            seq_lens: &self.seq_lens,
            block_offsets: &self.block_offsets,
            first_block: &self.first_block,
        }
    }

    /// Launches twice, as two layers with one plan do, and gives the second's output, bf16 `[tokens, heads, dim]`.
    pub(super) fn attend(&self, device: &dyn TestDevice, setup: &Setup) -> Result<Vec<u8>, String> {
        let group = setup.group();
        let plan = AttentionPlan::new(&self.view(), &group, setup.multiprocessors).map_err(|e| e.to_string())?;
        let tokens = *self.cu_seqlens.last().expect("never empty");
        let size = if setup.spare == 0 {
            plan.size()
        } else {
            let seqs = self.seqs.len() as u32 + setup.spare;
            PlanSize::mixed(&group, tokens + setup.spare, seqs, setup.multiprocessors)
        };
        let words = u32_bytes(&plan.words(&size).map_err(|e| e.to_string())?);
        let (plan, workspace) = (Output::holding(device, &words), Output::new(device, size.workspace_bytes(&group)));
        let rows = (tokens + setup.spare) as usize * setup.heads * setup.dim * 2;
        let mut op = Attention {
            out: DevicePtr::NULL,
            q: device.upload(&bf16_bytes(&self.q)),
            k_cache: device.upload(&self.k_bytes),
            v_cache: device.upload(&self.v_bytes),
            num_blocks: self.num_blocks as u32,
            blocks: device.upload(&u32_bytes(&self.blocks)),
            plan: plan.at,
            workspace: workspace.at,
            sinks: if setup.sinks { device.upload(&f32_bytes(&self.sinks)) } else { DevicePtr::NULL },
            scale: setup.scale(),
            softcap: setup.softcap,
            k_scale: K_SCALE,
            v_scale: V_SCALE,
        };
        let mut layer = || {
            let out = Output::new(device, rows);
            op.out = out.at;
            op.run(device.queue(), &group, &size).map_err(|e| e.to_string())?;
            out.read(device)
        };
        let (first, second) = (layer()?, layer()?);
        expect_same("the second layer", &second, &first)?;
        expect_same("the plan", &plan.read(device)?, &words)?;
        workspace.read(device)?;
        let (written, spare) = second.split_at(tokens as usize * setup.heads * setup.dim * 2);
        expect_same("rows of no sequence", spare, &poisoned(spare.len()))?;
        Ok(written.to_vec())
    }
}
