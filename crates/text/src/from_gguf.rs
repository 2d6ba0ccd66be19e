//! A tokenizer out of the vocabulary that a GGUF file holds.

use std::collections::HashMap;

use plimsoll_core::TokenId;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer as HfTokenizer};

use crate::TextError;
use crate::byte_pair::BytePair;
use crate::control_tokens::ControlToken;
use crate::pre_tokenizer;
use crate::sentence_piece::{Pieces, SentencePiece};
use crate::token_table::{Alphabet, TokenTable, byte_piece};
use crate::tokenizer::{Encoder, Vocabulary};

/// The `tokenizer.*` metadata of a GGUF file, as it is there. Untrusted.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: the pre-tokenizer of a byte-level vocabulary.
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// One a token; only SentencePiece needs them.
    pub scores: Vec<f32>,
    /// One a token, or none at all: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `left right`, best first; only byte-level BPE has them.
    pub merges: Vec<String>,
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub eot: Option<TokenId>,
    pub unk: Option<TokenId>,
    pub pad: Option<TokenId>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ordinary,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Control tokens that end a turn in the models that have them, whatever the file calls its EOS.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "</s>",
];

/// Builds all of a tokenizer but its chat template.
pub(crate) fn vocabulary(gguf: &GgufVocab) -> Result<Vocabulary, TextError> {
    check(gguf)?;
    let kinds: Vec<Kind> = (0..gguf.tokens.len()).map(|id| kind(gguf, id)).collect();
    let (encoder, alphabet, adds_bos) = match gguf.model.as_str() {
        "gpt2" => {
            let rule = pre_tokenizer::rule(gguf.pre.as_deref())?;
            let adds_bos = rule.adds_bos;
            (Encoder::BytePair(Box::new(byte_level(gguf, &kinds, rule)?)), Alphabet::ByteLevel, adds_bos)
        }
        "llama" => (Encoder::SentencePiece(Box::new(sentence_piece(gguf, &kinds)?)), Alphabet::SentencePiece, true),
        other => {
            return Err(TextError::Vocabulary(format!(
                "its kind is `{other}`, and only `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) are known"
            )));
        }
    };
    let prefix = gguf.bos.filter(|_| gguf.add_bos.unwrap_or(adds_bos));
    Ok(Vocabulary {
        encoder,
        table: table(gguf, &kinds, alphabet),
        control: control_tokens(gguf, &kinds),
        bos: gguf.bos,
        eos: end_tokens(gguf, &kinds),
        bos_text: text_of(gguf, gguf.bos),
        eos_text: text_of(gguf, gguf.eos),
        prefix: prefix.into_iter().collect(),
        strips_first_space: alphabet == Alphabet::SentencePiece && adds_space_prefix(gguf),
    })
}

fn check(gguf: &GgufVocab) -> Result<(), TextError> {
    let fault = |text: String| Err(TextError::Vocabulary(text));
    let tokens = gguf.tokens.len();
    if tokens == 0 {
        return fault("it has no tokens".to_owned());
    }
    let text_bytes: usize = gguf.tokens.iter().map(String::len).sum();
    if u32::try_from(tokens).is_err() || u32::try_from(text_bytes).is_err() {
        return fault(format!("{tokens} tokens of {text_bytes} bytes are more than a 32-bit index can reach"));
    }
    if !gguf.token_types.is_empty() && gguf.token_types.len() != tokens {
        return fault(format!("{tokens} tokens, but {} token types", gguf.token_types.len()));
    }
    if gguf.model == "llama" && gguf.scores.len() != tokens {
        return fault(format!("{tokens} tokens, but {} scores", gguf.scores.len()));
    }
    let named = [("BOS", gguf.bos), ("EOS", gguf.eos), ("EOT", gguf.eot), ("unknown", gguf.unk), ("padding", gguf.pad)];
    for (name, id) in named {
        if let Some(id) = id.filter(|&id| id as usize >= tokens) {
            return fault(format!("its {name} token is {id}, outside the {tokens} that there are"));
        }
    }
    Ok(())
}

fn kind(gguf: &GgufVocab, id: usize) -> Kind {
    // Whatever the file says of them: a text that spells EOS must not end the conversation.
    if [gguf.bos, gguf.eos, gguf.eot].contains(&Some(id as TokenId)) {
        return Kind::Control;
    }
    match gguf.token_types.get(id) {
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(5) => Kind::Unused,
        Some(6) => Kind::Byte,
        _ => Kind::Ordinary,
    }
}

fn byte_level(gguf: &GgufVocab, kinds: &[Kind], rule: pre_tokenizer::PreTokenizerRule) -> Result<BytePair, TextError> {
    let fault = |e: tokenizers::Error| TextError::Vocabulary(e.to_string());
    let is_text = |id: usize| matches!(kinds[id], Kind::Ordinary | Kind::UserDefined | Kind::Byte);
    let ids = (0..gguf.tokens.len()).filter(|&id| is_text(id)).map(|id| (gguf.tokens[id].clone(), id as TokenId));
    let merges = gguf.merges.iter().map(|merge| split_merge(merge)).collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(ids.collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(rule.ignore_merges)
        .build()
        .map_err(fault)?;
    let mut tokenizer = HfTokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(rule.pre_tokenizer));
    let user_defined = (0..gguf.tokens.len()).filter(|&id| kinds[id] == Kind::UserDefined);
    let added = user_defined.map(|id| AddedToken::from(gguf.tokens[id].clone(), false).normalized(false));
    tokenizer.add_tokens(added).map_err(fault)?;
    Ok(BytePair::new(tokenizer))
}

