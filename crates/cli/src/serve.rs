//! `plimsoll serve`: listens at once, loads the model, serves until it is told to stop, drains, ends.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow};
use plimsoll_engine::{Engine, EngineConfig};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_server::{ServedModel, ServerConfig, ServerState};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::child::{self, READY};
use crate::config::{Config, Steps};
use crate::load_line::{LoadLine, Subject};
use crate::model::{self, Found, Loaded};
use crate::options::{LoadLineUse, SchedulingPolicy};

/// Connections that the system may hold until they are taken; thousands of clients may come at once.
const BACKLOG: u32 = 4096;

pub(crate) async fn run(config: Config) -> Result<()> {
    child::end_with_parent();
    println!("{config}");
    let found = model::find(&config)?;
    plimsoll_ops::par::set_num_threads(config.shared.threads)?;
    let listener = listen(config.shared.address)?;
    let address = listener.local_addr()?;
    println!("listening on http://{address}; loading {}", found.name);

    let load_line = load_line(&found, &config)?;
    let state = ServerState::new(server_config(&config, found.steps(), load_line));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(plimsoll_server::serve(listener, state.clone(), async {
        stopped.await.ok();
    }));
    let mut terminate = signal(SignalKind::terminate())?;
    let engine = tokio::select! {
        loaded = load(found, config, state) => loaded?,
        _ = terminate.recv() => return Ok(()),
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    println!("{} {READY}http://{address}", engine.model);

    let handle = engine.engine.handle.clone();
    let fault = tokio::select! {
        ended = handle.closed() => ended.err(),
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    stop.send(()).ok();
    server.await.context("the server's task failed")??;
    if let Some(fault) = fault {
        return Err(anyhow!(fault).context("the engine failed; requests in flight were told"));
    }
    handle.shutdown();
    handle.closed().await?;
    println!("stopped");
    Ok(())
}

/// Accepts connections from now on, so that clients hear "loading" rather than a closed port.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    let bound = socket.bind(address).and_then(|()| socket.listen(BACKLOG));
    bound.with_context(|| format!("cannot listen on {address}; is it in use? choose another with --port or --host"))
}

/// A model that is being served.
struct Serving {
    model: String,
    engine: Engine,
}

async fn load(found: Found, config: Config, state: ServerState) -> Result<Serving> {
    let (name, steps) = (found.name.clone(), found.steps());
    let (loaded, config) = tokio::task::spawn_blocking(move || found.load(&config).map(|loaded| (loaded, config)))
        .await
        .context("loading failed")??;
    let Loaded { tokenizer, executor, cache, max_model_len, vocab_size, defaults, mut times } = loaded;
    let speech = config.speech;
    let dialect = tokenizer.dialect().overridden(speech.reasoning_parser, speech.tool_call_parser);
    let dialect = dialect.map_err(|error| anyhow!(error))?;
    let scheduler = Scheduler::new(SchedulerConfig {
        cache,
        max_num_seqs: steps.max_num_seqs,
        max_num_batched_tokens: steps.max_num_batched_tokens,
        max_model_len,
        max_waiting: waiting_limits(&config, steps, max_model_len),
        policy: policy(config.engine.scheduling_policy),
        prefix_caching: config.engine.prefix_caching,
    })?;
    let engine_config = EngineConfig {
        max_requests: max_sequences(&config, steps),
        max_queued_tokens: config.admission.max_queued_tokens,
        vocab_size,
        ..EngineConfig::default()
    };
    let engine = plimsoll_engine::spawn(scheduler, executor, engine_config)?;
    state.set_ready(ServedModel {
        name: name.clone(),
        aliases: Vec::new(),
        engine: engine.handle.clone(),
        eos_token_ids: tokenizer.eos_ids().to_vec(),
        tokenizer,
        max_model_len,
        vocab_size,
        defaults,
        dialect,
        adds_reasoning_content: speech.reasoning_content,
    });
    times.end_part("engine");
    println!("{times}");
    times.parts().iter().for_each(|(part, time)| state.note_startup(part, *time));
    Ok(Serving { model: name, engine })
}

/// Sequences inside at most: those that run, and those that may wait.
fn max_sequences(config: &Config, steps: Steps) -> usize {
    steps.max_num_seqs as usize + config.admission.max_queued_requests as usize
}

/// The door is the server's; the scheduler's own bounds are never the tighter ones.
fn waiting_limits(config: &Config, steps: Steps, max_model_len: u32) -> WaitingLimits {
    let prompt_tokens = config.admission.max_queued_tokens.saturating_add(u64::from(max_model_len));
    WaitingLimits { requests: max_sequences(config, steps) as u32, prompt_tokens }
}

fn policy(policy: SchedulingPolicy) -> Policy {
    match policy {
        SchedulingPolicy::Fcfs => Policy::Fcfs,
        SchedulingPolicy::Priority => Policy::Priority,
        SchedulingPolicy::ShortestPromptFirst => Policy::ShortestPromptFirst,
    }
}

/// The measured load line that is to be kept to, if there is one; says which, or how to get one.
fn load_line(found: &Found, config: &Config) -> Result<Option<LoadLine>> {
    if config.admission.load_line == LoadLineUse::Off {
        return Ok(None);
    }
    let line = match Subject::of(found, config).and_then(|subject| LoadLine::find(&subject)) {
        Err(error) if config.admission.load_line == LoadLineUse::Auto => {
            println!("load line: none is kept to, {error:#}");
            return Ok(None);
        }
        line => line?,
    };
    match &line {
        Some(line) => println!("load line: {line}; more get 429 (--load-line off to let them wait)"),
        None => println!("load line: not measured yet for this model, device and configuration (`plimsoll saturate`)"),
    }
    Ok(line)
}

fn server_config(config: &Config, steps: Steps, load_line: Option<LoadLine>) -> ServerConfig {
    let admission = &config.admission;
    ServerConfig {
        load_line: load_line.map(|line| line.limit()),
        api_keys: admission.api_keys.clone(),
        allowed_hosts: admission.allowed_hosts.clone(),
        max_sequences: max_sequences(config, steps),
        max_queued_tokens: admission.max_queued_tokens,
        max_body: admission.max_body.0 as usize,
        max_connections: admission.max_connections,
        request_timeout: admission.request_timeout,
        drain_timeout: admission.drain_timeout,
        ..ServerConfig::default()
    }
}
