//! Layers that architectures share. Each is a few ops in a row; none knows which model it is part of.

mod attention;
mod embedding;
mod head;
mod mlp;
mod moe;
mod norm;
mod residual;

pub use attention::{Attention, AttentionShape};
pub use embedding::Embedding;
pub use head::Head;
pub use mlp::Mlp;
pub use moe::Moe;
pub use norm::RmsNorm;
pub use residual::Residual;
