//! Ending a measurement early without losing what was measured.

use std::sync::Arc;

use tokio::sync::watch;

/// A handle that ends a measurement: what is in flight is cut off, and the report is made from what there is. Clones
/// are one handle.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Ends the measurement.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is set.
    pub async fn requested(&self) {
        reached(&mut self.0.subscribe(), true).await;
    }
}

/// Waits until the watched value is at least `goal`; forever if nobody is left to raise it.
pub(crate) async fn reached<T: PartialOrd>(watched: &mut watch::Receiver<T>, goal: T) {
    if watched.wait_for(|value| *value >= goal).await.is_err() {
        std::future::pending().await
    }
}
