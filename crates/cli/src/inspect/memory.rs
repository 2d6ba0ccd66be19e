//! What a model takes of the memory, at a length and a number of requests: by the plan that `serve` makes.

use anyhow::Result;
use plimsoll_nn::ModelInfo;
use plimsoll_runner::MemoryPlan;
use serde::Serialize;

use crate::means::Means;

/// All sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Memory {
    pub(super) device: &'static str,
    pub(super) max_model_len: u32,
    pub(super) max_num_seqs: u32,
    pub(super) max_num_batched_tokens: u32,
    pub(super) kv_cache_dtype: String,
    /// Where they are computed with.
    pub(super) weights: u64,
    pub(super) kv_groups: Vec<KvGroup>,
    /// Of a token that all layers still see.
    pub(super) kv_a_token: u64,
    /// Of a request of `max_model_len` tokens.
    pub(super) kv_a_request: u64,
    /// Of `max_num_seqs` such requests.
    pub(super) kv_all_requests: u64,
    /// Activations of a step; an estimate.
    pub(super) workspace: u64,
    /// Of libraries and captured steps; an estimate.
    pub(super) overhead: u64,
    /// All, with `kv_all_requests`.
    pub(super) total: u64,
    /// What may be used now.
    pub(super) available: u64,
    pub(super) serve: Outcome,
}

/// Layers that see equally far.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KvGroup {
    pub(super) layers: usize,
    pub(super) window: Option<u32>,
    pub(super) kv_a_token: u64,
}

/// What `serve` would do with the same options.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Starts {
        kv_cache: u64,
        total: u64,
        max_model_len: u32,
        /// Requests of that length that fit at once.
        full_length_requests: u32,
    },
    Refuses(String),
}

impl Memory {
    pub(super) fn of(info: &ModelInfo, weights: u64, means: &Means) -> Result<Self> {
        let available = means.available()?;
        let max_model_len = means.engine.max_model_len.unwrap_or(info.max_position_embeddings as u32);
        let limits = means.limits(available, weights, max_model_len);
        let element = limits.kv_dtype.size_in_bytes();
        let group = |(index, window): (usize, &Option<u32>)| KvGroup {
            layers: info.layers.iter().filter(|layer| layer.group == index).count(),
            window: *window,
            kv_a_token: info.kv_bytes_per_token(index, element),
        };
        let kv_groups: Vec<_> = info.groups.iter().enumerate().map(group).collect();
        let kv_bytes = |seqs| MemoryPlan::kv_bytes(info, &limits, seqs, max_model_len);
        let (kv_all_requests, workspace) = (kv_bytes(limits.max_num_seqs), MemoryPlan::workspace_bytes(info, &limits));
        let parts = [weights, kv_all_requests, workspace, limits.overhead];
        Ok(Self {
            device: means.compute.kind(),
            max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            kv_cache_dtype: format!("{:?}", limits.kv_dtype).to_lowercase(),
            weights,
            kv_a_token: kv_groups.iter().map(|group| group.kv_a_token).sum(),
            kv_groups,
            kv_a_request: kv_bytes(1),
            kv_all_requests,
            workspace,
            overhead: limits.overhead,
            total: parts.into_iter().fold(0, u64::saturating_add),
            available,
            serve: match means.plan(info, weights) {
                Ok(plan) => Outcome::Starts {
                    kv_cache: plan.kv_cache,
                    total: plan.total(),
                    max_model_len: plan.max_model_len,
                    full_length_requests: plan.full_length_requests,
                },
                Err(error) => Outcome::Refuses(format!("{error:#}")),
            },
        })
    }
}
