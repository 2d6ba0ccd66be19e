//! Every syntax: what a text says, however it is cut.

use std::sync::Arc;

use proptest::prelude::*;

use super::harmony::{Harmony, Mark};
use super::hermes::Hermes;
use super::leading::{Leading, Shapes};
use super::think::Think;
use super::{CallPart, Opening, Reader, Said};

/// What `reader` makes of `chunks`.
fn read(mut reader: Box<dyn Reader>, chunks: &[&str]) -> Said {
    let mut whole = Said::default();
    for chunk in chunks {
        let mut said = Said::default();
        reader.push(chunk, &mut said);
        whole.append(said);
    }
    let mut said = Said::default();
    reader.finish(&mut said);
    whole.append(said);
    whole
}

/// One line: `content[...]`, then the calls.
fn shown(said: &Said) -> String {
    let calls = said
        .calls
        .iter()
        .map(|CallPart { index, name, arguments }| format!(" {index}:{}({arguments})", name.as_deref().unwrap_or("?")));
    format!("[{}]{}", said.content, calls.collect::<String>())
}

/// [`Think`] with its answer as content.
struct ThinkOnly(Think);

impl Reader for ThinkOnly {
    fn push(&mut self, text: &str, said: &mut Said) {
        let mut answer = String::new();
        self.0.push(text, said, &mut answer);
        said.content.push_str(&answer);
    }

    fn finish(&mut self, said: &mut Said) {
        let mut answer = String::new();
        self.0.finish(said, &mut answer);
        said.content.push_str(&answer);
    }
}

fn names() -> Arc<[String]> {
    ["f", "get.it", "print_x"].map(str::to_owned).into()
}

fn think(is_thinking: bool) -> Box<dyn Reader> {
    Box::new(ThinkOnly(Think::new(is_thinking)))
}

fn hermes() -> Box<dyn Reader> {
    Box::new(Hermes::new(names()))
}

fn leading(python: bool, fences: bool) -> Box<dyn Reader> {
    Box::new(Leading::new(Shapes { python, fences }, names()))
}

#[test]
fn thoughts_are_parted_from_the_answer() {
    let check = |is_thinking, text: &str, reasoning: &str, content: &str| {
        let said = read(think(is_thinking), &[text]);
        assert_eq!((said.reasoning.as_str(), said.content.as_str()), (reasoning, content), "{text:?}");
    };
    check(false, "<think>\nwhy\n</think>\n\nso", "why", "so");
    check(false, "\n<think>why</think>so", "why", "so");
    check(false, "<think>\n\n</think>\n\nso", "", "so");
    check(true, "why\n\nthen\n</think>\n\n\nso", "why\n\nthen", "\nso");
    check(true, "never ends", "never ends", "");
    check(true, "nearly </thin", "nearly </thin", "");
    check(false, "so <think>not this</think>", "", "so <think>not this</think>");
    check(false, "<thin", "", "<thin");
    check(false, "", "", "");
}

