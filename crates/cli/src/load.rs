//! What `bench` and `saturate` take in common: where the server is, what is asked of it, and with which prompts.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use plimsoll_bench::{Endpoint, EndpointKind, Generation, PromptSource, Workload};
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

    /// Prompts to send: ShareGPT JSON, or lines of {"prompt": "..."} [default: the bundled set]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Shortest prompt to send, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1)]
    min_prompt_tokens: u32,

    /// Longest prompt to send, in tokens
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
        Workload {
            prompts: self.prompts.clone().map_or(PromptSource::Bundled, PromptSource::File),
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
