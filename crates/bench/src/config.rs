//! What to measure. Plain values with defaults; the command line fills them in and reports carry them along.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::arrivals::Arrivals;
use crate::error::{BenchError, Result};
use crate::lengths::{Lengths, MOST_INPUT_TOKENS};
use crate::slo::Slo;

/// The reference workload's limits: prompts of 1 to 63 tokens, at most 100 tokens of output.
const MIN_PROMPT_TOKENS: u32 = 1;
const MAX_PROMPT_TOKENS: u32 = 63;
const MAX_OUTPUT_TOKENS: u32 = 100;

/// Which of the two generating endpoints is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndpointKind {
    /// `/v1/chat/completions`.
    #[default]
    Chat,
    /// `/v1/completions`, for base models, which have no chat template.
    Completions,
}

/// Where the server under test is and what it is to be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Endpoint {
    /// `http://host:port`, with or without a trailing `/v1`.
    pub url: String,
    pub kind: EndpointKind,
    /// None: the only model that `/v1/models` lists.
    pub model: Option<String>,
    /// Sent as a bearer token. Never written to a report.
    #[serde(skip)]
    pub api_key: Option<String>,
}

impl Endpoint {
    /// The chat endpoint of a server, its model still to be found.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), kind: EndpointKind::Chat, model: None, api_key: None }
    }
}

/// What is asked of the model in every request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Generation {
    pub max_tokens: u32,
    /// None leaves the field out, so that the server's default holds.
    pub temperature: Option<f32>,
    /// Request `i` is sent `seed + i`. None leaves the field out.
    pub seed: Option<u64>,
    /// Generate to `max_tokens` whatever the model says: equal work for every request.
    pub ignore_eos: bool,
    /// Fields added to every request body. They win over the ones above; `null` removes a field.
    pub extra_body: Map<String, Value>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_tokens: MAX_OUTPUT_TOKENS,
            temperature: Some(0.0),
            seed: None,
            ignore_eos: false,
            extra_body: Map::new(),
        }
    }
}

/// Where the prompts come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PromptSource {
    /// The set compiled into the program.
    #[default]
    Bundled,
    /// ShareGPT as one JSON array or one object a line, or lines of `{"prompt": ...}` or `{"messages": [...]}`.
    File(PathBuf),
    /// Random words; replies go on to the length that was drawn, whatever the model says.
    Random { input: Lengths, output: Lengths },
    /// Random words of the lengths, and with the times of arrival, that a trace gives.
    Trace {
        path: PathBuf,
        /// So many times as fast as it was.
        speed: f64,
    },
}

/// A beginning that requests have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SharedPrefix {
    pub tokens: u32,
    /// How many different ones there are, in turns.
    pub groups: u32,
}

/// Which prompts are sent, in which order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Workload {
    pub prompts: PromptSource,
    /// Shortest and longest prompt, in tokens of its own text (without the chat template), both included.
    pub min_tokens: u32,
    pub max_tokens: u32,
    /// Order of the prompts, and the salts.
    pub seed: u64,
    /// Begin each prompt with a tag no other request has, in no other run either, so that no prompt is answered from a
    /// warm prefix cache. What a conversation or a shared prefix repeats is still the same within a run.
    pub salt: bool,
    /// Turns of each conversation to send at most, one after another, each with what the file says went before.
    #[serde(default = "one")]
    pub turns: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_prefix: Option<SharedPrefix>,
}

fn one() -> u32 {
    1
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            prompts: PromptSource::Bundled,
            min_tokens: MIN_PROMPT_TOKENS,
            max_tokens: MAX_PROMPT_TOKENS,
            seed: 0,
            salt: false,
            turns: 1,
            shared_prefix: None,
        }
    }
}

