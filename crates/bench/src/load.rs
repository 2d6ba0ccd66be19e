//! Drives a server as a plan says and collects what came of it.
//!
//! In a closed loop (`closed`) a request is due when its client becomes free, so a slow server delays arrivals rather
//! than piling them up. In an open loop (`open`) requests are due when a schedule says so, whatever the server does, and
//! their latency counts from then. Every request that was due ends as a record: none is dropped silently, and those in
//! flight at the end are waited for, or cut off at the time that the plan gives.

mod closed;
mod open;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::arrivals::Arrivals;
use crate::client::{Client, Clock};
use crate::record::{Outcome, RequestRecord};
use crate::source::RequestSource;
use crate::stop::{Stop, reached};
use crate::timeline::Timeline;

/// How often the observer is asked.
const TICK: Duration = Duration::from_millis(200);

/// How much load, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    /// Clients of a closed loop; the most requests in flight of an open one.
    pub(crate) concurrency: u32,
    pub(crate) arrivals: Arrivals,
    /// Of the times of arrival.
    pub(crate) seed: u64,
    pub(crate) max_requests: u64,
    /// Nothing is issued after this.
    pub(crate) max_duration: Duration,
    /// The clients of a closed loop start evenly spread over this time.
    pub(crate) ramp: Duration,
    pub(crate) request_timeout: Duration,
    /// What is in flight so long after the start is cut off. None: it is waited for.
    pub(crate) cut_after: Option<Duration>,
    /// Cuts off all that is in flight when it is set.
    pub(crate) stop: Stop,
}

/// What happened, all times from the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct RunLog {
    pub(crate) concurrency: u32,
    pub(crate) records: Vec<RequestRecord>,
    /// When the last client sent its first request.
    pub(crate) ramp_end: Duration,
    /// When the first client found nothing more to do, or the schedule was over.
    pub(crate) first_idle: Duration,
    /// When the last request had ended.
    pub(crate) ended: Duration,
    pub(crate) arrivals: Arrivals,
}

#[cfg(test)]
impl RunLog {
    /// A closed loop's, which ended when its clients became idle.
    pub(crate) fn of(concurrency: u32, records: Vec<RequestRecord>, ramp_end: Duration, first_idle: Duration) -> Self {
        Self { concurrency, records, ramp_end, first_idle, ended: first_idle, arrivals: Arrivals::Closed }
    }
}

/// A run that is under way.
pub(crate) struct Live<'a> {
    pub(crate) records: &'a [RequestRecord],
    pub(crate) timeline: &'a Timeline,
    pub(crate) now: Duration,
    /// None until every client has sent its first request.
    pub(crate) ramp_end: Option<Duration>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// No further request is issued.
    Ending,
    /// What is in flight is cut off.
    Cut,
}

/// What the workers of a run share.
struct Shared {
    client: Arc<Client>,
    source: Arc<RequestSource>,
    plan: LoadPlan,
    clock: Clock,
    timeline: Timeline,
    phase: watch::Sender<Phase>,
    issued: AtomicU64,
    all_started: AtomicBool,
    ramp_end_nanos: AtomicU64,
    first_idle_nanos: AtomicU64,
}

