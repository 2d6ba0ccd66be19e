//! Runs the CUDA kernels on a CPU, from the very sources that nvcc compiles: one fiber a CUDA thread, in an order drawn
//! from a seed, with every access to memory checked. A launch that breaks a rule of CUDA fails with a message that names
//! the kernel, the block, the thread and the line.
//!
//! What is found: accesses outside an allocation by so little as a byte, or misaligned; reads of memory that nobody has
//! written; races within a block between barriers, and between blocks; deadlocks; warp functions whose lanes disagree;
//! shared memory read before it is written (it holds NaNs) or before its `cp.async` has landed.
//!
//! It must never know what a kernel computes. It says nothing about speed.

mod emulator;
#[cfg(emulated)]
mod sys;

pub use emulator::{Emulator, EmulatorConfig};

/// Why kernels cannot run here; `None` where they can.
pub fn unsupported() -> Option<&'static str> {
    if cfg!(emulated) { None } else { Some("the emulator runs on Linux only") }
}
