//! What the tests of several architectures share: to which experts a model's layers send tokens, how evenly, and whether as
//! transformers does.

use std::path::{Path, PathBuf};

use candle_core::Device;
use plimsoll_nn::{Attention, Checkpoint, ForwardBatch, KvCache, ModelInfo, Moe, Residual, RmsNorm, Weights};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use plimsoll_ops::moe::Routes;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer};
use crate::find;

/// A layer that may be a mixture of experts.
pub(crate) trait RoutedLayer: DecoderLayer {
    /// What it is made of. None: it has no experts.
    fn mixture(&self) -> Option<Mixture<'_>>;
}

/// A layer whose experts add to what its attention leaves.
pub(crate) struct Mixture<'a> {
    pub(crate) input_norm: &'a RmsNorm,
    pub(crate) attention: &'a Attention,
    pub(crate) post_attention_norm: &'a RmsNorm,
    pub(crate) moe: &'a Moe,
}

impl Mixture<'_> {
    /// As the layer's own forward pass; returns what its router decided.
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> Routes {
        let normed = x.norm(self.input_norm).unwrap();
        x.add(self.attention.forward(&normed, batch, cache).unwrap());
        let normed = x.norm(self.post_attention_norm).unwrap();
        x.add(self.moe.forward(&normed, batch).unwrap());
        self.moe.routes(&normed, batch).unwrap()
    }
}

/// What each layer's router decided.
fn routes<L: RoutedLayer>(model: &Decoder<L>, info: &ModelInfo, prompts: &[Vec<u32>]) -> Vec<Option<Routes>> {
    let (batch, cache) = batch(info, prompts);
    let mut x = model.embed_tokens.forward(&batch).unwrap();
    let mut routes = |layer: &L| match layer.mixture() {
        Some(mixture) => Some(mixture.forward(&mut x, &batch, &cache)),
        None => {
            layer.forward(&mut x, &batch, &cache).unwrap();
            None
        }
    };
    model.layers.iter().map(&mut routes).collect()
}

/// Tokens of a block, and the most of a prompt.
const BLOCK: u32 = 128;

/// Whole prompts, and a cache for them.
fn batch(info: &ModelInfo, prompts: &[Vec<u32>]) -> (ForwardBatch, KvCache) {
    let count = prompts.len() as u32;
    let groups = vec![count; info.groups.len()];
    let cache = KvCache::new(info, &groups, BLOCK as usize, KvDtype::F32, &Device::Cpu).unwrap();
    let seq_lens: Vec<u32> = prompts.iter().map(|prompt| prompt.len() as u32).collect();
    let ends = seq_lens.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let group = PagedBatch {
        block_size: BLOCK as usize,
        cu_seqlens: std::iter::once(0).chain(ends).collect(),
        block_offsets: (0..=count).collect(),
        blocks: (0..count).collect(),
        first_block: vec![0; count as usize],
        slot_mapping: (0..count).zip(&seq_lens).flat_map(|(seq, &len)| seq * BLOCK..seq * BLOCK + len).collect(),
        seq_lens: seq_lens.clone(),
        ..PagedBatch::default()
    };
    let batch = ForwardBatch {
        input_ids: prompts.concat(),
        positions: seq_lens.into_iter().flat_map(|len| 0..len).collect(),
        groups: vec![group; info.groups.len()],
        ..ForwardBatch::default()
    };
    (batch, cache)
}