/// Runs `plan`. `observe` is called a few times a second and may return true to issue no more requests.
pub(crate) async fn drive(
    client: Arc<Client>,
    source: Arc<RequestSource>,
    plan: LoadPlan,
    mut observe: impl FnMut(Live<'_>) -> bool,
) -> RunLog {
    let longest = plan.cut_after.unwrap_or(plan.max_duration.saturating_add(plan.request_timeout));
    let shared = Arc::new(Shared {
        client,
        source,
        clock: Clock::start(),
        timeline: Timeline::new(longest),
        phase: watch::Sender::new(Phase::Running),
        issued: AtomicU64::new(0),
        all_started: AtomicBool::new(false),
        ramp_end_nanos: AtomicU64::new(0),
        first_idle_nanos: AtomicU64::new(u64::MAX),
        plan,
    });
    let (sender, mut receiver) = mpsc::channel(shared.plan.concurrency as usize + 1024);
    // Dropping the set, because the caller went away, ends the workers.
    let mut workers = JoinSet::new();
    match shared.plan.arrivals {
        Arrivals::Closed => closed::spawn(&shared, &sender, &mut workers),
        _ => drop(workers.spawn(open::dispatch(shared.clone(), sender.clone()))),
    }
    drop(sender);

    let mut records = Vec::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cut = shared.cut();
    tokio::pin!(cut);
    loop {
        tokio::select! {
            received = receiver.recv_many(&mut records, 1024) => if received == 0 { break },
            _ = ticks.tick() => {
                if observe(shared.live(&records)) {
                    shared.raise(Phase::Ending);
                }
            }
            () = &mut cut, if *shared.phase.borrow() < Phase::Cut => shared.raise(Phase::Cut),
        }
    }
    while let Some(joined) = workers.join_next().await {
        joined.expect("a worker makes a record of every failure, and never panics");
    }
    shared.log(records)
}

impl Shared {
    fn live<'a>(&'a self, records: &'a [RequestRecord]) -> Live<'a> {
        let ramp_end = Duration::from_nanos(self.ramp_end_nanos.load(Ordering::Relaxed));
        let all_started = self.all_started.load(Ordering::Relaxed);
        let now = self.clock.now();
        Live { records, timeline: &self.timeline, now, ramp_end: all_started.then_some(ramp_end) }
    }

    fn raise(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let raised = phase > *current;
            *current = phase.max(*current);
            raised
        });
    }

    /// Waits for the time to cut off what is in flight.
    async fn cut(&self) {
        let time_is_up = async {
            match self.plan.cut_after.and_then(|after| Instant::now().checked_add(after)) {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time_is_up => (),
            () = self.plan.stop.requested() => (),
        }
    }

    /// Whether one more request is to be issued; if so it has been counted.
    fn issue(&self) -> bool {
        *self.phase.borrow() == Phase::Running
            && self.clock.now() < self.plan.max_duration
            && self.issued.fetch_add(1, Ordering::Relaxed) < self.plan.max_requests
    }

    fn note_idle(&self, at: Duration) {
        self.first_idle_nanos.fetch_min(at.as_nanos() as u64, Ordering::Relaxed);
    }

    fn note_started(&self, at: Duration) {
        self.ramp_end_nanos.fetch_max(at.as_nanos() as u64, Ordering::Relaxed);
    }

    fn log(&self, mut records: Vec<RequestRecord>) -> RunLog {
        let ended = self.clock.now();
        let nanos = |value: &AtomicU64| Duration::from_nanos(value.load(Ordering::Relaxed));
        estimate_cut(&mut records);
        RunLog {
            concurrency: self.plan.concurrency,
            records,
            ramp_end: nanos(&self.ramp_end_nanos),
            first_idle: nanos(&self.first_idle_nanos).min(ended),
            ended,
            arrivals: self.plan.arrivals,
        }
    }
}

/// Usage comes at the end of a reply, so one that was cut has none: its chunks stand for as many tokens as those of
/// the whole replies do.
fn estimate_cut(records: &mut [RequestRecord]) {
    let whole = records.iter().filter(|record| record.is_success());
    let (tokens, chunks) =
        whole.fold((0, 0), |sum, record| (sum.0 + record.output_tokens(), sum.1 + record.chunk_micros.len() as u64));
    for record in records.iter_mut().filter(|record| record.outcome == Outcome::Cut) {
        let came = record.chunk_micros.len() as f64;
        record.estimated_output = (chunks > 0).then(|| (came * tokens as f64 / chunks as f64).round() as u64);
    }
}

/// Waits until a run issues no more.
async fn ending(phase: &mut watch::Receiver<Phase>) {
    reached(phase, Phase::Ending).await;
}
