//! The closed-loop driver: a fixed number of clients, each sending its next request when its last one has ended.
//!
//! In a closed loop a request is scheduled when its client becomes free, so a slow server delays arrivals rather than
//! piling them up; what a client does between being free and sending is measured and counted. Every request issued
//! ends as a record: none is dropped, and those in flight at the end of the run are waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::arrivals::Arrivals;
use crate::client::{Client, Clock};
use crate::record::RequestRecord;
use crate::source::RequestSource;
use crate::timeline::Timeline;

/// How often the observer is asked.
const TICK: Duration = Duration::from_millis(200);
/// A client whose request failed waits so long, doubling up to the longest: a server that refuses is not to be flooded
/// as fast as it can refuse.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How much load, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct LoadPlan {
    pub(crate) concurrency: u32,
    pub(crate) max_requests: u64,
    /// Nothing is issued after this.
    pub(crate) max_duration: Duration,
    /// The clients start evenly spread over this time.
    pub(crate) ramp: Duration,
    pub(crate) request_timeout: Duration,
}

/// What happened, all times from the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct RunLog {
    pub(crate) concurrency: u32,
    pub(crate) records: Vec<RequestRecord>,
    /// When the last client sent its first request.
    pub(crate) ramp_end: Duration,
    /// When the first client found nothing more to do.
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

/// What the workers of a run share.
struct Shared {
    client: Arc<Client>,
    source: Arc<RequestSource>,
    plan: LoadPlan,
    clock: Clock,
    timeline: Timeline,
    stop: AtomicBool,
    issued: AtomicU64,
    started: AtomicU64,
    ramp_end_nanos: AtomicU64,
    first_idle_nanos: AtomicU64,
}

/// Runs `plan`. `observe` is called a few times a second and may return true to issue no more requests.
pub(crate) async fn closed_loop(
    client: Arc<Client>,
    source: Arc<RequestSource>,
    plan: LoadPlan,
    mut observe: impl FnMut(Live<'_>) -> bool,
) -> RunLog {
    let shared = Arc::new(Shared {
        client,
        source,
        clock: Clock::start(),
        timeline: Timeline::new(plan.max_duration.saturating_add(plan.request_timeout)),
        stop: AtomicBool::new(false),
        issued: AtomicU64::new(0),
        started: AtomicU64::new(0),
        ramp_end_nanos: AtomicU64::new(0),
        first_idle_nanos: AtomicU64::new(u64::MAX),
        plan,
    });
    let concurrency = shared.plan.concurrency;
    let (sender, mut receiver) = mpsc::channel(concurrency as usize + 1024);
    // Dropping the set, because the caller went away, ends the workers.
    let mut workers = JoinSet::new();
    for number in 0..concurrency {
        workers.spawn(worker(number, shared.clone(), sender.clone()));
    }
    drop(sender);

    let mut records = Vec::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = receiver.recv_many(&mut records, 1024) => if received == 0 { break },
            _ = ticks.tick() => {
                if observe(shared.live(&records)) {
                    shared.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }
    while let Some(joined) = workers.join_next().await {
        joined.expect("a worker makes a record of every failure, and never panics");
    }
    let ended = shared.clock.now();
    let nanos = |value: &AtomicU64| Duration::from_nanos(value.load(Ordering::Relaxed));
    RunLog {
        concurrency,
        records,
        ramp_end: nanos(&shared.ramp_end_nanos),
        first_idle: nanos(&shared.first_idle_nanos).min(ended),
        ended,
        arrivals: Arrivals::Closed,
    }
}

impl Shared {
    fn live<'a>(&'a self, records: &'a [RequestRecord]) -> Live<'a> {
        let all_started = self.started.load(Ordering::Relaxed) >= u64::from(self.plan.concurrency);
        let ramp_end = Duration::from_nanos(self.ramp_end_nanos.load(Ordering::Relaxed));
        let now = self.clock.now();
        Live { records, timeline: &self.timeline, now, ramp_end: all_started.then_some(ramp_end) }
    }

    /// Whether one more request is to be issued; if so it has been counted.
    fn issue(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
            && self.clock.now() < self.plan.max_duration
            && self.issued.fetch_add(1, Ordering::Relaxed) < self.plan.max_requests
    }
}

async fn worker(number: u32, shared: Arc<Shared>, records: mpsc::Sender<RequestRecord>) {
    sleep(shared.plan.ramp * number / shared.plan.concurrency).await;
    let mut pause = FIRST_PAUSE;
    let mut first = true;
    loop {
        let scheduled = shared.clock.now();
        if !shared.issue() {
            shared.first_idle_nanos.fetch_min(scheduled.as_nanos() as u64, Ordering::Relaxed);
            return;
        }
        if std::mem::take(&mut first) {
            shared.started.fetch_add(1, Ordering::Relaxed);
            shared.ramp_end_nanos.fetch_max(scheduled.as_nanos() as u64, Ordering::Relaxed);
        }
        let job = shared.source.next_job();
        let record = shared.client.stream(job, scheduled, shared.clock, &shared.timeline).await;
        let success = record.is_success();
        if records.send(record).await.is_err() {
            return;
        }
        if success {
            pause = FIRST_PAUSE;
        } else {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
