//! Devices that compute nothing: executors for tests, for measuring everything but the model, and for asking what a
//! configuration would do.
//!
//! * [`NullExecutor`] answers at once with pseudo-random tokens that depend on the request alone.
//! * [`CheckedExecutor`] wraps any executor and verifies each plan against a shadow of the KV cache, as if the device
//!   itself could tell a wrong block from a right one.
//! * [`CostExecutor`] takes the time that a cost model says, on a virtual clock.
//! * [`Roofline`] is such a model made from what a model moves and computes, and from a [`Gpu`]'s published numbers.
//! * [`ClosedLoop`] asks what so many clients would get of it.
//! * [`simulate`] runs a scheduler over a script of arrivals in that virtual time.
//!
//! Everything here is deterministic: this crate must never read a clock or a random source.

mod checked;
mod closed_loop;
mod cost;
mod gpu;
mod null;
mod rng;
mod roofline;
mod shadow;
mod simulate;

pub use checked::CheckedExecutor;
pub use closed_loop::{ClosedLoop, ClosedLoopReport};
pub use cost::{CostExecutor, CostModel, StepCost};
pub use gpu::{Gpu, gpus};
pub use null::{NullConfig, NullExecutor};
pub use rng::SimRng;
pub use roofline::{AttentionWork, Bound, Efficiency, Experts, ModelWork, Roofline, StepTime};
pub use simulate::{Arrival, Outcome, RequestTiming, SimReport, simulate, simulate_behind_door};
