//! The tools that a request offers: checked, and as chat templates know them.

use std::collections::HashSet;
use std::sync::Arc;

use plimsoll_api::{Tool, ToolChoice, ToolMode};
use plimsoll_text::ToolSyntax;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Tools in one request at most.
const MAX_TOOLS: usize = 512;
/// Bytes of a function's name at most; OpenAI's limit.
const MAX_NAME: usize = 64;

/// What of a request's tools concerns its prompt and its response. Empty where none may be called.
#[derive(Clone, Default)]
pub(crate) struct Tools {
    /// The functions' names.
    pub(crate) names: Arc<[String]>,
    /// For the template.
    pub(crate) rendered: Option<Value>,
    /// The one that must be called.
    pub(crate) forced: Option<String>,
}

impl Tools {
    /// Checks `tools` and `tool_choice` for a model that calls in `syntax`.
    pub(crate) fn new(
        tools: Option<&[Tool]>,
        choice: Option<&ToolChoice>,
        syntax: ToolSyntax,
    ) -> Result<Self, ApiError> {
        let tools = tools.unwrap_or_default();
        if tools.len() > MAX_TOOLS {
            let message = format!("holds {} tools; send at most {MAX_TOOLS}", tools.len());
            return Err(ApiError::invalid("tools", message));
        }
        let mut names = HashSet::new();
        for (index, tool) in tools.iter().enumerate() {
            let name = check_tool(index, tool)?;
            if !names.insert(name) {
                let at = format!("tools[{index}].function.name");
                return Err(ApiError::invalid(at, format!("is `{name}`, as another tool's")));
            }
        }
        let forced = match choice {
            Some(ToolChoice::Mode(ToolMode::None)) => return Ok(Self::default()),
            Some(ToolChoice::Mode(ToolMode::Required)) => Some(only_one(&names)?),
            Some(ToolChoice::Named(named)) if !names.contains(named.function.name.as_str()) => {
                return Err(ApiError::invalid("tool_choice", "names a function that is not among `tools`"));
            }
            Some(ToolChoice::Named(named)) => Some(named.function.name.clone()),
            Some(ToolChoice::Mode(ToolMode::Auto)) | None => None,
        };
        if tools.is_empty() {
            return Ok(Self::default());
        }
        if syntax == ToolSyntax::None {
            let message = "`tools` is not served with this model: how it writes its calls is not known; start the \
                           server with --tool-call-parser NAME, or leave `tools` out";
            return Err(not_served("tools", message));
        }
        if forced.is_some() && !matches!(syntax, ToolSyntax::Hermes | ToolSyntax::Harmony) {
            return Err(unforced("a call that must be made, with this model,"));
        }
        let names = tools.iter().filter_map(|tool| tool.function.as_ref()).map(|function| function.name.clone());
        Ok(Self { names: names.collect(), rendered: Some(for_template(tools)), forced })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The function that `required` leaves. Of several the model would have to choose, and could choose wrongly.
fn only_one(names: &HashSet<&str>) -> Result<String, ApiError> {
    let mut names = names.iter();
    match (names.next(), names.next()) {
        (None, _) => Err(ApiError::invalid("tool_choice", "is `required`, but the request has no `tools`")),
        (Some(name), None) => Ok((*name).to_owned()),
        (Some(_), Some(_)) => Err(unforced("`required` with several tools")),
    }
}

/// What cannot be promised without constrained decoding.
fn unforced(what: &str) -> ApiError {
    not_served("tool_choice", &format!("`tool_choice`: {what} is not served yet: send `auto` or leave it out"))
}

fn not_served(param: &str, message: &str) -> ApiError {
    ApiError::Invalid { message: message.to_owned(), param: Some(param.to_owned()), code: Some("not_served") }
}

/// The function's name.
fn check_tool(index: usize, tool: &Tool) -> Result<&str, ApiError> {
    let at = |field: &str| format!("tools[{index}].{field}");
    if tool.kind != "function" {
        let kind: String = tool.kind.chars().take(64).collect();
        let message = format!("`{}` is `{kind}`; tools of type `function` are served and no others yet", at("type"));
        return Err(not_served(&at("type"), &message));
    }
    let function = tool.function.as_ref().ok_or_else(|| ApiError::invalid(at("function"), "is missing"))?;
    check_name(&at("function.name"), &function.name)?;
    match &function.parameters {
        None | Some(Value::Null | Value::Object(_)) => Ok(&function.name),
        Some(_) => Err(ApiError::invalid(at("function.parameters"), "must be an object, a JSON Schema")),
    }
}

/// Refuses a name that is no function's.
pub(crate) fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_name_byte) {
        return Ok(());
    }
    Err(ApiError::invalid(param, format!("must be 1 to {MAX_NAME} letters, digits, `_`, `-` or `.`")))
}

