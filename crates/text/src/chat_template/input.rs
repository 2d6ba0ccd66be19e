//! The variables that a template sees, made of the request's JSON.

use minijinja::Value;
use minijinja::value::Object;
use serde_json::{Value as Json, json};

use super::python;
use super::trust::{self, Trust};
use super::{ChatInput, TextError};
use crate::control_tokens::ControlTokens;

/// What a template can read as a message's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Contents {
    /// Strings only: lists of parts are joined.
    Text,
    /// Lists of parts, too.
    Parts,
}

/// What a template can read as a call's arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arguments {
    /// The object, as Hugging Face has it.
    Object,
    /// Its JSON, as OpenAI has it.
    Text,
}

/// Both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Forms {
    pub(super) contents: Contents,
    pub(super) arguments: Arguments,
}

/// Names that a request's own variables may not take: they would replace what the server says.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "loop",
    "caller",
    "tokenize",
    "chat_template",
];

/// A template's variables.
pub(super) struct Context {
    variables: Vec<(String, Value)>,
    /// Bytes of the request's strings.
    bytes: usize,
}

impl Context {
    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.variables.push((name.to_owned(), value));
    }

    pub(super) fn into_value<M: Object + 'static>(mut self, meter: impl FnOnce(usize) -> M) -> Value {
        self.set(super::meter::VARIABLE, Value::from_object(meter(self.bytes)));
        Value::from_pairs(self.variables)
    }
}

/// All that a template sees of a request, and what the rendered text is to end with, if that was asked for.
pub(super) fn context(
    input: &ChatInput<'_>,
    forms: Forms,
    trust: Trust,
    control: &ControlTokens,
) -> Result<(Context, Option<String>), TextError> {
    let mut reader = Reader { forms, trust, control, bytes: 0 };
    let messages = reader.messages(input.messages)?;
    let last_content = match input.continue_final_message {
        true if input.add_generation_prompt => {
            return Err(invalid("continue_final_message excludes add_generation_prompt: set only one of them"));
        }
        true => Some(last_text(&messages)?),
        false => None,
    };
    let mut variables = vec![("messages".to_owned(), Value::from(messages))];
    for (name, value) in input.extra {
        if RESERVED.contains(&name.as_str()) || name.starts_with("__") {
            return Err(invalid(&format!("chat_template_kwargs may not set `{name}`")));
        }
        variables.push((name.clone(), reader.value(value)));
    }
    if let Some(tools) = input.tools {
        variables.push(("tools".to_owned(), reader.tools(tools)));
    }
    let now = input.unix_seconds;
    let mut context = Context { variables, bytes: reader.bytes };
    context.set("add_generation_prompt", Value::from(input.add_generation_prompt));
    context.set("strftime_now", Value::from_function(move |format: &str| python::strftime(now, format)));
    Ok((context, last_content))
}

fn invalid(text: &str) -> TextError {
    TextError::InvalidChat(text.to_owned())
}

fn last_text(messages: &[Value]) -> Result<String, TextError> {
    let content = messages.last().and_then(|message| message.get_attr("content").ok());
    match content.as_ref().and_then(Value::as_str) {
        Some(text) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => Err(invalid("continue_final_message needs a last message whose content is a text")),
    }
}

struct Reader<'a> {
    forms: Forms,
    trust: Trust,
    control: &'a ControlTokens,
    bytes: usize,
}

impl Reader<'_> {
    fn messages(&mut self, messages: &Json) -> Result<Vec<Value>, TextError> {
        let messages = messages.as_array().ok_or_else(|| invalid("`messages` must be an array"))?;
        if messages.is_empty() {
            return Err(invalid("`messages` must have at least one message"));
        }
        messages.iter().enumerate().map(|(index, message)| self.message(index, message)).collect()
    }

    fn message(&mut self, index: usize, message: &Json) -> Result<Value, TextError> {
        let message = message.as_object().ok_or_else(|| invalid(&format!("messages[{index}] must be an object")))?;
        let role = message.get("role").and_then(Json::as_str);
        let role = role.ok_or_else(|| invalid(&format!("messages[{index}].role must be a string")))?;
        let mut fields = Vec::with_capacity(message.len());
        for (name, value) in message {
            let value = match name.as_str() {
                "role" => Value::from(trust::untrusted_role(role, self.control, self.trust)),
                "content" => self.content(index, value)?,
                "tool_calls" => self.tool_calls(value),
                _ => self.value(value),
            };
            fields.push((self.string(name), value));
        }
        Ok(Value::from_pairs(fields))
    }

    fn content(&mut self, index: usize, content: &Json) -> Result<Value, TextError> {
        let parts = match content {
            Json::Null => return Ok(Value::from("")),
            Json::Array(parts) => parts,
            other => return Ok(self.value(other)),
        };
        let mut texts = Vec::with_capacity(parts.len());
        for part in parts {
            let kind = part["type"].as_str().unwrap_or("text");
            let text = match kind {
                "text" | "input_text" | "output_text" => part.as_str().or_else(|| part["text"].as_str()),
                "refusal" => part["refusal"].as_str(),
                _ => None,
            };
            let fault =
                || invalid(&format!("messages[{index}].content has a `{kind}` part: this model reads text only"));
            texts.push(text.ok_or_else(fault)?);
        }
        if self.forms.contents == Contents::Text {
            return Ok(self.string(&texts.join("\n")));
        }
        let part =
            |text: &&str| -> Value { Value::from_pairs([("type", Value::from("text")), ("text", self.string(text))]) };
        let parts: Vec<Value> = texts.iter().map(part).collect();
        Ok(Value::from(parts))
    }

    /// Clients may leave out the parameters of a function without any, templates look into them.
    fn tools(&mut self, tools: &Json) -> Value {
        let mut tools = tools.clone();
        for function in tools.as_array_mut().into_iter().flatten().filter_map(|tool| tool.get_mut("function")) {
            if let Some(function) = function.as_object_mut() {
                function.entry("parameters").or_insert_with(|| json!({"type": "object", "properties": {}}));
            }
        }
        self.value(&tools)
    }

    /// Clients send a call's arguments as JSON text, most templates read them as an object.
    fn tool_calls(&mut self, calls: &Json) -> Value {
        if self.forms.arguments == Arguments::Text {
            return self.value(calls);
        }
        let mut calls = calls.clone();
        for call in calls.as_array_mut().into_iter().flatten() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok());
            if let Some(parsed) = parsed.filter(Json::is_object) {
                *arguments = parsed;
            }
        }
        self.value(&calls)
    }

    /// Any other value of the request. Its nesting is what the JSON parser let pass.
    fn value(&mut self, value: &Json) -> Value {
        match value {
            Json::Null => Value::from(()),
            Json::Bool(flag) => Value::from(*flag),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(integer), _) => Value::from(integer),
                (None, Some(integer)) => Value::from(integer),
                (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => self.string(text),
            Json::Array(items) => Value::from(items.iter().map(|item| self.value(item)).collect::<Vec<_>>()),
            Json::Object(fields) => Value::from_pairs(
                fields.iter().map(|(name, value)| (self.string(name), self.value(value))).collect::<Vec<_>>(),
            ),
        }
    }

    fn string(&mut self, text: &str) -> Value {
        self.bytes += text.len() + 16;
        trust::untrusted_value(text, self.control, self.trust)
    }
}
