//! The load generator and the saturation walk against a server of their own, on loopback, bounded in count and time.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::path::PathBuf;

use serde_json::Value;

use support::{Server, run};

#[test]
fn bench_loses_nothing_at_four_thousand_concurrent() {
    let server = Server::start(&["--device", "null", "--max-num-seqs", "256"]);
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let folder = out.to_string_lossy();
    let arguments = [
        "bench",
        "--url",
        &server.url,
        "--concurrency",
        "4096",
        "--requests",
        "4096",
        "--max-tokens",
        "8",
        "--out",
        &folder,
    ];
    let output = run(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value =
        serde_json::from_slice(&std::fs::read(out.join("bench.json")).expect("a report")).expect("JSON");
    assert_eq!(report["rung"]["success_rate"], 1.0, "{report}");
    assert_eq!(report["rung"]["outcomes"]["success"], 4096, "{report}");
    assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0, "every block is free again");
}

#[test]
fn saturate_starts_its_own_server_and_finds_a_plateau() {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("saturation");
    let folder = out.to_string_lossy();
    let output =
        run(&["saturate", "--device", "null", "--max-concurrency", "8", "--rung-seconds", "1", "--out", &folder]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("req/s") && said.contains("TTFT"), "{said}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(out.join("saturation.json")).expect("a report")).expect("JSON");
    assert!(report["rungs"].as_array().is_some_and(|rungs| rungs.len() >= 3), "{report}");
}
