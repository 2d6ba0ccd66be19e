//! Tools for templates that know none (Gemma 3's): what they would have to say is said in messages.
//!
//! The functions stand before the first user's message, or in one of their own where there is none, a call is the reply that they ask for, and a result is a message
//! of the user's. Messages of one role in a row become one, since such templates want roles to take turns.

use serde_json::{Map, Value, json};

/// The messages that stand for `messages` and `tools`.
pub(super) fn messages(messages: &Value, tools: Option<&Value>) -> Value {
    let Some(given) = messages.as_array() else { return messages.clone() };
    let mut turns: Vec<Value> = Vec::with_capacity(given.len());
    for message in given {
        let turn = turn(message);
        // A result joins the user's message before it, and the user's message a result before it.
        let joins = |last: &Value| last["role"] == "user" && (turn[IS_RESULT] == true || last[IS_RESULT] == true);
        match turns.last_mut().filter(|last| turn["role"] == "user" && joins(last)) {
            Some(last) => {
                append(last, &text(&turn));
            }
            None => turns.push(turn),
        }
    }
    for turn in turns.iter_mut().filter_map(Value::as_object_mut) {
        turn.remove(IS_RESULT);
    }
    if let Some(tools) = tools {
        let offer = offer(tools);
        match turns.iter_mut().find(|turn| turn["role"] == "user") {
            Some(first) => first["content"] = format!("{offer}\n\n{}", text(first)).into(),
            None => {
                let is_instruction = |turn: &Value| turn["role"] == "system" || turn["role"] == "developer";
                let place = turns.iter().take_while(|turn| is_instruction(turn)).count();
                turns.insert(place, json!({"role": "user", "content": offer}));
            }
        }
    }
    Value::Array(turns)
}

/// Adds a paragraph in place: there may be thousands to add.
fn append(turn: &mut Value, paragraph: &str) {
    if !turn["content"].is_string() {
        turn["content"] = text(turn).into();
    }
    if let Value::String(content) = &mut turn["content"] {
        content.push_str("\n\n");
        content.push_str(paragraph);
    }
}

/// Set on the turn of a result, while turns are joined.
const IS_RESULT: &str = "__is_result";

fn text(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn offer(tools: &Value) -> String {
    let functions = tools.as_array().into_iter().flatten().map(|tool| format!("{}\n", tool["function"]));
    format!(
        "You may call functions. To call one, reply with nothing but a JSON object of this form:\n\
         {{\"name\": \"the function\", \"parameters\": {{\"an argument\": \"its value\"}}}}\n\
         For several calls, reply with a list of such objects. The functions are:\n{}",
        functions.collect::<String>()
    )
}

/// One message without calls or results.
fn turn(message: &Value) -> Value {
    let mut turn: Map<String, Value> = message.as_object().cloned().unwrap_or_default();
    if message["role"] == "tool" {
        let name = message["name"].as_str().map(|name| format!("{name}\n")).unwrap_or_default();
        let content = format!("```tool_output\n{name}{}\n```", text(message));
        return json!({"role": "user", "content": content, IS_RESULT: true});
    }
    let Some(Value::Array(calls)) = turn.remove("tool_calls") else { return Value::Object(turn) };
    let call = |call: &Value| {
        let function = &call["function"];
        let parsed = function["arguments"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        json!({"name": function["name"], "parameters": parsed.unwrap_or_else(|| function["arguments"].clone())})
    };
    let calls: Vec<Value> = calls.iter().map(call).collect();
    let said = match calls.as_slice() {
        [one] => one.to_string(),
        several => Value::from(several).to_string(),
    };
    let content = text(message);
    let content = if content.is_empty() { said } else { format!("{content}\n{said}") };
    turn.insert("content".to_owned(), content.into());
    Value::Object(turn)
}