#[test]
fn hermes_calls_are_parted_from_content() {
    for (text, expected) in [
        ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}{\"}}\n</tool_call>", r#"[] 0:f({"a": "}{"})"#),
        (
            "hm\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"b\": [1]}, \"name\": \"get.it\"}\n</tool_call>",
            r#"[hm] 0:f({}) 1:get.it({"b": [1]})"#,
        ),
        (r#"<tool_call>{"name": "f"}</tool_call>after"#, "[after] 0:f({})"),
        (r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}", "id": 7}</tool_call>"#, r#"[] 0:f({"a": 1})"#),
        (r#"<tool_call>{"name": "f", "arguments": null}"#, "[] 0:f({})"),
        // Cut off: what was passed on stands.
        (r#"<tool_call>{"name": "f", "arguments": {"a": [1"#, r#"[] 0:f({"a": [1)"#),
        (r#"<tool_call>{"name": "f", "arguments": {"a": 1}} oops</tool_call>"#, r#"[ oops</tool_call>] 0:f({"a": 1})"#),
        // No calls.
        (
            r#"<tool_call>{"name": "g", "arguments": {}}</tool_call>"#,
            r#"[<tool_call>{"name": "g", "arguments": {}}</tool_call>]"#,
        ),
        (
            r#"<tool_call>{"arguments": {}, "name": "no name"}</tool_call><tool_call>{"name": "f"}</tool_call>"#,
            r#"[<tool_call>{"arguments": {}, "name": "no name"}</tool_call>] 0:f({})"#,
        ),
        ("<tool_call>{\"name\": 5}</tool_call>", "[<tool_call>{\"name\": 5}</tool_call>]"),
        ("<tool_call>\nf(1)\n</tool_call>", "[<tool_call>\nf(1)\n</tool_call>]"),
        ("<tool_call><tool_call>{\"name\": \"f\"}</tool_call>", "[<tool_call>] 0:f({})"),
        ("a <tool_cal", "[a <tool_cal]"),
        ("a\n", "[a\n]"),
        (r#"<tool_call>{"name": """#, r#"[<tool_call>{"name": ""]"#),
        ("<tool_call>{\"name\"", "[<tool_call>{\"name\"]"),
    ] {
        assert_eq!(shown(&read(hermes(), &[text])), expected, "{text:?}");
    }
}

#[test]
fn arguments_are_passed_on_as_they_come() {
    let mut reader = hermes();
    let mut said = Said::default();
    reader.push("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\"", &mut said);
    assert_eq!(shown(&said), "[] 0:f({\"a\")");
    let mut said = Said::default();
    reader.push(": 1", &mut said);
    assert_eq!(shown(&said), "[] 0:?(: 1)");
}

#[test]
fn calls_for_an_answer_are_told_by_their_shape_and_the_functions_names() {
    for (python, fences, text, expected) in [
        (false, false, r#"{"name": "f", "parameters": {"a": "x"}}"#, r#"[] 0:f({"a": "x"})"#),
        (false, false, r#"<|python_tag|>{"type": "function", "name": "f", "parameters": {}}"#, "[] 0:f({})"),
        (
            false,
            false,
            r#"{"name": "f", "parameters": {}}; {"name": "get.it", "parameters": {"b":1}}"#,
            r#"[] 0:f({}) 1:get.it({"b":1})"#,
        ),
        (
            false,
            false,
            r#"[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a":2}}]"#,
            r#"[] 0:f({}) 1:f({"a":2})"#,
        ),
        (false, false, r#"{"name": "Bob", "parameters": {}}"#, r#"[{"name": "Bob", "parameters": {}}]"#),
        (false, false, r#"{"name": "f", "age": 3}"#, r#"[{"name": "f", "age": 3}]"#),
        (false, false, r#" {"a": 1}"#, r#"[ {"a": 1}]"#),
        (false, false, r#"so {"name": "f", "parameters": {}}"#, r#"[so {"name": "f", "parameters": {}}]"#),
        (false, false, "[f(a=1)]", "[[f(a=1)]]"),
        (true, false, "[f(a=1, b=\"x)]\"), get.it()]", r#"[] 0:f({"a":1,"b":"x)]"}) 1:get.it({})"#),
        (true, false, "<|python_start|>[f(a=[1, {'k': None}])]<|python_end|>", r#"[] 0:f({"a":[1,{"k":null}]})"#),
        (true, false, "[1] says the book", "[[1] says the book]"),
        (true, false, "[f(a=g())]", "[[f(a=g())]]"),
        (true, false, "[f(a=1), g(b=2)]", r#"[, g(b=2)]] 0:f({"a":1})"#),
        (true, false, "[f(a=1", "[[f(a=1]"),
        (
            true,
            true,
            "Let me see.\n```tool_code\nprint(f(a=1))\nget.it()\n```\nDone",
            "[Let me see.\nDone] 0:f({\"a\":1}) 1:get.it({})",
        ),
        (true, true, "```json\n{\"name\": \"f\", \"parameters\": {}}\n```", "[] 0:f({})"),
        (true, true, "```json\n{\"a\": 1}\n```\nok", "[```json\n{\"a\": 1}\n```\nok]"),
        (true, true, "```rust\nfn f() {}\n```", "[```rust\nfn f() {}\n```]"),
        (true, true, "```tool_code\nf(a=1", "[```tool_code\nf(a=1]"),
        (true, true, "plain ``", "[plain ``]"),
        // What was given up as a call is not read for another.
        (
            true,
            true,
            "[f(a=\"```tool_code\nf()\n```\", b=g())] ```json\n{\"name\": \"f\", \"parameters\": {}}\n```",
            "[[f(a=\"```tool_code\nf()\n```\", b=g())] ] 0:f({})",
        ),
        (true, true, "```tool_code\nf```json\n{\"name\": \"f\", \"parameters\": {}}\n```", "[```tool_code\nf] 0:f({})"),
    ] {
        assert_eq!(shown(&read(leading(python, fences), &[text])), expected, "{text:?}");
    }
}

fn offered(has_tools: bool) -> Arc<[String]> {
    if has_tools { names() } else { Arc::default() }
}

/// Control tokens in angle brackets, all else text.
fn harmony(opening: Opening, has_tools: bool, text: &str) -> Said {
    let mut reader = Harmony::new(opening, offered(has_tools));
    let mut whole = Said::default();
    let mut rest = text;
    while !rest.is_empty() {
        let mut said = Said::default();
        match Mark::ALL.into_iter().find(|mark| rest.starts_with(mark.text())) {
            Some(mark) => {
                reader.mark(mark, &mut said);
                rest = &rest[mark.text().len()..];
            }
            None => {
                let length = rest.chars().next().unwrap().len_utf8();
                reader.push(&rest[..length], &mut said);
                rest = &rest[length..];
            }
        }
        whole.append(said);
    }
    let mut said = Said::default();
    reader.finish(&mut said);
    whole.append(said);
    whole
}

#[test]
fn harmonys_channels_are_told_apart() {
    let two = "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>";
    let said = harmony(Opening::Reply, false, two);
    assert_eq!((said.reasoning.as_str(), said.content.as_str()), ("why", "so"));
    let call = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>\
                <|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>\
                <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\":1}<|call|>";
    let said = harmony(Opening::Reply, true, call);
    assert_eq!((said.reasoning.as_str(), shown(&said).as_str()), ("a\n\nb", "[Wait.] 0:f({\"a\":1})"));
    let said = harmony(Opening::Reply, false, call);
    assert_eq!(shown(&said), "[Wait.\n\n{\"a\":1}]");
    for (opening, text, expected) in [
        (Opening::Reply, " to=functions.f<|channel|>commentary json<|message|>{}<|call|>", "[] 0:f({})"),
        (Opening::Reply, "<|channel|>commentary to=python<|message|>1+1<|call|>", "[1+1]"),
        (Opening::Reply, "<|channel|>commentary to=user<|message|>hi<|end|>", "[hi]"),
        (Opening::Reply, "<|channel|>commentary to=functions.<x<|message|>{}<|call|>", "[{}]"),
        (Opening::Content, " and so on<|return|>", "[ and so on]"),
        (Opening::Reply, "plain text", "[plain text]"),
        (Opening::Reply, "<|message|>plain", "[plain]"),
        (Opening::Reply, "to", "[to]"),
        (Opening::Reply, "<|channel|>final", "[]"),
        (Opening::Reply, "<|channel|>final<|message|>a<|end|>b", "[a\n\nb]"),
        (Opening::Reply, "<|start|>user<|message|>x<|end|>", "[user\n\nx]"),
        (Opening::Reply, "<|call|><|return|><|constrain|><|end|>", "[]"),
    ] {
        assert_eq!(shown(&harmony(opening, true, text)), expected, "{text:?}");
    }
    let endless = format!("<|channel|>{}<|message|>x", "y".repeat(10_000));
    assert!(harmony(Opening::Reply, true, &endless).content.contains(&"y".repeat(5000)));
}

/// A megabyte of brackets within arguments, or where a call was expected.
#[test]
fn hostile_nesting_costs_its_length() {
    let deep = "[".repeat(1 << 20);
    let said = read(hermes(), &[r#"<tool_call>{"name": "f", "arguments": {"a": "#, &deep]);
    assert_eq!(said.calls[0].arguments.len(), deep.len() + 6);
    for reader in [hermes(), leading(true, true), leading(false, false)] {
        let said = read(reader, &["<tool_call>", &deep]);
        assert_eq!(said.content.len(), deep.len() + "<tool_call>".len());
    }
    let held = format!("<tool_call>{{\"x\": {deep}");
    assert_eq!(read(hermes(), &[&held]).content, held);
    let call = format!("[f(a={deep}");
    assert_eq!(read(leading(true, true), &[&call]).content, call);
    let keys = format!("[f(a={}{{'x':1}}{})]", "{".repeat(40), ":1}".repeat(40));
    assert_eq!(read(leading(true, false), &[&keys]).content, keys);
}

/// Fragments that matter to some syntax, so that random texts come near calls.
const FRAGMENTS: &[&str] = &[
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "{\"name\": \"f\", ",
    "\"arguments\": {\"a\": 1}",
    "\"parameters\": {",
    "}",
    "[",
    "]",
    "f(a=1)",
    "f(",
    ")",
    ", ",
    ";",
    "\"",
    "\\",
    "'",
    "é",
    "```",
    "```tool_code\n",
    "```json\n",
    "<|python_tag|>",
    "<",
    "text",
    "{\"name\": \"f\", \"arguments\": {\"k\": [\"v\"]}}",
    "print(",
    "f(a={",
    "{'x':1}",
    "):1}",
    ":1}",
    ":",
];

fn texts() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(FRAGMENTS), 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_cut_of_a_text_says_the_same(text in texts(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|&at| text.is_char_boundary(at)).collect();
        at.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for end in at.into_iter().chain([text.len()]) {
            chunks.push(&text[from..end]);
            from = end;
        }
        type Make = fn() -> Box<dyn Reader>;
        let readers: [Make; 6] = [
            || think(false), || think(true), hermes, || leading(false, false), || leading(true, false), || leading(true, true),
        ];
        for (index, make) in readers.into_iter().enumerate() {
            let (whole, cut) = (read(make(), &[&text]), read(make(), &chunks));
            prop_assert_eq!(&whole, &cut);
            // Only syntax may go; where the prompt opened the thoughts, that is a newline, too.
            if index != 1 && whole.calls.is_empty() && !text.contains("think>") && !text.contains("<|python_tag|>") {
                prop_assert_eq!(whole.reasoning + &whole.content, text.as_str());
            }
        }
    }
}

proptest! {
    /// Control tokens in any order, and text cut anywhere: nothing panics, and the cuts do not matter.
    #[test]
    fn any_order_of_harmonys_tokens_is_read(
        parts in prop::collection::vec((0..7usize, prop::sample::select(&["", " ", "assistant", "analysis", "final x",
            " to=functions.f", "commentary", "text", "é\n"][..])), 0..12),
        has_tools: bool,
    ) {
        let text: String = parts.iter().map(|(mark, text)| format!("{}{text}", Mark::ALL[*mark].text())).collect();
        let by_character = harmony(Opening::Reply, has_tools, &text);
        let mut reader = Harmony::new(Opening::Reply, offered(has_tools));
        let mut whole = Said::default();
        for (mark, text) in &parts {
            reader.mark(Mark::ALL[*mark], &mut whole);
            reader.push(text, &mut whole);
        }
        reader.finish(&mut whole);
        let mut joined = Said::default();
        joined.append(whole);
        prop_assert_eq!(by_character, joined);
    }
}
