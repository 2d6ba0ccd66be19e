//! Whether an answer is right, by its text alone. Programs are run in `sandbox`.

use serde_json::{Map, Value};

use crate::extract;
use crate::task::Check;

/// What an answer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// With the reason.
    Fail(String),
}

/// Grades by the text. A program passes here if there is one at all.
pub(crate) fn grade(check: &Check, answer: &str) -> Verdict {
    let answer = extract::without_thoughts(answer);
    let complaint = match check {
        Check::Number(expected) => match extract::number(answer) {
            Some(number) => (number != *expected).then(|| format!("{number}, not {expected}")),
            None => Some("no number".to_owned()),
        },
        Check::Choice(expected) => match extract::choice(answer) {
            Some(letter) => (letter != *expected).then(|| format!("{letter}, not {expected}")),
            None => Some("no choice".to_owned()),
        },
        Check::Word(accepted) => {
            let is_said = accepted.iter().any(|word| extract::says_word(answer, word));
            (!is_said).then(|| format!("not `{}`", accepted[0]))
        }
        Check::Json(expected) => wrong_field(expected, answer),
        Check::Text(rules) => rules.broken_by(answer),
        Check::Python { stub, .. } => {
            extract::python(answer, defined_name(stub)).is_none().then(|| "no definition".to_owned())
        }
    };
    complaint.map_or(Verdict::Pass, Verdict::Fail)
}

fn wrong_field(expected: &Map<String, Value>, answer: &str) -> Option<String> {
    let Some(object) = extract::json_object(answer) else { return Some("no JSON object".to_owned()) };
    let is_equal = |value: &Value, expected: &Value| match (value.as_f64(), expected.as_f64()) {
        (Some(value), Some(expected)) => value == expected,
        _ => value == expected,
    };
    let wrong = expected.iter().find(|(key, value)| !object.get(*key).is_some_and(|found| is_equal(found, value)));
    wrong.map(|(key, value)| format!("`{key}` is not {value}"))
}

/// The function or class that a stub begins.
pub(crate) fn defined_name(stub: &str) -> &str {
    let definition = stub.trim_start().trim_start_matches("def ").trim_start_matches("class ");
    definition.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_json_are_compared_by_value() {
        let expected = serde_json::json!({"a": 3, "b": "x"});
        let check = Check::Json(expected.as_object().unwrap().clone());
        assert_eq!(grade(&check, r#"Here: {"b": "x", "a": 3.0, "c": null}"#), Verdict::Pass);
        assert_eq!(grade(&check, r#"{"b": "x", "a": "3"}"#), Verdict::Fail("`a` is not 3".to_owned()));
        assert_eq!(grade(&check, "a: 3"), Verdict::Fail("no JSON object".to_owned()));
    }

    #[test]
    fn stubs_name_what_they_define() {
        assert_eq!(defined_name("\ndef f_2(a):\n"), "f_2");
        assert_eq!(defined_name("class LRU:\n"), "LRU");
    }
}
