//! The binary as people meet it: started, asked, told to stop, and given what it cannot serve.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use support::{Server, plimsoll, pulled, run};

const MODEL: &str = "smollm2-135m-instruct";

#[test]
fn the_default_model_answers() {
    let server = Server::start(&[]);
    let question = json!({"model": MODEL, "temperature": 0, "max_tokens": 40,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]});
    let answer = server.ask("/v1/chat/completions", &question);
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.metric(r#"vllm:request_success_total{finished_reason="stop""#), 1.0);

    let ids = server.ask("/tokenize", &json!({"model": MODEL, "prompt": "Grüße, 世界! 🚢"}));
    let back = server.ask("/detokenize", &json!({"model": MODEL, "tokens": ids["tokens"]}));
    assert_eq!(back["prompt"], "Grüße, 世界! 🚢");
}

/// Runs a script of this folder with the official OpenAI client, against `server`.
fn run_client(script: &str, server: &Server) {
    static INSTALLED: Mutex<()> = Mutex::new(());
    let client = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let installing = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !client.join("openai").exists() {
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
        let status = std::process::Command::new("python3").args(install).arg(&client).arg("openai").status();
        assert!(status.expect("python3 starts").success(), "the openai client could not be installed with pip");
    }
    drop(installing);
    let output = std::process::Command::new("python3")
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(script))
        .args([&format!("{}/v1", server.url), MODEL])
        .env("PYTHONPATH", &client)
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "ok", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_official_client_is_content() {
    run_client("openai_client.py", &Server::start(&[MODEL]));
}

/// Of Qwen3's shape, which tells the server how thoughts and calls are written.
const TOOLS_TEMPLATE: &str = r#"{% if tools %}<|im_start|>system
Call a tool with <tool_call>{"name": ..., "arguments": ...}</tool_call>. Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{{ m.content }}{% for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{# </think> #}{% endif %}"#;

#[test]
fn the_official_client_gets_thoughts_and_calls() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tools.jinja");
    std::fs::write(&file, TOOLS_TEMPLATE).expect("writable");
    let options = [MODEL, "--chat-template", &file.to_string_lossy(), "--reasoning-content", "true"];
    run_client("openai_tools.py", &Server::start(&options));
}

#[test]
fn a_template_of_ones_own_makes_a_base_model_chat() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plain.jinja");
    std::fs::write(&file, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
        .expect("writable");
    let server = Server::start(&["gemma-3-270m", "--chat-template", &file.to_string_lossy()]);
    let ask = json!({"model": "gemma-3-270m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4});
    let answer = server.ask("/v1/chat/completions", &ask);
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|n| n > 0), "{answer}");
}

#[test]
fn sigterm_lets_requests_in_flight_finish() {
    let server = Server::start(&[MODEL]);
    let ask = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": true});
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.ask("/v1/completions", &ask));
        while server.metric("vllm:num_requests_running") < 1.0 {
            std::thread::yield_now();
        }
        server.signal_terminate();
        let answer = asked.join().expect("the answer arrives whole");
        assert_eq!(answer["usage"]["completion_tokens"], 200);
    });
    assert!(server.terminate().success(), "a drained server ends well");
}

#[test]
fn what_cannot_start_says_what_to_change() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let whole = std::fs::read(pulled(MODEL)).expect("the model's file");
    let garbage = folder.join("garbage.gguf");
    std::fs::write(&garbage, b"GGUF\x03\x00\x00\x00 and then nothing that makes sense").expect("writable");
    let cut = folder.join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("writable");
    let empty = folder.join("empty-folder");
    std::fs::create_dir_all(&empty).expect("writable");
    let (garbage, cut, empty) = (garbage.to_string_lossy(), cut.to_string_lossy(), empty.to_string_lossy());

    let cases: [(&[&str], &str); 11] = [
        (&["no-such-model"], "smollm2-135m-instruct"),
        (&["missing.gguf"], "missing.gguf"),
        (&[&garbage], "garbage.gguf"),
        (&[&cut], "cut.gguf"),
        (&[&empty], "model.safetensors"),
        (&[MODEL, "--kv-cache-memory", "64KiB"], "--kv-cache-memory"),
        (&[MODEL, "--max-model-len", "1000000"], "--max-model-len"),
        (&[MODEL, "--max-num-seqs", "0"], "--max-num-seqs"),
        (&[MODEL, "--host", "not a host"], "--host"),
        (&[MODEL, "--config", "missing.toml"], "missing.toml"),
        (&[MODEL, "--chat-template", "missing.jinja"], "missing.jinja"),
    ];
    for (arguments, named) in cases {
        let mut command = vec!["serve", "--port", "0"];
        command.extend(arguments);
        let output = run(&command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} started");
        assert!(said.contains(named), "{arguments:?} should name {named}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = run(&["serve", MODEL, "--port", &port]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--port"), "{said}");
}

#[test]
fn help_teaches() {
    for (arguments, taught) in [
        (vec!["--help"], "saturate"),
        (vec!["serve", "--help"], "PLIMSOLL_KV_CACHE_MEMORY"),
        (vec!["bench", "--help"], "--concurrency"),
        (vec!["saturate", "--help"], "--out"),
        (vec!["pull", "--list"], "gemma-3-270m"),
    ] {
        let output = plimsoll().args(&arguments).output().expect("plimsoll starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(taught), "{arguments:?}: {said}");
    }
}
