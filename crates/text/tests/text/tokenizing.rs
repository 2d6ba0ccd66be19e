//! Text to ids and back with small vocabularies of both kinds.

use crate::vocabularies::{CHATML, CONTROL, byte_level, byte_level_vocab, sentence_piece};
use plimsoll_text::{SpecialTokens, TextError, Tokenizer};
use proptest::prelude::*;

const AS_TEXT: SpecialTokens = SpecialTokens::AsText;

#[test]
fn byte_level_merges_and_digits() {
    let tokenizer = byte_level();
    let id = |bytes: &str| (0..tokenizer.vocab_size() as u32).find(|&id| tokenizer.token_bytes(id) == bytes.as_bytes());
    let ids = tokenizer.encode("hello wo12", AS_TEXT, false).unwrap();
    let expected: Vec<u32> = ["hello", " wo", "1", "2"].iter().filter_map(|text| id(text)).collect();
    assert_eq!(ids, expected);
    assert_eq!(tokenizer.decode(&ids, false), "hello wo12");
}

#[test]
fn control_tokens_are_parsed_only_where_that_is_allowed() {
    let tokenizer = byte_level();
    let text = "a<|im_end|>b";
    let parsed = tokenizer.encode(text, SpecialTokens::Parse, false).unwrap();
    assert_eq!(
        parsed,
        [u32::from(b'a'), 258, u32::from(b'b')].map(|id| if id < 256 { byte_id(&tokenizer, id) } else { id })
    );
    let as_text = tokenizer.encode(text, AS_TEXT, false).unwrap();
    assert!(as_text.iter().all(|&id| !tokenizer.is_special(id)), "{as_text:?}");
    assert_eq!(tokenizer.decode(&as_text, true), text);
    assert_eq!(tokenizer.decode(&parsed, true), "ab");
    assert_eq!(tokenizer.decode(&parsed, false), text);
}

fn byte_id(tokenizer: &Tokenizer, byte: u32) -> u32 {
    (0..256).find(|&id| tokenizer.token_bytes(id) == [byte as u8]).expect("every byte has a token")
}

#[test]
fn a_users_own_token_is_ordinary_text() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("<tool>", AS_TEXT, false).unwrap();
    assert_eq!(ids.len(), 1);
    assert!(!tokenizer.is_special(ids[0]));
    assert_eq!(tokenizer.decode(&ids, true), "<tool>");
}

#[test]
fn bos_is_added_as_the_model_says_or_its_kind_does() {
    let ids = |change: fn(&mut plimsoll_text::GgufVocab)| {
        let mut vocab = byte_level_vocab();
        change(&mut vocab);
        Tokenizer::from_gguf(&vocab).unwrap().encode("", AS_TEXT, true).unwrap()
    };
    assert!(ids(|_| {}).is_empty());
    assert_eq!(ids(|vocab| vocab.add_bos = Some(true)), [256]);
    assert_eq!(ids(|vocab| vocab.pre = Some("llama-bpe".to_owned())), [256]);
    assert_eq!(sentence_piece().encode("", AS_TEXT, true).unwrap(), [1]);
}

#[test]
fn the_end_tokens_are_found_by_id_and_by_name() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.eos_ids(), [256, 258]);
    assert_eq!(tokenizer.bos_id(), Some(256));
    assert_eq!(tokenizer.special_id("<|user|>"), Some(259));
    assert_eq!(tokenizer.special_id("hello"), None);
}

#[test]
fn an_eos_that_the_file_calls_ordinary_is_a_control_token_still() {
    let mut vocab = byte_level_vocab();
    vocab.token_types[258] = 4;
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert!(!tokenizer.encode("<|im_end|>", AS_TEXT, false).unwrap().contains(&258));
}

#[test]
fn sentence_piece_prefixes_a_space_and_takes_it_off_again() {
    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("hello wo", AS_TEXT, false).unwrap();
    let texts: Vec<_> = ids.iter().map(|&id| tokenizer.token_bytes(id)).collect();
    assert_eq!(texts, [b" hello".as_slice(), b" wo"]);
    assert_eq!(tokenizer.decode(&ids, true), "hello wo");
    assert_eq!(tokenizer.decode(&tokenizer.encode("🦀", AS_TEXT, false).unwrap(), true), "🦀");
}

#[test]
fn a_template_can_be_replaced_before_the_tokenizer_is_shared() {
    let mut vocab = byte_level_vocab();
    vocab.chat_template = None;
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert!(matches!(tokenizer.chat_template(), Err(TextError::NoChatTemplate)));
    let tokenizer = tokenizer.with_chat_template(CHATML).unwrap();
    assert!(tokenizer.chat_template().is_ok());
    let _clone = tokenizer.clone();
    assert!(tokenizer.with_chat_template(CHATML).is_err());
}

#[test]
fn long_texts_without_a_word_boundary_are_encoded_whole() {
    for (tokenizer, unit) in [(byte_level(), "x"), (byte_level(), " "), (byte_level(), "7"), (sentence_piece(), "a")] {
        let text = unit.repeat(200_000);
        let ids = tokenizer.encode(&text, AS_TEXT, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

/// Text is cut into pieces for encoding where that changes nothing.
#[test]
fn long_and_short_texts_have_the_same_ids() {
    let tokenizer = byte_level();
    let line = "hello wo  12 it's hell, o! <|im_end|> 🦀 Ünicode hello wo wo wo\n";
    let ids = tokenizer.encode(line, AS_TEXT, false).unwrap();
    let whole = tokenizer.encode(&line.repeat(2000), AS_TEXT, false).unwrap();
    assert_eq!(whole, ids.repeat(2000));
}

fn texts() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        Just("hello".to_owned()),
        Just(" wo".to_owned()),
        Just("é船🦀".to_owned()),
        Just("\u{2028} \n".to_owned()),
        (0..CONTROL.len()).prop_map(|i| CONTROL[i].to_owned()),
        "[ -~]{1,6}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(words, 0..12).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn decoding_gives_back_the_text(text in texts()) {
        for specials in [AS_TEXT, SpecialTokens::Parse] {
            let ids = byte_level().encode(&text, specials, false).unwrap();
            prop_assert_eq!(byte_level().decode(&ids, false), text.clone());
        }
        let spm = sentence_piece();
        let ids = spm.encode(&text, AS_TEXT, false).unwrap();
        prop_assert_eq!(spm.decode(&ids, false), text.replace('\u{2581}', " "));
    }

    #[test]
    fn text_never_becomes_a_control_token(text in texts()) {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, AS_TEXT, false).unwrap();
        prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id)));
    }
}
