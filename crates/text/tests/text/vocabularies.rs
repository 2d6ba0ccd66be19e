//! Small vocabularies to test with.

use plimsoll_text::{GgufVocab, Tokenizer};

/// Control tokens of the byte-level vocabulary, from id 256 on.
pub(crate) const CONTROL: &[&str] = &["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "</think>"];

pub(crate) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// GPT-2's character for each byte.
fn byte_characters() -> Vec<char> {
    let is_own = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = '\u{100}'..;
    (0..=255u8).map(|byte| if is_own(byte) { char::from(byte) } else { others.next().expect("68 more") }).collect()
}

/// All bytes, some control tokens, a few merges and `<tool>`, which is the user's own.
pub(crate) fn byte_level_vocab() -> GgufVocab {
    let mut tokens: Vec<String> = byte_characters().into_iter().map(String::from).collect();
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(CONTROL.iter().map(|text| (*text).to_owned()));
    token_types.extend(CONTROL.iter().map(|_| 3));
    tokens.push("<tool>".to_owned());
    token_types.push(4);
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "ð Ł", "< |"];
    for merge in merges {
        tokens.push(merge.replace(' ', ""));
        token_types.push(1);
    }
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        token_types,
        merges: merges.iter().map(|merge| (*merge).to_owned()).collect(),
        bos: Some(256),
        eos: Some(258),
        chat_template: Some(CHATML.to_owned()),
        ..GgufVocab::default()
    }
}

pub(crate) fn byte_level() -> Tokenizer {
    Tokenizer::from_gguf(&byte_level_vocab()).expect("a vocabulary")
}

/// Byte pieces, a few words with a visible space, and a space before the first word.
pub(crate) fn sentence_piece() -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut token_types = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    token_types.extend([6; 256]);
    scores.extend([0.0; 256]);
    for (rank, piece) in
        ["▁", "▁w", "▁wo", "he", "ll", "hell", "hello", "▁hello", "é", "船", "a", "h", "e", "l", "o", "w"]
            .into_iter()
            .enumerate()
    {
        tokens.push(piece.to_owned());
        token_types.push(1);
        scores.push(-(rank as f32));
    }
    let vocab = GgufVocab {
        model: "llama".to_owned(),
        tokens,
        token_types,
        scores,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).expect("a vocabulary")
}
