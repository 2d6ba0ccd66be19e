//! The published schema of saturation reports, `docs/saturation.schema.json`: it is made from the types, so that its
//! fields are theirs, and what is written is held to it. `PLIMSOLL_UPDATE_DOCS=1` writes it anew.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::report::sample;

/// As the types have it, under the report's name.
fn made() -> Value {
    let mut schema = serde_json::to_value(schemars::schema_for!(SaturationReport)).expect("a schema is JSON");
    schema["title"] = json!("A saturation report of `plimsoll saturate`");
    schema["properties"]["schema"] = json!({
        "description": "Name and version of this format. The number changes whenever a reader of the old one would \
                        misread the new one; fields may be added without it.",
        "const": SATURATION_SCHEMA,
    });
    schema
}

fn published() -> (String, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/saturation.schema.json");
    if std::env::var_os("PLIMSOLL_UPDATE_DOCS").is_some() {
        let text = serde_json::to_string_pretty(&made()).expect("JSON") + "\n";
        std::fs::write(&path, text).expect("docs can be written");
    }
    let text = std::fs::read_to_string(&path).expect("docs/saturation.schema.json");
    let value = serde_json::from_str(&text).expect("the schema is JSON");
    (text, value)
}

#[test]
fn the_published_schema_is_that_of_the_types() {
    let (text, published) = published();
    assert!(
        published == made(),
        "docs/saturation.schema.json is out of date: PLIMSOLL_UPDATE_DOCS=1 cargo test -p plimsoll-bench schema"
    );
    assert!(text.contains("The smallest concurrency measured that has the share"), "fields carry their description");
}

#[test]
fn reports_are_valid_by_it_and_what_is_none_is_not() {
    let validator = jsonschema::validator_for(&published().1).expect("a valid schema");
    let problems = |report: &Value| -> Vec<String> {
        validator.iter_errors(report).map(|error| format!("{}: {error}", error.instance_path())).take(3).collect()
    };
    let full = serde_json::to_value(sample::report()).expect("JSON");
    assert_eq!(problems(&full), [""; 0]);
    let mut bare = sample::report();
    bare.rungs.truncate(1);
    bare.offered.clear();
    bare.rungs[0].server = None;
    bare.rungs[0].summary.ttft_ms = None;
    bare.rungs[0].summary.output_half_width = None;
    bare.answer.breakpoint = None;
    bare.answer.open_loop = None;
    bare.answer.drift = None;
    assert_eq!(problems(&serde_json::to_value(bare).expect("JSON")), [""; 0]);
    for (pointer, wrong) in [
        ("/schema", json!("plimsoll.saturation/1")),
        ("/answer/verdict", json!("fine")),
        ("/answer/saturation", json!(-1)),
        ("/answer/breakpoint/constraint", json!(7)),
        ("/rungs/0/rates/output_tokens_per_s", json!("1400")),
        ("/rungs/0/outcomes", json!([])),
        ("/config/generation/max_tokens", json!(null)),
    ] {
        let mut report = full.clone();
        *report.pointer_mut(pointer).expect(pointer) = wrong;
        assert!(!problems(&report).is_empty(), "{pointer}");
    }
}
