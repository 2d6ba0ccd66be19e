//! Prompts: the bundled set, files in the common forms, and the choice among them by length.

use std::path::PathBuf;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{PromptSource, Workload};
use crate::conversation::Conversation;
use crate::endpoint::RemoteTokenizer;
use crate::error::{BenchError, Result};

/// The project's own short prompts, one JSON object a line: `{"id", "lang", "kind", "prompt"}`.
const BUNDLED: &str = include_str!("../prompts/prompts.jsonl");
/// Requests to `/tokenize` in flight at once.
const TOKENIZE_CONCURRENCY: usize = 8;
/// Characters a token of English text, for the estimate.
const CHARS_PER_TOKEN: f64 = 4.1;

/// Prompts as a file or the bundled set has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptSet {
    /// `bundled`, or the file's path.
    pub name: String,
    pub prompts: Vec<String>,
    /// Entries that hold no user's turn to send. They are counted, never dropped silently.
    pub without_prompt: usize,
}

impl PromptSet {
    /// The set compiled into the program.
    pub fn bundled() -> Self {
        Self::parse("bundled", BUNDLED).expect("the bundled prompts are checked by a test")
    }

    /// Reads what `source` names. A line or an entry that is no JSON object is an error that says where.
    pub fn load(source: &PromptSource) -> Result<Self> {
        match source {
            PromptSource::Bundled => Ok(Self::bundled()),
            PromptSource::File(path) => {
                let wrong = |why: String| BenchError::Prompts { path: path.clone(), why };
                let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
                Self::parse(&path.display().to_string(), &text).map_err(wrong)
            }
        }
    }

    fn parse(name: &str, text: &str) -> std::result::Result<Self, String> {
        let entries: Vec<Entry> = if text.trim_start().starts_with('[') {
            serde_json::from_str(text).map_err(|error| error.to_string())?
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            lines
                .map(|(i, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1)))
                .collect::<std::result::Result<_, String>>()?
        };
        let total = entries.len();
        let prompts: Vec<String> = entries.into_iter().filter_map(Entry::prompt).collect();
        if prompts.is_empty() {
            return Err(
                "it holds no prompt (expected ShareGPT conversations, or lines of {\"prompt\": ...})".to_owned()
            );
        }
        Ok(Self { name: name.to_owned(), without_prompt: total - prompts.len(), prompts })
    }
}

/// One entry of a prompt file, in any of the forms that are about.
#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default, alias = "conversation", alias = "messages")]
    conversations: Option<Vec<Turn>>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(default, alias = "role")]
    from: String,
    #[serde(default, alias = "content")]
    value: Value,
}

impl Entry {
    /// The prompt, or the first turn of a person; None if there is none or it is blank.
    fn prompt(self) -> Option<String> {
        let spoken = || {
            let turns = self.conversations.unwrap_or_default();
            turns.into_iter().find(|turn| matches!(turn.from.as_str(), "human" | "user")).and_then(Turn::text)
        };
        self.prompt.or_else(spoken).filter(|text| !text.trim().is_empty())
    }
}

impl Turn {
    fn text(self) -> Option<String> {
        match self.value {
            Value::String(text) => Some(text),
            Value::Array(parts) => {
                Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().join("\n"))
            }
            _ => None,
        }
    }
}

/// Who counted the tokens of the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthSource {
    /// The server's `/tokenize`.
    ServerTokenizer,
    /// An estimate from the number and kind of characters: the server has no `/tokenize` that is known.
    Estimate,
}

/// The prompts that a run sends, in order, and how they were chosen.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) source: String,
    /// In the set, of these had their length looked at, of these were within the limits.
    pub(crate) loaded: usize,
    pub(crate) examined: usize,
    pub(crate) prompts: Vec<Conversation>,
    pub(crate) without_prompt: usize,
    pub(crate) lengths: LengthSource,
}

impl Selection {
    /// Of the texts of a request.
    pub(crate) fn mean_tokens(&self) -> f64 {
        let turns = || self.prompts.iter().flat_map(|prompt| &prompt.turns);
        turns().map(|turn| f64::from(turn.tokens)).sum::<f64>() / turns().count().max(1) as f64
    }
}

/// Shuffles the set by the workload's seed and takes prompts of the right length until `wanted` are found.
pub(crate) async fn select(
    workload: &Workload,
    set: PromptSet,
    tokenizer: Option<&RemoteTokenizer<'_>>,
    wanted: usize,
) -> Result<Selection> {
    let PromptSet { name, prompts: mut candidates, without_prompt } = set;
    candidates.shuffle(&mut StdRng::seed_from_u64(workload.seed));
    let loaded = candidates.len();
    let mut counted = stream::iter(candidates)
        .map(|text| async move {
            let salted = if workload.salt { with_salt(&text, workload.seed, 0) } else { text.clone() };
            let remote = match tokenizer {
                Some(tokenizer) => tokenizer.count(&salted).await,
                None => None,
            };
            (text, remote.unwrap_or_else(|| estimate_tokens(&salted)), remote.is_some())
        })
        .buffered(TOKENIZE_CONCURRENCY);
    let (mut prompts, mut examined, mut all_remote) = (Vec::new(), 0, tokenizer.is_some());
    while prompts.len() < wanted
        && let Some((text, tokens, remote)) = counted.next().await
    {
        examined += 1;
        all_remote &= remote;
        if (workload.min_tokens..=workload.max_tokens).contains(&tokens) {
            prompts.push(Conversation::single(text, tokens));
        }
    }
    if prompts.is_empty() {
        let (min, max) = (workload.min_tokens, workload.max_tokens);
        return Err(BenchError::NoPromptFits { source_name: name, loaded, min, max });
    }
    let lengths = if all_remote { LengthSource::ServerTokenizer } else { LengthSource::Estimate };
    Ok(Selection { source: name, loaded, examined, prompts, without_prompt, lengths })
}

