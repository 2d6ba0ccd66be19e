//! Conversations with tools through templates of the makers' shapes: Qwen3's, Llama 3.2's, one that wants arguments as
//! text, and Gemma 3's, which knows no tools. The makers' own are compared in `template_references.rs`.

use plimsoll_text::{ChatInput, Dialect, GgufVocab, Opening, ReasoningSyntax, Tokenizer, ToolSyntax};
use serde_json::{Map, Value, json};

use crate::vocabularies::{CONTROL, byte_level_vocab};

const QWEN3: &str = "{%- if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>\
    {{ '<tool_call>' }}<|im_end|>\n{%- endif %}{%- for m in messages %}{%- set content = m.content %}\
    {%- if m.role == 'assistant' %}{%- set thoughts = m.reasoning_content if m.reasoning_content is string else '' %}\
    <|im_start|>assistant\n{% if thoughts %}<think>\n{{ thoughts }}\n</think>\n\n{% endif %}{{ content }}\
    {%- for call in m.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}\
    \n<tool_call>\n{\"name\": \"{{ call.name }}\", \"arguments\": {% if call.arguments is string %}{{ call.arguments }}\
    {%- else %}{{ call.arguments | tojson }}{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n\
    {%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n\
    {%- else %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{%- endif %}{%- endfor %}\
    {%- if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}\
    <think>\n\n</think>\n\n{% endif %}{% endif %}";

const LLAMA: &str = "{% if tools is not none and tools is defined %}Respond in the format {\"name\": function name, \
    \"parameters\": dictionary of arguments}.{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{% if 'tool_calls' in m %}{% set c = m.tool_calls[0].function %}\
    {{ '{\"name\": \"' + c.name + '\", \"parameters\": ' }}{{ c.arguments | tojson }}{{ '}' }}{% else %}{{ m.content }}\
    {% endif %}<|im_end|>{% endfor %}";

const AS_TEXT: &str = "{% for m in messages %}<|user|>{% for c in m.tool_calls %}{{ c.function.name + '(' + \
    c.function.arguments + ')' }}{% endfor %}{{ m.content }}{% endfor %}";

const GEMMA: &str = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}";

fn with_template(source: &str) -> Tokenizer {
    let vocab = GgufVocab { chat_template: Some(source.to_owned()), ..byte_level_vocab() };
    Tokenizer::from_gguf(&vocab).unwrap()
}

fn conversation(text: &str) -> Value {
    let arguments = json!({"a": text, "b": [1, null]}).to_string();
    json!([
        {"role": "user", "content": text},
        {"role": "assistant", "content": null, "reasoning_content": text,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": text},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "more"},
    ])
}

fn tools(text: &str) -> Value {
    json!([{"type": "function", "function": {"name": "f", "description": text,
        "parameters": {"type": "object", "properties": {text: {"type": "string", "enum": [text]}}}}}])
}

fn rendered(tokenizer: &Tokenizer, messages: &Value, tools: Option<&Value>, extra: Value) -> String {
    let input = ChatInput {
        messages,
        tools,
        add_generation_prompt: true,
        continue_final_message: false,
        extra: &extra.as_object().cloned().unwrap_or_else(Map::new),
        unix_seconds: 0,
    };
    let chat = tokenizer.render_chat(&input).unwrap();
    let ids = tokenizer.encode_chat(&chat).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), chat.text());
    let control = ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
    format!("{control}:{}", chat.text())
}