/// Checks that each layer of a model of made-up weights loads its experts about as evenly as if each token's were drawn.
pub(crate) fn check_balance<L: RoutedLayer>(config: &Value, model: &Decoder<L>, experts: usize) {
    let info = (find(config).unwrap().info)(config).unwrap();
    assert_eq!(info.vocab_size % 2, 0, "so that an odd factor makes no two tokens the same");
    // Of tokens that differ, as the words of texts do.
    let token = |at: u32| at * 1663 % info.vocab_size as u32;
    let prompts: Vec<Vec<u32>> = (0..16).map(|seq| (seq * BLOCK..(seq + 1) * BLOCK).map(token).collect()).collect();
    for (layer, routes) in routes(model, &info, &prompts).into_iter().enumerate() {
        let loads: Vec<usize> = routes.expect("a mixture of experts").by_expert(experts).iter().map(Vec::len).collect();
        let imbalance = imbalance(&loads);
        println!("layer {layer}: {imbalance:.2}");
        assert!(imbalance < 2.5, "layer {layer}: {imbalance}, {loads:?}");
    }
}

/// The variance of the experts' loads over what chance alone would give: 1 where each token's experts are drawn evenly.
pub(crate) fn imbalance(loads: &[usize]) -> f64 {
    let (experts, total) = (loads.len() as f64, loads.iter().sum::<usize>() as f64);
    let mean = total / experts;
    let squares: f64 = loads.iter().map(|&load| (load as f64 - mean).powi(2)).sum();
    squares / (experts - 1.0) / (mean * (1.0 - 1.0 / experts))
}

/// Checks the routers of each tiny checkpoint of an architecture against those of transformers: every token goes to the same
/// experts in every layer, and each weighs as much. Returns how many checkpoints there were.
pub(crate) fn check_routes<L: RoutedLayer>(
    architectures: &[&str],
    decoder: impl Fn(&Value, &Weights<'_>) -> Decoder<L>,
) -> usize {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut checked = 0;
    for folder in files(&golden).filter(|folder| folder.join("golden.safetensors").exists()) {
        let recorded = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&recorded).unwrap();
        let gguf = files(&folder).filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
        let whole = folder.join("config.json").exists().then(|| folder.clone());
        for path in whole.into_iter().chain(gguf) {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let config = checkpoint.config();
            if architectures.iter().any(|name| config["architectures"][0] == *name) {
                let weights = Weights::new(&checkpoint, Activations::F32, |_, _| ()).unwrap();
                let info = (find(config).unwrap().info)(config).unwrap();
                check_recorded(&path, &recorded, &info, &decoder(config, &weights));
                checked += 1;
            }
        }
    }
    checked
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())
}

fn check_recorded<L: RoutedLayer>(path: &Path, recorded: &SafeTensors<'_>, info: &ModelInfo, model: &Decoder<L>) {
    let case = path.display();
    let prefix = match path.extension() {
        Some(_) => format!("{}.", path.file_stem().unwrap().display()),
        None => String::new(),
    };
    let words = |name: &str| recorded.tensor(name).ok().map(|tensor| tensor.data().as_chunks::<4>().0.to_vec());
    for number in 0..2 {
        let ids: Vec<u32> = words(&format!("ids.{number}")).unwrap().into_iter().map(u32::from_le_bytes).collect();
        for (layer, routes) in routes(model, info, std::slice::from_ref(&ids)).into_iter().enumerate() {
            let expected = words(&format!("{prefix}routes.{layer}.{number}"));
            assert_eq!(routes.is_some(), expected.is_some(), "{case}: layer {layer} is a mixture");
            let (Some(routes), Some(expected)) = (routes, expected) else { continue };
            let expected: Vec<f32> = expected.into_iter().map(f32::from_le_bytes).collect();
            let experts = expected.len() / ids.len();
            let mut found = vec![0.0; expected.len()];
            for (expert, tokens) in routes.by_expert(experts).into_iter().enumerate() {
                tokens.into_iter().for_each(|(token, weight)| found[token * experts + expert] = weight);
            }
            for (at, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                let place = format!("{case}: layer {layer}, token {}, expert {}", at / experts, at % experts);
                assert_eq!(found == 0.0, expected == 0.0, "{place}: {found}, {expected}");
                assert!((found - expected).abs() <= 1e-4 * expected, "{place}: {found}, {expected}");
            }
        }
    }
}
