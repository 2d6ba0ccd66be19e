//! Constraints on a text that can be counted.

use serde::Deserialize;
use serde_json::Value;

/// From and to, both included.
type Range = [usize; 2];

/// All that are given must hold. Words are what white space parts; comparing words disregards case and punctuation.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TextRules {
    words: Option<Range>,
    /// Lines that are not blank.
    lines: Option<Range>,
    /// Ended by `.`, `!` or `?`.
    sentences: Option<Range>,
    /// Parted by blank lines.
    paragraphs: Option<Range>,
    words_per_line: Option<Range>,
    words_per_sentence: Option<Range>,
    /// Somewhere in the text, in any case, within words too.
    contains: Vec<String>,
    /// At least one of these, likewise.
    contains_any: Vec<String>,
    /// Not as whole words.
    forbids: Vec<String>,
    /// The whole text, but for punctuation around it.
    equals: Option<String>,
    starts_with: Option<String>,
    /// Disregarding punctuation after it, unless it is punctuation.
    ends_with: Option<String>,
    each_line_starts_with: Option<String>,
    /// One a line.
    first_letters: Option<String>,
    first_paragraph_ends_with: Option<String>,
    last_paragraph_starts_with: Option<String>,
    without_letter: Option<char>,
    /// No lower-case letter.
    is_upper: bool,
    /// The text is a JSON object with these keys.
    json_keys: Vec<String>,
    /// The text is a JSON object in which this key has a list of this length.
    json_list: Option<ListLength>,
}

#[derive(Clone, Debug, Deserialize)]
struct ListLength {
    key: String,
    length: usize,
}

impl TextRules {
    /// The first rule that a text breaks, in words.
    pub(crate) fn broken_by(&self, text: &str) -> Option<String> {
        let text = text.trim();
        if text.is_empty() {
            return Some("there is no text".to_owned());
        }
        self.broken_count(text).or_else(|| self.broken_words(text)).or_else(|| self.broken_form(text))
    }

    fn broken_count(&self, text: &str) -> Option<String> {
        let (lines, sentences) = (lines(text), sentences(text));
        let counts = [
            ("words", self.words, words(text).len()),
            ("lines", self.lines, lines.len()),
            ("sentences", self.sentences, sentences.len()),
            ("paragraphs", self.paragraphs, paragraphs(text).len()),
        ];
        let of_parts = |name, range, parts: &[&str]| parts.iter().find_map(|part| off(name, range, words(part).len()));
        let whole = counts.into_iter().find_map(|(name, range, count)| off(name, range, count));
        whole
            .or_else(|| of_parts("words in a line", self.words_per_line, &lines))
            .or_else(|| of_parts("words in a sentence", self.words_per_sentence, &sentences))
    }

    fn broken_words(&self, text: &str) -> Option<String> {
        let lower = text.to_lowercase();
        let is_there = |wanted: &String| lower.contains(&wanted.to_lowercase());
        if let Some(wanted) = self.contains.iter().find(|wanted| !is_there(wanted)) {
            return Some(format!("does not contain `{wanted}`"));
        }
        if !self.contains_any.is_empty() && !self.contains_any.iter().any(is_there) {
            return Some(format!("contains none of {}", self.contains_any.join(", ")));
        }
        let plain: Vec<String> = words(text).into_iter().map(|word| bare(word).to_lowercase()).collect();
        let forbidden = self.forbids.iter().find(|word| plain.contains(&word.to_lowercase()));
        if let Some(word) = forbidden {
            return Some(format!("contains `{word}`"));
        }
        if let Some(letter) = self.without_letter.filter(|letter| lower.contains(*letter)) {
            return Some(format!("contains the letter {letter}"));
        }
        if self.is_upper && !(text == text.to_uppercase() && text.chars().any(char::is_alphabetic)) {
            return Some("is not in capital letters".to_owned());
        }
        None
    }

    fn broken_form(&self, text: &str) -> Option<String> {
        let (lines, paragraphs) = (lines(text), paragraphs(text));
        if self.equals.as_ref().is_some_and(|wanted| bare(text) != wanted) {
            return Some("is not just what was asked for".to_owned());
        }
        let starts = [(&self.starts_with, text), (&self.last_paragraph_starts_with, paragraphs.last()?)];
        if let Some((wanted, _)) = starts.iter().find(|(wanted, text)| !holds(wanted, |w| text.starts_with(w))) {
            return Some(format!("does not begin with `{}`", wanted.as_ref()?));
        }
        let ends = [(&self.ends_with, text), (&self.first_paragraph_ends_with, paragraphs.first()?)];
        let is_end = |wanted: &str, text: &str| text.ends_with(wanted) || bare(text).ends_with(wanted);
        if let Some((wanted, _)) = ends.iter().find(|(wanted, text)| !holds(wanted, |w| is_end(w, text))) {
            return Some(format!("does not end with `{}`", wanted.as_ref()?));
        }
        if let Some(wanted) = &self.each_line_starts_with
            && lines.iter().any(|line| !line.trim_start().starts_with(wanted.as_str()))
        {
            return Some(format!("a line does not begin with `{wanted}`"));
        }
        if let Some(letters) = &self.first_letters {
            let first = |line: &&str| line.chars().find(|c| c.is_alphabetic()).map(|c| c.to_ascii_uppercase());
            let found: String = lines.iter().filter_map(first).collect();
            if found != *letters {
                return Some(format!("its lines begin with {found}, not {letters}"));
            }
        }
        self.broken_json(text)
    }

