//! A tokenizer out of a model folder: tokenizer.json, and what the files beside it add.

use std::path::Path;

use plimsoll_core::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use crate::TextError;
use crate::byte_pair::BytePair;
use crate::control_tokens::ControlToken;
use crate::token_table::{Alphabet, TokenTable};
use crate::tokenizer::{Encoder, Vocabulary};

/// The chat templates of a folder, by name; `default` is the one for most requests.
pub(crate) type NamedTemplates = Vec<(String, String)>;

/// Reads `dir`: everything but the compilation of its chat templates.
pub(crate) fn vocabulary(dir: &Path) -> Result<(Vocabulary, NamedTemplates), TextError> {
    let tokenizer_path = dir.join("tokenizer.json");
    let bytes =
        std::fs::read(&tokenizer_path).map_err(|source| TextError::Read { path: tokenizer_path.clone(), source })?;
    let tokenizer = HfTokenizer::from_bytes(&bytes)
        .map_err(|e| TextError::Vocabulary(format!("{}: {e}", tokenizer_path.display())))?;
    let config = read_json(&dir.join("tokenizer_config.json"))?;
    let generation = read_json(&dir.join("generation_config.json"))?;
    let model = read_json(&dir.join("config.json"))?;

    let (alphabet, strips_first_space) = alphabet(&tokenizer)?;
    let bos_text = token_text(&config, "bos_token");
    let eos_text = token_text(&config, "eos_token");
    let bos = bos_text.as_deref().and_then(|text| tokenizer.token_to_id(text));
    let vocabulary = Vocabulary {
        prefix: prefix(&tokenizer, &config, bos)?,
        eos: end_tokens(&tokenizer, &eos_text, &[generation, model]),
        table: table(&tokenizer, alphabet)?,
        control: control_tokens(&tokenizer),
        encoder: Encoder::BytePair(Box::new(BytePair::new(tokenizer))),
        bos,
        bos_text,
        eos_text,
        strips_first_space,
    };
    Ok((vocabulary, templates(dir, &config)?))
}

/// The file's value, or null where there is no such file.
fn read_json(path: &Path) -> Result<Value, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| TextError::Json { path: path.to_owned(), source }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(source) => Err(TextError::Read { path: path.to_owned(), source }),
    }
}

/// A token named in tokenizer_config.json, which writes it as a string or as an object.
fn token_text(config: &Value, name: &str) -> Option<String> {
    let token = &config[name];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// How tokens are written, and whether decoding drops one leading space, told by the decoder.
fn alphabet(tokenizer: &HfTokenizer) -> Result<(Alphabet, bool), TextError> {
    let unsupported = || {
        TextError::Vocabulary("its decoder is neither byte-level nor SentencePiece's (Replace, ByteFallback)".into())
    };
    let decoder = tokenizer.get_decoder().ok_or_else(unsupported)?;
    let decoder = serde_json::to_value(decoder).map_err(|e| TextError::Vocabulary(e.to_string()))?;
    let parts = match decoder["decoders"].as_array() {
        Some(parts) => parts.clone(),
        None => vec![decoder],
    };
    let find = |kind: &str| parts.iter().find(|part| part["type"] == kind);
    if find("ByteLevel").is_some() {
        return Ok((Alphabet::ByteLevel, false));
    }
    if let Some(metaspace) = find("Metaspace") {
        return Ok((Alphabet::SentencePiece, metaspace["prepend_scheme"] != "never"));
    }
    if find("Replace").is_some_and(|replace| replace["pattern"]["String"] == "\u{2581}") {
        let strips = find("Strip").is_some_and(|strip| strip["content"] == " " && strip["start"] != 0);
        return Ok((Alphabet::SentencePiece, strips));
    }
    Err(unsupported())
}

fn table(tokenizer: &HfTokenizer, alphabet: Alphabet) -> Result<TokenTable, TextError> {
    let added = tokenizer.get_added_tokens_decoder();
    let mut texts: Vec<(TokenId, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    texts.sort_unstable_by_key(|&(id, _)| id);
    let last = texts.last().ok_or_else(|| TextError::Vocabulary("it has no tokens".to_owned()))?.0;
    if last as usize > 4 * texts.len() + 65_536 {
        return Err(TextError::Vocabulary(format!("{} tokens, with ids up to {last}", texts.len())));
    }
    let mut table = TokenTable::with_capacity(last as usize + 1);
    for (id, text) in texts {
        while table.len() < id as usize {
            table.push_verbatim("");
        }
        if table.len() > id as usize {
            continue; // two texts with one id: the first stands
        }
        match added.get(&id) {
            Some(token) if token.special => table.push_control(&text),
            Some(_) if alphabet == Alphabet::ByteLevel => table.push_verbatim(&text),
            _ => table.push_encoded(&text, alphabet),
        }
    }
    Ok(table)
}

fn control_tokens(tokenizer: &HfTokenizer) -> Vec<ControlToken> {
    let mut tokens: Vec<ControlToken> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| ControlToken {
            id,
            strips_left: token.lstrip,
            strips_right: token.rstrip,
            text: token.content,
        })
        .collect();
    tokens.sort_unstable_by_key(|token| token.id);
    tokens
}

/// What every prompt begins with, as the post-processor would add it; tokenizer_config.json has the last word.
fn prefix(tokenizer: &HfTokenizer, config: &Value, bos: Option<TokenId>) -> Result<Vec<TokenId>, TextError> {
    if let Some(adds_bos) = config["add_bos_token"].as_bool() {
        return Ok(bos.filter(|_| adds_bos).into_iter().collect());
    }
    let ids = |specials| {
        let encoding = tokenizer.encode_fast("a", specials).map_err(|e| TextError::Vocabulary(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    };
    let (plain, framed): (Vec<TokenId>, Vec<TokenId>) = (ids(false)?, ids(true)?);
    let before = framed.windows(plain.len().max(1)).position(|window| window == plain).unwrap_or(0);
    Ok(framed[..before].to_vec())
}

fn end_tokens(tokenizer: &HfTokenizer, eos_text: &Option<String>, configs: &[Value]) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = eos_text.iter().filter_map(|text| tokenizer.token_to_id(text)).collect();
    for config in configs {
        let stated = match &config["eos_token_id"] {
            Value::Array(ids) => ids.clone(),
            other => vec![other.clone()],
        };
        ids.extend(stated.iter().filter_map(Value::as_u64).filter_map(|id| TokenId::try_from(id).ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// chat_template.jinja wins over tokenizer_config.json, which holds one template or a list of named ones.
fn templates(dir: &Path, config: &Value) -> Result<NamedTemplates, TextError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(vec![("default".to_owned(), source)]),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(TextError::Read { path, source }),
    }
    let legacy = read_json(&dir.join("chat_template.json"))?;
    let stated = if legacy["chat_template"].is_null() { &config["chat_template"] } else { &legacy["chat_template"] };
    Ok(match stated {
        Value::String(source) => vec![("default".to_owned(), source.clone())],
        Value::Array(named) => named
            .iter()
            .filter_map(|entry| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned())))
            .collect(),
        _ => Vec::new(),
    })
}