/// `text` behind a tag that differs for every `index` below 2^24.
pub(crate) fn with_salt(text: &str, seed: u64, index: u64) -> String {
    // Multiplying by an odd number permutes the residues modulo 2^24.
    let start: u32 = StdRng::seed_from_u64(seed).random();
    let tag = (index as u32).wrapping_mul(0x9e_3779).wrapping_add(start) & 0xff_ffff;
    format!("[{tag:06x}] {text}")
}

/// A guess at the tokens of `text`: most vocabularies hold whole English words, parts of words in other alphabets, and
/// about a character a token of Chinese, Japanese and Korean.
pub(crate) fn estimate_tokens(text: &str) -> u32 {
    let weight = |c: char| match c {
        '\0'..='\x7f' => 1.0 / CHARS_PER_TOKEN,
        '\u{80}'..='\u{2e7f}' => 0.5,
        _ => 1.0,
    };
    (text.chars().map(weight).sum::<f64>().ceil() as u32).max(1)
}

impl From<PathBuf> for PromptSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

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
        assert_eq!(PromptSet::bundled().prompts.len(), lines.len());
    }

    #[test]
    fn every_form_of_file_loads_with_nothing_lost() {
        let forms = [
            "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"other\": 1}\n",
            "{\"id\": 1, \"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}\r\n\
             {\"conversations\": [{\"from\": \"gpt\", \"value\": \"no\"}, {\"from\": \"human\", \"value\": \"b\"}]}",
            "[{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}]}, {\"prompt\": \"b\"}]",
            "{\"messages\": [{\"role\": \"system\", \"content\": \"no\"}, {\"role\": \"user\", \"content\": \"a\"}]}\n\
             {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"b\"}]}]}",
        ];
        for text in forms {
            let set = PromptSet::parse("file", text).expect(text);
            assert_eq!((set.prompts, set.without_prompt), (vec!["a".to_owned(), "b".to_owned()], 0), "{text}");
        }
    }

    #[test]
    fn entries_without_a_prompt_are_counted_and_bad_lines_named() {
        let text = "{\"conversations\": []}\n{\"prompt\": \" \"}\n{\"prompt\": \"a\"}\n";
        assert_eq!(PromptSet::parse("file", text).expect("one prompt").without_prompt, 2);
        let error = PromptSet::parse("file", "{\"prompt\": \"a\"}\n{oops}\n").expect_err("no JSON");
        assert!(error.starts_with("line 2:"), "{error}");
        assert!(PromptSet::parse("file", "").is_err());
        assert!(PromptSet::parse("file", "[]").is_err());
        assert!(PromptSource::from(PathBuf::from("/nonexistent/x.jsonl")) != PromptSource::Bundled);
        assert!(PromptSet::load(&PromptSource::File("/nonexistent/x.jsonl".into())).is_err());
    }

    #[tokio::test]
    async fn choice_is_seeded_and_within_the_limits() {
        let choose = async |seed, wanted| {
            let workload = Workload { seed, max_tokens: 12, ..Workload::default() };
            select(&workload, PromptSet::bundled(), None, wanted).await.expect("short prompts")
        };
        let first = choose(1, 50).await;
        assert_eq!(first.prompts, choose(1, 50).await.prompts);
        assert_ne!(first.prompts, choose(2, 50).await.prompts);
        assert_eq!((first.prompts.len(), first.lengths), (50, LengthSource::Estimate));
        assert!(first.prompts.iter().all(|prompt| (1..=12).contains(&prompt.turns[0].tokens)));
        let all = choose(1, usize::MAX).await;
        assert_eq!(all.examined, all.loaded);
        let impossible = Workload { min_tokens: 5000, max_tokens: 6000, ..Workload::default() };
        let refused = select(&impossible, PromptSet::bundled(), None, 10).await;
        assert!(matches!(refused, Err(BenchError::NoPromptFits { .. })));
    }

    #[test]
    fn salts_differ() {
        let salted: HashSet<String> = (0..100_000).map(|index| with_salt("hi", 7, index)).collect();
        assert_eq!(salted.len(), 100_000);
        assert_eq!(with_salt("hi", 7, 3), with_salt("hi", 7, 3));
        assert_ne!(with_salt("hi", 7, 3), with_salt("hi", 8, 3));
    }
}
