//! Indices that an op is given: token ids, positions, rows.

use candle_core::Tensor;

/// Indices in the host's memory, and, where the step runs on a GPU, in the GPU's as well. A CPU op reads `host`, a CUDA
/// op reads `device` alone: when a captured step is replayed only that has changed.
#[derive(Clone, Copy, Debug)]
pub struct Indices<'a> {
    pub host: &'a [u32],
    /// `[n]` u32. May be longer than `host`, where a step is padded.
    pub device: Option<&'a Tensor>,
}

impl<'a> From<&'a [u32]> for Indices<'a> {
    fn from(host: &'a [u32]) -> Self {
        Self { host, device: None }
    }
}

/// Token ids, likewise.
#[derive(Clone, Copy, Debug)]
pub struct TokenIds<'a> {
    pub host: &'a [u32],
    /// u32 `[n]` ids, and u32 `[slots]` last sampled tokens: an id with bit 31 set stands for the token that the slot in
    /// its other bits sampled last, which the host need not know.
    pub device: Option<(&'a Tensor, &'a Tensor)>,
}

impl<'a> From<&'a [u32]> for TokenIds<'a> {
    fn from(host: &'a [u32]) -> Self {
        Self { host, device: None }
    }
}
