//! Every option of the server in one place: its flag, its `PLIMSOLL_*` variable, its key in the TOML file and its
//! help text. Nothing is resolved here: an absent option is `None`, and `config.rs` gives it its default.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::bytes::ByteSize;
use crate::device::Device;

/// Flags that every command shares.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Shared options")]
pub(crate) struct SharedOptions {
    /// Address to listen on, or to reach the server at [default: 127.0.0.1]
    #[arg(long, global = true, env = "PLIMSOLL_HOST", value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<String>,

    /// Port to listen on, or to reach the server at; 0 picks a free one [default: 8000]
    #[arg(long, global = true, env = "PLIMSOLL_PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,

    /// What computes: `auto`, `cpu`, `cuda:N` (GPU number N), or `null` (invents tokens; measures everything but the
    /// model; `null:STEP:TOKEN` takes so many microseconds a step and a token in it) [default: auto]
    #[arg(long, global = true, env = "PLIMSOLL_DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<Device>,

    /// CPU threads that compute [default: all cores]
    #[arg(long, global = true, env = "PLIMSOLL_THREADS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<usize>,

    /// TOML file with any of these options as keys, for instance `max-num-seqs = 64`; or, with --load-format dummy, a
    /// model's config.json, told by its ending. May be given once for each
    #[arg(long, global = true, env = "PLIMSOLL_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Vec<PathBuf>,

    /// How log lines are written; RUST_LOG picks which [default: text]
    #[arg(long, global = true, env = "PLIMSOLL_LOG_FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<LogFormat>,
}