/// One run at one load: by default a closed loop of `concurrency` clients, each with one request in flight, until
/// `requests` have been issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BenchConfig {
    pub endpoint: Endpoint,
    pub generation: Generation,
    pub workload: Workload,
    /// Of an open loop, the most requests in flight: what is due beyond them is dropped, and counted as a failure.
    pub concurrency: u32,
    #[serde(default)]
    pub arrivals: Arrivals,
    /// What requests must keep to count for goodput.
    #[serde(default)]
    pub slo: Slo,
    /// `u64::MAX`: until `max_duration` or the end of a trace.
    pub requests: u64,
    /// Requests sent one after another before the clock starts, and not counted.
    pub warmup: u32,
    /// The clients start evenly spread over this time.
    pub ramp: Duration,
    /// No request is issued after this; those in flight still finish.
    pub max_duration: Duration,
    /// From sending to the end of the reply. Past it the request is a failure of cause `timeout`.
    pub request_timeout: Duration,
    /// For opening a connection, and for each small question before the run (the model list, token counts).
    pub connect_timeout: Duration,
}

impl BenchConfig {
    /// A short run against `url` with the reference workload.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            endpoint: Endpoint::new(url),
            generation: Generation::default(),
            workload: Workload::default(),
            concurrency: 1,
            arrivals: Arrivals::Closed,
            slo: Slo::default(),
            requests: 100,
            warmup: 1,
            ramp: Duration::from_millis(500),
            max_duration: Duration::from_secs(3600),
            request_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check(self.concurrency > 0, "concurrency must be at least 1")?;
        check(self.requests > 0, "requests must be at least 1")?;
        check(!self.max_duration.is_zero(), "the longest duration must be more than 0")?;
        self.arrivals.validate()?;
        let has_trace = matches!(self.workload.prompts, PromptSource::Trace { .. });
        check(self.arrivals != Arrivals::Trace || has_trace, "arrivals of a trace need a trace; give one")?;
        check_slo(&self.slo)?;
        check_common(&self.generation, &self.workload, self.request_timeout)
    }
}

/// When a rung of the ladder has been measured well enough.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RungRule {
    pub min_time: Duration,
    /// The rung ends here, precise or not, unless too little has completed to measure anything; then it goes on, up to
    /// three times as long.
    pub max_time: Duration,
    /// Enough once the 95% half-width of output tok/s is within this share of it.
    pub half_width: f64,
    /// ... and this many requests for each concurrent client have completed.
    pub completions_per_client: u32,
}

impl Default for RungRule {
    fn default() -> Self {
        Self {
            min_time: Duration::from_secs(5),
            max_time: Duration::from_secs(45),
            half_width: 0.02,
            completions_per_client: 10,
        }
    }
}

impl RungRule {
    /// Rungs beside the ladder's: two bisections, the ends of the second once more, the open loop, and the check of
    /// drift.
    const BESIDE_THE_LADDER: u32 = 20;

    /// Rungs short enough that a search up to `max_concurrency` should end within `budget`, and no longer than by
    /// default.
    pub fn within(budget: Duration, max_concurrency: u32) -> Self {
        let rungs = max_concurrency.max(1).ilog2() + 1 + Self::BESIDE_THE_LADDER;
        let rule = Self::default();
        let max_time = (budget / rungs).clamp(Duration::from_secs(1), rule.max_time);
        Self { min_time: rule.min_time.min(max_time / 3), max_time, ..rule }
    }
}

/// A search for the concurrency at which throughput saturates.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SaturateConfig {
    pub endpoint: Endpoint,
    pub generation: Generation,
    pub workload: Workload,
    pub search: crate::search::SearchConfig,
    pub rung: RungRule,
    pub warmup: u32,
    /// The search is over after this: it begins no further rung, cuts off what is in flight, and answers from what it
    /// has. A last second is given to what was just begun.
    pub budget: Duration,
    pub request_timeout: Duration,
    /// For opening a connection, and for each small question before the run (the model list, token counts).
    pub connect_timeout: Duration,
    /// A null server in a process of its own to measure the client against. None: one in this process, which takes
    /// some of the client's CPU time, so that the ceiling comes out too low rather than too high.
    pub null_server_url: Option<String>,
    /// The server, where it was started for the search: its process and its GPU are looked at.
    #[serde(default)]
    pub own_server: Option<OwnServer>,
    /// The GPUs of this machine on which the server computes, by NVML's index, where a person says so. Empty: those of
    /// `own_server`, else it is not known.
    #[serde(default)]
    pub server_gpus: Vec<u32>,
}

