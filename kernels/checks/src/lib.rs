//! Every kernel against its oracle: the CPU op where there is one, else a plain loop in f64. A case knows neither which
//! device it runs on nor who asks: `cargo test` runs all of them in the emulator, `gpu-check` on a GPU.

mod activation;
mod arrays;
mod attention;
mod block_copy;
mod combine;
mod device;
mod embedding;
mod fill;
mod fp8;
mod gather_rows;
mod gemv;
mod logits;
mod moe;
mod packed;
mod random;
mod rms_norm;
mod rope_kv_write;
mod route;
mod sample;
mod sample_model;
mod sample_run;
mod temperature;

pub use device::{TestDevice, poisoned};
pub use random::Random;

use plimsoll_kernels::{LaunchError, Queue};

/// One check, with inputs of its own drawn from `Random`.
pub struct Case {
    /// `kernel/what`, as a filter finds it.
    pub name: String,
    /// # Errors
    /// What differs, where, and by how much.
    pub run: Check,
}

/// What a case does.
pub type Check = Box<dyn Fn(&dyn TestDevice, &mut Random) -> Result<(), String>>;

/// A kernel at a shape that real models give it, to be timed on a GPU.
pub struct Timing {
    /// `kernel/shape`.
    pub name: String,
    /// Bytes of device memory that must be read and written.
    pub bytes: u64,
    /// Multiply-adds times two, on the tensor cores.
    pub flops: u64,
    /// Uploads inputs and gives the launch to repeat.
    pub prepare: Prepare,
}

/// How a timing is made ready.
pub type Prepare = Box<dyn Fn(&dyn TestDevice) -> Run>;

/// A prepared launch.
pub type Run = Box<dyn Fn(&dyn Queue) -> Result<(), LaunchError>>;

/// All checks.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(activation::cases());
    cases.extend(attention::cases());
    cases.extend(block_copy::cases());
    cases.extend(combine::cases());
    cases.extend(embedding::cases());
    cases.extend(fill::cases());
    cases.extend(fp8::cases());
    cases.extend(gather_rows::cases());
    cases.extend(gemv::cases());
    cases.extend(logits::cases());
    cases.extend(packed::cases());
    cases.extend(route::cases());
    cases.extend(rms_norm::cases());
    cases.extend(sample::cases());
    cases.extend(rope_kv_write::cases());
    cases.extend(temperature::cases());
    cases
}

/// All timings.
pub fn timings() -> Vec<Timing> {
    let mut timings = Vec::new();
    timings.extend(activation::timings());
    timings.extend(attention::timings());
    timings.extend(block_copy::timings());
    timings.extend(combine::timings());
    timings.extend(embedding::timings());
    timings.extend(fill::timings());
    timings.extend(fp8::timings());
    timings.extend(gemv::timings());
    timings.extend(logits::timings());
    timings.extend(route::timings());
    timings.extend(rms_norm::timings());
    timings.extend(sample::timings());
    timings.extend(rope_kv_write::timings());
    // The longest last.
    timings.extend(moe::timings());
    timings.extend(packed::timings::timings());
    timings
}
