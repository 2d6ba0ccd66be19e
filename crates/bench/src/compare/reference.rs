//! The published result, as data.

use std::sync::LazyLock;

use serde::Deserialize;

const JSON: &str = include_str!("../../reference/published.json");

/// All of it, and the load that it is of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    pub(super) description: String,
    pub(super) workload: Load,
    pub(super) results: Vec<Published>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    pub(super) min_prompt_tokens: u32,
    pub(super) max_prompt_tokens: u32,
    pub(super) max_output_tokens: u32,
}

/// One model's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Published {
    pub(super) model: String,
    /// Parts of the names under which servers list it.
    names: Vec<String>,
    pub(super) gpus: u32,
    pub(super) at: PublishedRung,
    /// Requests a second over stretches of concurrency, from the lowest to the highest that was seen there.
    pub(super) ramp: Vec<Stretch>,
    pub(super) ramp_note: String,
}

/// One concurrency. Means; times in milliseconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishedRung {
    pub(super) concurrency: u32,
    pub(super) requests_per_s: f64,
    pub(super) input_tokens_per_s: f64,
    pub(super) output_tokens_per_s: f64,
    pub(super) tokens_per_s_per_user: f64,
    pub(super) ttft_ms: f64,
    pub(super) tpot_ms: f64,
    pub(super) itl_ms: f64,
    pub(super) success_rate: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    pub(super) concurrency: [u32; 2],
    pub(super) requests_per_s: [f64; 2],
}

impl Published {
    /// Whether a server that lists `model` serves this one, whatever case and separators it writes it in.
    pub(super) fn is_of(&self, model: &str) -> bool {
        let plain = |name: &str| -> String {
            name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        self.names.iter().any(|name| plain(model).contains(&plain(name)))
    }
}

pub(super) fn published() -> &'static Reference {
    static PUBLISHED: LazyLock<Reference> =
        LazyLock::new(|| serde_json::from_str(JSON).expect("the reference in the repository is well-formed"));
    &PUBLISHED
}
