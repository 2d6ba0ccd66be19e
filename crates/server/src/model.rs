//! The model that a server serves, as far as requests see it.

use plimsoll_core::TokenId;
use plimsoll_engine::EngineHandle;
use plimsoll_text::{Dialect, Tokenizer};

/// A loaded model behind its engine.
#[derive(Clone)]
pub struct ServedModel {
    /// What clients call it; given back in every response.
    pub name: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    /// Tokens of prompt and completion together, as the engine's scheduler has it.
    pub max_model_len: u32,
    /// Token ids are below this; as the engine has it.
    pub vocab_size: u32,
    /// Tokens that end generation unless a request ignores them.
    pub eos_token_ids: Vec<TokenId>,
    /// What a request means that does not say.
    pub defaults: SamplingDefaults,
    /// How the model's thoughts and calls are read: [`Tokenizer::dialect`], or what the operator says.
    pub dialect: Dialect,
    /// Thoughts stand under their older name, `reasoning_content`, too.
    pub adds_reasoning_content: bool,
}

/// Sampling parameters for requests that do not name them: OpenAI's, or those of the model's generation_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl ServedModel {
    /// Whether a request that names `name` means this model.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}