    fn broken_json(&self, text: &str) -> Option<String> {
        if self.json_keys.is_empty() && self.json_list.is_none() {
            return None;
        }
        let Some(object) = crate::extract::only_json_object(text) else {
            return Some("is not a JSON object alone".to_owned());
        };
        if let Some(key) = self.json_keys.iter().find(|key| !object.contains_key(*key)) {
            return Some(format!("has no key `{key}`"));
        }
        let list = self.json_list.as_ref()?;
        let length = object.get(&list.key).and_then(Value::as_array).map(Vec::len);
        (length != Some(list.length)).then(|| format!("`{}` is no list of {}", list.key, list.length))
    }
}

fn holds(wanted: &Option<String>, test: impl Fn(&str) -> bool) -> bool {
    wanted.as_deref().is_none_or(test)
}

fn off(name: &str, range: Option<Range>, count: usize) -> Option<String> {
    let [from, to] = range?;
    (!(from..=to).contains(&count)).then(|| format!("has {count} {name}, not {from} to {to}"))
}

fn words(text: &str) -> Vec<&str> {
    // A dash or a bullet on its own is no word.
    text.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)).collect()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().is_empty()).collect()
}

fn paragraphs(text: &str) -> Vec<&str> {
    text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()).collect()
}

fn sentences(text: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '.' | '!' | '?');
    text.split_inclusive(is_end).filter(|sentence| sentence.chars().any(char::is_alphanumeric)).collect()
}

/// Without punctuation around it.
fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(rules: &str, text: &str) -> Option<String> {
        let rules: TextRules = toml::from_str(rules).unwrap();
        rules.broken_by(text)
    }

    #[test]
    fn counts_are_of_what_a_reader_counts() {
        for (rules, text) in [
            ("words = [3, 3]", "One, two - three!"),
            ("sentences = [2, 2]", "Is it? It is."),
            ("sentences = [1, 1]", "No end mark"),
            ("lines = [2, 2]", "a\n\n  \nb"),
            ("paragraphs = [2, 2]", "a\nb\n\nc"),
            ("words_per_line = [1, 2]", "a b\nc"),
            ("words_per_sentence = [2, 2]", "Go on. Do it."),
        ] {
            assert_eq!(broken(rules, text), None, "{rules}: {text}");
        }
        assert!(broken("words_per_sentence = [2, 2]", "Go on. Stop.").unwrap().contains("1 words in a sentence"));
        assert!(broken("words = [1, 2]", "a b c").unwrap().contains("3 words"));
        assert!(broken("", "  ").is_some());
    }

    #[test]
    fn forbidden_are_words_and_required_are_parts() {
        assert_eq!(broken("forbids = [\"cat\"]\ncontains = [\"sleep\"]", "Concatenated and SLEEPING."), None);
        assert!(broken("forbids = [\"cat\"]", "The Cat.").is_some());
        assert!(broken("without_letter = \"e\"", "hEm").is_some());
        assert!(broken("is_upper = true", "123").is_some() && broken("is_upper = true", "Ab").is_some());
    }

    #[test]
    fn any_of_several_is_found_in_any_case() {
        let rules = "contains_any = [\"Fur\", \"PAW\"]";
        for text in ["It has fur.", "A PAW.", "Pawprints"] {
            assert_eq!(broken(rules, text), None, "{text}");
        }
        assert!(broken(rules, "It has scales.").is_some());
    }

    #[test]
    fn lists_are_counted_with_and_without_other_keys() {
        let list = "json_list = { key = \"tags\", length = 2 }";
        let both = format!("json_keys = [\"title\"]\n{list}");
        assert_eq!(broken(list, r#"{"tags": [1, 2]}"#), None);
        for text in [r#"{"tags": [1]}"#, r#"{"tags": 2}"#, "{}", "tags: 1, 2"] {
            assert!(broken(list, text).is_some() && broken(&both, text).is_some(), "{text}");
        }
        assert!(broken(&both, r#"{"tags": [1, 2]}"#).unwrap().contains("no key `title`"));
        assert_eq!(broken(&both, r#"{"tags": [1, 2], "title": ""}"#), None);
    }

    #[test]
    fn beginnings_and_ends() {
        assert_eq!(broken("starts_with = \"Dear\"\nends_with = \"Regards\"", "Dear you,\nRegards."), None);
        assert!(broken("ends_with = \"?\"", "No.").is_some());
        assert_eq!(broken("first_letters = \"AB\"", "- apple\n* Bee"), None);
        assert!(broken("first_letters = \"AB\"", "apple").is_some());
        assert!(broken("equals = \"YES\"", "YES indeed").is_some());
        assert_eq!(broken("equals = \"YES\"", "**YES**"), None);
    }
}
