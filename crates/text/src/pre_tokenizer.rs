//! How a byte-level BPE vocabulary cuts text into the words that merges never cross.
//!
//! GGUF names the rule (`tokenizer.ggml.pre`) and does not hold it. The patterns are the models' own, as their
//! tokenizer.json files state them.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::TextError;

/// One vocabulary's rule.
pub(crate) struct PreTokenizerRule {
    pub(crate) pre_tokenizer: PreTokenizerWrapper,
    /// A word that is a token as it stands becomes that token, whatever the merges say.
    pub(crate) ignore_merges: bool,
    /// Whether prompts begin with BOS when the checkpoint does not say.
    pub(crate) adds_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's: as Qwen 2's, with combining marks counted among letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k: gpt-oss, Llama 4.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The rule that GGUF calls `name`; without a name, GPT-2's.
pub(crate) fn rule(name: Option<&str>) -> Result<PreTokenizerRule, TextError> {
    let plain = |pre_tokenizer| PreTokenizerRule { pre_tokenizer, ignore_merges: false, adds_bos: false };
    Ok(match name.unwrap_or("default") {
        "gpt-2" | "gpt2" | "default" | "phi-2" | "mpt" | "olmo" => plain(gpt2(true).into()),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => plain(digits_then_gpt2()),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" => {
            PreTokenizerRule { pre_tokenizer: pattern(LLAMA3)?, ignore_merges: true, adds_bos: true }
        }
        "qwen2" | "deepseek-r1-qwen" => plain(pattern(QWEN2)?),
        "qwen35" => plain(pattern(QWEN35)?),
        "gpt-4o" | "llama4" => plain(pattern(O200K)?),
        "tekken" => PreTokenizerRule { pre_tokenizer: pattern(TEKKEN)?, ignore_merges: true, adds_bos: true },
        other => return Err(TextError::UnknownPreTokenizer(other.to_owned())),
    })
}

fn gpt2(use_regex: bool) -> ByteLevel {
    ByteLevel::new(false, false, use_regex)
}

/// Each digit is a word of its own.
fn digits_then_gpt2() -> PreTokenizerWrapper {
    Sequence::new(vec![Digits::new(true).into(), gpt2(true).into()]).into()
}

fn pattern(regex: &str) -> Result<PreTokenizerWrapper, TextError> {
    let split = Split::new(SplitPattern::Regex(regex.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|e| TextError::Vocabulary(e.to_string()))?;
    Ok(Sequence::new(vec![split.into(), gpt2(false).into()]).into())
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut cut = PreTokenizedString::from(text);
        rule(Some(name)).unwrap().pre_tokenizer.pre_tokenize(&mut cut).unwrap();
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), _)| text[start..end].to_owned())
            .collect()
    }

    #[test]
    fn each_rule_cuts_digits_its_own_way() {
        assert_eq!(words("gpt-2", "in 12345"), ["in", " 12345"]);
        assert_eq!(words("smollm", "in 123"), ["in", " ", "1", "2", "3"]);
        assert_eq!(words("llama-bpe", "in 12345"), ["in", " ", "123", "45"]);
        assert_eq!(words("qwen2", "in 123"), ["in", " ", "1", "2", "3"]);
        assert_eq!(words("gpt-4o", "in 12345"), ["in", " ", "123", "45"]);
    }

    #[test]
    fn white_space_contractions_and_case() {
        assert_eq!(words("gpt-2", "it's  a\n\n b"), ["it", "'s", " ", " a", "\n\n", " b"]);
        assert_eq!(words("llama3", "IT'S  a!\n\nb"), ["IT", "'S", " ", " a", "!\n\n", "b"]);
        assert_eq!(words("gpt-4o", "HelloWorld don't"), ["Hello", "World", " don't"]);
        assert_eq!(words("tekken", "HelloWorld"), ["Hello", "World"]);
    }

    #[test]
    fn an_unknown_rule_is_named() {
        let error = rule(Some("martian")).err().unwrap();
        assert!(matches!(&error, TextError::UnknownPreTokenizer(name) if name == "martian"));
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}
