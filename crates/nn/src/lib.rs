//! Building blocks over `ops`: what a checkpoint on disk holds ([`Checkpoint`], [`Weights`]), what a forward pass is
//! given ([`ForwardBatch`], [`KvCache`]), and the layers that architectures share.
//!
//! This crate must never know a particular architecture's forward pass, a scheduler, a request or a tokenizer. Model
//! files built on it know neither devices, nor quantization, nor the cache's memory: those end here.

mod checkpoint;
mod config;
mod error;
mod forward_batch;
mod kv_cache;
mod layers;
mod model;
mod quantization;
mod rope;
mod weights;

pub use checkpoint::{Checkpoint, GgufArray, GgufMetadata, GgufValue, TensorInfo};
pub use config::Fields;
pub use error::CheckpointError;
pub use forward_batch::{ForwardBatch, StepTensors};
pub use kv_cache::KvCache;
pub use layers::{Attention, AttentionShape, Embedding, Head, Mlp, Moe, Residual, RmsNorm};
pub use model::{ExpertsInfo, LayerInfo, Model, ModelInfo};
pub use quantization::Quantization;
pub use rope::{Rope, RopeScaling, Yarn};
pub use weights::{ExpertsShape, Footprint, Loading, Quantize, Weights};
