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

/// What stands after the last "Answer:" or "answer is"; `None` where neither does.
fn stated(text: &str) -> Option<&str> {
    // Of ASCII letters alone, so that places in it are places in the text.
    let lower = text.to_ascii_lowercase();
    let after = |marker: &str| lower.rfind(marker).map(|at| at + marker.len());
    let at = after("answer:").max(after("answer is"))?;
    Some(text[at..].trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ':' | '*' | '`' | '_')))
}

/// The sentences of a text, none longer than its line, without what they deny. A point within a number ends none.
fn affirmed(text: &str) -> Vec<String> {
    let ends_sentence = |word: &&str| word.trim_end_matches(['"', '\'', '*', '_', '`', ')']).ends_with(['.', '!', '?']);
    let of_line = |line: &str| -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.split_inclusive(ends_sentence).map(without_denied).collect()
    };
    text.lines().flat_map(of_line).filter(|sentence| !sentence.is_empty()).collect()
}

/// A sentence's words, but for those from a "not" to the end of its clause.
fn without_denied(words: &[&str]) -> String {
    let (mut kept, mut is_denied) = (Vec::new(), false);
    for word in words {
        let plain = bare(word).to_lowercase().replace('’', "'");
        let denies = matches!(plain.as_str(), "not" | "never" | "cannot" | "neither" | "nor") || plain.ends_with("n't");
        is_denied = denies || (is_denied && plain != "but");
        if !is_denied {
            kept.push(*word);
        }
        is_denied &= !word.ends_with([',', ';', ':']);
    }
    kept.join(" ")
}

/// The last number of the first stated sentence that has one, else the last in the text. "2^5 = 32" states 32; what stands
/// in brackets after a number is an aside.
pub(crate) fn number(text: &str) -> Option<f64> {
    let last = |text: &str| numbers(text).last().copied();
    let of_sentence = |sentence: &String| {
        let aside = sentence.find(" (").unwrap_or(sentence.len());
        last(&sentence[..aside]).or_else(|| last(sentence))
    };
    match stated(text) {
        Some(stated) => affirmed(stated).iter().find_map(of_sentence),
        None => last(text),
    }
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

/// The stated letter, else the last capital A to D that stands alone.
pub(crate) fn choice(text: &str) -> Option<char> {
    let capital = |word: &str| match word.as_bytes() {
        [letter @ b'A'..=b'D'] => Some(char::from(*letter)),
        _ => None,
    };
    let words = |text| str::split(text, |c: char| !c.is_alphanumeric());
    let Some(stated) = stated(text) else { return words(text).filter_map(capital).next_back() };
    let sentences = affirmed(stated);
    // In lower case a letter may be an article, unless it is all that is said.
    let alone = bare(sentences.first()?).to_ascii_uppercase();
    capital(&alone).or_else(|| sentences.iter().find_map(|sentence| words(sentence).find_map(capital)))
}

/// Whether the stated sentence, or else the last line, is `word`, or begins (where it is stated) or ends with it, without
/// denying it; in any case.
pub(crate) fn says_word(text: &str, word: &str) -> bool {
    let line = match stated(text) {
        Some(stated) => affirmed(stated).into_iter().next(),
        None => text.lines().rfind(|line| !line.trim().is_empty()).map(|line| affirmed(line).join(" ")),
    };
    let line = bare(&line.unwrap_or_default()).to_lowercase();
    let word = word.to_lowercase();
    let mut words = line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let is_first = stated(text).is_some() && words.clone().next() == Some(&word);
    line == word || is_first || words.next_back() == Some(&word)
}

/// Without punctuation around it.
fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

/// The text, if it is a JSON object and nothing else but a code block around it.
pub(crate) fn only_json_object(text: &str) -> Option<Map<String, Value>> {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|text| text.strip_suffix("```"));
    let inner = inner.map_or(text, |text| text.strip_prefix("json").unwrap_or(text));
    serde_json::from_str(inner).ok()
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
            ("Answer: 2^5 = 32", 32.0),
            ("So the answer is 3 x 4 = 12. That is 2 more than 10.", 12.0),
            ("Answer: 60 (5 times 12)", 60.0),
            ("Answer:\n\n**7**", 7.0),
            ("The answer is approx. 7", 7.0),
            ("Answer: not 8, but 7", 7.0),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        assert_eq!(number("none"), None);
        assert_eq!(number("Answer: not 7"), None);
    }

    #[test]
    fn choices_and_words() {
        for (text, expected) in [
            ("B", Some('B')),
            ("A) is wrong, so it is C", Some('C')),
            ("Answer: (d)", Some('D')),
            ("a dog", None),
            ("The answer is a cat, B", Some('B')),
            ("Answer: not A but B", Some('B')),
            ("Answer: not B", None),
            ("Answer:", None),
        ] {
            assert_eq!(choice(text), expected, "{text}");
        }
    }

    #[test]
    fn words_are_said_and_not_denied() {
        for text in [
            "Let me see.\n**Paris**.",
            "Answer: Paris, of course\nRome",
            "The capital is \"Paris\".",
            "PARIS",
            "Answer: Paris. It is not Rome.",
            "Answer: Paris, not Rome",
            "It is not Rome but Paris",
            "It isn't Rome, it is Paris.",
        ] {
            assert!(says_word(text, "Paris"), "{text}");
        }
        for text in [
            "Paris or Rome",
            "The answer is: Rome. Not Paris, Texas",
            "",
            "Answer:",
            "Answer: not Paris",
            "Answer: **not** Paris.",
            "It is not Paris",
            "It isn’t Paris",
            "Answer: It is Rome. I like Paris",
        ] {
            assert!(!says_word(text, "Paris"), "{text}");
        }
    }

    #[test]
    fn objects_and_programs() {
        assert_eq!(json_object("x {no} {\"a\": 1} {\"b\": 2}").unwrap().len(), 1);
        assert!(json_object("{\"a\": 1").is_none());
        assert!(only_json_object("```json\n{\"a\": 1}\n```").is_some() && only_json_object("data = {}").is_none());
        let reply = "Try:\n```\nother\n```\nBetter:\n```python\ndef f(x):\n    return x\n```\nDone.";
        assert_eq!(python(reply, "f").unwrap(), "def f(x):\n    return x\n");
        assert_eq!(python("def f(x): return 1", "f").unwrap(), "def f(x): return 1");
        assert_eq!(python("no code", "f"), None);
    }
}
