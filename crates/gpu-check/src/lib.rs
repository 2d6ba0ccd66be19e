//! Checks and measures Plimsoll on a GPU host: the kernels against their oracles and against the chip's ceilings, whole
//! models, and the real server under load. `cargo xtask gpu-check` packs it.
//!
//! This library is what of it needs no GPU; the program `gpu-check`, which is built with CUDA alone, adds the rest. It
//! must never be needed to build or serve.

pub mod benchmarks;
pub mod drive;
pub mod golden;
pub mod model;
pub mod only;
pub mod power;
pub mod results;
pub mod scale;
pub mod served;
pub mod serving;
pub mod supervise;
pub mod table;
pub mod traffic;
