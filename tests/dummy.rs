//! A server of a model that nobody trained: no checkpoint, no download, and yet the whole API.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::PathBuf;

use serde_json::{Value, json};

use support::{Server, run};

/// A tiny Qwen3's config.json, in a file of the test's own.
fn tiny_config(file: &str) -> String {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 600, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    write(file, &config.to_string())
}

fn write(file: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&path, text).expect("writable");
    path.to_string_lossy().into_owned()
}

fn start(config: &str) -> Server {
    Server::start(&["--load-format", "dummy", "--config", config, "--kv-cache-memory", "8MiB"])
}

/// The texts of a stream's deltas, joined.
fn streamed(server: &Server, path: &str, body: &Value, text: impl Fn(&Value) -> Option<String>) -> String {
    let (status, events) = server.post(path, body);
    assert_eq!(status, 200, "{events}");
    assert!(events.trim_end().ends_with("data: [DONE]"), "{events}");
    let chunks = events.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    chunks.filter_map(|chunk| text(&serde_json::from_str(chunk).expect("a chunk of JSON"))).collect()
}

#[test]
fn it_answers_like_any_other_model() {
    let config = tiny_config("tiny-qwen3.json");
    let server = start(&config);
    let models: Value = serde_json::from_str(&server.get("/v1/models").1).expect("JSON");
    assert_eq!(models["data"][0]["id"], "tiny-qwen3-dummy");

    let prompt = "Grüße, 世界! 🚢 <|end|>";
    let tokens = server.ask("/tokenize", &json!({"prompt": prompt, "add_special_tokens": false}));
    assert_eq!(tokens["count"], prompt.len() - "<|end|>".len() + 1, "a token a byte, and the control token's one");

    let ask = json!({"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": true});
    let answer = server.ask("/v1/completions", &ask);
    let text = answer["choices"][0]["text"].as_str().expect("a text").to_owned();
    assert!(text.len() >= 24, "{text:?}");
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 16, "completion_tokens": 24, "total_tokens": 40,
        "prompt_tokens_details": answer["usage"]["prompt_tokens_details"]})
    );

    let mut stream = ask.clone();
    stream["stream"] = json!(true);
    let delta = |chunk: &Value| chunk["choices"][0]["text"].as_str().map(str::to_owned);
    assert_eq!(streamed(&server, "/v1/completions", &stream, delta), text);

    let (at, _) = text.char_indices().nth(text.chars().count() / 2).expect("a middle");
    let mut stopped = ask.clone();
    stopped["stop"] = json!([text[at..]]);
    let answer = server.ask("/v1/completions", &stopped);
    let first = text.find(&text[at..]).expect("it is there");
    assert_eq!(answer["choices"][0]["text"], text[..first]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");

    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0,
        "ignore_eos": true});
    let answer = server.ask("/v1/chat/completions", &chat);
    let said = answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let mut stream = chat;
    stream["stream"] = json!(true);
    let delta = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    assert_eq!(streamed(&server, "/v1/chat/completions", &stream, delta), said);
    let (_, metrics) = server.get("/metrics");
    for part in ["device", "open", "plan", "weights", "KV cache", "warm-up", "engine"] {
        assert!(metrics.contains(&format!("plimsoll:startup_seconds{{part=\"{part}\"")), "{part}: {metrics}");
    }
    drop(server);

    // The same config is the same model, whenever and wherever it is made.
    let again = start(&config).ask("/v1/completions", &ask);
    assert_eq!(again["choices"][0]["text"], text);
}

#[test]
fn an_fp8_cache_serves_on_a_cpu() {
    let config = tiny_config("fp8-cache.json");
    let fp8 = ["--kv-cache-dtype", "fp8", "--kv-cache-memory", "8MiB", "--device", "cpu"];
    let server = Server::start(&[&["--load-format", "dummy", "--config", &config], &fp8[..]].concat());
    let ask = json!({"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": true});
    let answer = server.ask("/v1/completions", &ask);
    assert_eq!(answer["usage"]["completion_tokens"], 24, "{answer}");
}

#[test]
fn the_start_says_that_the_weights_are_dummy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let config = tiny_config("start.json");
    let output = run(&["serve", "--load-format", "dummy", "--config", &config, "--port", &port]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("load-format dummy: random weights"), "{said}");
}

#[test]
fn contradictions_are_refused_before_anything_starts() {
    let good = tiny_config("good.json");
    let garbage = write("garbage.json", "{\"architectures\": ");
    let unknown = write("unknown.json", "{\"architectures\": [\"OPTForCausalLM\"]}");
    let mut small: Value = serde_json::from_str(&std::fs::read_to_string(&good).expect("written")).expect("JSON");
    small["vocab_size"] = json!(100);
    let small = write("small.json", &small.to_string());

    let dummy = ["--load-format", "dummy"];
    let cases: [(&[&str], &str); 10] = [
        (&[], "--config configs/architectures"),
        (&["--config", &garbage], "garbage.json"),
        (&["--config", &unknown], "OPTForCausalLM"),
        (&["--config", &small], "vocab_size"),
        (&["--config", "missing.json"], "missing.json"),
        (&["--config", &good, "--config", &good], "twice"),
        (&["--config", &good, "smollm2-135m-instruct"], "smollm2-135m-instruct"),
        (&["--config", &good, "--served-model-name", "gpt-4"], "--served-model-name gpt-4"),
        (&["--config", &good, "--device", "cuda:0"], "--device cuda:0"),
        (&["--config", &good, "--gpu-memory-utilization", "1"], "--gpu-memory-utilization"),
    ];
    for (arguments, named) in cases {
        let command: Vec<&str> =
            ["serve", "--port", "0"].into_iter().chain(dummy).chain(arguments.iter().copied()).collect();
        refused(&command, named);
    }
    let mut huge: Value = serde_json::from_str(&std::fs::read_to_string(&good).expect("written")).expect("JSON");
    (huge["num_hidden_layers"], huge["intermediate_size"]) = (json!(1000), json!(1 << 20));
    (huge["hidden_size"], huge["num_attention_heads"]) = (json!(1 << 16), json!(512));
    let huge = write("huge.json", &huge.to_string());
    refused(&["serve", "--port", "0", "--load-format", "dummy", "--config", &huge], "the weights alone take");
    refused(&["serve", "--port", "0", "--config", &good], "--load-format dummy");
    refused(&["saturate", "--config", &good], "--load-format dummy");
}

fn refused(command: &[&str], named: &str) {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{command:?} started");
    assert!(said.contains(named) && !said.contains("panicked"), "{command:?} should name {named}: {said}");
}
