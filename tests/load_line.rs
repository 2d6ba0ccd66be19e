//! The load line on a real server: measured by `saturate`, kept to by `serve`, and worth it under three times the load.
//!
//! The device computes nothing and takes a known time for each step, most of which is sleep, so that even a busy machine
//! of two cores serves at the device's pace. Only ratios within one run are held to anything.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use support::{Server, exchange_whole, plimsoll, run};

/// 20 ms a step and 50 us a token in it, 12 sequences at once: about fifty of these requests a second.
const DEVICE: [&str; 6] = ["--device", "null:20000:50", "--max-num-seqs", "12", "--load-format", "dummy"];
const TOKENS: [&str; 2] = ["--max-tokens", "10"];
/// Milliseconds: at the line a first token comes within two steps, and a token each step.
const LIMITS: [&str; 4] = ["--slo-ttft", "500", "--slo-tpot", "150"];
const SECONDS: f64 = 5.0;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A tiny model's config.json, in a file of the test's own.
fn config() -> String {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 600, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
    });
    let path = folder("load-line-model.json");
    std::fs::write(&path, config.to_string()).expect("writable");
    path.to_string_lossy().into_owned()
}

/// What `saturate` found and kept: requests at once, and requests a second there. Its rungs are short: what else the
/// machine does may hide the end of the throughput, so it has three goes.
fn measure_line(options: &[&str]) -> (u64, f64) {
    let search = ["saturate", "--max-concurrency", "32", "--rung-seconds", "1", "--keep-line"];
    let arguments = [&search[..], &["--no-open-loop", "--no-drift-check"], &TOKENS[..], options].concat();
    let mut said = String::new();
    for _ in 0..3 {
        let output = run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        // `load line: 12 requests at once, 50.3 req/s and ...`
        if let Some(line) = said.lines().find_map(|line| line.strip_prefix("load line: ")) {
            let mut words = line.split(' ');
            let sequences = words.next().and_then(|word| word.parse().ok()).expect("a number");
            return (sequences, words.nth(3).and_then(|word| word.parse().ok()).expect("a rate"));
        }
    }
    panic!("{said}");
}

/// A server that does not log each request.
fn start(options: &[&str]) -> Server {
    let mut plimsoll = plimsoll();
    plimsoll.env("RUST_LOG", "warn");
    Server::start_as(plimsoll, options)
}

/// What became of Poisson arrivals at `rate`.
struct Offered {
    /// Requests a second that kept every limit, of those that were due while requests arrived.
    goodput: f64,
    report: Value,
}

fn offer(server: &Server, rate: f64, name: &str) -> Offered {
    let out = folder(name);
    let (rate, seconds, folder) = (rate.to_string(), SECONDS.to_string(), out.to_string_lossy());
    let load = ["bench", "--url", &server.url, "--arrivals", "poisson", "--rate", &rate, "--max-seconds", &seconds];
    // Who has not been served by then has not been served in time.
    let ends = ["--requests", "100000", "--timeout", "4", "--out", &folder];
    let output = run(&[&load[..], &ends, &TOKENS, &LIMITS].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read(out.join("bench.json")).expect("a report");
    let report: Value = serde_json::from_slice(&text).expect("JSON");
    let number =
        |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"));
    let (start, end) = (number("/rung/window/start_s"), number("/rung/window/end_s"));
    let good = number("/rung/slo/goodput_per_s") * (end - start);
    Offered { goodput: good / (end.min(SECONDS) - start), report }
}

/// Whether goodput stays with the line and falls without, against that of a server under a load that it can carry, beside
/// the two on the same machine.
fn is_worth_it(kept: &Offered, lost: &Offered, best: &Offered) -> bool {
    kept.goodput >= 0.9 * best.goodput && lost.goodput <= 0.5 * best.goodput
}

fn limit(server: &Server) -> Option<u64> {
    serde_json::from_str::<Value>(&server.get("/load").1).expect("JSON")["limit"].as_u64()
}

/// The head and body of the first refusal of a server that is being offered more than it takes.
fn refusal(server: &Server) -> String {
    let body = r#"{"messages":[{"role":"user","content":"hello"}],"max_tokens":1}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut replies = (0..1000).map(|_| exchange_whole(&server.url, &request));
    replies.find(|reply| reply.starts_with("HTTP/1.1 429 ")).expect("one is refused")
}

#[test]
fn goodput_stays_at_three_times_the_load_with_the_line_and_falls_without() {
    let config = config();
    let options = [&DEVICE[..], &["--config", &config]].concat();
    let (sequences, rate) = measure_line(&options);
    assert!((6..=24).contains(&sequences), "12 sequences fit in a step: {sequences}");

    let without_line = [&options[..], &["--load-line", "off"]].concat();
    let with = start(&options);
    let (without, best) = (start(&without_line), start(&without_line));
    assert_eq!((limit(&with), limit(&without)), (Some(sequences), Some(12 + 8192)));
    assert_eq!(with.metric("plimsoll:load_line_sequences"), sequences as f64);
    for (device, seqs) in [("null:20000:51", "12"), ("null:20000:50", "13")] {
        let other = start(&[&["--device", device, "--max-num-seqs", seqs], &options[4..]].concat());
        assert!(limit(&other) > Some(8192), "it was not measured with {device} and {seqs} sequences");
    }
    let once = || {
        thread::scope(|scope| {
            let kept = scope.spawn(|| offer(&with, 3.0 * rate, "load-line-with"));
            let lost = scope.spawn(|| offer(&without, 3.0 * rate, "load-line-without"));
            let best = scope.spawn(|| offer(&best, 0.9 * rate, "load-line-best"));
            let refusal = refusal(&with);
            let joined = |run: thread::ScopedJoinHandle<'_, Offered>| run.join().expect("a run");
            (joined(kept), joined(lost), joined(best), refusal)
        })
    };
    let mut all = once();
    if !is_worth_it(&all.0, &all.1, &all.2) {
        // Something else on the machine may have struck one of the three alone. The queue has to end first.
        thread::sleep(Duration::from_secs(5));
        all = once();
    }
    let (kept, lost, best, refusal) = all;
    assert!(refusal.to_ascii_lowercase().contains("\r\nretry-after: ") && refusal.contains("load_line"), "{refusal}");

    println!(
        "line {sequences}, {rate:.1} req/s; goodput at 0.9 {:.1}, at 3 {:.1} with the line and {:.1} without",
        best.goodput, kept.goodput, lost.goodput
    );
    assert!(
        is_worth_it(&kept, &lost, &best),
        "of {}, {} with the line and {} without: {}",
        best.goodput,
        kept.goodput,
        lost.goodput,
        kept.report["rung"]["slo"]
    );
    let rung = &kept.report["rung"];
    let count = |outcome: &str| rung["outcomes"][outcome].as_u64().expect("a count");
    let all: u64 = rung["outcomes"].as_object().expect("counts").values().filter_map(Value::as_u64).sum();
    assert_eq!(count("success") + count("http_429"), all, "who is let in is served: {}", rung["outcomes"]);
    assert!(count("http_429") > count("success"), "{}", rung["outcomes"]);
    let slo = |name: &str| rung["slo"][name].as_u64().expect("a count");
    let late = slo("ttft_violations") + slo("tpot_violations");
    assert!(late * 20 <= slo("requests"), "{}", rung["slo"]);
}
