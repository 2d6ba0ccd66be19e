//! A conversation in harmony, the format of gpt-oss, for checkpoints that come without a chat template.
//!
//! It is written as OpenAI's own library writes it: a system message with the date, the effort and the channels; the
//! request's system messages and tools as the developer's; then the conversation, in which thoughts are left out once
//! a final answer came after them. Spec: <https://cookbook.openai.com/articles/openai-harmony>.

mod typescript;

/// Bytes of functions' types at most.
const MAX_FUNCTIONS: usize = 16 * 1024 * 1024;

use serde_json::{Map, Value};

use crate::chat_template::{ChatWriter, RenderedChat, date};
use crate::control_tokens::ControlTokens;
use crate::{ChatInput, TextError};

/// `messages` and variables as gpt-oss's own template takes them: it knows three efforts, and refuses a message with a
/// call, thoughts and a content at once, which its own model writes. The content is thought then, as the template has
/// it where there are no other thoughts.
pub(crate) fn for_template(messages: &Value, extra: &Map<String, Value>) -> (Value, Map<String, Value>) {
    let mut messages = messages.clone();
    for message in messages.as_array_mut().into_iter().flatten() {
        let (said, thought) = (content(message), thoughts(message).unwrap_or("").to_owned());
        if !calls(message).is_empty() && !said.is_empty() && !thought.is_empty() {
            message["thinking"] = format!("{thought}\n\n{said}").into();
            message["content"] = Value::Null;
        }
    }
    let mut extra = extra.clone();
    if let Some(asked) = extra.get_mut("reasoning_effort") {
        *asked = effort(asked.as_str()).into();
    }
    (messages, extra)
}

/// Writes `input` for a vocabulary with harmony's control tokens.
pub(crate) fn render(input: &ChatInput<'_>, control: &ControlTokens) -> Result<RenderedChat, TextError> {
    let messages = input.messages.as_array().ok_or_else(|| invalid("`messages` must be an array"))?;
    if input.continue_final_message && input.add_generation_prompt {
        return Err(invalid("continue_final_message excludes add_generation_prompt: set only one of them"));
    }
    let tools = input.tools.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut writer = Writer { out: ChatWriter::new(control), is_open: false };
    writer.system(input, !tools.is_empty());
    let instructions = messages.iter().take_while(|message| is_instruction(message)).count();
    writer.developer(&messages[..instructions], tools)?;
    let last_final = messages.iter().rposition(is_final).unwrap_or(0);
    for (index, message) in messages.iter().enumerate().skip(instructions) {
        let is_last = index + 1 == messages.len();
        writer.message(message, index >= last_final && !is_final(message), is_last && input.continue_final_message)?;
    }
    if input.continue_final_message && !writer.is_open {
        return Err(invalid("continue_final_message needs a last message of the assistant whose content is a text"));
    }
    if input.add_generation_prompt {
        writer.out.frame("<|start|>assistant");
    }
    Ok(writer.out.finish())
}

fn invalid(text: &str) -> TextError {
    TextError::InvalidChat(text.to_owned())
}

fn role(message: &Value) -> &str {
    message["role"].as_str().unwrap_or("")
}

fn is_instruction(message: &Value) -> bool {
    matches!(role(message), "system" | "developer")
}

fn calls(message: &Value) -> &[Value] {
    message["tool_calls"].as_array().map_or(&[], Vec::as_slice)
}

/// Whether it is a final answer of the assistant's.
fn is_final(message: &Value) -> bool {
    role(message) == "assistant" && calls(message).is_empty() && !content(message).is_empty()
}

/// A content that is a text or a list of text parts.
fn content(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn thoughts(message: &Value) -> Option<&str> {
    ["reasoning_content", "reasoning", "thinking"].iter().find_map(|name| message[name].as_str())
}

struct Writer<'a> {
    out: ChatWriter<'a>,
    /// The last message was left open.
    is_open: bool,
}

