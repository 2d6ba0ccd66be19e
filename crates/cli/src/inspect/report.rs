//! What was found out, as JSON has it and as a person reads it.

use std::fmt::{self, Display, Formatter};

use plimsoll_nn::ModelInfo;
use plimsoll_text::Tokenizer;
use serde::Serialize;

use super::memory::{Memory, Outcome};
use super::tensors::{Group, by_element, groups};
use crate::bytes::ByteSize;
use crate::source::Source;

/// All of it; what could not be found out is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// What clients would call it.
    pub(super) name: String,
    pub(super) path: Option<String>,
    /// `gguf`, `safetensors`, or `dummy` where there is but a config.
    pub(super) stored_as: Option<&'static str>,
    /// As the files name it, whether or not it is known here.
    pub(super) claimed_architecture: Option<String>,
    pub(super) architecture: Option<Architecture>,
    /// How the matrices are stored.
    pub(super) quantization: Option<String>,
    pub(super) parameters: Option<u64>,
    /// Of all tensors, as stored.
    pub(super) stored_bytes: Option<u64>,
    pub(super) tensors: Vec<Group>,
    pub(super) memory: Option<Memory>,
    pub(super) tokenizer: Option<TokenizerFacts>,
    /// Why it would not load; empty if it would.
    pub(super) problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Architecture {
    pub(super) name: String,
    pub(super) layers: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) attention_heads: usize,
    /// As many as the widest layer has.
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct TokenizerFacts {
    pub(super) vocab_size: usize,
    pub(super) has_chat_template: bool,
}

impl Architecture {
    pub(super) fn of(info: &ModelInfo) -> Self {
        let widest = |count: fn(&plimsoll_nn::LayerInfo) -> usize| info.layers.iter().map(count).max().unwrap_or(0);
        Self {
            name: info.architecture.clone(),
            layers: info.layers.len(),
            hidden_size: info.hidden_size,
            intermediate_size: info.intermediate_size,
            attention_heads: info.num_attention_heads,
            kv_heads: widest(|layer| layer.kv_heads),
            head_dim: widest(|layer| layer.head_dim),
            vocab_size: info.vocab_size,
            max_position_embeddings: info.max_position_embeddings,
        }
    }
}

impl Report {
    pub(super) fn add_source(&mut self, source: &Source) {
        self.claimed_architecture = super::claimed_architecture(source.config());
        // One that is not served is among the problems of what follows.
        self.quantization = plimsoll_nn::Quantization::parse(source.config()).ok().map(|found| found.to_string());
        let Source::Checkpoint(checkpoint) = source else {
            self.stored_as = Some("dummy");
            return;
        };
        self.stored_as = Some(if checkpoint.gguf().is_some() { "gguf" } else { "safetensors" });
        self.path = Some(checkpoint.path().display().to_string());
        self.stored_bytes = Some(checkpoint.weight_bytes());
        self.tensors = groups(&checkpoint.tensors());
    }

    pub(super) fn add_tokenizer(&mut self, tokenizer: &Tokenizer) {
        let (vocab_size, has_chat_template) = (tokenizer.vocab_size(), tokenizer.chat_template().is_ok());
        self.tokenizer = Some(TokenizerFacts { vocab_size, has_chat_template });
    }
}

/// A report for people.
pub(super) struct Text<'a>(pub(super) &'a Report);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Text(report) = self;
        line(f, "model", &report.name)?;
        if let Some(path) = &report.path {
            line(f, "path", path)?;
        }
        match (&report.architecture, &report.claimed_architecture) {
            (Some(known), _) => write_architecture(f, known)?,
            (None, Some(claimed)) => line(f, "architecture", claimed)?,
            (None, None) => {}
        }
        write_stored(f, report)?;
        if let Some(parameters) = report.parameters {
            line(f, "parameters", Count(parameters))?;
        }
        match &report.tokenizer {
            Some(TokenizerFacts { vocab_size, has_chat_template }) => {
                let template = if *has_chat_template { "with" } else { "without" };
                line(f, "tokenizer", format_args!("{vocab_size} tokens, {template} a chat template"))?;
            }
            None if report.stored_as.is_some() => line(f, "tokenizer", "none that can be used")?,
            None => {}
        }
        write_tensors(f, &report.tensors)?;
        if let Some(memory) = &report.memory {
            write_memory(f, memory)?;
        }
        let refuses = report.memory.as_ref().is_some_and(|memory| matches!(memory.serve, Outcome::Refuses(_)));
        match &report.problems[..] {
            [] if refuses => {
                writeln!(f, "\nit would load on a machine with more memory, or with the changes named above")
            }
            [] => writeln!(f, "\nit would load"),
            problems => {
                writeln!(f, "\nit would not load:")?;
                problems.iter().try_for_each(|problem| writeln!(f, "  - {problem}"))
            }
        }
    }
}

