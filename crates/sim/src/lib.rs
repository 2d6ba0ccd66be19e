//! Devices that compute nothing: executors for tests, for measuring everything but the model, and for asking what a
//! configuration would do.
//!
//! * [`NullExecutor`] answers at once with pseudo-random tokens that depend on the request alone.
//! * [`CheckedExecutor`] wraps any executor and verifies each plan against a shadow of the KV cache, as if the device
//!   itself could tell a wrong block from a right one.
//! * [`CostExecutor`] takes the time that a cost model says, on a virtual clock.
//! * [`simulate`] runs a scheduler over a script of arrivals in that virtual time.
//!
//! Everything here is deterministic: this crate must never read a clock or a random source.

mod checked;
mod cost;
mod null;
mod rng;
mod shadow;
mod simulate;

pub use checked::CheckedExecutor;
pub use cost::{CostExecutor, CostModel};
pub use null::{NullConfig, NullExecutor};
pub use rng::SimRng;
pub use simulate::{Arrival, Outcome, RequestTiming, SimReport, simulate, simulate_behind_door};