impl Writer<'_> {
    fn system(&mut self, input: &ChatInput<'_>, has_tools: bool) {
        let identity = input.extra.get("model_identity").and_then(Value::as_str);
        self.out.frame("<|start|>system<|message|>");
        self.out.text(identity.unwrap_or("You are ChatGPT, a large language model trained by OpenAI."));
        self.out.frame("\nKnowledge cutoff: 2024-06\nCurrent date: ");
        self.out.frame(&date(input.unix_seconds));
        self.out.frame("\n\nReasoning: ");
        self.out.frame(effort(input.extra.get("reasoning_effort").and_then(Value::as_str)));
        self.out
            .frame("\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.");
        if has_tools {
            self.out.frame("\nCalls to these tools must go to the commentary channel: 'functions'.");
        }
        self.out.frame("<|end|>");
    }

    /// The developer's message; none where there is nothing to say.
    fn developer(&mut self, instructions: &[Value], tools: &[Value]) -> Result<(), TextError> {
        let texts: Vec<String> = instructions.iter().map(content).filter(|text| !text.is_empty()).collect();
        if texts.is_empty() && tools.is_empty() {
            return Ok(());
        }
        self.out.frame("<|start|>developer<|message|>");
        if !texts.is_empty() {
            self.out.frame("# Instructions\n\n");
            self.out.text(&texts.join("\n\n"));
        }
        if !tools.is_empty() {
            self.out.frame(if texts.is_empty() { "# Tools\n\n" } else { "\n\n# Tools\n\n" });
            self.out.frame("## functions\n\nnamespace functions {\n\n");
            let mut written = 0;
            for tool in tools {
                let function = typescript::function(&tool["function"]);
                written += function.len();
                if written > MAX_FUNCTIONS {
                    return Err(invalid("the tools are too long, written as types: send fewer, or simpler ones"));
                }
                self.out.text(&function);
            }
            self.out.frame("} // namespace functions");
        }
        self.out.frame("<|end|>");
        Ok(())
    }

    fn message(&mut self, message: &Value, shows_thoughts: bool, stays_open: bool) -> Result<(), TextError> {
        match role(message) {
            "system" | "developer" => self.developer(std::slice::from_ref(message), &[])?,
            "user" => {
                self.out.frame("<|start|>user<|message|>");
                self.out.text(&content(message));
                self.out.frame("<|end|>");
            }
            "assistant" => self.assistant(message, shows_thoughts, stays_open),
            "tool" => {
                let name = message["name"].as_str().ok_or_else(|| {
                    invalid("a message of role tool answers no call before it: its tool_call_id is unknown")
                })?;
                self.out.frame("<|start|>");
                self.out.text(&format!("functions.{name}"));
                self.out.frame(" to=assistant<|channel|>commentary<|message|>");
                self.out.text(&content(message));
                self.out.frame("<|end|>");
            }
            other => return Err(invalid(&format!("harmony knows no role `{other}`"))),
        }
        Ok(())
    }

    fn assistant(&mut self, message: &Value, shows_thoughts: bool, stays_open: bool) {
        let (calls, content) = (calls(message), content(message));
        if let Some(thoughts) = thoughts(message).filter(|thoughts| shows_thoughts && !thoughts.is_empty()) {
            self.out.frame("<|start|>assistant<|channel|>analysis<|message|>");
            self.out.text(thoughts);
            self.out.frame("<|end|>");
        }
        if !content.is_empty() {
            let channel = if calls.is_empty() { "final" } else { "commentary" };
            self.out.frame(&format!("<|start|>assistant<|channel|>{channel}<|message|>"));
            self.out.text(&content);
            self.is_open = stays_open && calls.is_empty();
            if !self.is_open {
                self.out.frame("<|end|>");
            }
        }
        for call in calls {
            let function = &call["function"];
            self.out.frame("<|start|>assistant to=");
            self.out.text(&format!("functions.{}", function["name"].as_str().unwrap_or("")));
            self.out.frame("<|channel|>commentary <|constrain|>json<|message|>");
            match &function["arguments"] {
                Value::String(json) => self.out.text(json),
                other => self.out.text(&other.to_string()),
            }
            self.out.frame("<|call|>");
        }
    }
}

/// Harmony knows three efforts; others mean the nearest.
fn effort(asked: Option<&str>) -> &'static str {
    match asked {
        Some("none" | "minimal" | "low") => "low",
        Some("high" | "xhigh") => "high",
        _ => "medium",
    }
}
