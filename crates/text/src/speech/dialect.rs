//! Which syntax a model thinks and calls in, told by its control tokens and its chat template.

use std::str::FromStr;

use crate::RenderedChat;

/// How a model marks its thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningSyntax {
    /// Not at all.
    #[default]
    None,
    /// `<think>` ... `</think>`
    Think,
    /// A channel of its own (gpt-oss).
    Harmony,
}

/// How a model calls tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolSyntax {
    /// In no way that is known here.
    #[default]
    None,
    /// `<tool_call>{"name": ..., "arguments": ...}</tool_call>`
    Hermes,
    /// `{"name": ..., "parameters": ...}` for an answer.
    LlamaJson,
    /// `[f(a=1), g(b="x")]` for an answer, or as [`ToolSyntax::LlamaJson`].
    Pythonic,
    /// As [`ToolSyntax::Pythonic`], also in fences named `tool_code` or `json`.
    Gemma,
    /// Messages to `functions.NAME` (gpt-oss).
    Harmony,
}

/// Both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    pub reasoning: ReasoningSyntax,
    pub tools: ToolSyntax,
}

/// Where in a reply the model begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opening {
    /// At its beginning.
    #[default]
    Reply,
    /// In its thoughts: the prompt opened them.
    Reasoning,
    /// In its answer: it goes on from one that the prompt holds.
    Content,
}

/// Control tokens that only harmony has.
pub(crate) const HARMONY_TOKENS: [&str; 7] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>", "<|end|>"];

impl Dialect {
    /// Of a model with these control tokens (`has_control`) and the sources of its chat templates, all in one.
    pub(crate) fn detect(has_control: impl Fn(&str) -> bool, template: &str) -> Self {
        if is_harmony(&has_control) {
            return Self { reasoning: ReasoningSyntax::Harmony, tools: ToolSyntax::Harmony };
        }
        let reasoning = if template.contains("</think>") { ReasoningSyntax::Think } else { ReasoningSyntax::None };
        // Others put XML between the same tags.
        let has_json_arguments = template.contains("arguments\":") || template.contains("arguments\\\":");
        let is_json_call = template.contains("\"parameters\": dictionary");
        let tools = if !template.contains("tools") {
            // Whoever renders the tools in the template's stead asks for what this reads.
            if template.is_empty() { ToolSyntax::None } else { ToolSyntax::Gemma }
        } else if template.contains("<tool_call>") && has_json_arguments {
            ToolSyntax::Hermes
        } else if has_control("<|python_start|>") {
            ToolSyntax::Pythonic
        } else if is_json_call || has_control("<|python_tag|>") {
            ToolSyntax::LlamaJson
        } else if has_control("<start_of_turn>") {
            ToolSyntax::Gemma
        } else {
            ToolSyntax::None
        };
        Self { reasoning, tools }
    }

    /// As the operator says, where they say; else this, which the model's files tell.
    ///
    /// # Errors
    /// Harmony, for a vocabulary without its control tokens: what to start with instead.
    pub fn overridden(self, reasoning: Option<ReasoningSyntax>, tools: Option<ToolSyntax>) -> Result<Self, String> {
        let said = Self { reasoning: reasoning.unwrap_or(self.reasoning), tools: tools.unwrap_or(self.tools) };
        if !said.is_harmony() || self.is_harmony() {
            return Ok(said);
        }
        let is_of_reasoning = said.reasoning == ReasoningSyntax::Harmony;
        let option = if is_of_reasoning { "--reasoning-parser" } else { "--tool-call-parser" };
        Err(format!("{option} harmony is for models with harmony's control tokens, which this one lacks; leave it out"))
    }

    /// Where the model begins after `prompt`: templates of models that always think open the thoughts themselves.
    pub fn opening(self, prompt: &RenderedChat) -> Opening {
        let is_thinking = self.reasoning == ReasoningSyntax::Think && opens_thoughts(prompt);
        if is_thinking { Opening::Reasoning } else { Opening::Reply }
    }

    pub(crate) fn is_harmony(self) -> bool {
        self.reasoning == ReasoningSyntax::Harmony || self.tools == ToolSyntax::Harmony
    }
}

/// Whether a prompt ends in the model's thoughts.
pub(crate) fn opens_thoughts(prompt: &RenderedChat) -> bool {
    prompt.text().trim_end().ends_with("<think>")
}

/// The beginning of a call of the function `name`, as far as nothing but its arguments can follow. `None` where what
/// follows decides whether it is a call.
pub(crate) fn forced_call(syntax: ToolSyntax, name: &str) -> Option<String> {
    match syntax {
        ToolSyntax::Hermes => Some(format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{")),
        ToolSyntax::Harmony => Some(format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")),
        _ => None,
    }
}

/// Whether a vocabulary is harmony's.
pub(crate) fn is_harmony(has_control: impl Fn(&str) -> bool) -> bool {
    HARMONY_TOKENS.iter().all(|token| has_control(token))
}

impl FromStr for ReasoningSyntax {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "think" | "qwen3" | "deepseek_r1" => Ok(Self::Think),
            "harmony" | "openai_gptoss" => Ok(Self::Harmony),
            _ => Err(format!("`{name}` is no reasoning parser; give auto, none, think or harmony")),
        }
    }
}

impl FromStr for ToolSyntax {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "hermes" | "qwen3" => Ok(Self::Hermes),
            "llama3_json" | "llama4_json" => Ok(Self::LlamaJson),
            "pythonic" | "llama4_pythonic" => Ok(Self::Pythonic),
            "gemma" => Ok(Self::Gemma),
            "harmony" | "openai" => Ok(Self::Harmony),
            _ => Err(format!(
                "`{name}` is no tool-call parser; give auto, none, hermes, llama3_json, pythonic, gemma or harmony"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmony_is_read_only_where_the_vocabulary_has_its_tokens() {
        let harmony = Dialect { reasoning: ReasoningSyntax::Harmony, tools: ToolSyntax::Harmony };
        let plain = Dialect { reasoning: ReasoningSyntax::Think, tools: ToolSyntax::Hermes };
        let error = plain.overridden(Some(ReasoningSyntax::Harmony), None).unwrap_err();
        assert!(error.starts_with("--reasoning-parser harmony"), "{error}");
        let error = plain.overridden(None, Some(ToolSyntax::Harmony)).unwrap_err();
        assert!(error.starts_with("--tool-call-parser harmony"), "{error}");
        let overridden = plain.overridden(None, Some(ToolSyntax::None));
        assert_eq!(overridden, Ok(Dialect { tools: ToolSyntax::None, ..plain }));
        assert_eq!(harmony.overridden(Some(ReasoningSyntax::Harmony), Some(ToolSyntax::Harmony)), Ok(harmony));
        assert_eq!(plain.overridden(None, None), Ok(plain));
    }
}
