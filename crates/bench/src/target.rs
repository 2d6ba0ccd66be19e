//! A server that has been looked at and is ready to be driven, and the driving of one rung.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::arrivals::Arrivals;
use crate::client::{Client, Clock, HttpClients};
use crate::config::{Endpoint, Generation, OwnServer, PromptSource, Workload};
use crate::endpoint::{Asking, Base, RemoteTokenizer, find_model, generate};
use crate::error::{BenchError, Result};
use crate::findings::Finding;
use crate::load::{Live, LoadPlan, Phase, drive};
use crate::preflight::{ClientCeiling, measure_client_ceiling};
use crate::progress::Progress;
use crate::report::{RungReport, WorkloadFacts};
use crate::selection::select;
use crate::slo::Slo;
use crate::source::RequestSource;
use crate::stop::Stop;
use crate::telemetry::Telemetry;
use crate::timeline::Timeline;
use crate::usage_check::check_usage;

/// More distinct prompts than this are not looked for: their lengths take one request each to find out.
const MAX_PROMPTS: u64 = 4096;

/// What is driven, and how its service is judged.
pub(crate) struct Target {
    pub(crate) model: String,
    pub(crate) workload: WorkloadFacts,
    /// What is wrong with the server before it is driven: work of others, its token counts.
    pub(crate) findings: Vec<Finding>,
    client: Arc<Client>,
    source: Arc<RequestSource>,
    request_timeout: Duration,
    slo: Slo,
    stop: Stop,
    pub(crate) telemetry: Telemetry,
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
    pub(crate) stop: Stop,
    /// Hold the server's token counts against its tokenizer, with one request.
    pub(crate) check_usage: bool,
    /// The server's process, where it is known.
    pub(crate) own_server: Option<&'a OwnServer>,
    /// The server's GPUs by NVML's index, where they are said.
    pub(crate) server_gpus: &'a [u32],
}

impl Target {
    /// Looks at the server, but no longer than for `longest`, and only until it is told to stop.
    pub(crate) async fn prepare(config: TargetConfig<'_>, longest: Duration) -> Result<Self> {
        let stop = config.stop.clone();
        tokio::select! {
            biased;
            target = Self::look(config) => target,
            () = stop.requested() => Err(BenchError::Interrupted),
            () = tokio::time::sleep(longest) => Err(BenchError::NotReady(longest)),
        }
    }

    async fn look(config: TargetConfig<'_>) -> Result<Self> {
        let base = Base::parse(&config.endpoint.url)?;
        let http = HttpClients::new(base.root(), config.endpoint.api_key.as_deref(), config.connect_timeout)?;
        let asking = Asking { http: &http.kept, base: &base, patience: config.connect_timeout };
        let model = find_model(asking, config.endpoint).await?;
        let telemetry = Telemetry::of(asking, config.own_server, config.server_gpus).await;
        let busy = telemetry.busy().await;
        let tokenizer = RemoteTokenizer::probe(asking, &model).await;
        let all = matches!(config.workload.prompts, PromptSource::Trace { .. });
        let wanted = config.requests.min(if all { u64::MAX } else { MAX_PROMPTS }) as usize;
        let selection = select(config.workload, tokenizer.as_ref(), wanted).await?;
        let workload = WorkloadFacts::new(&selection);
        let kind = config.endpoint.kind;
        let exact = config.generation.ignore_eos || config.workload.prompts.has_output_lengths();
        let generation = Generation { ignore_eos: exact, ..config.generation.clone() };
        let source = RequestSource::new(kind, &model, &generation, config.workload, selection.prompts)?;
        let source = source.with_trace(selection.trace);
        let source = Arc::new(source);
        let job = if config.check_usage { source.session().next_job() } else { None };
        let usage = match (tokenizer, job) {
            (Some(tokenizer), Some(job)) => {
                let check = check_usage(asking, &tokenizer, generate(&base, kind), job.body);
                timeout(config.request_timeout, check).await.ok().flatten()
            }
            _ => None,
        };
        let client = Arc::new(Client::new(http.clone(), generate(&base, kind), config.request_timeout));
        Ok(Self {
            findings: busy.into_iter().chain(usage).collect(),
            model,
            workload,
            client,
            source,
            request_timeout: config.request_timeout,
            slo: config.slo,
            stop: config.stop,
            telemetry,
        })
    }

    /// That it can be driven now, and what of it is looked at meanwhile.
    pub(crate) fn ready(&self) -> Progress {
        Progress::Ready {
            model: self.model.clone(),
            workload: self.workload.clone(),
            watched: self.telemetry.watched(),
        }
    }

    /// How fast the client is with these requests, of which up to `most` are in flight, against the null server at that
    /// URL, or one of its own.
    pub(crate) async fn client_ceiling(&self, null_server: Option<&str>, most: u32) -> Result<ClientCeiling> {
        measure_client_ceiling(null_server, self.source.again(), most, self.stop.clone()).await
    }

    /// Sends requests one after another and forgets them, but no longer than for `longest`.
    pub(crate) async fn warm_up(&self, requests: u32, longest: Duration) {
        let timeline = Timeline::new(Duration::ZERO);
        let phase = watch::Sender::new(Phase::Running);
        let all = async {
            for _ in 0..requests {
                let Some(job) = self.source.session().next_job() else { return };
                self.client.stream(job, Duration::ZERO, Clock::start(), &timeline, &mut phase.subscribe()).await;
            }
        };
        tokio::select! {
            () = all => (),
            () = tokio::time::sleep(longest) => (),
            () = self.stop.requested() => (),
        }
    }

    /// Measures one rung.
    pub(crate) async fn measure(&self, rung: Rung, mut observe: impl FnMut(&Live<'_>) -> bool) -> RungReport {
        let plan = LoadPlan {
            concurrency: rung.concurrency,
            arrivals: rung.arrivals,
            seed: rung.seed,
            max_requests: rung.max_requests,
            max_duration: rung.max_duration,
            ramp: rung.ramp,
            request_timeout: self.request_timeout,
            cut_after: rung.cut_after,
            stop: self.stop.clone(),
        };
        self.source.begin_run();
        let run = drive(self.client.clone(), self.source.clone(), plan, |live| observe(&live));
        let mut seen = self.telemetry.begin().await;
        let log = tokio::select! {
            log = run => log,
            never = self.telemetry.watch(&mut seen) => match never {},
        };
        let report = RungReport::new(&log, &self.slo);
        let server = self.telemetry.end(seen, &report.summary).await;
        RungReport { server, ..report }
    }
}

/// The load of one rung, as in [`LoadPlan`].
pub(crate) struct Rung {
    pub(crate) concurrency: u32,
    pub(crate) arrivals: Arrivals,
    pub(crate) seed: u64,
    pub(crate) max_requests: u64,
    pub(crate) max_duration: Duration,
    pub(crate) ramp: Duration,
    pub(crate) cut_after: Option<Duration>,
}
