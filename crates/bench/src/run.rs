//! One measurement at one concurrency, from a configuration to a report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{Client, Clock, HttpClients};
use crate::config::{BenchConfig, Endpoint, Generation, Workload};
use crate::endpoint::{Asking, Base, RemoteTokenizer, find_model};
use crate::error::Result;
use crate::load::{Live, LoadPlan, closed_loop};
use crate::preflight::ClientCeiling;
use crate::prompts::{PromptSet, select};
use crate::report::{BENCH_SCHEMA, BenchReport, RungReport, WorkloadFacts, unix_now};
use crate::slo::Slo;
use crate::source::RequestSource;
use crate::stats;
use crate::timeline::Timeline;

/// More distinct prompts than this are not looked for: their lengths take one request each to find out.
const MAX_PROMPTS: u64 = 4096;
/// The span over which the live rate is taken.
const LIVE_SPAN: Duration = Duration::from_secs(2);

/// What is going on, for whoever shows it.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The client has been measured.
    Preflight(ClientCeiling),
    /// The model was found and the prompts were chosen.
    Ready { model: String, workload: WorkloadFacts },
    /// A rung is under way: requests that ended well and not, and the rate of output chunks over the last two seconds.
    Running { concurrency: u32, done: u64, failed: u64, chunks_per_s: f64, elapsed: Duration },
    /// A rung is done.
    Rung(Box<RungReport>),
}

/// A server that has been looked at and is ready to be driven.
pub(crate) struct Target {
    pub(crate) model: String,
    pub(crate) workload: WorkloadFacts,
    client: Arc<Client>,
    source: Arc<RequestSource>,
    request_timeout: Duration,
    slo: Slo,
}

/// What both kinds of measurement say about their target.
pub(crate) struct TargetConfig<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) generation: &'a Generation,
    pub(crate) workload: &'a Workload,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    /// Requests that will be sent, if that is known.
    pub(crate) requests: u64,
    pub(crate) slo: Slo,
}

impl Target {
    pub(crate) async fn prepare(config: TargetConfig<'_>) -> Result<Self> {
        let base = Base::parse(&config.endpoint.url)?;
        let http = HttpClients::new(base.root(), config.endpoint.api_key.as_deref(), config.connect_timeout)?;
        let asking = Asking { http: &http.kept, base: &base, patience: config.connect_timeout };
        let model = find_model(asking, config.endpoint).await?;
        let tokenizer = RemoteTokenizer::probe(asking, &model).await;
        let set = PromptSet::load(&config.workload.prompts)?;
        let wanted = config.requests.min(MAX_PROMPTS) as usize;
        let selection = select(config.workload, set, tokenizer.as_ref(), wanted).await?;
        let workload = WorkloadFacts::new(&selection);
        let kind = config.endpoint.kind;
        let source = RequestSource::new(kind, &model, config.generation, config.workload, selection.prompts)?;
        let client = Arc::new(Client::new(http, base.generate(kind), config.request_timeout));
        Ok(Self {
            model,
            workload,
            client,
            source: Arc::new(source),
            request_timeout: config.request_timeout,
            slo: config.slo,
        })
    }

    /// Sends requests one after another and forgets them.
    pub(crate) async fn warm_up(&self, requests: u32) {
        let timeline = Timeline::new(Duration::ZERO);
        for _ in 0..requests {
            let clock = Clock::start();
            self.client.stream(self.source.next_job(), Duration::ZERO, clock, &timeline).await;
        }
    }

    /// Measures one rung.
    pub(crate) async fn measure(&self, rung: Rung, observe: impl FnMut(&Live<'_>) -> bool) -> RungReport {
        let plan = LoadPlan {
            concurrency: rung.concurrency,
            max_requests: rung.max_requests,
            max_duration: rung.max_duration,
            ramp: rung.ramp,
            request_timeout: self.request_timeout,
        };
        let mut observe = observe;
        let log = closed_loop(self.client.clone(), self.source.clone(), plan, |live| observe(&live)).await;
        RungReport::new(&log, &self.slo)
    }
}

/// The load of one rung.
pub(crate) struct Rung {
    pub(crate) concurrency: u32,
    pub(crate) max_requests: u64,
    pub(crate) max_duration: Duration,
    pub(crate) ramp: Duration,
}

/// The progress of a rung that is under way.
pub(crate) fn running(concurrency: u32, live: &Live<'_>) -> Progress {
    let failed = live.records.iter().filter(|record| !record.is_success()).count() as u64;
    let rates = live.timeline.rates(live.now.saturating_sub(LIVE_SPAN), live.now);
    Progress::Running {
        concurrency,
        done: live.records.len() as u64 - failed,
        failed,
        chunks_per_s: stats::mean(&rates).unwrap_or(0.0),
        elapsed: live.now,
    }
}

/// Runs `config` against its endpoint. `progress` is called a few times a second.
///
/// Must be called inside a tokio runtime with time and I/O enabled. Dropping the future ends the run.
///
/// # Errors
/// What keeps the run from starting: a bad configuration, an unreachable server, prompts that cannot be read. Failed
/// requests are no errors; they are in the report.
pub async fn run(config: &BenchConfig, progress: impl Fn(&Progress)) -> Result<BenchReport> {
    config.validate()?;
    let started_unix_s = unix_now();
    let target = Target::prepare(TargetConfig {
        endpoint: &config.endpoint,
        generation: &config.generation,
        workload: &config.workload,
        connect_timeout: config.connect_timeout,
        request_timeout: config.request_timeout,
        requests: config.requests,
        slo: Slo::default(),
    })
    .await?;
    progress(&Progress::Ready { model: target.model.clone(), workload: target.workload.clone() });
    target.warm_up(config.warmup).await;
    let rung = Rung {
        concurrency: config.concurrency,
        max_requests: config.requests,
        max_duration: config.max_duration,
        ramp: config.ramp,
    };
    let mut shown = Instant::now();
    let rung = target
        .measure(rung, |live| {
            if shown.elapsed() >= Duration::from_millis(500) {
                shown = Instant::now();
                progress(&running(config.concurrency, live));
            }
            false
        })
        .await;
    progress(&Progress::Rung(Box::new(rung.clone())));
    Ok(BenchReport {
        schema: BENCH_SCHEMA.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s,
        model: target.model,
        config: config.clone(),
        workload: target.workload,
        rung,
        findings: Vec::new(),
    })
}
