//! From options to a validated [`Config`]: flags win over `PLIMSOLL_*` variables, those over the TOML file, those over
//! the defaults that stand here. Resolved once; nothing else reads an option.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use plimsoll_text::{ReasoningSyntax, ToolSyntax};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bytes::ByteSize;
use crate::device::Device;
use crate::options::{
    ActivationsKind, CacheDtype, LoadFormat, LoadLineUse, LogFormat, QuantizeKind, SchedulingPolicy, ServeOptions,
    SharedOptions,
};

/// The server's settings, each with a value that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) shared: Shared,
    pub(crate) model: Model,
    pub(crate) served_model_name: Option<String>,
    /// Instead of the model's own.
    pub(crate) chat_template: Option<PathBuf>,
    pub(crate) speech: Speech,
    pub(crate) engine: Engine,
    pub(crate) admission: Admission,
}

/// How the model's thoughts and calls are read and sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speech {
    /// `None`: as the model's tokens and chat template tell.
    pub(crate) tool_call_parser: Option<ToolSyntax>,
    /// As `tool_call_parser`.
    pub(crate) reasoning_parser: Option<ReasoningSyntax>,
    pub(crate) reasoning_content: bool,
}

/// Which model is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// The catalogue's first.
    Default,
    /// A path or a catalogue name.
    Named(String),
    /// Random weights at the shapes that a config.json gives.
    Dummy(PathBuf),
}

/// What every command needs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) address: SocketAddr,
    pub(crate) device: Device,
    pub(crate) threads: usize,
    pub(crate) log_format: LogFormat,
}

/// What is computed, and how much at once.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    /// `None`: the model's own, cut to what the KV cache holds.
    pub(crate) max_model_len: Option<u32>,
    /// `None`: what suits the device ([`Engine::steps`]).
    pub(crate) max_num_seqs: Option<u32>,
    /// As `max_num_seqs`.
    pub(crate) max_num_batched_tokens: Option<u32>,
    /// `None`: a share of the free memory.
    pub(crate) kv_cache_memory: Option<ByteSize>,
    /// Share of a GPU's free memory that may be used.
    pub(crate) gpu_memory_utilization: f64,
    pub(crate) kv_cache_dtype: CacheDtype,
    pub(crate) block_size: u32,
    pub(crate) prefix_caching: bool,
    pub(crate) scheduling_policy: SchedulingPolicy,
    /// `None`: a CPU's `int8`, and on a GPU what the checkpoint says.
    pub(crate) activations: Option<ActivationsKind>,
    pub(crate) quantize: Option<QuantizeKind>,
}

/// How much a step computes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) max_num_seqs: u32,
    pub(crate) max_num_batched_tokens: u32,
}

/// Who is let in, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(crate) load_line: LoadLineUse,
    pub(crate) max_queued_requests: u32,
    pub(crate) max_queued_tokens: u64,
    pub(crate) request_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_body: ByteSize,
    pub(crate) max_connections: usize,
    pub(crate) api_keys: Vec<String>,
    pub(crate) allowed_hosts: Vec<String>,
}

/// Keys of the TOML file that belong to [`SharedOptions`]; the rest belong to [`ServeOptions`].
const SHARED_KEYS: [&str; 5] = ["host", "port", "device", "threads", "log-format"];

impl Config {
    /// # Errors
    /// Names the option, what is wrong with it, and what would be right.
    pub(crate) fn resolve(shared: SharedOptions, serve: ServeOptions) -> Result<Self> {
        let files = ConfigFiles::sort(&shared.config)?;
        let (mut shared_table, mut serve_table) = split(read_file(files.options.as_deref())?);
        let shared: SharedOptions = overlay(&mut shared_table, &shared, files.options.as_deref())?;
        let serve: ServeOptions = overlay(&mut serve_table, &serve, files.options.as_deref())?;
        Ok(Self {
            shared: Shared::resolve(shared)?,
            model: Model::resolve(&serve, files.model)?,
            served_model_name: serve.served_model_name.clone(),
            chat_template: serve.chat_template.clone(),
            speech: Speech::resolve(&serve)?,
            engine: Engine::resolve(&serve)?,
            admission: Admission::resolve(serve)?,
        })
    }
}

impl Speech {
    fn resolve(options: &ServeOptions) -> Result<Self> {
        Ok(Self {
            tool_call_parser: parser("--tool-call-parser", options.tool_call_parser.as_deref())?,
            reasoning_parser: parser("--reasoning-parser", options.reasoning_parser.as_deref())?,
            reasoning_content: options.reasoning_content.unwrap_or(false),
        })
    }
}

