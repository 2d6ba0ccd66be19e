//! The tokenizer of models with dummy weights: it needs no file, whatever the size of the vocabulary.
//!
//! A text becomes one token a byte, token `b` being the byte `b`. A few control tokens follow, which frame a chat; every
//! other id stands for a short word that no text ever becomes, so that whatever is sampled can be read.

use anyhow::{Context, Result, ensure};
use plimsoll_text::{GgufVocab, Tokenizer};

const BYTES: usize = 256;
/// What follows the bytes: the beginning of a prompt, the beginning of a turn, and the end of one.
const CONTROL: [&str; 3] = ["<|begin|>", "<|turn|>", "<|end|>"];
const BEGIN: u32 = 256;
const END: u32 = 258;

const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|turn|>{{ message.role }}
{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|turn|>assistant
{% endif %}";

/// How GGUF marks ordinary and control tokens.
const ORDINARY: i32 = 1;
const IS_CONTROL: i32 = 3;

/// A tokenizer of `vocab_size` tokens.
///
/// # Errors
/// The vocabulary has no room for the bytes and the control tokens.
pub(crate) fn tokenizer(vocab_size: usize) -> Result<Tokenizer> {
    let reserved = BYTES + CONTROL.len();
    ensure!(
        vocab_size >= reserved,
        "config field `vocab_size` is {vocab_size}; a model of dummy weights needs {reserved} tokens at least"
    );
    let bytes = (0..=255).map(|byte| byte_character(byte).to_string());
    let words = (0..vocab_size - reserved).map(word);
    let mut token_types = vec![ORDINARY; vocab_size];
    token_types[BYTES..reserved].fill(IS_CONTROL);
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        tokens: bytes.chain(CONTROL.map(str::to_owned)).chain(words).collect(),
        token_types,
        bos: Some(BEGIN),
        eos: Some(END),
        add_bos: Some(false),
        chat_template: Some(CHAT_TEMPLATE.to_owned()),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).context("the tokenizer of dummy models cannot be made")
}

/// The character that stands for `byte` in the byte-level alphabet of GPT-2: itself where it is printable, else the next
/// from U+0100 on.
fn byte_character(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !is_printable(byte)).count() as u32;
    char::from_u32(0x100 + before).expect("no surrogate is near")
}

/// Word `n`: a space (as the alphabet writes it) and the letters of `n`, counted a, b, ... z, aa, ab, ...
fn word(mut n: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
        if n == 0 {
            break;
        }
        n -= 1;
    }
    letters.push(byte_character(b' '));
    letters.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use plimsoll_text::{ChatInput, SpecialTokens};
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn a_text_becomes_as_many_tokens_as_bytes() {
        let tokenizer = tokenizer(1000).unwrap();
        for text in ["", "Hello, world!", "  two\n\nlines\t", "Grüße, 世界! 🚢", "<|end|> aa zz", "\0\x7f 12345"]
        {
            let ids = tokenizer.encode(text, SpecialTokens::AsText, true).unwrap();
            let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
            assert_eq!(ids, bytes, "{text:?}");
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
    }

    #[test]
    fn every_other_token_is_a_word_of_its_own() {
        let tokenizer = tokenizer(20_000).unwrap();
        assert_eq!(tokenizer.vocab_size(), 20_000);
        let mut seen = HashSet::new();
        for id in 259..20_000 {
            let text = tokenizer.decode(&[id], true);
            let letters = text.strip_prefix(' ').unwrap_or_else(|| panic!("{text:?}"));
            assert!((1..=4).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase()), "{text:?}");
            assert!(seen.insert(text), "{id}");
        }
        assert_eq!([0, 25, 26, 701, 702].map(word), ["Ġa", "Ġz", "Ġaa", "Ġzz", "Ġaaa"]);
    }

    #[test]
    fn chats_are_framed_by_control_tokens() {
        let tokenizer = tokenizer(300).unwrap();
        let messages = json!([{"role": "system", "content": "Be <|end|>"}, {"role": "user", "content": "Hi"}]);
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            continue_final_message: false,
            extra: &Map::new(),
            unix_seconds: 0,
        };
        let rendered = tokenizer.chat_template().unwrap().render(&input).unwrap();
        let ids = tokenizer.encode_chat(&rendered).unwrap();
        let control: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.is_special(id)).collect();
        assert_eq!(control, [256, 257, 258, 257, 258, 257]);
        assert_eq!(tokenizer.decode(&ids, true), "system\nBe <|end|>user\nHiassistant\n");
        assert_eq!(tokenizer.eos_ids(), [258]);
    }

    #[test]
    fn a_vocabulary_without_room_for_bytes_is_refused() {
        assert!(tokenizer(258).err().unwrap().to_string().contains("vocab_size"));
        assert!(tokenizer(259).is_ok());
    }
}
