//! A request's messages as chat templates know them.

use std::collections::HashMap;

use plimsoll_api::{Message, MessageContent, Role, ToolCall};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::tools::check_name;

/// Messages in one chat at most.
const MAX_MESSAGES: usize = 4096;
/// Calls in one message at most.
const MAX_CALLS: usize = 256;

/// All messages, or the first complaint.
pub(crate) fn for_template(messages: &[Message]) -> Result<Value, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "is empty: send at least one message"));
    }
    let count = messages.len();
    if count > MAX_MESSAGES {
        return Err(ApiError::invalid("messages", format!("holds {count} messages; send at most {MAX_MESSAGES}")));
    }
    let mut called = HashMap::new();
    let read = |(index, message)| At(index).message(message, &mut called);
    messages.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// The message of that index.
struct At(usize);

impl At {
    fn field(&self, name: &str) -> String {
        format!("messages[{}].{name}", self.0)
    }

    /// `called`: the names of the functions called so far, by the calls' ids.
    fn message<'a>(&self, message: &'a Message, called: &mut HashMap<&'a str, &'a str>) -> Result<Value, ApiError> {
        let role = self.role(&message.role)?;
        let calls = message.tool_calls.as_deref().unwrap_or_default();
        if message.role != Role::Assistant && !calls.is_empty() {
            return Err(ApiError::invalid(self.field("tool_calls"), "is for messages of the assistant only"));
        }
        if message.function_call.as_ref().is_some_and(|call| !call.is_null()) {
            return Err(ApiError::not_served(self.field("function_call")));
        }
        let mut fields = Map::new();
        fields.insert("role".to_owned(), json!(role));
        let may_lack_content = message.role == Role::Assistant && (!calls.is_empty() || thoughts(message).is_some());
        fields.insert("content".to_owned(), self.content(message.content.as_ref(), may_lack_content)?);
        if let Some(thoughts) = thoughts(message) {
            // Each template looks under the one name that its makers chose.
            for name in ["reasoning_content", "reasoning", "thinking"] {
                fields.insert(name.to_owned(), json!(thoughts));
            }
        }
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), self.calls(calls)?);
            called.extend(calls.iter().map(|call| (call.id.as_str(), call.function.name.as_str())));
        }
        let mut name = message.name.as_deref();
        if message.role == Role::Tool {
            let id = message.tool_call_id.as_deref();
            let id = id.ok_or_else(|| ApiError::invalid(self.field("tool_call_id"), "is missing"))?;
            fields.insert("tool_call_id".to_owned(), json!(id));
            // OpenAI's messages of tools do not say which tool; templates may want to know.
            let called = called.get(id).copied();
            if let (Some(name), None) = (name, called) {
                check_name(&self.field("name"), name)?;
            }
            name = called.or(name);
        }
        if let Some(name) = name {
            fields.insert("name".to_owned(), json!(name));
        }
        Ok(Value::Object(fields))
    }

    fn role(&self, role: &Role) -> Result<&'static str, ApiError> {
        Ok(match role {
            Role::System => "system",
            // OpenAI's newer name, which no template knows.
            Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Other(role) => {
                let role: String = role.chars().take(64).collect();
                let message = format!("is `{role}`; it must be system, developer, user, assistant or tool");
                return Err(ApiError::invalid(self.field("role"), message));
            }
        })
    }

    fn calls(&self, calls: &[ToolCall]) -> Result<Value, ApiError> {
        if calls.len() > MAX_CALLS {
            let message = format!("holds {} calls; send at most {MAX_CALLS} a message", calls.len());
            return Err(ApiError::invalid(self.field("tool_calls"), message));
        }
        let call = |(index, call): (usize, &ToolCall)| {
            check_name(&self.field(&format!("tool_calls[{index}].function.name")), &call.function.name)?;
            let function = json!({"name": call.function.name, "arguments": call.function.arguments});
            Ok(json!({"id": call.id, "type": "function", "function": function}))
        };
        calls.iter().enumerate().map(call).collect::<Result<Vec<_>, _>>().map(Value::Array)
    }

    fn content(&self, content: Option<&MessageContent>, may_lack: bool) -> Result<Value, ApiError> {
        let parts = match content {
            None if may_lack => return Ok(Value::Null),
            None => return Err(ApiError::invalid(self.field("content"), "is missing")),
            Some(MessageContent::Text(text)) => return Ok(json!(text)),
            Some(MessageContent::Parts(parts)) => parts,
        };
        let texts = parts.iter().enumerate().map(|(part, content)| {
            let at = self.field(&format!("content[{part}]"));
            match (content.kind.as_str(), &content.text) {
                ("text", Some(text)) => Ok(json!({"type": "text", "text": text})),
                ("text", None) => Err(ApiError::invalid(format!("{at}.text"), "is missing")),
                (kind, _) => {
                    let kind: String = kind.chars().take(64).collect();
                    let message =
                        format!("is of type `{kind}`, which is not served yet: send parts of type `text` only");
                    Err(ApiError::Invalid {
                        message: format!("`{at}` {message}"),
                        param: Some(at),
                        code: Some("not_served"),
                    })
                }
            }
        });
        texts.collect::<Result<Vec<_>, _>>().map(Value::Array)
    }
}

fn thoughts(message: &Message) -> Option<&str> {
    message.reasoning.as_deref().or(message.reasoning_content.as_deref())
}
