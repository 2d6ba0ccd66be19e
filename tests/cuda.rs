//! The binary built with CUDA, on a GPU that is not there: CUDA's libraries are stand-ins that run the kernels in the
//! emulator. `cargo xtask cuda-test` builds both and runs this; where they were not built there is nothing to test.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use support::{Server, plimsoll};

/// The binary with CUDA and the stand-ins, or `None` where they were not built.
fn on_gpu() -> Option<Command> {
    let (binary, driver) = (std::env::var_os("PLIMSOLL_CUDA_BINARY"), std::env::var_os("PLIMSOLL_EMULATED_DRIVER"));
    let (Some(binary), Some(driver)) = (binary, driver) else {
        println!("skipped: `cargo xtask cuda-test` builds what this needs");
        return None;
    };
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLIMSOLL_")) {
        command.env_remove(name);
    }
    // Work runs when it is waited for, so that whoever reads or overwrites something too early is found out.
    command.env("LD_LIBRARY_PATH", driver).env("PLIMSOLL_EMU_ASYNC", "1");
    Some(command)
}

/// A tiny model's config.json, in a file of the test's own: windows, norms of heads, two rotations.
fn tiny_config(file: &str) -> String {
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 512, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "sliding_window": 24,
        "sliding_window_pattern": 3, "query_pre_attn_scalar": 64, "dtype": "bfloat16",
    });
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&path, config.to_string()).expect("writable");
    path.to_string_lossy().into_owned()
}

/// Prompts are cut into chunks, and decode steps have room for four.
fn arguments(config: &str) -> [&str; 10] {
    [
        "--load-format",
        "dummy",
        "--config",
        config,
        "--max-num-seqs",
        "4",
        "--max-num-batched-tokens",
        "24",
        "--kv-cache-memory",
        "4MiB",
    ]
}

/// A token, its log probability, and by how much the likeliest was likelier than the next.
struct Said {
    token: String,
    logprob: f64,
    lead: f64,
}

fn said(answer: &Value) -> Vec<Said> {
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().expect("a list").iter();
    let lead = |top: &Value| {
        let mut values: Vec<f64> = top.as_object().expect("a map").values().filter_map(Value::as_f64).collect();
        values.sort_by(f64::total_cmp);
        // Bytes that are no text are all written alike, and then stand there once.
        values.windows(2).last().map_or(0.0, |pair| pair[1] - pair[0])
    };
    let tokens = list("tokens").zip(list("token_logprobs")).zip(list("top_logprobs"));
    tokens
        .map(|((token, logprob), top)| Said {
            token: token.as_str().expect("a token").to_owned(),
            logprob: logprob.as_f64().expect("a number"),
            lead: lead(top),
        })
        .collect()
}

const PROMPTS: [&str; 3] = [
    "Hello",
    "A ship may carry as much as her mark allows and not a pound more, whatever the owner says.",
    "One, two, three, four",
];

#[test]
fn a_gpu_says_what_the_cpu_says() {
    let Some(gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3.json");
    let cpu = Server::start_as(plimsoll(), &[&arguments(&config)[..], &["--activations", "f32"]].concat());
    let gpu = Server::start_as(gpu, &arguments(&config));
    // bf16 against f32: a close call may fall otherwise, and from there on the texts differ.
    const CLOSE: f64 = 0.05;
    let mut agreed = 0;
    for prompt in PROMPTS {
        let ask = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "logprobs": 2, "ignore_eos": true});
        let [from_cpu, from_gpu] = [&cpu, &gpu].map(|server| said(&server.ask("/v1/completions", &ask)));
        assert_eq!((from_cpu.len(), from_gpu.len()), (40, 40));
        for (one, other) in from_cpu.iter().zip(&from_gpu) {
            assert!((one.logprob - other.logprob).abs() < CLOSE, "{prompt:?}: {} {}", one.logprob, other.logprob);
            if one.token != other.token {
                assert!(one.lead < CLOSE, "{prompt:?}: {:?} leads by {}, not {:?}", one.token, one.lead, other.token);
                break;
            }
            agreed += 1;
        }
    }
    assert!(agreed >= 20, "only {agreed} tokens agree");
}

