//! Layers that architectures share. Each is a few ops in a row; none knows which model it is part of.

mod attention;
mod head;
mod mlp;
mod norm;

pub use attention::{Attention, AttentionShape};
pub use head::Head;
pub use mlp::Mlp;
pub use norm::RmsNorm;
