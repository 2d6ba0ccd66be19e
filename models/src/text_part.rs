//! The text part of a model that also sees: where its config and its weights stand among the rest, which is set aside.

use plimsoll_nn::{CheckpointError, Fields, Weights};
use serde_json::Value;

/// Everything of such models that is not text.
const VISION: &[&str] = &[
    "vision_model",
    "vision_tower",
    "multi_modal_projector",
    "model.vision_model",
    "model.vision_tower",
    "model.multi_modal_projector",
];

/// The weights of a text model.
pub(crate) struct TextWeights<'a> {
    /// With the embedding, the layers and the last norm under it.
    pub(crate) inner: Weights<'a>,
    /// With `lm_head` under it.
    pub(crate) outer: Weights<'a>,
}

impl<'a> TextWeights<'a> {
    /// Of a model that is text alone.
    pub(crate) fn of(weights: &Weights<'a>) -> Self {
        Self { inner: weights.pp("model"), outer: weights.clone() }
    }
}

/// Whether the config is of a model that also sees.
fn also_sees(config: &Value) -> bool {
    let names = config["architectures"].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(Value::as_str).any(|name| name.ends_with("ForConditionalGeneration"))
}

/// The fields of the text model, and the name of the whole: `plain`'s, or, of a model that also sees, `seeing`'s.
///
/// # Errors
/// There is no `text_config` where there should be.
pub(crate) fn fields<'a>(
    config: &'a Value,
    plain: &'static str,
    seeing: &'static str,
) -> Result<(Fields<'a>, &'static str), CheckpointError> {
    let fields = Fields::new(config)?;
    if !also_sees(config) {
        return Ok((fields, plain));
    }
    match fields.nested("text_config")? {
        Some(text) => Ok((text, seeing)),
        None => Err(fields.wrong("text_config", "is missing")),
    }
}

/// Finds the text model's weights, and sets aside those of the vision tower.
pub(crate) fn weights<'a>(config: &Value, weights: &Weights<'a>) -> TextWeights<'a> {
    if !also_sees(config) {
        return TextWeights::of(weights);
    }
    VISION.iter().for_each(|name| weights.pp(name).ignore_all());
    if weights.has("language_model.") {
        let outer = weights.pp("language_model");
        return TextWeights { inner: outer.pp("model"), outer };
    }
    TextWeights { inner: weights.pp("model").pp("language_model"), outer: weights.clone() }
}
