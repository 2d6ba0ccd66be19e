//! Where a checkpoint and its tokenizer meet: a GGUF file carries its vocabulary in its metadata, a folder in files of
//! its own.

use anyhow::{Context, Result};
use plimsoll_nn::{Checkpoint, GgufMetadata, GgufValue};
use plimsoll_text::{GgufVocab, Tokenizer};

/// The tokenizer that belongs to a checkpoint.
///
/// # Errors
/// It is missing, malformed or of an unknown kind.
pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let path = checkpoint.path();
    let tokenizer = match checkpoint.gguf() {
        Some(metadata) => Tokenizer::from_gguf(&gguf_vocab(metadata)),
        None => Tokenizer::from_files(path),
    };
    tokenizer.with_context(|| format!("the tokenizer of {} cannot be used", path.display()))
}

fn gguf_vocab(metadata: &GgufMetadata) -> GgufVocab {
    let get = |key: &str| metadata.get(&format!("tokenizer.{key}"));
    let text = |key| get(key).and_then(GgufValue::as_str).map(str::to_owned);
    let id = |key| get(key).and_then(GgufValue::as_u64).and_then(|id| u32::try_from(id).ok());
    let flag = |key| get(key).and_then(GgufValue::as_bool);
    let strings = |key| get(key).and_then(GgufValue::as_strings).unwrap_or_default().to_vec();
    GgufVocab {
        model: text("ggml.model").unwrap_or_default(),
        pre: text("ggml.pre"),
        tokens: strings("ggml.tokens"),
        scores: get("ggml.scores").and_then(GgufValue::as_f32s).unwrap_or_default().to_vec(),
        token_types: get("ggml.token_type").and_then(GgufValue::as_i32s).unwrap_or_default().to_vec(),
        merges: strings("ggml.merges"),
        bos: id("ggml.bos_token_id"),
        eos: id("ggml.eos_token_id"),
        eot: id("ggml.eot_token_id"),
        unk: id("ggml.unknown_token_id"),
        pad: id("ggml.padding_token_id"),
        add_bos: flag("ggml.add_bos_token"),
        add_eos: flag("ggml.add_eos_token"),
        add_space_prefix: flag("ggml.add_space_prefix"),
        chat_template: text("chat_template"),
    }
}

#[cfg(test)]
mod tests {
    //! The real vocabularies, against ids that their makers' own tokenizers gave.

    use std::path::Path;

    use plimsoll_nn::Checkpoint;
    use plimsoll_text::SpecialTokens;
    use serde::Deserialize;

    use super::tokenizer;
    use crate::catalogue::Catalogue;
    use crate::pull;

    #[derive(Deserialize)]
    struct Golden {
        vectors: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        text: String,
        /// As ordinary text, no BOS.
        as_text: Vec<u32>,
        /// With control tokens parsed, and BOS where the model wants one.
        parsed: Vec<u32>,
    }

    #[test]
    fn real_vocabularies_agree_with_their_references() {
        for entry in &Catalogue::load().unwrap().models {
            let file = format!("../../tests/golden/tokenizers/{}.json", entry.name);
            let golden = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
            let golden: Golden = serde_json::from_slice(&golden).unwrap();
            assert!(golden.vectors.len() > 50, "{}", entry.name);
            let tokenizer = tokenizer(&Checkpoint::open(&pull::ensure(entry).unwrap()).unwrap()).unwrap();
            for case in &golden.vectors {
                let text = &case.text;
                let as_text = tokenizer.encode(text, SpecialTokens::AsText, false).unwrap();
                assert_eq!(as_text, case.as_text, "{}: {text:?} as text", entry.name);
                let parsed = tokenizer.encode(text, SpecialTokens::Parse, true).unwrap();
                assert_eq!(parsed, case.parsed, "{}: {text:?} parsed", entry.name);
                // SentencePiece writes spaces as this character, so one in a text comes back as a space.
                if !text.contains('\u{2581}') {
                    assert_eq!(tokenizer.decode(&as_text, false), *text, "{}", entry.name);
                }
            }
        }
    }
}
