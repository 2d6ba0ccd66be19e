//! Files of prompts in the common forms, and the bundled set.
//!
//! ShareGPT's JSON (one array, or one object a line), and lines of `{"prompt": ...}` or `{"messages": [...]}`, each with
//! an output length of its own if it gives one (`output_len`, `output_length`, `output_tokens` or `max_tokens`).

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::config::PromptSource;
use crate::conversation::{Conversation, Turn};
use crate::error::{BenchError, Result};
use crate::lengths::LONGEST;

/// The project's own short prompts, one JSON object a line: `{"id", "lang", "kind", "prompt"}`.
pub(crate) const BUNDLED: &str = include_str!("../prompts/prompts.jsonl");

/// Names under which files have the same thing.
const CONVERSATIONS: [&str; 3] = ["conversations", "conversation", "messages"];
const ROLES: [&str; 2] = ["from", "role"];
const TEXTS: [&str; 2] = ["value", "content"];
const OUTPUT_LENGTHS: [&str; 4] = ["output_len", "output_length", "output_tokens", "max_tokens"];

/// Conversations as a file or the bundled set has them; their lengths are not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptSet {
    /// `bundled`, or the file's path.
    pub(crate) name: String,
    pub(crate) conversations: Vec<Conversation>,
    /// Entries that hold no user's turn to send. They are counted, never dropped silently.
    pub(crate) without_prompt: usize,
}

impl PromptSet {
    /// The set compiled into the program.
    pub(crate) fn bundled() -> Self {
        Self::parse("bundled", BUNDLED).expect("the bundled prompts are checked by a test")
    }

    /// Reads a file. A line, an entry or a field that is not as it must be is an error that names it.
    pub(crate) fn read(path: &PathBuf) -> Result<Self> {
        let wrong = |why: String| BenchError::Prompts { path: path.clone(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&path.display().to_string(), &text).map_err(wrong)
    }

    fn parse(name: &str, text: &str) -> std::result::Result<Self, String> {
        let read: Vec<Option<Conversation>> = if text.trim_start().starts_with('[') {
            let entries: Vec<Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            let read = entries.iter().enumerate().map(|(i, entry)| conversation(entry, &format!("entry {}", i + 1)));
            read.collect::<std::result::Result<_, _>>()?
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let read = lines.map(|(i, line)| {
                let place = format!("line {}", i + 1);
                let entry: Value = serde_json::from_str(line).map_err(|error| format!("{place}: {error}"))?;
                conversation(&entry, &place)
            });
            read.collect::<std::result::Result<_, String>>()?
        };
        let total = read.len();
        let conversations: Vec<Conversation> = read.into_iter().flatten().collect();
        if conversations.is_empty() {
            return Err(
                "it holds no prompt (expected ShareGPT conversations, or lines of {\"prompt\": ...})".to_owned()
            );
        }
        Ok(Self { name: name.to_owned(), without_prompt: total - conversations.len(), conversations })
    }
}

/// One entry of a file; None if it holds nothing to send. `place` is where it stands.
fn conversation(entry: &Value, place: &str) -> std::result::Result<Option<Conversation>, String> {
    let wrong = |field: &str, must: &str| Err(format!("{place}: field `{field}` must be {must}"));
    let Some(entry) = entry.as_object() else { return Err(format!("{place}: it is no JSON object")) };
    let output = match first_of(entry, &OUTPUT_LENGTHS) {
        None => None,
        Some((name, value)) => match value.as_u64().and_then(|length| u32::try_from(length).ok()) {
            Some(length @ 1..=LONGEST) => Some(length),
            _ => return wrong(name, &format!("a whole number of tokens from 1 to {LONGEST}")),
        },
    };
    let mut found = match entry.get("prompt").filter(|prompt| !prompt.is_null()) {
        Some(Value::String(prompt)) => Conversation::single(prompt, 0),
        Some(_) => return wrong("prompt", "text"),
        None => match first_of(entry, &CONVERSATIONS) {
            None => return Ok(None),
            Some((name, Value::Array(turns))) => spoken(turns, name, place)?,
            Some((name, _)) => return wrong(name, "a list of turns"),
        },
    };
    found.turns.retain(|turn| !turn.text.trim().is_empty());
    found.turns.iter_mut().for_each(|turn| turn.output = output);
    Ok((!found.turns.is_empty()).then_some(found))
}

fn spoken(turns: &[Value], name: &str, place: &str) -> std::result::Result<Conversation, String> {
    let mut found = Conversation::default();
    for (i, turn) in turns.iter().enumerate() {
        let wrong = |field: &str| format!("{place}: field `{name}[{i}]{field}` must be");
        let Some(turn) = turn.as_object() else { return Err(format!("{} an object", wrong(""))) };
        let role = match first_of(turn, &ROLES) {
            Some((_, Value::String(role))) => role.as_str(),
            None => "",
            Some((role, _)) => return Err(format!("{} text", wrong(&format!(".{role}")))),
        };
        let text = match first_of(turn, &TEXTS) {
            None => String::new(),
            Some((content, value)) => {
                text(value).ok_or_else(|| format!("{} text or parts of text", wrong(&format!(".{content}"))))?
            }
        };
        match (role, found.turns.last_mut()) {
            ("human" | "user", _) => found.turns.push(Turn { text, ..Turn::default() }),
            ("gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard", Some(asked)) => asked.reply = text,
            ("system", None) if !text.trim().is_empty() => found.prefix = Some(text.into()),
            _ => (),
        }
    }
    Ok(found)
}

/// The first of these fields that is there and not null.
fn first_of<'a>(object: &'a Map<String, Value>, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
    names.iter().find_map(|name| Some((*name, object.get(*name).filter(|value| !value.is_null())?)))
}