fn parser<T: FromStr<Err = String>>(option: &str, name: Option<&str>) -> Result<Option<T>> {
    match name {
        None | Some("auto") => Ok(None),
        Some(name) => name.parse().map(Some).map_err(|problem: String| anyhow!("{option}: {problem}")),
    }
}

/// What was given as `--config`.
#[derive(Default)]
struct ConfigFiles {
    /// TOML.
    options: Option<PathBuf>,
    /// A model's config.json.
    model: Option<PathBuf>,
}

impl ConfigFiles {
    fn sort(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Self::default();
        for path in paths {
            let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"));
            let place = if is_json { &mut files.model } else { &mut files.options };
            if let Some(first) = place.replace(path.clone()) {
                let (first, second) = (first.display(), path.display());
                bail!("--config is given twice for the same, as {first} and {second}; give one of them");
            }
        }
        Ok(files)
    }
}

impl Model {
    fn resolve(options: &ServeOptions, config: Option<PathBuf>) -> Result<Self> {
        let dummy = options.load_format == Some(LoadFormat::Dummy);
        match (dummy, config, &options.model) {
            (false, None, None) => Ok(Self::Default),
            (false, None, Some(model)) => Ok(Self::Named(model.clone())),
            (false, Some(config), _) => bail!(
                "--config {} is a model's config, which has no weights: add --load-format dummy, or give a TOML file of \
                 options",
                config.display()
            ),
            (true, None, _) => bail!(
                "--load-format dummy needs the model's shapes: add its config.json, for instance \
                 --config configs/architectures/llama-3.2-1b.json"
            ),
            (true, Some(config), Some(model)) => bail!(
                "--load-format dummy serves random weights for --config {}, and no model '{model}': leave out the one or \
                 the other",
                config.display()
            ),
            (true, Some(config), None) => {
                let name = options.served_model_name.as_deref().unwrap_or("dummy");
                ensure!(
                    name.contains("dummy"),
                    "--served-model-name {name} hides that the weights are random; choose a name with 'dummy' in it"
                );
                Ok(Self::Dummy(config))
            }
        }
    }
}

impl Shared {
    fn resolve(options: SharedOptions) -> Result<Self> {
        let host = options.host.unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = options.port.unwrap_or(8000);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(cores);
        ensure!(
            (1..=1024).contains(&threads),
            "--threads is {threads}; give 1 to 1024 (this machine has {cores} cores)"
        );
        Ok(Self {
            address: resolve_address(&host, port)?,
            device: options.device.unwrap_or(Device::Auto),
            threads,
            log_format: options.log_format.unwrap_or(LogFormat::Text),
        })
    }
}

fn resolve_address(host: &str, port: u16) -> Result<SocketAddr> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let found = (host, port).to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.ok_or_else(|| anyhow!("--host {host} is no address of a machine; give for instance 127.0.0.1 or 0.0.0.0"))
}

impl Engine {
    fn resolve(options: &ServeOptions) -> Result<Self> {
        let engine = Self {
            max_model_len: options.max_model_len,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            kv_cache_memory: options.kv_cache_memory,
            gpu_memory_utilization: options.gpu_memory_utilization.unwrap_or(0.9),
            kv_cache_dtype: options.kv_cache_dtype.unwrap_or(CacheDtype::Auto),
            block_size: options.block_size.unwrap_or(16),
            prefix_caching: options.prefix_caching.unwrap_or(true),
            scheduling_policy: options.scheduling_policy.unwrap_or(SchedulingPolicy::Fcfs),
            activations: options.activations,
            quantize: options.quantize,
        };
        engine.check()?;
        Ok(engine)
    }

    /// How much a step computes at most, on a CPU or on a GPU. What was not asked for follows what was.
    ///
    /// # Errors
    /// Numbers out of range, or that contradict each other.
    pub(crate) fn steps(&self, on_gpu: bool) -> Result<Steps> {
        let (usual_seqs, usual_tokens) = if on_gpu { (1024, 8192) } else { (64, 512) };
        let most_seqs = self.max_num_batched_tokens.unwrap_or(u32::MAX);
        let seqs = self.max_num_seqs.unwrap_or(most_seqs.min(usual_seqs));
        ensure!((1..=65_536).contains(&seqs), "--max-num-seqs is {seqs}; give 1 to 65536");
        let tokens = self.max_num_batched_tokens.unwrap_or(seqs.max(usual_tokens));
        ensure!((1..=1 << 20).contains(&tokens), "--max-num-batched-tokens is {tokens}; give 1 to 1048576");
        ensure!(
            tokens >= seqs,
            "--max-num-batched-tokens is {tokens}, fewer than the {seqs} of --max-num-seqs: not every sequence could \
             go on in a step; raise the one or lower the other"
        );
        Ok(Steps { max_num_seqs: seqs, max_num_batched_tokens: tokens })
    }

