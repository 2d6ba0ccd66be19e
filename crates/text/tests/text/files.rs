//! Tokenizers out of model folders.

use std::fs;
use std::path::{Path, PathBuf};

use plimsoll_text::{SpecialTokens, TextError, Tokenizer};
use serde_json::{Value, json};

/// A folder that is removed with its files.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, Value)]) -> Self {
        let path = std::env::temp_dir().join(format!("plimsoll-text-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        for (file, value) in files {
            folder.write(file, &value.to_string());
        }
        folder
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        Tokenizer::from_files(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the folder was made by this test");
    }
}

fn added(id: u32, text: &str, special: bool, strips: bool) -> Value {
    json!({"id": id, "content": text, "single_word": false, "lstrip": strips, "rstrip": strips, "normalized": false, "special": special})
}

/// A byte-level tokenizer.json of a few characters.
fn byte_level() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [
            added(6, "<bos>", true, false), added(7, "<eos>", true, false),
            added(8, "<tool>", false, false), added(9, "<mask>", true, true),
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [6], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġa": 4, "<": 5}, "merges": [["a", "b"], ["Ġ", "a"]],
        },
    })
}

/// Llama 2's shape: a visible space before the first word only, bytes as a last resort.
fn metaspace() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<s>", true, false), added(6, "▁▁", false, false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<s>": 0, "a": 1, "▁": 2, "▁a": 3, "<0xC3>": 4, "<0xA9>": 5}, "merges": [["▁", "a"]],
        },
    })
}

#[test]
fn a_byte_level_folder_with_all_its_files() {
    let folder = Folder::new(
        "byte-level",
        &[
            ("tokenizer.json", byte_level()),
            (
                "tokenizer_config.json",
                json!({
                    "bos_token": {"content": "<bos>"}, "eos_token": "<eos>",
                    "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}],
                }),
            ),
            ("generation_config.json", json!({"eos_token_id": [7, 9]})),
        ],
    );
    let tokenizer = folder.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("ab a", SpecialTokens::AsText, true).unwrap(), [6, 3, 4]);
    assert_eq!(tokenizer.encode("ab<eos><tool>", SpecialTokens::Parse, false).unwrap(), [3, 7, 8]);
    assert_eq!(tokenizer.encode("ab <mask> ab", SpecialTokens::Parse, false).unwrap(), [3, 9, 3], "strips spaces");
    assert!(!tokenizer.encode("<eos><tool>", SpecialTokens::AsText, false).unwrap().contains(&7));
    assert_eq!(tokenizer.decode(&[6, 3, 4, 8, 7], true), "ab a<tool>");
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (Some(6), [7, 9].as_slice()));
    assert_eq!((tokenizer.vocab_size(), tokenizer.special_id("<mask>")), (10, Some(9)));
    assert!(tokenizer.chat_template().is_ok());
    folder.write("chat_template.jinja", "{% if %}");
    assert!(matches!(folder.tokenizer(), Err(TextError::TemplateSyntax(_))), "the file of its own wins");
}

#[test]
fn what_prompts_begin_with_is_the_configurations_to_say() {
    let config = json!({"bos_token": "<bos>", "add_bos_token": false});
    let folder = Folder::new("no-bos", &[("tokenizer.json", byte_level()), ("tokenizer_config.json", config)]);
    assert_eq!(folder.tokenizer().unwrap().encode("a", SpecialTokens::AsText, true).unwrap(), [0]);
}

#[test]
fn the_first_words_space_is_the_first_words_only() {
    let folder = Folder::new("metaspace", &[("tokenizer.json", metaspace())]);
    let tokenizer = folder.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("a a", SpecialTokens::AsText, false).unwrap(), [3, 3]);
    assert_eq!(tokenizer.encode("<s>a", SpecialTokens::Parse, false).unwrap(), [0, 1]);
    assert_eq!(tokenizer.encode("é", SpecialTokens::AsText, false).unwrap(), [2, 4, 5]);
    assert_eq!(tokenizer.decode(&[0, 3, 3, 4, 5], true), "a aé");
    assert_eq!(tokenizer.decode(&[1, 6, 1], true), "a  a");
}

#[test]
fn a_folder_that_cannot_be_used_says_why() {
    assert!(
        matches!(Tokenizer::from_files(Path::new("/nowhere")), Err(TextError::Read { path, .. }) if path.ends_with("tokenizer.json"))
    );
    let folder = Folder::new("broken", &[("tokenizer.json", json!({"version": "1.0"}))]);
    assert!(matches!(folder.tokenizer(), Err(TextError::Vocabulary(_))));
    let mut undecodable = byte_level();
    undecodable["decoder"] = Value::Null;
    folder.write("tokenizer.json", &undecodable.to_string());
    assert!(matches!(folder.tokenizer(), Err(TextError::Vocabulary(text)) if text.contains("decoder")));
    folder.write("tokenizer.json", &byte_level().to_string());
    folder.write("generation_config.json", "{");
    assert!(
        matches!(folder.tokenizer(), Err(TextError::Json { path, .. }) if path.ends_with("generation_config.json"))
    );
}
