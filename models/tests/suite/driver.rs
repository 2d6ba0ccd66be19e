//! Drives a model as the scheduler and the runner would, with the simplest block allocation there is.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use plimsoll_models::{find, load};
use plimsoll_nn::{Checkpoint, ForwardBatch, KvCache, Model, ModelInfo};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use safetensors::SafeTensors;

pub(crate) const BLOCK_SIZE: usize = 8;

pub(crate) fn golden_dir() -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.map(|folder| folder.join("tests/golden")).find(|path| path.exists()).expect("tests/golden at the root")
}

/// A model, its cache, and the pool of blocks of each KV group.
pub(crate) struct Driver {
    pub(crate) info: ModelInfo,
    model: Box<dyn Model>,
    cache: KvCache,
    /// Free blocks of each group, in an order that makes no table contiguous or ascending.
    free: Vec<Vec<u32>>,
}

/// One sequence under way.
pub(crate) struct Seq {
    computed: usize,
    /// For each group, the logical index of its first block and its blocks.
    tables: Vec<(usize, Vec<u32>)>,
}

impl Driver {
    /// With a cache in f32 that holds `context` tokens in every group.
    pub(crate) fn open(path: &Path, activations: Activations, context: usize) -> Self {
        Self::open_with(path, activations, KvDtype::F32, |_| context)
    }

    /// `context` gives the tokens that a group of a window has room for.
    pub(crate) fn open_with(
        path: &Path,
        activations: Activations,
        kv: KvDtype,
        context: impl Fn(Option<u32>) -> usize,
    ) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        let info = (find(checkpoint.config()).unwrap().info)(checkpoint.config()).unwrap();
        let model = load(&checkpoint, activations, |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        Self::over(info, model, kv, context)
    }

    /// Over a model that is loaded already.
    pub(crate) fn over(
        info: ModelInfo,
        model: Box<dyn Model>,
        kv: KvDtype,
        context: impl Fn(Option<u32>) -> usize,
    ) -> Self {
        let blocks: Vec<u32> = info.groups.iter().map(|&w| context(w).div_ceil(BLOCK_SIZE) as u32).collect();
        let cache = KvCache::new(&info, &blocks, BLOCK_SIZE, kv, &Device::Cpu).unwrap();
        let free = blocks.into_iter().map(scrambled).collect();
        Self { info, model, cache, free }
    }

    pub(crate) fn start(&self) -> Seq {
        Seq { computed: 0, tables: vec![(0, Vec::new()); self.info.groups.len()] }
    }

    pub(crate) fn end(&mut self, seq: Seq) {
        for (free, (_, blocks)) in self.free.iter_mut().zip(seq.tables) {
            free.extend(blocks);
        }
    }

    /// Feeds tokens to one sequence; returns the logits of every one of them.
    pub(crate) fn feed(&mut self, seq: &mut Seq, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.feed_for_last(seq, tokens, tokens.len())
    }

    /// As [`Driver::feed`]; returns the logits of the last `count` tokens alone.
    pub(crate) fn feed_for_last(&mut self, seq: &mut Seq, tokens: &[u32], count: usize) -> Vec<Vec<f32>> {
        let mut batch = self.batch(&mut [(seq, tokens)]);
        batch.logit_rows = (tokens.len() as u32 - count as u32..tokens.len() as u32).collect();
        self.model.forward(&batch, &self.cache).unwrap().to_vec2().unwrap()
    }

    /// One forward pass over several sequences; returns each sequence's logits, token by token.
    pub(crate) fn step(&mut self, seqs: &mut [(&mut Seq, &[u32])]) -> Vec<Vec<Vec<f32>>> {
        let mut batch = self.batch(seqs);
        batch.logit_rows = (0..batch.input_ids.len() as u32).collect();
        let logits = self.model.forward(&batch, &self.cache).unwrap();
        let mut rows = logits.to_vec2::<f32>().unwrap().into_iter();
        seqs.iter().map(|(_, tokens)| rows.by_ref().take(tokens.len()).collect()).collect()
    }

    fn batch(&mut self, seqs: &mut [(&mut Seq, &[u32])]) -> ForwardBatch {
        let mut batch = ForwardBatch::default();
        for (seq, tokens) in seqs.iter_mut() {
            let first = seq.computed;
            seq.computed += tokens.len();
            batch.input_ids.extend(*tokens);
            batch.positions.extend(first as u32..seq.computed as u32);
        }
        batch.groups = (0..self.info.groups.len()).map(|group| self.lay_out(group, seqs)).collect();
        batch
    }

    /// A whole prompt in one step, on its own.
    pub(crate) fn whole(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut seq = self.start();
        let logits = self.feed(&mut seq, tokens);
        self.end(seq);
        logits
    }