    fn check(&self) -> Result<()> {
        self.steps(false)?;
        let block = self.block_size;
        ensure!(
            block.is_power_of_two() && (8..=256).contains(&block),
            "--block-size is {block}; give a power of two from 8 to 256"
        );
        let share = self.gpu_memory_utilization;
        ensure!((0.05..=0.99).contains(&share), "--gpu-memory-utilization is {share}; give 0.05 to 0.99");
        if let Some(len) = self.max_model_len {
            ensure!((2..=1 << 24).contains(&len), "--max-model-len is {len}; give 2 to 16777216");
        }
        Ok(())
    }
}

impl Admission {
    fn resolve(options: ServeOptions) -> Result<Self> {
        let max_queued_requests = options.max_queued_requests.unwrap_or(8192);
        ensure!(
            (1..=1_000_000).contains(&max_queued_requests),
            "--max-queued-requests is {max_queued_requests}; give 1 to 1000000"
        );
        let max_queued_tokens = options.max_queued_tokens.unwrap_or(1 << 21);
        ensure!(max_queued_tokens > 0, "--max-queued-tokens is 0; give at least one prompt's length");
        let max_connections = options.max_connections.unwrap_or(16_384);
        ensure!(max_connections > 0, "--max-connections is 0; give at least 1");
        if options.api_key.iter().any(|key| key.trim().is_empty()) {
            bail!("--api-key is empty; give a key, or leave the option out to need none");
        }
        Ok(Self {
            load_line: options.load_line.unwrap_or(LoadLineUse::Auto),
            max_queued_requests,
            max_queued_tokens,
            request_timeout: seconds("--request-timeout", options.request_timeout.unwrap_or(600))?,
            drain_timeout: seconds("--drain-timeout", options.drain_timeout.unwrap_or(30))?,
            max_body: options.max_body.unwrap_or(ByteSize(4 << 20)),
            max_connections,
            api_keys: options.api_key,
            allowed_hosts: options.allowed_host,
        })
    }
}

fn seconds(option: &str, value: u64) -> Result<Duration> {
    ensure!((1..=86_400).contains(&value), "{option} is {value}; give 1 to 86400 seconds");
    Ok(Duration::from_secs(value))
}

