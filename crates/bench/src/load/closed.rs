//! A fixed number of clients, each sending its next request when its last one has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Shared, ending};
use crate::record::RequestRecord;

/// A client whose request failed waits so long, doubling up to the longest: a server that refuses is not to be flooded
/// as fast as it can refuse.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Starts the clients of the plan.
pub(super) fn spawn(shared: &Arc<Shared>, records: &Sender<RequestRecord>, workers: &mut JoinSet<()>) {
    let waiting = Arc::new(AtomicU32::new(shared.plan.concurrency));
    for number in 0..shared.plan.concurrency {
        workers.spawn(client(number, shared.clone(), waiting.clone(), records.clone()));
    }
}

/// One client. `waiting` counts those that have not sent their first request.
async fn client(number: u32, shared: Arc<Shared>, waiting: Arc<AtomicU32>, records: Sender<RequestRecord>) {
    let mut phase = shared.phase.subscribe();
    pause(shared.plan.ramp * number / shared.plan.concurrency, &mut phase).await;
    let mut rest = FIRST_PAUSE;
    let mut first = true;
    let mut session = shared.source.session();
    loop {
        let due = shared.clock.now();
        if !shared.issue() {
            shared.note_idle(due);
            return;
        }
        if std::mem::take(&mut first) {
            shared.note_started(due);
            if waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
                shared.all_started.store(true, Ordering::Relaxed);
            }
        }
        let job = session.next_job().unwrap_or_else(|| {
            session = shared.source.session();
            session.next_job().expect("a session has at least one request")
        });
        let record = shared.client.stream(job, due, shared.clock, &shared.timeline, &mut phase).await;
        let success = record.is_success();
        if records.send(record).await.is_err() {
            return;
        }
        if success {
            rest = FIRST_PAUSE;
        } else {
            pause(rest, &mut phase).await;
            rest = (rest * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Sleeps, but not beyond the end of the run.
async fn pause(time: Duration, phase: &mut tokio::sync::watch::Receiver<super::Phase>) {
    tokio::select! {
        () = sleep(time) => (),
        () = ending(phase) => (),
    }
}