/// What `serve` takes besides.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct ServeOptions {
    /// A catalogue name (see `plimsoll pull --list`), a .gguf file, or a folder of safetensors
    #[arg(env = "PLIMSOLL_MODEL", value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,

    /// Where the weights come from: `auto` reads the MODEL; `dummy` needs none, makes random ones at the shapes that
    /// `--config FILE.json` gives (see configs/architectures), and takes text as one token a byte, so that the bundled
    /// load generator's prompts have as many tokens as bytes [default: auto]
    #[arg(long, env = "PLIMSOLL_LOAD_FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_format: Option<LoadFormat>,

    /// Name that clients use for the model [default: the catalogue name, or the file's]
    #[arg(long, env = "PLIMSOLL_SERVED_MODEL_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) served_model_name: Option<String>,

    /// Jinja file to render chats with, instead of the model's own template
    #[arg(long, env = "PLIMSOLL_CHAT_TEMPLATE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat_template: Option<PathBuf>,

    /// How the model writes calls of tools: `auto` goes by its tokens and chat template; hermes, llama3_json, pythonic,
    /// gemma, harmony, or `none` [default: auto]
    #[arg(long, env = "PLIMSOLL_TOOL_CALL_PARSER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool_call_parser: Option<String>,

    /// How the model marks its thoughts: `auto` goes by its tokens and chat template; think, harmony, or `none`
    /// [default: auto]
    #[arg(long, env = "PLIMSOLL_REASONING_PARSER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_parser: Option<String>,

    /// Send thoughts as `reasoning_content`, too, for clients that know `reasoning` by its older name [default: false]
    #[arg(long, env = "PLIMSOLL_REASONING_CONTENT", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<bool>,

    /// Longest prompt plus completion, in tokens [default: the model's context, or what the memory holds]
    #[arg(long, env = "PLIMSOLL_MAX_MODEL_LEN", value_name = "TOKENS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_model_len: Option<u32>,

    /// Sequences computed together [default: 64, on a GPU 1024]
    #[arg(long, env = "PLIMSOLL_MAX_NUM_SEQS", value_name = "N", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_num_seqs: Option<u32>,

    /// Tokens computed in one step; long prompts are cut into chunks of this [default: 512, on a GPU 8192]
    #[arg(long, env = "PLIMSOLL_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_num_batched_tokens: Option<u32>,

    /// Memory for the KV cache, for instance `2GiB` [default: a quarter of what the weights leave free, 2GiB at most; on
    /// a GPU what --gpu-memory-utilization leaves]
    #[arg(long, env = "PLIMSOLL_KV_CACHE_MEMORY", value_name = "SIZE", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_cache_memory: Option<ByteSize>,

    /// Share of a GPU's free memory for weights, workspace and KV cache together, 0.05 to 0.99 [default: 0.9]
    #[arg(long, env = "PLIMSOLL_GPU_MEMORY_UTILIZATION", value_name = "SHARE", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_memory_utilization: Option<f64>,

    /// Element type of the KV cache: `auto` is f16 on a CPU and bf16 on a GPU, which has no f16 and f32; `fp8` is e4m3
    /// without a scale, and holds twice the tokens [default: auto]
    #[arg(long, env = "PLIMSOLL_KV_CACHE_DTYPE", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_cache_dtype: Option<CacheDtype>,

    /// Tokens in one block of the KV cache [default: 16]
    #[arg(long, env = "PLIMSOLL_BLOCK_SIZE", value_name = "TOKENS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size: Option<u32>,

    /// Reuse the KV cache of prompts that begin alike [default: true]
    #[arg(long, env = "PLIMSOLL_PREFIX_CACHING", value_name = "BOOL", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefix_caching: Option<bool>,

    /// Who is computed first among those waiting [default: fcfs]
    #[arg(long, env = "PLIMSOLL_SCHEDULING_POLICY", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scheduling_policy: Option<SchedulingPolicy>,

    /// What quantized weights are multiplied with. On a CPU: `int8` is fast, `f32` exact to the file [default: int8]. On a
    /// GPU: `bf16`, or where FP8 weights meet many tokens `fp8`, which a Hopper is faster with [default: the checkpoint's
    /// own]
    #[arg(long, env = "PLIMSOLL_ACTIVATIONS", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) activations: Option<ActivationsKind>,

    /// Format that matrices are brought to while they are loaded or made, where they are not quantized already
    #[arg(long, env = "PLIMSOLL_QUANTIZE", value_name = "FORMAT", help_heading = "Engine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize: Option<QuantizeKind>,

    /// Requests that may wait for a place before new ones are refused [default: 8192]
    #[arg(long, env = "PLIMSOLL_MAX_QUEUED_REQUESTS", value_name = "N", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_queued_requests: Option<u32>,

    /// Whether to let in as many requests at once as `plimsoll saturate` measured this model to carry on this device in
    /// this configuration, and answer 429 beyond: `auto` where it was measured, `off` never, `calibrate` measures at
    /// start, in two minutes [default: auto]
    #[arg(long, env = "PLIMSOLL_LOAD_LINE", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_line: Option<LoadLineUse>,

    /// Prompt tokens that may wait, all requests together [default: 2097152]
    #[arg(long, env = "PLIMSOLL_MAX_QUEUED_TOKENS", value_name = "TOKENS", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_queued_tokens: Option<u64>,

    /// Seconds a request may take in all before it ends with 408 [default: 600]
    #[arg(long, env = "PLIMSOLL_REQUEST_TIMEOUT", value_name = "SECONDS", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_timeout: Option<u64>,

    /// Seconds that requests in flight get to finish after SIGTERM [default: 30]
    #[arg(long, env = "PLIMSOLL_DRAIN_TIMEOUT", value_name = "SECONDS", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_timeout: Option<u64>,

    /// Largest request body, for instance `4MiB` [default: 4MiB]
    #[arg(long, env = "PLIMSOLL_MAX_BODY", value_name = "SIZE", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_body: Option<ByteSize>,

    /// Connections held open at once [default: 16384]
    #[arg(long, env = "PLIMSOLL_MAX_CONNECTIONS", value_name = "N", help_heading = "Admission")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_connections: Option<usize>,

    /// Key that clients must send as `Authorization: Bearer KEY`; may be given several times [default: none]
    #[arg(long, env = "PLIMSOLL_API_KEY", value_name = "KEY", value_delimiter = ',', help_heading = "Admission")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_key: Vec<String>,

    /// Host names that requests may use besides loopback ones, when listening on loopback
    #[arg(long, env = "PLIMSOLL_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',', help_heading = "Admission")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allowed_host: Vec<String>,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoadFormat {
    /// The model's files.
    Auto,
    /// Nowhere: random numbers.
    Dummy,
}

/// What becomes of a measured load line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoadLineUse {
    Auto,
    Off,
    /// Measured first, then used.
    Calibrate,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CacheDtype {
    /// The device's usual one.
    Auto,
    F32,
    F16,
    Bf16,
    Fp8,
}

/// Who is computed first among those waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SchedulingPolicy {
    /// First come, first served.
    Fcfs,
    /// By the request's `priority`, lower first.
    Priority,
    /// Shortest prompt first, with ageing.
    ShortestPromptFirst,
}

/// A format that matrices are brought to while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum QuantizeKind {
    /// A scale a row.
    Int8,
    /// A scale and a zero for each 64 columns.
    Int4,
    /// E4M3, a scale a row.
    Fp8,
    /// E2M1, a power of two for each 32 columns.
    Mxfp4,
}

/// What quantized weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ActivationsKind {
    /// On a CPU.
    Int8,
    /// On a CPU.
    F32,
    /// On a GPU.
    Bf16,
    /// On a GPU.
    Fp8,
}