fn read_file(path: Option<&Path>) -> Result<toml::Table> {
    let Some(path) = path else { return Ok(toml::Table::new()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read --config {}", path.display()))?;
    text.parse().with_context(|| format!("--config {} is not TOML", path.display()))
}

fn split(table: toml::Table) -> (toml::Table, toml::Table) {
    table.into_iter().partition(|(key, _)| SHARED_KEYS.contains(&key.as_str()))
}

/// What the command line and the environment gave, over what the file gave.
fn overlay<T: Serialize + DeserializeOwned>(table: &mut toml::Table, given: &T, file: Option<&Path>) -> Result<T> {
    table.extend(toml::Table::try_from(given)?);
    let of = file.map(|path| format!(" (of --config {}?)", path.display())).unwrap_or_default();
    table.clone().try_into().with_context(|| format!("an option is wrong{of}"))
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (engine, admission) = (&self.engine, &self.admission);
        if let Model::Dummy(config) = &self.model {
            writeln!(
                f,
                "load-format dummy: random weights at the shapes of {}, a token a byte; its answers mean nothing",
                config.display()
            )?;
        }
        writeln!(f, "address {}, device {}, threads {}", self.shared.address, self.shared.device, self.shared.threads)?;
        writeln!(
            f,
            "max-num-seqs {}, max-num-batched-tokens {}, block-size {}, kv-cache-dtype {:?}, \
             gpu-memory-utilization {}, prefix-caching {}, scheduling-policy {:?}, activations {}{}",
            or_auto(engine.max_num_seqs),
            or_auto(engine.max_num_batched_tokens),
            engine.block_size,
            engine.kv_cache_dtype,
            engine.gpu_memory_utilization,
            engine.prefix_caching,
            engine.scheduling_policy,
            engine.activations.map_or_else(|| "auto".to_owned(), |kind| format!("{kind:?}")),
            engine.quantize.map_or_else(String::new, |format| format!(", quantize {format:?}"))
        )?;
        write!(
            f,
            "max-queued-requests {}, max-queued-tokens {}, request-timeout {} s, drain-timeout {} s, max-body {}, \
             max-connections {}, api keys {}",
            admission.max_queued_requests,
            admission.max_queued_tokens,
            admission.request_timeout.as_secs(),
            admission.drain_timeout.as_secs(),
            admission.max_body,
            admission.max_connections,
            admission.api_keys.len()
        )
    }
}

fn or_auto(number: Option<u32>) -> String {
    number.map_or_else(|| "auto".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Config, Model, SHARED_KEYS};
    use crate::bytes::ByteSize;
    use crate::device::Device;
    use crate::options::{LoadFormat, LogFormat, ServeOptions, SharedOptions};

    fn with_file(name: &str, text: &str) -> SharedOptions {
        let path = std::env::temp_dir().join(format!("plimsoll-config-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        SharedOptions { config: vec![path], ..SharedOptions::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "port = 9000\nmax-num-seqs = 8\nkv-cache-memory = '1GiB'\napi-key = ['k']\n";
        let shared = SharedOptions { port: Some(9001), ..with_file("wins", text) };
        let config = Config::resolve(shared, ServeOptions::default()).unwrap();
        assert_eq!(config.shared.address.port(), 9001);
        assert_eq!(config.engine.max_num_seqs, Some(8));
        assert_eq!(config.engine.kv_cache_memory, Some(ByteSize(1 << 30)));
        assert_eq!(config.engine.block_size, 16);
        assert_eq!(config.admission.api_keys, ["k"]);
    }

    #[test]
    fn a_step_s_size_follows_the_device_and_what_was_asked_for() {
        let steps = |seqs, tokens, on_gpu| {
            let options =
                ServeOptions { max_num_seqs: seqs, max_num_batched_tokens: tokens, ..ServeOptions::default() };
            let config = Config::resolve(SharedOptions::default(), options);
            config.and_then(|config| config.engine.steps(on_gpu)).map(|s| (s.max_num_seqs, s.max_num_batched_tokens))
        };
        assert_eq!(steps(None, None, false).unwrap(), (64, 512));
        assert_eq!(steps(None, None, true).unwrap(), (1024, 8192));
        assert_eq!(steps(Some(4096), None, false).unwrap(), (4096, 4096));
        assert_eq!(steps(None, Some(16), true).unwrap(), (16, 16));
        assert!(steps(Some(9), Some(8), true).unwrap_err().to_string().contains("lower the other"));
    }

    #[test]
    fn a_misspelt_key_or_a_bad_value_is_named() {
        let cases = [
            ("misspelt", "max-num-sequences = 8", "max-num-sequences"),
            ("type", "port = 'high'", "port"),
            ("negative", "max-num-seqs = -1", "max-num-seqs"),
            ("block", "block-size = 17", "--block-size"),
            ("budget", "max-num-seqs = 64\nmax-num-batched-tokens = 32", "--max-num-batched-tokens"),
            ("toml", "=", "TOML"),
            ("device", "device = 'gpu'", "cuda:N"),
            ("share", "gpu-memory-utilization = 1.5", "--gpu-memory-utilization"),
        ];
        for (name, text, named) in cases {
            let error = Config::resolve(with_file(name, text), ServeOptions::default()).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(named), "{name}: {message}");
        }
    }

    fn resolved(files: &[&str], serve: ServeOptions) -> Result<Config, String> {
        let shared = SharedOptions { config: files.iter().map(PathBuf::from).collect(), ..SharedOptions::default() };
        Config::resolve(shared, serve).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn dummy_weights_take_a_model_s_config_beside_the_options() {
        let options = with_file("beside", "load-format = 'dummy'\nmax-num-seqs = 8").config;
        let files = [options[0].to_str().unwrap(), "shapes/tiny.json"];
        let config = resolved(&files, ServeOptions::default()).unwrap();
        assert_eq!(config.model, Model::Dummy("shapes/tiny.json".into()));
        assert_eq!(config.engine.max_num_seqs, Some(8));
        assert!(config.to_string().contains("dummy"), "{config}");
    }

    #[test]
    fn contradictions_about_the_weights_are_refused() {
        let dummy = || ServeOptions { load_format: Some(LoadFormat::Dummy), ..ServeOptions::default() };
        let cases = [
            (resolved(&[], dummy()), "--config configs/architectures"),
            (resolved(&["tiny.json"], ServeOptions::default()), "--load-format dummy"),
            (resolved(&["a.json", "b.json"], dummy()), "b.json"),
            (resolved(&["a.json"], ServeOptions { model: Some("other".into()), ..dummy() }), "'other'"),
            (resolved(&["a.json"], ServeOptions { served_model_name: Some("gpt".into()), ..dummy() }), "gpt"),
        ];
        for (config, named) in cases {
            let message = config.unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn every_shared_option_is_known_to_the_file() {
        let all = SharedOptions {
            host: Some("h".into()),
            port: Some(1),
            device: Some(Device::Cpu),
            threads: Some(1),
            config: Vec::new(),
            log_format: Some(LogFormat::Json),
        };
        let table = toml::Table::try_from(&all).unwrap();
        let mut keys: Vec<_> = table.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = SHARED_KEYS;
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
