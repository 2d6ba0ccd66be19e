//! How fast the client itself is, found out before any server is blamed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;
use crate::client::{Client, HttpClients};
use crate::config::{EndpointKind, Generation, Workload};
use crate::conversation::Conversation;
use crate::endpoint::{Base, generate};
use crate::error::Result;
use crate::load::{LoadPlan, drive};
use crate::null_server::{NullServer, NullServerConfig};
use crate::slo::Slo;
use crate::source::RequestSource;
use crate::stop::Stop;
use crate::summary::summarize;

const CONCURRENCY: u32 = 64;
const TIME: Duration = Duration::from_millis(1500);
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

/// Drives a null server for a second and a half, with replies of `tokens` tokens: the one at `url`, or one started in this
/// process. Short replies cost the client more a token than long ones do.
///
/// # Errors
/// A null server that cannot be started, or a `url` that is none.
pub async fn measure_client_ceiling(url: Option<&str>, tokens: u32) -> Result<ClientCeiling> {
    let own = match url {
        Some(_) => None,
        None => Some(NullServer::start(NullServerConfig::default())?),
    };
    let address = url.map(str::to_owned).or_else(|| own.as_ref().map(NullServer::url)).expect("one of the two");
    let base = Base::parse(&address)?;
    let http = HttpClients::new(base.root(), None, REQUEST_TIMEOUT)?;
    let client = Arc::new(Client::new(http, generate(&base, EndpointKind::Chat), REQUEST_TIMEOUT));
    let prompts = vec![Conversation::single("How fast is the client?", 6)];
    let generation = Generation { max_tokens: tokens, ..Generation::default() };
    let source = RequestSource::new(EndpointKind::Chat, "null", &generation, &Workload::default(), prompts)?;
    let plan = LoadPlan {
        concurrency: CONCURRENCY,
        arrivals: Arrivals::Closed,
        seed: 0,
        max_requests: u64::MAX,
        max_duration: TIME,
        ramp: Duration::ZERO,
        request_timeout: REQUEST_TIMEOUT,
        // Long replies are not waited for: what came of them counts.
        cut_after: Some(TIME),
        stop: Stop::default(),
    };
    let log = drive(client, Arc::new(source), plan, |_| false).await;
    let events_per_s = summarize(&log, &Slo::default()).chunks_per_s;
    Ok(ClientCeiling { events_per_s, concurrency: CONCURRENCY, own_process: url.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_too_long_to_end_are_measured_as_well() {
        let ceiling = measure_client_ceiling(None, 1_000_000).await.expect("a null server");
        assert!(ceiling.events_per_s > 100.0, "{ceiling:?}");
    }

    #[test]
    fn a_quarter_of_the_ceiling_is_as_near_as_a_server_may_come() {
        let ceiling = ClientCeiling { events_per_s: 40_000.0, concurrency: 64, own_process: true };
        assert!(ceiling.has_headroom_for(9_900.0));
        assert!(!ceiling.has_headroom_for(10_100.0));
    }
}
