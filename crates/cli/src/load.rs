//! What `bench` and `saturate` take in common: where the server is, what is asked of it, and with which prompts.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use plimsoll_bench::{Endpoint, EndpointKind, Generation, Lengths, PromptSource, SharedPrefix, Workload};
use serde_json::{Map, Value};

/// Options of the workload.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub(crate) struct LoadOptions {
    /// Endpoint to drive; base models, which have no chat template, need `completions`
    #[arg(long, value_name = "KIND", default_value = "chat")]
    endpoint: Kind,

    /// Model to ask for [default: the only one that the server lists]
    #[arg(long = "model-name", value_name = "NAME")]
    model_name: Option<String>,

    /// Prompts to send: ShareGPT JSON, or lines of {"prompt": "..."} or {"messages": [...]}, each with "output_len" if its
    /// reply is to have a length of its own [default: the bundled set, prompts of 1 to 63 tokens]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Send random words, so many tokens of them: 512, 100-600, normal:MEAN:DEVIATION, or 128x3,512x1 (lengths with
    /// weights). Replies are of --random-output tokens, whatever the model says
    #[arg(long, value_name = "LENGTHS", conflicts_with = "prompts", requires = "random_output")]
    random_input: Option<Lengths>,

    /// Lengths of the replies to --random-input, in the same forms
    #[arg(long, value_name = "LENGTHS", requires = "random_input")]
    random_output: Option<Lengths>,

    /// Replay a trace, as random words of its lengths: lines of {"timestamp": MILLISECONDS, "input_length": N,
    /// "output_length": M}, or CSV with such a header. `bench --arrivals trace` keeps to its times, too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "random_input"])]
    trace: Option<PathBuf>,

    /// Play the trace so many times as fast as it was
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, requires = "trace")]
    trace_speed: f64,

    /// Turns of each conversation of --prompts to send, one after another, each with what the file says went before
    #[arg(long, value_name = "N", default_value_t = 1)]
    turns: u32,

    /// Begin the requests with a text of so many tokens that they share, as with a common system prompt
    #[arg(long, value_name = "TOKENS")]
    shared_prefix: Option<u32>,

    /// How many such texts there are, in turns
    #[arg(long, value_name = "N", default_value_t = 1, requires = "shared_prefix")]
    prefix_groups: u32,

    /// Shortest prompt of --prompts or the bundled set to send, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1)]
    min_prompt_tokens: u32,

    /// Longest of them
    #[arg(long, value_name = "TOKENS", default_value_t = 63)]
    max_prompt_tokens: u32,

    /// Output tokens at most
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    max_tokens: u32,

    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,

    /// Seed of the prompts' order
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Generate `--max-tokens` tokens whatever the model says, so that every request is equal work
    #[arg(long)]
    ignore_eos: bool,

    /// JSON object of fields added to each request, for instance '{"top_k": 1}'
    #[arg(long, value_name = "JSON")]
    extra_body: Option<String>,

    /// Seconds a request may take before it counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Chat,
    Completions,
}

impl LoadOptions {
    pub(crate) fn endpoint(&self, url: String, api_key: Option<String>) -> Endpoint {
        let kind = match self.endpoint {
            Kind::Chat => EndpointKind::Chat,
            Kind::Completions => EndpointKind::Completions,
        };
        Endpoint { url, kind, model: self.model_name.clone(), api_key }
    }

    pub(crate) fn generation(&self) -> Result<Generation> {
        let extra_body: Map<String, Value> = match &self.extra_body {
            Some(text) => serde_json::from_str(text).context("--extra-body is not a JSON object")?,
            None => Map::new(),
        };
        Ok(Generation {
            max_tokens: self.max_tokens,
            temperature: Some(self.temperature),
            seed: None,
            ignore_eos: self.ignore_eos,
            extra_body,
        })
    }

    pub(crate) fn workload(&self, salt: bool) -> Workload {
        let prompts = match (&self.prompts, &self.trace, &self.random_input, &self.random_output) {
            (Some(path), ..) => PromptSource::File(path.clone()),
            (_, Some(path), ..) => PromptSource::Trace { path: path.clone(), speed: self.trace_speed },
            (.., Some(input), Some(output)) => PromptSource::Random { input: input.clone(), output: output.clone() },
            _ => PromptSource::Bundled,
        };
        Workload {
            prompts,
            turns: self.turns,
            shared_prefix: self.shared_prefix.map(|tokens| SharedPrefix { tokens, groups: self.prefix_groups }),
            min_tokens: self.min_prompt_tokens,
            max_tokens: self.max_prompt_tokens,
            seed: self.seed,
            salt,
        }
    }

    pub(crate) fn timeout(&self) -> Result<Duration> {
        ensure!((1..=86_400).contains(&self.timeout), "--timeout is {}; give 1 to 86400 seconds", self.timeout);
        Ok(Duration::from_secs(self.timeout))
    }
}
