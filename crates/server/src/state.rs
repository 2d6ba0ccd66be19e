//! What all connections share: configuration, the model once it is loaded, the door and the counters.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::auth::ApiKeys;
use crate::error::{ApiError, Unready};
use crate::metrics::Metrics;
use crate::{ServedModel, ServerConfig};

/// The server's state. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct ServerState(Arc<Inner>);

/// Nothing of it is for other crates.
#[doc(hidden)]
pub struct Inner {
    pub(crate) config: ServerConfig,
    pub(crate) keys: ApiKeys,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Metrics,
    /// Places for rendering and tokenizing.
    pub(crate) text_places: Arc<Semaphore>,
    /// Seconds since 1970 when the server started.
    pub(crate) started: u64,
    model: OnceLock<Arc<ServedModel>>,
    is_draining: AtomicBool,
}

impl std::ops::Deref for ServerState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl ServerState {
    /// A server without a model: it listens, and asks clients to come back.
    pub fn new(config: ServerConfig) -> Self {
        Self(Arc::new(Inner {
            keys: ApiKeys::new(&config.api_keys),
            admission: Admission::new(&config),
            metrics: Metrics::new(),
            text_places: Arc::new(Semaphore::new(config.text_threads.max(1))),
            started: unix_seconds(),
            model: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            config,
        }))
    }

    /// The model is loaded: requests are served from now on.
    ///
    /// # Panics
    /// If the server has a model already.
    pub fn set_ready(&self, model: ServedModel) {
        assert!(self.model.set(Arc::new(model)).is_ok(), "a server gets its model once");
    }

    /// A part of the start took so long.
    pub fn note_startup(&self, part: &str, time: Duration) {
        self.metrics.note_startup(part, time);
    }

    /// Refuses new requests from now on, with 503; the ones inside go on. [`crate::serve`] calls it when it is told
    /// to stop.
    pub fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Sequences in the server, running and waiting.
    pub fn sequences_in_flight(&self) -> usize {
        self.admission.load().sequences
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// The model, whether or not new requests are taken.
    pub(crate) fn model(&self) -> Result<&Arc<ServedModel>, ApiError> {
        self.model.get().ok_or(ApiError::Unready(Unready::Loading))
    }

    /// The model, for a new request that names `name`.
    pub(crate) fn model_called(&self, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
        let model = self.model()?;
        match name {
            Some(name) if !model.is_called(name) => {
                Err(ApiError::ModelNotFound { name: name.to_owned(), served: model.name.clone() })
            }
            _ => Ok(Arc::clone(model)),
        }
    }

    /// Refuses where the server is loading or going down: the first question to every request for tokens.
    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.is_draining() {
            return Err(ApiError::Unready(Unready::Draining));
        }
        self.model().map(drop)
    }
}

/// Now, as the wire has it.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