    /// Gives each sequence the blocks it needs in `group`, takes away those that its window has left behind (and
    /// spoils them, so that reading one would show), and writes the tables down.
    fn lay_out(&mut self, group: usize, seqs: &mut [(&mut Seq, &[u32])]) -> PagedBatch {
        let mut batch = PagedBatch {
            block_size: BLOCK_SIZE,
            cu_seqlens: vec![0],
            seq_lens: Vec::new(),
            block_offsets: vec![0],
            blocks: Vec::new(),
            first_block: Vec::new(),
            slot_mapping: Vec::new(),
            ..PagedBatch::default()
        };
        for (seq, tokens) in seqs.iter_mut() {
            let first_position = seq.computed - tokens.len();
            let (first_block, blocks) = &mut seq.tables[group];
            if let Some(window) = self.info.groups[group] {
                let oldest = (first_position + 1).saturating_sub(window as usize);
                while (*first_block + 1) * BLOCK_SIZE <= oldest {
                    let block = blocks.remove(0);
                    spoil(&self.cache, &self.info, group, block);
                    self.free[group].insert(0, block);
                    *first_block += 1;
                }
            }
            while (*first_block + blocks.len()) * BLOCK_SIZE < seq.computed {
                blocks.push(self.free[group].pop().expect("the test's context is large enough"));
            }
            for position in first_position..seq.computed {
                let block = blocks[position / BLOCK_SIZE - *first_block];
                batch.slot_mapping.push(block * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
            }
            batch.cu_seqlens.push(batch.cu_seqlens.last().unwrap() + tokens.len() as u32);
            batch.seq_lens.push(seq.computed as u32);
            batch.blocks.extend(&*blocks);
            batch.block_offsets.push(batch.blocks.len() as u32);
            batch.first_block.push(*first_block as u32);
        }
        batch
    }
}

/// `0..count`, evens descending after odds ascending.
fn scrambled(count: u32) -> Vec<u32> {
    (0..count).filter(|b| b % 2 == 1).chain((0..count).rev().filter(|b| b % 2 == 0)).collect()
}

/// Fills a block with NaN in every layer of its group.
fn spoil(cache: &KvCache, info: &ModelInfo, group: usize, block: u32) {
    for index in (0..info.layers.len()).filter(|&i| info.layers[i].group == group) {
        let (layer, _) = cache.layer(index);
        for tensor in [&layer.k, &layer.v] {
            let (_, heads, size, dim) = tensor.dims4().unwrap();
            let nan = Tensor::full(f32::NAN, (1, heads, size, dim), &Device::Cpu).unwrap();
            let nan = nan.to_dtype(tensor.dtype()).unwrap();
            tensor.slice_set(&nan, 0, block as usize).unwrap();
        }
    }
}

/// A tiny checkpoint whose logits are recorded.
pub(crate) struct Case {
    /// What is opened: the folder of safetensors, or a GGUF file in it.
    pub(crate) path: PathBuf,
    /// The folder, from tests/golden on, and the GGUF file's stem.
    pub(crate) name: String,
    folder: PathBuf,
    /// Of the GGUF file, or "" for the safetensors.
    stem: String,
}

impl Case {
    /// Every one in tests/golden, sorted: each folder with a `golden.safetensors` has one of its own, if it holds a
    /// checkpoint of safetensors, and one for each of its GGUF files.
    pub(crate) fn all() -> Vec<Case> {
        let entries = std::fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap().path());
        let folders = entries.filter(|folder| folder.join("golden.safetensors").exists());
        let mut cases: Vec<Case> = folders.flat_map(|folder| Self::of(&folder)).collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(cases.len() > 10, "tests/golden is not what it was");
        cases
    }

    fn of(folder: &Path) -> Vec<Case> {
        let name = folder.strip_prefix(golden_dir()).unwrap().display().to_string();
        let case = |path: &Path, stem: &str| Case {
            path: path.into(),
            name: format!("{name} {stem}").trim_end().into(),
            folder: folder.into(),
            stem: stem.into(),
        };
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let gguf = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
        let gguf = gguf.map(|path| case(&path, path.file_stem().unwrap().to_str().unwrap()));
        let plain = folder.join("config.json").exists().then(|| case(folder, ""));
        plain.into_iter().chain(gguf).collect()
    }

    /// The recorded prompts.
    pub(crate) fn prompts(&self) -> Vec<GoldenPrompt> {
        Golden::in_folder(&self.folder).prompts(&self.stem)
    }
}

/// The recorded prompts of a tiny checkpoint.
pub(crate) struct Golden {
    bytes: Vec<u8>,
}

/// One prompt's reference.
pub(crate) struct GoldenPrompt {
    pub(crate) ids: Vec<u32>,
    /// Positions whose logits are recorded, and their logits.
    pub(crate) rows: Vec<(usize, Vec<f32>)>,
}

impl Golden {
    pub(crate) fn read(case: &str) -> Self {
        Self::in_folder(&golden_dir().join(case))
    }

    fn in_folder(folder: &Path) -> Self {
        Self { bytes: std::fs::read(folder.join("golden.safetensors")).unwrap() }
    }

    /// `stem`: of the GGUF file, or "" for the safetensors checkpoint.
    pub(crate) fn prompts(&self, stem: &str) -> Vec<GoldenPrompt> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let words = |name: &str| {
            let view = tensors.tensor(name).unwrap();
            view.data().as_chunks::<4>().0.to_vec()
        };
        let dot = if stem.is_empty() { "" } else { "." };
        let prompt = |number: usize| {
            let ids = words(&format!("ids.{number}")).into_iter().map(u32::from_le_bytes).collect();
            let positions = words(&format!("positions.{number}")).into_iter().map(u32::from_le_bytes);
            let logits: Vec<f32> =
                words(&format!("{stem}{dot}logits.{number}")).into_iter().map(f32::from_le_bytes).collect();
            let vocab = logits.len() / positions.len();
            let rows = positions.map(|p| p as usize).zip(logits.chunks(vocab).map(<[f32]>::to_vec)).collect();
            GoldenPrompt { ids, rows }
        };
        (0..2).map(prompt).collect()
    }
}

/// Largest error of `found`, relative to the expected value or to the row's root mean square, whichever is larger.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let rms = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
    found.iter().zip(expected).fold(0.0, |worst: f32, (f, e)| {
        let error = (f - e).abs() / e.abs().max(rms);
        if error.is_nan() { f32::INFINITY } else { worst.max(error) }
    })
}
