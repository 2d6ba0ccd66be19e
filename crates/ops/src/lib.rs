//! The operations a transformer is made of, one file an op: the CPU implementation, which is the oracle, and (with a
//! GPU) its CUDA dispatch beside it. The device of the input tensor picks.
//!
//! Ops know tensors and plain metadata. They must never know a model, a checkpoint's names, a scheduler or a request.
//!
//! Every op computes each row (token, sequence) in an order of additions that does not depend on what else is in the
//! batch: batched == single and chunked == whole hold to the bit.

pub mod activation;
pub mod add;
pub mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod e4m3;
pub mod gpu;
pub mod indices;
pub mod kv_write;
pub mod linear;
pub mod moe;
pub mod norm;
mod operand;
pub mod par;
pub mod quant;
pub mod rope;
pub mod rope_kv_write;
pub mod rows;
pub mod sample;
mod simd;
pub mod temperature;
#[cfg(test)]
mod testing;
