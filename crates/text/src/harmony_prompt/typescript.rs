//! A function as gpt-oss was taught it: a TypeScript type, made of the JSON Schema of its arguments.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Types within each other at most; what is deeper is `any`. Each level indents, so depth multiplies length.
const MAX_DEPTH: usize = 16;
const INDENT: &str = "    ";

/// `// description`, `type name = (_: {...}) => any;` and an empty line.
pub(super) fn function(function: &Value) -> String {
    let mut out = String::new();
    let description = function["description"].as_str().unwrap_or("");
    for line in description.lines() {
        out.push_str(&format!("// {line}\n"));
    }
    let name = function["name"].as_str().unwrap_or("");
    match &function["parameters"] {
        Value::Null => out.push_str(&format!("type {name} = () => any;\n\n")),
        schema => out.push_str(&format!("type {name} = (_: {}) => any;\n\n", type_of(schema, "", 0))),
    }
    out
}

/// The type that `schema` describes, for a place that is indented so.
fn type_of(schema: &Value, indent: &str, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return "any".to_owned();
    }
    if schema["oneOf"].is_array() {
        return variants(schema, None, indent, depth);
    }
    let name = match &schema["type"] {
        Value::Array(types) => {
            let names: Vec<&str> = types.iter().filter_map(Value::as_str).map(simple_name).collect();
            return if names.is_empty() { "any".to_owned() } else { names.join(" | ") };
        }
        name => name.as_str().unwrap_or(""),
    };
    let mut text = match name {
        "object" => object(schema, indent, depth),
        "string" => match schema["enum"].as_array() {
            Some(values) => strings(values),
            None => "string".to_owned(),
        },
        "array" => match schema.get("items") {
            Some(items) => format!("{}[]", type_of(items, indent, depth + 1)),
            None => "Array<any>".to_owned(),
        },
        "number" | "integer" => "number".to_owned(),
        "boolean" => "boolean".to_owned(),
        _ => "any".to_owned(),
    };
    if name == "string" && schema["nullable"] == true {
        text.push_str(" | null");
    }
    text
}

/// The lines of a `oneOf`. Where the whole is described (or would be, in the first one's words, which the library leaves
/// out), the first is not, nor is another in the same words.
fn variants(schema: &Value, described: Option<&str>, indent: &str, depth: usize) -> String {
    let mut out = String::new();
    for (index, variant) in schema["oneOf"].as_array().into_iter().flatten().enumerate() {
        out.push_str(&format!("\n{indent} | {}", type_of(variant, &format!("{indent}   "), depth + 1)));
        let is_new = |text: &&str| described.is_none_or(|described| index > 0 && *text != described);
        let description = variant["description"].as_str().filter(is_new);
        let default = variant.get("default").map(|default| format!("default: {}", default_text(variant, default)));
        let notes: Vec<&str> = description.into_iter().chain(default.as_deref()).collect();
        if !notes.is_empty() {
            out.push_str(&format!(" // {}", notes.join(" ")));
        }
    }
    out
}

fn simple_name(name: &str) -> &str {
    if name == "integer" { "number" } else { name }
}

fn strings(values: &[Value]) -> String {
    let quoted: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("\"{value}\"")).collect();
    quoted.join(" | ")
}

fn object(schema: &Value, indent: &str, depth: usize) -> String {
    let mut out = String::new();
    if let Some(description) = schema["description"].as_str() {
        out.push_str(&format!("{indent}// {description}\n"));
    }
    out.push_str("{\n");
    let none = Map::new();
    let required: HashSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in schema["properties"].as_object().unwrap_or(&none) {
        let mark = if required.contains(&name.as_str()) { "" } else { "?" };
        self::property(&mut out, &format!("{name}{mark}"), property, indent, depth);
    }
    out.push_str(indent);
    out.push('}');
    out
}

fn property(out: &mut String, name: &str, schema: &Value, indent: &str, depth: usize) {
    let mut comment = |text: &str| out.push_str(&format!("{indent}//{text}\n"));
    if let Some(title) = schema["title"].as_str() {
        comment(&format!(" {title}"));
        comment("");
    }
    let description = schema["description"].as_str();
    let is_the_firsts = schema["oneOf"][0]["description"].as_str() == description;
    if let Some(description) = description.filter(|_| !is_the_firsts) {
        comment(&format!(" {description}"));
    }
    if let Some(examples) = schema["examples"].as_array().filter(|examples| !examples.is_empty()) {
        comment(" Examples:");
        examples.iter().filter_map(Value::as_str).for_each(|example| comment(&format!(" - \"{example}\"")));
    }
    let default = schema.get("default").map(|default| default_text(schema, default));
    if schema["oneOf"].is_array() {
        if let Some(default) = &default {
            comment(&format!(" default: {default}"));
        }
        let variants = variants(schema, description, indent, depth);
        out.push_str(&format!("{indent}{name}:{variants}\n{indent},\n"));
        return;
    }
    let inner = type_of(schema, &format!("{indent}{INDENT}"), depth + 1);
    let default = default.map(|default| format!(" // default: {default}")).unwrap_or_default();
    out.push_str(&format!("{indent}{name}: {inner},{default}\n"));
}

/// A string stands in quotes, unless it is one of an enumeration.
fn default_text(schema: &Value, default: &Value) -> String {
    match default {
        Value::String(text) if schema["enum"].is_array() => text.clone(),
        Value::String(text) => format!("\"{text}\""),
        other => other.to_string(),
    }
}
