//! Attention at the shapes of models that are served.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::attention::{Attention, AttentionPlan, KvDtype, KvGroup, PagedBatchView};

use crate::arrays::{normals_on, u32_bytes};
use crate::{Random, TestDevice, Timing};

const LLAMA_8B: KvGroup =
    KvGroup { heads: 32, kv_heads: 8, head_dim: 128, block_size: 16, dtype: KvDtype::Bf16, window: None, chunk: None };
const GEMMA_27B: KvGroup = KvGroup { kv_heads: 16, window: Some(1024), ..LLAMA_8B };

pub(crate) fn timings() -> Vec<Timing> {
    let fp8 = KvGroup { dtype: KvDtype::Fp8, ..LLAMA_8B };
    let mut timings = Vec::new();
    for (seqs, context) in [
        (1, 8192),
        (1, 32_768),
        (1, 131_072),
        (1, 128),
        (32, 128),
        (32, 2048),
        (32, 8192),
        (256, 128),
        (256, 2048),
        (1024, 128),
        (1024, 512),
    ] {
        timings.push(timing("decode llama-3.1-8b", LLAMA_8B, seqs, context - 1, 1));
    }
    for (seqs, context) in [(1, 32_768), (32, 8192), (256, 2048)] {
        timings.push(timing("decode llama-3.1-8b fp8", fp8, seqs, context - 1, 1));
    }
    for (seqs, context) in [(1, 32_768), (32, 32_768), (256, 2048), (1024, 128)] {
        timings.push(timing("decode gemma-3-27b window", GEMMA_27B, seqs, context - 1, 1));
    }
    let gemma_global = KvGroup { window: None, ..GEMMA_27B };
    for (seqs, context) in [(1, 32_768), (32, 2048)] {
        timings.push(timing("decode gemma-3-27b global", gemma_global, seqs, context - 1, 1));
    }
    for (name, group) in [("prefill llama-3.1-8b", LLAMA_8B), ("prefill llama-3.1-8b fp8", fp8)] {
        for (seqs, before, tokens) in [(1, 0, 8192), (4, 0, 2048), (64, 0, 128), (1, 30_720, 2048)] {
            timings.push(timing(name, group, seqs, before, tokens));
        }
    }
    timings.push(timing("prefill gemma-3-27b window", GEMMA_27B, 1, 0, 8192));
    timings.push(timing("prefill gemma-3-27b global", gemma_global, 1, 0, 8192));
    timings
}

fn first_visible(group: &KvGroup, position: u64) -> u64 {
    group.window.map_or(0, |w| (position + 1).saturating_sub(w.into()))
}

/// `seqs` equal sequences of `tokens` query tokens after `before` others.
fn timing(what: &str, group: KvGroup, seqs: u32, before: u32, tokens: u32) -> Timing {
    let end = u64::from(before) + u64::from(tokens);
    let rows = u64::from(seqs) * u64::from(tokens) * u64::from(group.heads) * u64::from(group.head_dim);
    let positions = u64::from(seqs) * (end - first_visible(&group, before.into()));
    let position_bytes = 2 * u64::from(group.kv_heads * group.head_dim * group.dtype.size_in_bytes());
    let pairs: u64 = (u64::from(before)..end).map(|p| p + 1 - first_visible(&group, p)).sum();
    Timing {
        name: format!("attention/{what} seqs={seqs} before={before} tokens={tokens}"),
        bytes: positions * position_bytes + 4 * rows,
        flops: 4 * u64::from(seqs) * pairs * u64::from(group.heads * group.head_dim),
        prepare: Box::new(move |device| {
            let layer = Layer::new(device, group, seqs, before, tokens, rows);
            Box::new(move |queue| layer.op.run(queue, &layer.group, &layer.size))
        }),
    }
}

struct Layer {
    group: KvGroup,
    size: plimsoll_kernels::attention::PlanSize,
    op: Attention,
}

impl Layer {
    fn new(device: &dyn TestDevice, group: KvGroup, seqs: u32, before: u32, tokens: u32, rows: u64) -> Self {
        // A window let the blocks before it go.
        let first_block = first_visible(&group, before.into()) as u32 / group.block_size;
        let table = (before + tokens).div_ceil(group.block_size) - first_block;
        let num_blocks = seqs * table;
        let mut blocks: Vec<u32> = (0..num_blocks).collect();
        Random::new(1).shuffle(&mut blocks);
        let starts = |each: u32| (0..=seqs).map(|seq| seq * each).collect::<Vec<u32>>();
        let view = PagedBatchView {
            cu_seqlens: &starts(tokens),
            seq_lens: &vec![before + tokens; seqs as usize],
            block_offsets: &starts(table),
            first_block: &vec![first_block; seqs as usize],
        };
        let plan =
            AttentionPlan::new(&view, &group, device.queue().multiprocessors()).unwrap_or_else(|e| panic!("{e}"));
        let size = plan.size();
        let words = plan.words(&size).unwrap_or_else(|e| panic!("{e}"));
        let elements = u64::from(num_blocks * group.kv_heads) * u64::from(group.block_size * group.head_dim);
        // As fp8 the bytes of normal bf16 are as good as any.
        let cache = || normals_on(device, elements * u64::from(group.dtype.size_in_bytes()) / 2);
        let op = Attention {
            out: normals_on(device, rows),
            q: normals_on(device, rows),
            k_cache: cache(),
            v_cache: cache(),
            num_blocks,
            blocks: device.upload(&u32_bytes(&blocks)),
            plan: device.upload(&u32_bytes(&words)),
            workspace: device.upload(&vec![0; size.workspace_bytes(&group)]),
            sinks: DevicePtr::NULL,
            scale: 1.0 / (group.head_dim as f32).sqrt(),
            softcap: None,
            k_scale: 1.0,
            v_scale: 1.0,
        };
        Self { group, size, op }
    }
}