fn split_merge(merge: &str) -> Result<(String, String), TextError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(TextError::Vocabulary(format!("the merge {merge:?} is not two tokens with a space between"))),
    }
}

fn sentence_piece(gguf: &GgufVocab, kinds: &[Kind]) -> Result<SentencePiece, TextError> {
    let mut pieces = Pieces { unknown: gguf.unk, adds_space_prefix: adds_space_prefix(gguf), ..Pieces::default() };
    for (id, text) in gguf.tokens.iter().enumerate() {
        let token = id as TokenId;
        match kinds[id] {
            Kind::Ordinary => pieces.ordinary.push((text.clone(), token, gguf.scores[id])),
            Kind::UserDefined => pieces.user_defined.push((text.clone(), token)),
            Kind::Byte => {
                if let Some(byte) = byte_piece(text) {
                    pieces.bytes.insert(byte, token);
                }
            }
            Kind::Unknown | Kind::Control | Kind::Unused => {}
        }
    }
    SentencePiece::new(pieces)
}

fn adds_space_prefix(gguf: &GgufVocab) -> bool {
    gguf.add_space_prefix.unwrap_or(true)
}

fn table(gguf: &GgufVocab, kinds: &[Kind], alphabet: Alphabet) -> TokenTable {
    let mut table = TokenTable::with_capacity(gguf.tokens.len());
    for (text, kind) in gguf.tokens.iter().zip(kinds) {
        match kind {
            Kind::Control | Kind::Unknown => table.push_control(text),
            Kind::UserDefined if alphabet == Alphabet::ByteLevel => table.push_verbatim(text),
            _ => table.push_encoded(text, alphabet),
        }
    }
    table
}

fn control_tokens(gguf: &GgufVocab, kinds: &[Kind]) -> Vec<ControlToken> {
    let is_control = |id: &usize| matches!(kinds[*id], Kind::Control | Kind::Unknown);
    let ids = (0..kinds.len()).filter(is_control);
    ids.map(|id| ControlToken::new(id as TokenId, &gguf.tokens[id])).collect()
}

fn end_tokens(gguf: &GgufVocab, kinds: &[Kind]) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = gguf.eos.into_iter().chain(gguf.eot).collect();
    let by_text: HashMap<&str, TokenId> = (0..kinds.len())
        .filter(|&id| kinds[id] == Kind::Control)
        .map(|id| (gguf.tokens[id].as_str(), id as TokenId))
        .collect();
    // In the harmony format <|end|> ends a message, and the turn goes on with the next one.
    let is_harmony = by_text.contains_key("<|return|>") && by_text.contains_key("<|call|>");
    let names = END_OF_TURN.iter().filter(|&&name| !(is_harmony && name == "<|end|>"));
    ids.extend(names.filter_map(|name| by_text.get(name)));
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn text_of(gguf: &GgufVocab, id: Option<TokenId>) -> Option<String> {
    id.map(|id| gguf.tokens[id as usize].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(change: impl FnOnce(&mut GgufVocab)) -> String {
        let mut gguf = GgufVocab {
            model: "llama".to_owned(),
            tokens: vec!["<s>".to_owned(), "a".to_owned()],
            scores: vec![0.0, -1.0],
            token_types: vec![3, 1],
            ..GgufVocab::default()
        };
        change(&mut gguf);
        vocabulary(&gguf).err().expect("an error").to_string()
    }

    #[test]
    fn malformed_vocabularies_are_refused_with_a_reason() {
        assert!(fault(|v| v.tokens.clear()).contains("no tokens"));
        assert!(fault(|v| v.scores.clear()).contains("0 scores"));
        assert!(fault(|v| v.token_types.push(1)).contains("3 token types"));
        assert!(fault(|v| v.bos = Some(2)).contains("BOS token is 2"));
        assert!(fault(|v| v.model = "t5".to_owned()).contains("`t5`"));
        let merge = fault(|v| {
            v.model = "gpt2".to_owned();
            v.merges = vec!["ab".to_owned()];
        });
        assert!(merge.contains("\"ab\""), "{merge}");
        let unknown = fault(|v| {
            v.model = "gpt2".to_owned();
            v.merges = vec!["a z".to_owned()];
        });
        assert!(unknown.contains('z'), "{unknown}");
    }

    #[test]
    fn harmony_messages_end_without_ending_the_turn() {
        let with = |tokens: &[&str]| {
            let gguf = GgufVocab {
                tokens: tokens.iter().map(|t| (*t).to_owned()).collect(),
                token_types: vec![3; tokens.len()],
                ..GgufVocab::default()
            };
            end_tokens(&gguf, &vec![Kind::Control; tokens.len()])
        };
        assert_eq!(with(&["<|end|>", "<|return|>", "<|call|>"]), [1, 2]);
        assert_eq!(with(&["<|end|>", "<|user|>"]), [0]);
    }
}
