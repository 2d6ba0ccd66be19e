//! The tiny checkpoints of `tests/golden`, whose logits transformers has computed, on whatever device.
//!
//! A model's prompt is run once (prefill) up to each position whose logits are recorded; and what it generates token
//! by token (decode) is run again as a prompt, and must be as likely.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use plimsoll_core::TokenId;
use plimsoll_nn::Checkpoint;
use safetensors::SafeTensors;

use crate::drive::{Ask, Driver, Generated, Unobserved, logprob_difference};
use crate::model::{Sizes, Source, open};

/// Likeliest tokens that are compared.
const TOP: u32 = 20;

/// Tokens generated to compare decoding with prefill.
const DECODED: u32 = 24;

const SIZES: Sizes =
    Sizes { max_num_seqs: 16, max_num_batched_tokens: 512, max_model_len: 128, cached_tokens: 16 * 80 };

/// One checkpoint and what is known of it.
#[derive(Debug)]
pub struct Golden {
    pub name: String,
    /// A layer is a mixture of experts.
    pub is_mixture: bool,
    architecture: String,
    /// The folder of safetensors, or the GGUF file.
    path: PathBuf,
    prompts: Vec<Prompt>,
}

#[derive(Debug)]
struct Prompt {
    ids: Vec<TokenId>,
    /// Positions whose logits are recorded, and these.
    rows: Vec<(usize, Vec<f32>)>,
}

/// How far a device is from what was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Agreement {
    /// Root mean square error of the likeliest tokens' log probabilities, over the standard deviation of the logits.
    pub error: f64,
    /// The same of the position in the middle: what one that went astray does not change.
    pub typical_error: f64,
    /// Positions where the likeliest token is the recorded one, and all positions.
    pub same_choice: usize,
    pub positions: usize,
    /// The error of decoding against prefill, measured likewise.
    pub decode_error: f64,
}

/// Every recorded checkpoint in `folder`, what tells most first: see [`by_news`].
///
/// # Errors
/// A recording is malformed.
pub fn all(folder: &Path) -> Result<Vec<Golden>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let case = entry?.path();
        if case.join("golden.safetensors").exists() {
            for path in checkpoints(&case)? {
                found.push(Golden::read(&case, &path).with_context(|| path.display().to_string())?);
            }
        }
    }
    Ok(by_news(found))
}

/// A folder's checkpoints: it, if it has one of safetensors, and its GGUF files.
fn checkpoints(folder: &Path) -> Result<Vec<PathBuf>> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let gguf = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let whole = folder.join("config.json").exists().then(|| folder.to_owned());
    Ok(whole.into_iter().chain(gguf).collect())
}

/// One of each architecture, then one of each variant, then the others.
fn by_news(mut all: Vec<Golden>) -> Vec<Golden> {
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let mut architectures = HashSet::new();
    let (first, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|golden| architectures.insert(golden.architecture.clone()));
    let mut variants: HashSet<_> = first.iter().map(Golden::variant).collect();
    let (second, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|golden| variants.insert(golden.variant()));
    [first, second, others].into_iter().flatten().collect()
}

impl Golden {
    /// A checkpoint at `path` whose recording is in `folder`.
    fn read(folder: &Path, path: &Path) -> Result<Self> {
        let stem = (path != folder).then(|| path.file_stem().unwrap_or_default().to_string_lossy());
        let prefix = stem.as_ref().map(|stem| format!("{stem}.")).unwrap_or_default();
        let bytes = std::fs::read(folder.join("golden.safetensors"))?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let words = |name: &str| -> Result<Vec<[u8; 4]>> { Ok(tensors.tensor(name)?.data().as_chunks().0.to_vec()) };
        let integers = |name: &str| anyhow::Ok(words(name)?.into_iter().map(u32::from_le_bytes).collect::<Vec<_>>());
        let prompt = |number: usize| -> Result<Prompt> {
            let positions: Vec<u32> = integers(&format!("positions.{number}"))?;
            let logits: Vec<f32> =
                words(&format!("{prefix}logits.{number}"))?.into_iter().map(f32::from_le_bytes).collect();
            ensure!(!positions.is_empty() && !logits.is_empty(), "nothing is recorded");
            let rows = logits.chunks(logits.len() / positions.len()).map(<[f32]>::to_vec);
            let rows = positions.iter().map(|position| *position as usize).zip(rows).collect();
            Ok(Prompt { ids: integers(&format!("ids.{number}"))?, rows })
        };
        let folder = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = [Some(folder), stem].into_iter().flatten().collect::<Vec<_>>().join("-");
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config();
        let is_mixture = config.to_string().contains("num_experts_per_tok");
        let architecture = config["architectures"][0].as_str().context("its config names no architecture")?.to_owned();
        Ok(Self { name, is_mixture, architecture, path: path.to_owned(), prompts: vec![prompt(0)?, prompt(1)?] })
    }

    /// What its name has after the family's, a format as a rule; and whether that is one of experts.
    fn variant(&self) -> (String, bool) {
        let after = self.name.split_once('-').map_or("", |(_, after)| after);
        (after.to_owned(), self.is_mixture)
    }

