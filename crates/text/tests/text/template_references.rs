//! The makers' own templates and vocabularies against Hugging Face transformers, where PLIMSOLL_TEMPLATES names a
//! folder with them and with what `template_references.py` made of them. They are not ours to hold here.

use std::collections::HashMap;
use std::path::Path;

use plimsoll_text::{ChatInput, Said, SpecialTokens, Tokenizer, Transcript, TranscriptOptions};
use serde_json::{Map, Value, json};

#[test]
fn templates_render_as_transformers_renders_them() {
    let Some(folder) = std::env::var_os("PLIMSOLL_TEMPLATES") else {
        println!("skipped: PLIMSOLL_TEMPLATES names no folder made as template_references.py says");
        return;
    };
    let folder = Path::new(&folder);
    let references: Value =
        serde_json::from_slice(&std::fs::read(folder.join("template_references.json")).unwrap()).unwrap();
    let mut tokenizers: HashMap<(String, String), Tokenizer> = HashMap::new();
    let mut wrong = Vec::new();
    for reference in references["references"].as_array().unwrap() {
        let (template, name) = (reference["template"].as_str().unwrap(), reference["tokenizer"].as_str().unwrap());
        let key = (template.to_owned(), name.to_owned());
        let tokenizer = tokenizers.entry(key).or_insert_with(|| {
            let tokenizer = Tokenizer::from_files(&folder.join("tok").join(name)).unwrap();
            let tokenizer = match template {
                "" => tokenizer,
                file => {
                    let source = std::fs::read_to_string(folder.join("templates").join(file)).unwrap();
                    tokenizer.with_chat_template(&source).unwrap()
                }
            };
            println!("{template} {name}: {:?}", tokenizer.dialect());
            tokenizer
        });
        // As the server gives them: thoughts under every name that a template may look for.
        let mut messages = reference["messages"].clone();
        for message in messages.as_array_mut().unwrap() {
            if let Some(thoughts) = message.get("reasoning_content").cloned() {
                message["reasoning"] = thoughts.clone();
                message["thinking"] = thoughts;
            }
        }
        let input = ChatInput {
            messages: &messages,
            tools: reference.get("tools").filter(|tools| !tools.is_null()),
            add_generation_prompt: true,
            continue_final_message: false,
            extra: &reference["variables"].as_object().cloned().unwrap_or_else(Map::new),
            unix_seconds: references["unix_seconds"].as_i64().unwrap(),
        };
        let chat = tokenizer.render_chat(&input).unwrap();
        let ids = tokenizer.encode_chat(&chat).unwrap();
        if chat.text() != reference["text"].as_str().unwrap() || json!(ids) != reference["ids"] {
            wrong.push(format!(
                "{template} {name} {messages}\n--- ours\n{}\n--- theirs\n{}",
                chat.text(),
                reference["text"].as_str().unwrap()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n======\n"));
}

/// What models say in their makers' vocabularies, token by token, with the dialects that these tell.
#[test]
fn replies_are_read_in_the_makers_vocabularies() {
    let Some(folder) = std::env::var_os("PLIMSOLL_TEMPLATES") else {
        println!("skipped: PLIMSOLL_TEMPLATES names no folder made as template_references.py says");
        return;
    };
    let reply = [
        (
            "qwen3",
            "<think>\nDas Wetter 🌦.\n</think>\n\nMoment.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"São Paulo\"}}\n</tool_call><|im_end|>",
            "Das Wetter 🌦.",
            "Moment.",
        ),
        ("llama3_2", "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"city\": \"São Paulo\"}}<|eom_id|>", "", ""),
        ("llama3_2", "{\"name\": \"f\", \"parameters\": {\"city\": \"São Paulo\"}}<|eot_id|>", "", ""),
        ("gemma3", "Moment.\n```tool_code\nf(city=\"São Paulo\")\n```<end_of_turn>", "", "Moment.\n"),
        ("gemma3", "[f(city='São Paulo')]<end_of_turn>", "", ""),
        (
            "gptoss",
            "<|channel|>analysis<|message|>Das Wetter 🌦.<|end|><|start|>assistant<|channel|>commentary<|message|>Moment.<|end|>\
             <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"city\": \"São Paulo\"}<|call|>",
            "Das Wetter 🌦.",
            "Moment.",
        ),
    ];
    for (name, text, reasoning, content) in reply {
        let tokenizer = Tokenizer::from_files(&Path::new(&folder).join("tok").join(name)).unwrap();
        let options = TranscriptOptions {
            dialect: tokenizer.dialect(),
            functions: ["f".to_owned()].into(),
            skip_special: true,
            ..TranscriptOptions::default()
        };
        let mut transcript = Transcript::new(&tokenizer, &options);
        let mut said = Said::default();
        for id in tokenizer.encode(text, SpecialTokens::Parse, false).unwrap() {
            let mut more = Said::default();
            transcript.push(id, &mut more);
            said.append(more);
        }
        transcript.finish(&mut said);
        assert_eq!((said.reasoning.as_str(), said.content.as_str()), (reasoning, content), "{name}: {said:?}");
        let arguments: Value = serde_json::from_str(&said.calls[0].arguments).unwrap();
        assert_eq!((said.calls[0].name.as_deref(), arguments), (Some("f"), json!({"city": "São Paulo"})), "{name}");
    }
}