/// As the makers of models had them in training: in OpenAI's shape. `strict` is for whoever decodes, not for the model.
fn for_template(tools: &[Tool]) -> Value {
    let functions = tools.iter().filter_map(|tool| tool.function.as_ref());
    let rendered = functions.map(|function| {
        let mut rendered = json!({"name": function.name});
        if let Some(description) = &function.description {
            rendered["description"] = json!(description);
        }
        if let Some(parameters) = function.parameters.as_ref().filter(|parameters| parameters.is_object()) {
            rendered["parameters"] = parameters.clone();
        }
        json!({"type": "function", "function": rendered})
    });
    Value::Array(rendered.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(tools: &str, choice: Option<&str>) -> Result<Tools, (Option<String>, String)> {
        let tools: Vec<Tool> = serde_json::from_str(tools).unwrap();
        let choice: Option<ToolChoice> = choice.map(|choice| serde_json::from_str(choice).unwrap());
        Tools::new(Some(&tools), choice.as_ref(), ToolSyntax::Hermes).map_err(|error| match error {
            ApiError::Invalid { message, param, .. } => (param, message),
            other => panic!("{other:?}"),
        })
    }

    const F: &str = r#"[{"type": "function", "function": {"name": "f", "strict": true}}]"#;

    #[test]
    fn tools_are_rendered_whole_and_without_what_is_not_for_the_model() {
        let tools = checked(F, Some("\"auto\"")).unwrap();
        assert_eq!(&*tools.names, ["f"]);
        let expected = r#"[{"type":"function","function":{"name":"f"}}]"#;
        assert_eq!(tools.rendered.unwrap().to_string(), expected);
        assert!(checked(F, Some("\"none\"")).unwrap().is_empty());
    }

    #[test]
    fn a_call_is_forced_where_the_syntax_promises_it() {
        let named = r#"{"type": "function", "function": {"name": "f"}}"#;
        for choice in [named, "\"required\""] {
            assert_eq!(checked(F, Some(choice)).unwrap().forced.as_deref(), Some("f"));
            let (tools, choice) =
                (serde_json::from_str::<Vec<Tool>>(F).unwrap(), serde_json::from_str(choice).unwrap());
            assert!(Tools::new(Some(&tools), Some(&choice), ToolSyntax::LlamaJson).is_err());
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let long = format!(r#"[{{"type": "function", "function": {{"name": "{}"}}}}]"#, "x".repeat(65));
        let twice = r#"[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]"#;
        let two = r#"[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"h"}}]"#;
        let named = |name: &str| format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#);
        let required = Some("\"required\"".to_owned());
        for (tools, choice, param) in [
            (r#"[{"type": "web_search"}]"#, None, "tools[0].type"),
            (r#"[{"type": "function"}]"#, None, "tools[0].function"),
            (r#"[{"type": "function", "function": {"name": ""}}]"#, None, "tools[0].function.name"),
            (r#"[{"type": "function", "function": {"name": "a b"}}]"#, None, "tools[0].function.name"),
            (r#"[{"type": "function", "function": {"name": "<|call|>"}}]"#, None, "tools[0].function.name"),
            (&long, None, "tools[0].function.name"),
            (twice, None, "tools[1].function.name"),
            (
                r#"[{"type": "function", "function": {"name": "f", "parameters": [1]}}]"#,
                None,
                "tools[0].function.parameters",
            ),
            (two, required.clone(), "tool_choice"),
            ("[]", required, "tool_choice"),
            (F, Some(named("g")), "tool_choice"),
        ] {
            let (refused, message) = checked(tools, choice.as_deref()).err().expect(tools);
            assert_eq!(refused.as_deref(), Some(param), "{message}");
        }
    }
}