#[test]
fn qwen3_shows_tools_calls_results_and_thoughts() {
    let tokenizer = with_template(QWEN3);
    assert_eq!(tokenizer.dialect(), Dialect { reasoning: ReasoningSyntax::Think, tools: ToolSyntax::Hermes });
    let text = rendered(&tokenizer, &conversation("x"), Some(&tools("d")), json!({"enable_thinking": false}));
    assert!(
        text.contains(r#"{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"#),
        "{text}"
    );
    assert!(text.contains("<think>\nx\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"x\", \"b\": [1, null]}}\n</tool_call>"), "{text}");
    assert!(
        text.contains("<tool_response>\nx\n</tool_response>") && text.ends_with("<think>\n\n</think>\n\n"),
        "{text}"
    );
}

#[test]
fn llama_gets_arguments_as_an_object_and_parameters_where_there_are_none() {
    let tokenizer = with_template(LLAMA);
    assert_eq!(tokenizer.dialect().tools, ToolSyntax::LlamaJson);
    let bare = json!([{"type": "function", "function": {"name": "f"}}]);
    let text = rendered(&tokenizer, &conversation("x"), Some(&bare), json!({}));
    assert!(text.contains(r#"{"name": "f", "parameters": {"a": "x", "b": [1, null]}}"#), "{text}");
    assert!(text.contains("\"parameters\": {\n            \"type\": \"object\""), "{text}");
}

#[test]
fn a_template_that_joins_arguments_to_text_gets_text() {
    let tokenizer = with_template(AS_TEXT);
    let text = rendered(&tokenizer, &conversation("x"), None, json!({}));
    assert!(text.contains(r#"f({"a":"x","b":[1,null]})"#), "{text}");
}

#[test]
fn a_template_without_tools_gets_them_in_messages() {
    let tokenizer = with_template(GEMMA);
    assert_eq!(tokenizer.dialect(), Dialect { reasoning: ReasoningSyntax::None, tools: ToolSyntax::Gemma });
    let mut messages = conversation("x");
    // A result, another, and the user again: one turn.
    messages.as_array_mut().unwrap().insert(3, json!({"role": "tool", "tool_call_id": "2", "content": "y"}));
    messages.as_array_mut().unwrap().insert(4, json!({"role": "user", "content": "z"}));
    let text = rendered(&tokenizer, &messages, Some(&tools("d")), json!({}));
    assert!(text.contains("{\"name\":\"f\",\"description\":\"d\"") && text.contains("list of such objects"), "{text}");
    assert!(
        text.contains("<|im_start|>assistant\n{\"name\":\"f\",\"parameters\":{\"a\":\"x\",\"b\":[1,null]}}<|im_end|>"),
        "{text}"
    );
    assert!(
        text.contains("<|im_start|>user\n```tool_output\nf\nx\n```\n\n```tool_output\ny\n```\n\nz<|im_end|>"),
        "{text}"
    );
    assert!(
        rendered(&tokenizer, &json!([{"role": "user", "content": "q"}]), None, json!({}))
            .ends_with("user\nq<|im_end|>\n")
    );
    // Without a user's message they are a turn of their own, after instructions.
    for messages in [json!([{"role": "assistant", "content": "hi"}]), json!([])] {
        let text = rendered(&tokenizer, &messages, Some(&tools("d")), json!({}));
        assert!(text.contains("<|im_start|>user\nYou may call functions."), "{text}");
    }
}

#[test]
fn nothing_of_tools_becomes_a_control_token() {
    let evil = CONTROL.concat();
    for template in [QWEN3, LLAMA, AS_TEXT, GEMMA] {
        let tokenizer = with_template(template);
        let count = |text: &str| {
            let shown = rendered(&tokenizer, &conversation(text), Some(&tools(text)), json!({"custom": text}));
            shown.split_once(':').unwrap().0.parse::<usize>().unwrap()
        };
        assert_eq!(count(&evil), count("harmless"), "{template}");
    }
}

#[test]
fn where_a_reply_begins_is_told_by_the_prompt() {
    let tokenizer = with_template("{{ messages[0].content }}{% if true %}<think>\n{% endif %}{# </think> #}");
    let messages = json!([{"role": "user", "content": "q"}]);
    let input = ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        extra: &Map::new(),
        unix_seconds: 0,
    };
    let chat = tokenizer.render_chat(&input).unwrap();
    assert_eq!(tokenizer.dialect().opening(&chat), Opening::Reasoning);
    assert_eq!(Dialect::default().opening(&chat), Opening::Reply);
}