#[test]
fn a_gpu_serves_many_at_once_and_keeps_to_what_is_asked() {
    let Some(gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3-many.json");
    let server = Server::start_as(gpu, &arguments(&config));
    let ask = |i: usize| {
        let prompt = PROMPTS[i % PROMPTS.len()];
        let mut ask = json!({"prompt": prompt, "max_tokens": 12, "seed": i, "ignore_eos": true});
        match i % 4 {
            0 => ask["temperature"] = json!(0),
            1 => ask["allowed_token_ids"] = json!([65, 66, 67]),
            2 => (ask["top_k"], ask["top_p"], ask["min_p"]) = (json!(8), json!(0.9), json!(0.01)),
            _ => {
                (ask["frequency_penalty"], ask["presence_penalty"], ask["logit_bias"]) =
                    (json!(2), json!(2), json!({"72": 100}))
            }
        }
        server.ask("/v1/completions", &ask)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12).map(|i| scope.spawn(move || (i, ask(i)))).collect();
        for client in clients {
            let (i, answer) = client.join().expect("an answer");
            assert_eq!(answer["usage"]["completion_tokens"], 12, "{answer}");
            let text = answer["choices"][0]["text"].as_str().expect("a text").to_owned();
            match i % 4 {
                1 => assert!(text.chars().all(|c| "ABC".contains(c)), "{text:?}"),
                3 => assert!(text.starts_with("HHHHH"), "{text:?}"),
                _ => {}
            }
        }
    });
    let draw = json!({"prompt": "Hello", "max_tokens": 16, "seed": 5, "temperature": 1, "ignore_eos": true});
    let text = |ask: &Value| server.ask("/v1/completions", ask)["choices"][0]["text"].clone();
    assert_eq!(text(&draw), text(&draw), "a seed decides a text");
    let mut other = draw.clone();
    other["seed"] = json!(6);
    assert_ne!(text(&draw), text(&other));
    assert!(server.terminate().success());
}

#[test]
fn an_fp8_cache_serves_too() {
    let Some(gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3-fp8.json");
    let server = Server::start_as(gpu, &[&arguments(&config)[..], &["--kv-cache-dtype", "fp8"]].concat());
    let ask = json!({"prompt": PROMPTS[1], "max_tokens": 20, "temperature": 0, "ignore_eos": true});
    assert_eq!(server.ask("/v1/completions", &ask)["usage"]["completion_tokens"], 20);
}

/// Of a width that is no whole number of groups; how such matrices are multiplied is tested beside their kernels.
#[test]
fn weights_quantized_at_load_serve_too() {
    let Some(gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3-quantized.json");
    let server = Server::start_as(gpu, &[&arguments(&config)[..], &["--quantize", "int4"]].concat());
    let ask = json!({"prompt": PROMPTS[1], "max_tokens": 20, "temperature": 0, "ignore_eos": true});
    assert_eq!(server.ask("/v1/completions", &ask)["usage"]["completion_tokens"], 20);
}

#[test]
fn what_the_gpu_cannot_do_is_refused_at_the_door() {
    let config = tiny_config("tiny-gemma3-refused.json");
    let refused = |environment: &[(&str, &str)], more: &[&str]| {
        let mut gpu = on_gpu()?;
        let output = gpu.arg("serve").args(arguments(&config)).args(more).args(["--port", "0"]);
        let output = output.envs(environment.iter().copied()).output().expect("it starts");
        assert!(!output.status.success());
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let Some(error) = refused(&[("PLIMSOLL_EMU_MEMORY", "629145600")], &["--kv-cache-memory", "200MiB"]) else {
        return;
    };
    assert!(error.contains("--kv-cache-memory"), "{error}");
    let error = refused(&[], &["--device", "cuda:7"]).unwrap_or_default();
    assert!(error.contains("no GPU 7"), "{error}");
    let error = refused(&[], &["--block-size", "8"]).unwrap_or_default();
    assert!(error.contains("--block-size"), "{error}");
    let error = refused(&[("LD_LIBRARY_PATH", "/nonexistent")], &["--device", "cuda"]).unwrap_or_default();
    assert!(error.contains("libcuda.so.1") && error.contains("LD_LIBRARY_PATH"), "{error}");
}

/// A prompt that is prefilled in parts, and its text.
fn tell(server: &Server) -> String {
    let ask = json!({"prompt": PROMPTS[1], "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    server.ask("/v1/completions", &ask)["choices"][0]["text"].to_string()
}

#[test]
fn an_allocation_that_fails_in_service_changes_nothing() {
    let Some(gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3-memory.json");
    let arguments = [&arguments(&config)[..], &["--prefix-caching", "false"]].concat();
    let expected = tell(&Server::start_as(gpu, &arguments));
    let mut gpu = on_gpu().expect("as before");
    gpu.env("PLIMSOLL_EMU_REFUSE", "sample_finish:9");
    let server = Server::start_as(gpu, &arguments);
    // The second prompt's first chunk is what is refused.
    assert_eq!([tell(&server), tell(&server), tell(&server)], [expected.clone(), expected.clone(), expected]);
    assert!(server.terminate().success());
}

#[test]
fn a_fault_of_the_gpu_fails_its_requests_and_ends_the_process() {
    let Some(mut gpu) = on_gpu() else { return };
    let config = tiny_config("tiny-gemma3-fault.json");
    gpu.env("PLIMSOLL_EMU_FAULT", "sample_finish:12");
    let server = Server::start_as(gpu, &arguments(&config));
    tell(&server);
    let ask = json!({"prompt": PROMPTS[1], "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let (status, body) = server.post("/v1/completions", &ask);
    assert!(status >= 500, "{status} {body}");
    assert!(!server.wait().success(), "the process ends by itself, and not as if all were well");
}