/// A server of this machine that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OwnServer {
    pub process: u32,
    /// Where the GPU that it computes on stands on the PCI bus, as `00000000:17:00.0`. None: it computes on none.
    pub gpu: Option<String>,
}

impl SaturateConfig {
    /// The reference workload against `url`, each prompt salted.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            endpoint: Endpoint::new(url),
            generation: Generation::default(),
            workload: Workload { salt: true, ..Workload::default() },
            search: crate::search::SearchConfig::default(),
            rung: RungRule::default(),
            warmup: 2,
            budget: Duration::from_secs(20 * 60),
            request_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            null_server_url: None,
            own_server: None,
            server_gpus: Vec::new(),
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        check(self.search.max_concurrency > 0, "the highest concurrency must be at least 1")?;
        check(self.search.flat_doublings > 0, "a plateau takes at least 1 flat doubling")?;
        check((0.0..1.0).contains(&self.search.success_floor), "the success floor must be at least 0 and below 1")?;
        check_slo(&self.search.slo)?;
        let is_share = |share: &f64| (0.01..=10.0).contains(share);
        check(self.search.offered_shares.iter().all(is_share), "a share to offer must be from 0.01 to 10")?;
        check(self.search.offered_shares.is_sorted(), "the shares to offer must ascend")?;
        check(self.rung.max_time >= self.rung.min_time, "a rung's longest time must not be below its shortest")?;
        check(!self.rung.max_time.is_zero(), "a rung's longest time must be more than 0")?;
        check_common(&self.generation, &self.workload, self.request_timeout)
    }
}

fn check_common(generation: &Generation, workload: &Workload, request_timeout: Duration) -> Result<()> {
    check(generation.max_tokens > 0, "max_tokens must be at least 1")?;
    check(generation.temperature.is_none_or(|t| t.is_finite() && t >= 0.0), "temperature must be 0 or more")?;
    check(workload.min_tokens <= workload.max_tokens, "the shortest prompt must not be longer than the longest")?;
    check(workload.turns > 0, "a conversation has at least 1 turn to send")?;
    if let Some(shared) = workload.shared_prefix {
        check((1..=1_000_000).contains(&shared.tokens), "a shared prefix must have from 1 to 1000000 tokens")?;
        check((1..=10_000).contains(&shared.groups), "there must be from 1 to 10000 shared prefixes")?;
        let tokens = u64::from(shared.tokens) * u64::from(shared.groups);
        check(tokens <= MOST_INPUT_TOKENS, "the shared prefixes must have at most 50000000 tokens together")?;
    }
    if let PromptSource::Trace { speed, .. } = workload.prompts {
        check((0.001..=1e6).contains(&speed), "a trace's speed must be from 0.001 to 1000000")?;
    }
    check(!request_timeout.is_zero(), "the request timeout must be more than 0")
}

fn check_slo(slo: &Slo) -> Result<()> {
    let positive = |limit: Option<f64>| limit.is_none_or(|limit| limit.is_finite() && limit > 0.0);
    check(positive(slo.ttft_ms) && positive(slo.tpot_ms), "a latency limit must be more than 0 ms")?;
    check(slo.percentile > 0.0 && slo.percentile < 100.0, "the SLO's percentile must be between 0 and 100")
}

fn check(holds: bool, message: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(BenchError::Config(message.to_owned())) }
}