    /// Runs the checkpoint on `device`.
    ///
    /// # Errors
    /// It does not load, or a step fails.
    pub fn run(&self, device: &Device) -> Result<Agreement> {
        let mut driver = Driver::new(open(Source::Checkpoint(&self.path), SIZES, device)?)?;
        let rows = || self.prompts.iter().flat_map(|prompt| prompt.rows.iter().map(move |row| (prompt, row)));
        let asks: Vec<Ask> = rows().map(|(prompt, (position, _))| ask(&prompt.ids[..=*position], 1)).collect();
        let run = driver.run(&asks, &mut Unobserved)?;
        let (mut squares, mut same_choice) = (Vec::new(), 0);
        for ((_, (_, logits)), generated) in rows().zip(&run.generated) {
            let expected = Expected::new(logits);
            let found = generated.first().context("a request got no token")?;
            same_choice += usize::from(found.token == expected.choice);
            let top = &found.logprobs.as_ref().context("no log probabilities came")?.top;
            ensure!(top.len() == TOP as usize, "{} log probabilities came instead of {TOP}", top.len());
            let off = |(token, logprob): &(TokenId, f32)| f64::from(*logprob) - expected.logprob(*token);
            let total: f64 = top.iter().map(|found| (off(found) / expected.deviation).powi(2)).sum();
            squares.push(total / top.len() as f64);
        }
        squares.sort_by(f64::total_cmp);
        let deviation = Expected::new(&self.prompts[0].rows[0].1).deviation;
        let decode_error = self.decode_error(&mut driver)? / deviation;
        Ok(Agreement {
            error: (squares.iter().sum::<f64>() / squares.len() as f64).sqrt(),
            typical_error: squares[squares.len() / 2].sqrt(),
            same_choice,
            positions: asks.len(),
            decode_error,
        })
    }

    fn decode_error(&self, driver: &mut Driver) -> Result<f64> {
        let prompt = &self.prompts[1].ids;
        let decoded = driver.run(&[ask(prompt, DECODED)], &mut Unobserved)?.generated.remove(0);
        let mut whole = prompt.clone();
        let mut asks = Vec::new();
        for Generated { token, .. } in &decoded {
            asks.push(ask(&whole, 1));
            whole.push(*token);
        }
        let prefilled = driver.run(&asks, &mut Unobserved)?.generated.concat();
        ensure!(prefilled.len() == DECODED as usize, "{} tokens came instead of {DECODED}", prefilled.len());
        logprob_difference(&decoded, &prefilled).context("decode and prefill have no likely token in common")
    }
}

fn ask(prompt: &[TokenId], tokens: u32) -> Ask {
    Ask { prompt: prompt.to_vec(), tokens, logprobs: Some(TOP) }
}

/// A row of logits as a distribution.
struct Expected<'a> {
    logits: &'a [f32],
    choice: TokenId,
    /// Log of the sum of all exponentials.
    log_sum: f64,
    deviation: f64,
}

impl<'a> Expected<'a> {
    fn new(logits: &'a [f32]) -> Self {
        let values = || logits.iter().map(|logit| f64::from(*logit));
        let choice = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        let most = f64::from(logits[choice]);
        let log_sum = most + values().map(|logit| (logit - most).exp()).sum::<f64>().ln();
        let mean = values().sum::<f64>() / logits.len() as f64;
        let variance = values().map(|logit| (logit - mean).powi(2)).sum::<f64>() / logits.len() as f64;
        Self { logits, choice: choice as TokenId, log_sum, deviation: variance.sqrt() }
    }

    fn logprob(&self, token: TokenId) -> f64 {
        f64::from(self.logits[token as usize]) - self.log_sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_most_comes_first() {
        let golden = |(name, architecture, is_mixture): (&str, &str, bool)| Golden {
            name: name.to_owned(),
            is_mixture,
            architecture: architecture.to_owned(),
            path: PathBuf::new(),
            prompts: Vec::new(),
        };
        let all = [
            ("b-fp8", "B", false),
            ("b", "B", false),
            ("a-fp8", "A", false),
            ("c-fp8", "C", true),
            ("c", "C", true),
            ("a", "A", false),
            ("a-seeing", "ASeeing", false),
        ];
        let sorted = by_news(all.map(golden).into());
        let names: Vec<&str> = sorted.iter().map(|golden| golden.name.as_str()).collect();
        assert_eq!(names, ["a", "a-seeing", "b", "c", "a-fp8", "c-fp8", "b-fp8"]);
    }

    #[test]
    fn a_cpu_computes_what_was_recorded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let all = all(&folder).unwrap();
        assert!(all.len() >= 4, "{all:?}");
        for golden in all {
            let Agreement { error, same_choice, positions, decode_error, .. } = golden.run(&Device::Cpu).unwrap();
            assert!(error < 1e-4, "{}: {error:e}", golden.name);
            assert_eq!((same_choice, positions), (12, 12), "{}", golden.name);
            assert!(decode_error < 1e-4, "{}: {decode_error:e}", golden.name);
        }
    }
}
