//! How fast the client itself is, found out before any server is blamed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;
use crate::client::{Client, HttpClients};
use crate::config::{EndpointKind, Generation, Workload};
use crate::conversation::Conversation;
use crate::descriptors;
use crate::endpoint::{Base, generate};
use crate::error::{BenchError, Result};
use crate::load::{LoadPlan, drive};
use crate::null_server::{NullServer, NullServerConfig};
use crate::record::RequestRecord;
use crate::slo::Slo;
use crate::source::RequestSource;
use crate::stop::Stop;
use crate::summary::summarize;

const FEWEST_CONNECTIONS: u32 = 64;
const MOST_CONNECTIONS: u32 = 512;
const TIME: Duration = Duration::from_millis(1500);
const RAMP: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The client must be so many times as fast as what it measures.
const HEADROOM: f64 = 4.0;

/// What the client sustained against a server that does nothing but write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClientCeiling {
    /// Output chunks a second.
    pub events_per_s: f64,
    pub concurrency: u32,
    /// False: the null server ran in the client's process and took part of its CPU time, so the true ceiling is higher.
    pub own_process: bool,
}

impl ClientCeiling {
    /// Whether `events_per_s` is so far below the ceiling that it can be taken for the server's doing.
    pub fn has_headroom_for(&self, events_per_s: f64) -> bool {
        events_per_s * HEADROOM <= self.events_per_s
    }
}

/// Drives a null server for a second and a half with the requests of `source`, so with prompts and replies as long as
/// the real ones: the server at `url`, or one started in this process. Up to `most` requests are in flight, but no more
/// than tell something: connections cost as well as events do.
///
/// # Errors
/// A null server that cannot be started, or a `url` that is none.
pub(crate) async fn measure_client_ceiling(
    url: Option<&str>,
    source: RequestSource,
    most: u32,
    stop: Stop,
) -> Result<ClientCeiling> {
    let own = match url {
        Some(_) => None,
        None => Some(NullServer::start(NullServerConfig::default())?),
    };
    let address = url.map(str::to_owned).or_else(|| own.as_ref().map(NullServer::url)).expect("one of the two");
    let base = Base::parse(&address)?;
    let http = HttpClients::new(base.root(), None, REQUEST_TIMEOUT)?;
    let client = Arc::new(Client::new(http, generate(&base, source.kind()), REQUEST_TIMEOUT));
    let concurrency = connections(most, if own.is_some() { 2 } else { 1 });
    let plan = LoadPlan {
        concurrency,
        arrivals: Arrivals::Closed,
        seed: 0,
        max_requests: u64::MAX,
        max_duration: TIME,
        ramp: RAMP,
        request_timeout: REQUEST_TIMEOUT,
        // Long replies are not waited for: what came of them counts.
        cut_after: Some(TIME),
        stop,
    };
    let log = drive(client, Arc::new(source), plan, |_| false).await;
    let events_per_s = summarize(&log, &Slo::default()).chunks_per_s;
    Ok(ClientCeiling { events_per_s, concurrency, own_process: url.is_some() })
}

/// How many connections tell something, as far as there are descriptors: the ends of one to a server in this process are
/// two.
fn connections(most: u32, ends: u32) -> u32 {
    let wanted = most.clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS);
    (descriptors::connections_for(ends * wanted).0 / ends).max(1)
}

/// The time to the first content of each of `requests` requests to the server at `url`, by the client's own clock, in the
/// order of their sending: one every `gap`, whatever becomes of those before. For holding it against another clock.
///
/// # Errors
/// A `url` that is none, and a request that failed.
pub async fn first_content_times(url: &str, requests: u32, gap: Duration) -> Result<Vec<Duration>> {
    let base = Base::parse(url)?;
    let http = HttpClients::new(base.root(), None, REQUEST_TIMEOUT)?;
    let client = Arc::new(Client::new(http, generate(&base, EndpointKind::Chat), REQUEST_TIMEOUT));
    let prompt = vec![Conversation::single("How fast is the client?", 6)];
    let source = RequestSource::new(EndpointKind::Chat, "null", &Generation::default(), &Workload::default(), prompt)?;
    let plan = LoadPlan {
        concurrency: requests,
        arrivals: Arrivals::Constant { rate: 1.0 / gap.as_secs_f64() },
        seed: 0,
        max_requests: requests.into(),
        // Longer than it takes, so that on a busy machine every one is sent as well.
        max_duration: gap * requests + REQUEST_TIMEOUT,
        ramp: Duration::ZERO,
        request_timeout: REQUEST_TIMEOUT,
        cut_after: None,
        stop: Stop::default(),
    };
    let mut records = drive(client, Arc::new(source), plan, |_| false).await.records;
    records.sort_by_key(|record| record.sent);
    if let Some(failed) = records.iter().find(|record| !record.is_success()) {
        let why = failed.detail.clone().unwrap_or_default();
        return Err(BenchError::Unanswered { url: url.to_owned(), why });
    }
    Ok(records.iter().filter_map(RequestRecord::time_to_first_content).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_too_long_to_end_are_measured_as_well() {
        let generation = Generation { max_tokens: 1_000_000, ..Generation::default() };
        let prompt = vec![Conversation::single("How fast?", 3)];
        let kind = EndpointKind::Completions;
        let source = RequestSource::new(kind, "m", &generation, &Workload::default(), prompt).expect("a source");
        let ceiling = measure_client_ceiling(None, source, 8, Stop::default()).await.expect("a null server");
        assert!(ceiling.events_per_s > 100.0, "{ceiling:?}");
    }

    #[tokio::test]
    async fn each_request_has_its_time_and_a_failure_is_told() {
        let pace = Some(Duration::from_millis(1));
        let server = NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port");
        let times = first_content_times(&server.url(), 20, Duration::from_millis(2)).await.expect("20 requests");
        assert_eq!(times.len(), 20);
        assert!(times.iter().all(|time| *time >= Duration::from_millis(1)), "{times:?}");
        let gone = server.url();
        drop(server);
        assert!(first_content_times(&gone, 2, Duration::from_millis(1)).await.is_err());
    }

    #[test]
    fn a_quarter_of_the_ceiling_is_as_near_as_a_server_may_come() {
        let ceiling = ClientCeiling { events_per_s: 40_000.0, concurrency: 64, own_process: true };
        assert!(ceiling.has_headroom_for(9_900.0));
        assert!(!ceiling.has_headroom_for(10_100.0));
    }
}
