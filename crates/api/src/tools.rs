//! Tools: as a request offers them, as a message calls them, and as a stream tells a call piece by piece.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A tool that a request offers. `function` is the only kind with a typed payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// `function`
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDefinition>,
}

/// A function that the model may call. What else clients' libraries say of one is not for the model, and ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionDefinition {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON Schema of the arguments; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Whether the arguments are to follow the schema to the letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether tools are to be called, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "tool_choice must be `none`, `auto`, `required` or \
                 {\"type\": \"function\", \"function\": {\"name\": \"...\"}}"
)]
pub enum ToolChoice {
    Mode(ToolMode),
    Named(NamedTool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolMode {
    None,
    Auto,
    Required,
}

/// One function, which is to be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTool {
    /// `function`
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub function: FunctionName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionName {
    pub name: String,
}

/// The one kind of tool call that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    #[default]
    Function,
}

/// A call, whole: in a response, and in the assistant's messages of later requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// What the tool's message with the result refers to.
    pub id: String,
    /// `function`
    #[serde(rename = "type", default)]
    pub kind: FunctionKind,
    pub function: FunctionCall,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    pub name: String,
    /// JSON, as the model wrote it: it need not be valid.
    pub arguments: String,
}

/// What a chunk adds to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta<'a> {
    /// Which of the message's calls.
    pub index: u32,
    /// In the call's first delta only, as `kind` and the name.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FunctionKind>,
    #[serde(borrow)]
    pub function: FunctionDelta<'a>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDelta<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// Goes on from the arguments so far.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_a_function_is_ignored() {
        let json = r#"{"type": "function", "id": 1, "function": {"name": "f", "returns": {"type": "string"}}}"#;
        let tool: Tool = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&tool).unwrap(), r#"{"type":"function","function":{"name":"f"}}"#);
    }

    #[test]
    fn choices_are_a_word_or_a_name() {
        let read = |json: &str| serde_json::from_str::<ToolChoice>(json);
        assert_eq!(read(r#""required""#).unwrap(), ToolChoice::Mode(ToolMode::Required));
        let named = read(r#"{"type": "function", "function": {"name": "f"}}"#).unwrap();
        assert!(matches!(&named, ToolChoice::Named(NamedTool { function, .. }) if function.name == "f"));
        for bad in [r#""always""#, r#"{"type": "custom", "function": {"name": "f"}}"#, r#"{"function": "f"}"#, "1"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("`required`"), "{error}");
        }
    }

    #[test]
    fn a_calls_first_delta_has_its_id_and_later_ones_only_arguments() {
        let first = ToolCallDelta {
            index: 0,
            id: Some("call_1".into()),
            kind: Some(FunctionKind::Function),
            function: FunctionDelta { name: Some("f".into()), arguments: Some("".into()) },
        };
        let json = r#"{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}"#;
        assert_eq!(serde_json::to_string(&first).unwrap(), json);
        assert_eq!(serde_json::from_str::<ToolCallDelta<'_>>(json).unwrap(), first);
        let later = ToolCallDelta {
            index: 0,
            id: None,
            kind: None,
            function: FunctionDelta { name: None, arguments: Some("{\"".into()) },
        };
        assert_eq!(serde_json::to_string(&later).unwrap(), r#"{"index":0,"function":{"arguments":"{\""}}"#);
    }
}