/// The text of a turn: a string, or a list of parts with text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
            Some(texts.collect::<Vec<_>>().join("\n"))
        }
        _ => None,
    }
}

impl From<PathBuf> for PromptSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde::Deserialize;

    use super::*;
    use crate::selection::estimate_tokens;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct BundledLine {
        id: String,
        lang: String,
        kind: String,
        prompt: String,
    }

    #[test]
    fn the_bundled_set_is_large_varied_and_short() {
        let lines: Vec<BundledLine> = BUNDLED.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let distinct = |field: fn(&BundledLine) -> &str| lines.iter().map(field).collect::<HashSet<_>>().len();
        assert!(lines.len() >= 400, "{}", lines.len());
        assert_eq!(distinct(|line| &line.id), lines.len());
        assert_eq!(distinct(|line| &line.prompt), lines.len());
        assert!(distinct(|line| &line.lang) >= 12, "languages");
        assert!(distinct(|line| &line.kind) >= 10, "kinds");
        for line in &lines {
            assert!((1..=63).contains(&estimate_tokens(&line.prompt)), "{}: {}", line.id, line.prompt);
        }
        assert_eq!(PromptSet::bundled().conversations.len(), lines.len());
    }

    #[test]
    fn every_form_of_file_loads_with_nothing_lost() {
        let forms = [
            "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"other\": 1}\n",
            "{\"id\": 1, \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}\r\n\
             {\"conversations\": [{\"from\": \"gpt\", \"value\": \"no\"}, {\"from\": \"human\", \"value\": \"b\"}]}",
            "[{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}, {\"prompt\": \"b\"}]",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n\
             {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"b\"}]}]}",
        ];
        for text in forms {
            let set = PromptSet::parse("file", text).expect(text);
            let expected = ["a", "b"].map(|text| Conversation::single(text, 0));
            assert_eq!((set.conversations.as_slice(), set.without_prompt), (expected.as_slice(), 0), "{text}");
        }
    }

    #[test]
    fn whole_conversations_and_output_lengths_are_kept() {
        let text = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "A"}, {"role": "user", "content": "b"}], "output_len": 7}"#;
        let set = PromptSet::parse("file", &text.replace('\n', " ")).expect("a conversation");
        let turn = |text: &str, reply: &str| Turn {
            text: text.to_owned(),
            reply: reply.to_owned(),
            output: Some(7),
            ..Turn::default()
        };
        let expected = Conversation { prefix: Some("s".into()), turns: vec![turn("a", "A"), turn("b", "")] };
        assert_eq!(set.conversations, [expected]);
    }

    #[test]
    fn entries_without_a_prompt_are_counted() {
        let text = "{\"conversations\": []}\n{\"prompt\": \" \"}\n{\"prompt\": \"a\"}\n";
        assert_eq!(PromptSet::parse("file", text).expect("one prompt").without_prompt, 2);
        assert!(PromptSet::parse("file", "").is_err());
        assert!(PromptSet::parse("file", "[]").is_err());
        assert!(PromptSource::from(PathBuf::from("/nonexistent/x.jsonl")) != PromptSource::Bundled);
        assert!(PromptSet::read(&"/nonexistent/x.jsonl".into()).is_err());
    }

    #[test]
    fn what_is_wrong_is_named_by_line_and_field() {
        let cases = [
            ("{\"prompt\": \"a\"}\n{oops}", "line 2: "),
            ("{\"prompt\": \"a\"}\n3", "line 2: it is no JSON object"),
            ("{\"prompt\": 3}", "line 1: field `prompt` must be text"),
            ("\n{\"prompt\": \"a\", \"max_tokens\": 0}", "line 2: field `max_tokens` must be a whole number"),
            ("{\"prompt\": \"a\", \"output_len\": \"9\"}", "line 1: field `output_len`"),
            ("{\"messages\": \"a\"}", "line 1: field `messages` must be a list"),
            ("{\"messages\": [3]}", "line 1: field `messages[0]` must be an object"),
            ("{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}", "line 1: field `messages[0].role` must be text"),
            ("[{\"prompt\": \"a\"}, {\"conversations\": [{\"value\": 3}]}]", "entry 2: field `conversations[0].value`"),
        ];
        for (text, named) in cases {
            let error = PromptSet::parse("file", text).expect_err(text);
            assert!(error.starts_with(named), "{text}: {error}");
        }
    }
}
