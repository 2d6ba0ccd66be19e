//! The answer in a reply: models explain, use Markdown and repeat themselves.

use serde_json::{Map, Value};

/// Thoughts that a server left in the text. What comes after the last of them is the answer; nothing, where they never
/// end.
pub(crate) fn without_thoughts(text: &str) -> &str {
    match (text.rfind("</think>"), text.contains("<think>")) {
        (Some(end), _) => text[end + "</think>".len()..].trim(),
        (None, true) => "",
        (None, false) => text.trim(),
    }
}

/// What stands after the last "Answer:", else the whole.
fn stated(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    match lower.rfind("answer:").or_else(|| lower.rfind("answer is")) {
        Some(at) => text[at + "answer:".len()..].trim_start_matches([':', 's', ' ', '*', '`']),
        None => text,
    }
}

/// The stated number, else the last in the text.
pub(crate) fn number(text: &str) -> Option<f64> {
    let stated = stated(text);
    let found = numbers(stated);
    if stated.len() < text.len() { found.first().copied() } else { found.last().copied() }
}

/// Numbers with `.` as decimal point; commas between digits are dropped.
fn numbers(text: &str) -> Vec<f64> {
    let characters: Vec<char> = text.chars().collect();
    let digit = |at: usize| characters.get(at).is_some_and(char::is_ascii_digit);
    let mut found = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        let is_negative = at > 0 && matches!(characters[at - 1], '-' | '−') && (at == 1 || !digit(at - 2));
        let mut written = if is_negative { String::from("-") } else { String::new() };
        while digit(at) || (matches!(characters.get(at), Some('.' | ',')) && digit(at + 1)) {
            if characters[at] != ',' {
                written.push(characters[at]);
            }
            at += 1;
        }
        found.extend(written.parse::<f64>());
    }
    found
}

/// The stated letter, else the only or last capital A to D that stands alone.
pub(crate) fn choice(text: &str) -> Option<char> {
    let stated = stated(text);
    let is_stated = stated.len() < text.len();
    let words = stated.split(|c: char| !c.is_alphanumeric());
    let mut letters = words.filter_map(|word| match word.as_bytes() {
        [letter @ b'A'..=b'D'] => Some(char::from(*letter)),
        [letter @ b'a'..=b'd'] if is_stated => Some(char::from(letter.to_ascii_uppercase())),
        _ => None,
    });
    if is_stated { letters.next() } else { letters.next_back() }
}

/// The stated words, else the last line: lower case, without punctuation around them.
pub(crate) fn word(text: &str) -> String {
    let stated = stated(text);
    let lines: Vec<&str> = stated.lines().filter(|line| !line.trim().is_empty()).collect();
    let line = if stated.len() < text.len() { lines.first() } else { lines.last() };
    let line = line.copied().unwrap_or_default();
    line.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

/// The first JSON object in the text.
pub(crate) fn json_object(text: &str) -> Option<Map<String, Value>> {
    let starts = text.match_indices('{').map(|(at, _)| at);
    // A text of braces alone is not worth more attempts.
    starts.take(50).find_map(|at| {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(Value::Object(object))) => Some(object),
            _ => None,
        }
    })
}

/// The program in a reply: the last fenced block that defines `name`, else the text from its definition on.
pub(crate) fn python(text: &str, name: &str) -> Option<String> {
    let defines = |code: &str| code.contains(&format!("def {name}")) || code.contains(&format!("class {name}"));
    let fenced = text.split("```").skip(1).step_by(2);
    let without_language = |block: &str| match block.split_once('\n') {
        Some((first, code)) if !first.trim().contains(' ') => code.to_owned(),
        _ => block.to_owned(),
    };
    let block = fenced.map(without_language).filter(|code| defines(code)).last();
    block.or_else(|| defines(text).then(|| text.replace("```python", "").replace("```", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_no_answer() {
        assert_eq!(without_thoughts("<think>7?</think>\n 8 "), "8");
        assert_eq!(without_thoughts("hm</think>8"), "8");
        assert_eq!(without_thoughts("<think>7 7 7"), "");
        assert_eq!(without_thoughts(" 8 "), "8");
    }

    #[test]
    fn numbers_are_found_in_prose() {
        for (text, expected) in [
            ("3 + 4 = 7", 7.0),
            ("Answer: 7. (Not 8!)", 7.0),
            ("The answer is 1,024 bytes", 1024.0),
            ("**Answer:** -2.50", -2.5),
            ("10-3 is 7.", 7.0),
            ("ANSWER: $54.00", 54.0),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        assert_eq!(number("none"), None);
    }

    #[test]
    fn choices_and_words() {
        for (text, expected) in
            [("B", Some('B')), ("A) is wrong, so it is C", Some('C')), ("Answer: (d)", Some('D')), ("a dog", None)]
        {
            assert_eq!(choice(text), expected, "{text}");
        }
        assert_eq!(word("Let me see.\n**Paris**."), "paris");
        assert_eq!(word("Answer: Paris\nIt is large."), "paris");
    }

    #[test]
    fn objects_and_programs() {
        assert_eq!(json_object("x {no} {\"a\": 1} {\"b\": 2}").unwrap().len(), 1);
        assert!(json_object("{\"a\": 1").is_none());
        let reply = "Try:\n```\nother\n```\nBetter:\n```python\ndef f(x):\n    return x\n```\nDone.";
        assert_eq!(python(reply, "f").unwrap(), "def f(x):\n    return x\n");
        assert_eq!(python("def f(x): return 1", "f").unwrap(), "def f(x): return 1");
        assert_eq!(python("no code", "f"), None);
    }
}
