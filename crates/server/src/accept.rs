//! Connections: taken up to a number, timed while they say what they want, and let go at the end without cutting
//! anyone off. This loop is here because axum's own sets no timer, and then hyper's limit on slow heads does nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::host::LocalAddress;
use crate::stalled_write::StalledWrite;
use crate::{ServerConfig, ServerState, router};

/// Why a server could not go on listening.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot tell which address the server listens on: {0}")]
    Address(#[source] io::Error),
}

/// How often it is looked whether the last request has finished, while the server drains.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long the system is given when it has no more files for connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections beyond the limit that are told so at once; those beyond even that are closed without a word.
const MAX_REFUSALS: usize = 64;
/// How long idle connections may take to notice that the server is gone.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves connections until `shutdown` completes, then drains: new requests are refused with 503 while the ones
/// inside finish, for at most [`ServerConfig::drain_timeout`]; what has not finished by then is cut off.
///
/// The engine is left running.
///
/// # Errors
/// [`ServeError`] as it says. Errors of single connections end those connections.
pub async fn serve(
    listener: TcpListener,
    state: ServerState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let local = LocalAddress(listener.local_addr().map_err(ServeError::Address)?);
    let server = Server::new(state.clone(), local);
    tokio::pin!(shutdown);
    tokio::select! {
        () = server.accept_all(&listener) => {}
        () = &mut shutdown => {}
    }
    state.begin_drain();
    let deadline = Instant::now() + state.config.drain_timeout;
    tracing::info!(sequences = state.sequences_in_flight(), "draining: new requests are refused");
    // Clients that do not know yet get an answer rather than a closed port.
    tokio::select! {
        () = server.accept_all(&listener) => {}
        () = all_finished(&state, deadline) => {}
    }
    drop(listener);
    let cut_off = state.sequences_in_flight();
    if cut_off > 0 {
        tracing::warn!(sequences = cut_off, "cut off: they did not finish within the drain timeout");
    }
    // Whoever has its last bytes still on the way gets them; who is idle is closed.
    let goodbye = if cut_off > 0 { Duration::ZERO } else { GOODBYE };
    let Server { connections, cut, .. } = server;
    let _ = tokio::time::timeout(goodbye, connections.shutdown()).await;
    cut.send_replace(true);
    Ok(())
}

async fn all_finished(state: &ServerState, deadline: Instant) {
    while state.sequences_in_flight() > 0 && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

struct Server {
    state: ServerState,
    router: Router,
    local: LocalAddress,
    http: http1::Builder,
    connections: GracefulShutdown,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    /// True once every connection that is left is to be dropped.
    cut: watch::Sender<bool>,
}

impl Server {
    fn new(state: ServerState, local: LocalAddress) -> Self {
        Self {
            router: router(state.clone()),
            local,
            http: http_limits(&state.config),
            connections: GracefulShutdown::new(),
            places: Arc::new(Semaphore::new(state.config.max_connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            cut: watch::Sender::new(false),
            state,
        }
    }

    /// Never returns.
    async fn accept_all(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.accept(stream),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.refuse(stream);
            return;
        };
        // Events are small, and each is awaited.
        let _ = stream.set_nodelay(true);
        let local = self.local;
        let service = self.router.clone().map_request(move |mut request: hyper::Request<_>| {
            request.extensions_mut().insert(local);
            request.map(axum::body::Body::new)
        });
        let stream = TokioIo::new(StalledWrite::new(stream, self.state.config.write_timeout));
        let connection = self.http.serve_connection(stream, TowerToHyperService::new(service));
        let watched = self.connections.watch(connection);
        let mut cut = self.cut.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                // Ends for one connection's own reasons: a client gone, a head too slow or too large.
                ended = watched => ended.unwrap_or_else(|error| tracing::debug!("connection ended: {error}")),
                _ = cut.wait_for(|cut| *cut) => {}
            }
            drop(place);
        });
    }

    /// Says why, and waits a moment for the client to have read it: closing at once would discard it.
    fn refuse(&self, mut stream: TcpStream) {
        self.state.metrics.connections_refused.inc();
        let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let say_so = async {
                stream.write_all(REFUSAL.as_bytes()).await?;
                stream.shutdown().await?;
                let mut ignored = [0; 1024];
                while stream.read(&mut ignored).await? > 0 {}
                io::Result::Ok(())
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), say_so).await;
            drop(place);
        });
    }
}

/// The response to a connection beyond the limit, whose request nobody has read.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n",
    "content-length: 146\r\n\r\n",
    r#"{"error":{"message":"the server has as many connections as it holds; retry later","type":"service_unavailable","#,
    r#""param":null,"code":"connections"}}"#,
);

fn http_limits(config: &ServerConfig) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        // hyper reads heads and bodies through one buffer, which it does not take below 8 KiB.
        .max_buf_size(config.max_header_bytes.max(8192));
    http
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_says_how_long_it_is() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<plimsoll_api::ErrorBody>(body).is_ok());
    }
}