/// A large number as people say it.
struct Count(u64);

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 1_000_000_000 => write!(f, "{:.2} billion", n as f64 / 1e9),
            n if n >= 1_000_000 => write!(f, "{:.1} million", n as f64 / 1e6),
            n => write!(f, "{n}"),
        }
    }
}

fn line(f: &mut Formatter<'_>, label: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "{label:<14} {value}")
}

fn write_architecture(f: &mut Formatter<'_>, known: &Architecture) -> fmt::Result {
    line(f, "architecture", &known.name)?;
    let Architecture { layers, hidden_size, intermediate_size, attention_heads, kv_heads, head_dim, .. } = known;
    line(f, "layers", format_args!("{layers}, hidden {hidden_size}, MLP {intermediate_size}"))?;
    line(f, "attention", format_args!("{attention_heads} heads of {head_dim}, {kv_heads} of keys and values"))?;
    line(f, "context", format_args!("{} tokens", known.max_position_embeddings))?;
    line(f, "vocabulary", format_args!("{} tokens", known.vocab_size))
}

fn write_stored(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(stored_as) = report.stored_as else { return Ok(()) };
    let quantization = report.quantization.as_deref().unwrap_or("quantized in an unknown way");
    let Some(bytes) = report.stored_bytes else {
        return line(f, "weights", format_args!("{stored_as}, {quantization}"));
    };
    let shares = by_element(&report.tensors).into_iter().map(|(element, of)| format!("{element} {}", ByteSize(of)));
    let shares = shares.collect::<Vec<_>>().join(", ");
    // A GGUF file's types say how it is quantized.
    let quantization = if stored_as == "gguf" { String::new() } else { format!(", {quantization}") };
    line(f, "weights", format_args!("{}, {stored_as}{quantization} ({shares})", ByteSize(bytes)))
}

fn write_tensors(f: &mut Formatter<'_>, groups: &[Group]) -> fmt::Result {
    if groups.is_empty() {
        return Ok(());
    }
    let width = groups.iter().map(|group| group.name.chars().count()).max().unwrap_or(0).clamp(7, 80);
    writeln!(f, "\n{:<width$} {:>6}  {:<8} {:>10}  shape", "tensors", "count", "type", "size")?;
    for Group { name, element, count, shape, bytes } in groups {
        let shape = shape.as_ref().map_or_else(|| "various".to_owned(), |shape| format!("{shape:?}"));
        let size = ByteSize(*bytes).to_string();
        let name = name.escape_debug().to_string();
        writeln!(f, "{name:<width$} {count:>6}  {element:<8} {size:>10}  {shape}")?;
    }
    Ok(())
}

fn write_memory(f: &mut Formatter<'_>, memory: &Memory) -> fmt::Result {
    let Memory { device, max_model_len: len, max_num_seqs: seqs, kv_cache_dtype, .. } = memory;
    writeln!(f, "\nmemory on {device}, KV cache of {kv_cache_dtype}")?;
    let row = |f: &mut Formatter<'_>, label: &str, bytes: u64| {
        writeln!(f, "  {label:<44} {:>10}", ByteSize(bytes).to_string())
    };
    row(f, "weights", memory.weights)?;
    row(f, "KV cache, a token", memory.kv_a_token)?;
    for group in memory.kv_groups.iter().filter(|_| memory.kv_groups.len() > 1) {
        let reach = group.window.map_or("full attention".to_owned(), |window| format!("window of {window}"));
        let layers = if group.layers == 1 { "layer" } else { "layers" };
        row(f, &format!("  {} {layers}, {reach}", group.layers), group.kv_a_token)?;
    }
    row(f, &format!("KV cache, a request of {len} tokens"), memory.kv_a_request)?;
    row(f, &format!("KV cache, {seqs} such requests at once"), memory.kv_all_requests)?;
    row(f, "workspace of a step (estimate)", memory.workspace)?;
    if memory.overhead > 0 {
        row(f, "graphs and libraries (estimate)", memory.overhead)?;
    }
    row(f, &format!("all, with {seqs} such requests"), memory.total)?;
    row(f, "what may be used now", memory.available)?;
    match &memory.serve {
        Outcome::Starts { kv_cache, total, max_model_len, full_length_requests } => writeln!(
            f,
            "  serve would take {}, of which KV cache {}: room for {full_length_requests} requests of {max_model_len} \
             tokens at once",
            ByteSize(*total),
            ByteSize(*kv_cache)
        ),
        Outcome::Refuses(problem) => writeln!(f, "  serve would refuse: {problem}"),
    }
}
