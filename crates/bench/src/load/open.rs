//! Requests sent when a schedule says so, whatever becomes of those before.
//!
//! What is due while as many requests are in flight as may be is not sent, and counted as a failure: waiting for a free
//! place would make the arrivals wait for the server, and leaving it out would hide that they did not fit.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{Shared, ending};
use crate::arrivals::Schedule;
use crate::record::RequestRecord;
use crate::source::Session;

/// A session that panicked would take its records along.
const SOUND: &str = "a session makes a record of every failure, and never panics";

/// Sends all requests of the plan, and waits for their ends.
pub(super) async fn dispatch(shared: Arc<Shared>, records: Sender<RequestRecord>) {
    let plan = &shared.plan;
    // The clock is read first: a start that is late by the time between the two makes no request early.
    let since = shared.clock.now();
    let began = Instant::now() - since;
    let places = Arc::new(Semaphore::new(plan.concurrency as usize));
    let mut phase = shared.phase.subscribe();
    let mut sessions = JoinSet::new();
    shared.all_started.store(true, Ordering::Relaxed);
    let mut idle = plan.max_duration;
    for due in Schedule::new(plan.arrivals, plan.seed, plan.max_duration, shared.source.trace()) {
        if due >= plan.max_duration {
            break;
        }
        tokio::select! {
            biased;
            () = ending(&mut phase) => (),
            () = sleep_until(began + due) => (),
        }
        if !shared.issue() {
            idle = shared.clock.now().min(due);
            break;
        }
        while let Some(joined) = sessions.try_join_next() {
            joined.expect(SOUND);
        }
        let mut session = shared.source.session();
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (shared, records) = (shared.clone(), records.clone());
                sessions.spawn(async move {
                    play(session, due, &shared, &records).await;
                    drop(place);
                });
            }
            Err(_) => {
                let job = session.next_job().expect("a session has at least one request");
                let dropped = RequestRecord::dropped(job.prompt_tokens, due, shared.clock.now().max(due));
                if records.send(dropped).await.is_err() {
                    return;
                }
            }
        }
        idle = plan.max_duration.min(shared.clock.now());
    }
    shared.note_idle(idle.max(Duration::from_nanos(1)));
    while let Some(joined) = sessions.join_next().await {
        joined.expect(SOUND);
    }
}

/// Plays one session through: its first request is due at `due`, each further one when the reply before it has ended.
async fn play(mut session: Session, mut due: Duration, shared: &Arc<Shared>, records: &Sender<RequestRecord>) {
    let mut phase = shared.phase.subscribe();
    let mut first = true;
    while let Some(job) = session.next_job() {
        if !std::mem::take(&mut first) && !shared.issue() {
            return;
        }
        let record = shared.client.stream(job, due, shared.clock, &shared.timeline, &mut phase).await;
        let (over, success) = (record.done, record.is_success());
        if records.send(record).await.is_err() || !success {
            return;
        }
        due = over;
    }
}
