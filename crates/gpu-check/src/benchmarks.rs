//! What parts have found, as docs/benchmarks.md is to have it: goals with what was reached, and the server beside the
//! reference result.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::results::{Row, about, is_ok, measured, read};
use crate::table::digits;

/// What is to be reached on an H200.
struct Goal {
    part: &'static str,
    row: &'static str,
    key: &'static str,
    at_least: f64,
}

const fn goal(part: &'static str, row: &'static str, key: &'static str, at_least: f64) -> Goal {
    Goal { part, row, key, at_least }
}

const GOALS: &[Goal] = &[
    goal("models", "gpt-oss-20b/decode 1", "of copy", 0.6),
    goal("models", "llama-3.1-8b/decode 1", "of copy", 0.7),
    goal("models", "gemma-3-27b-it/decode 1", "of copy", 0.75),
    goal("timings", "experts/gpt-oss-20b Mxfp4 up tokens=32", "of copy", 0.75),
    goal("timings", "experts/gpt-oss-20b Mxfp4 down tokens=32", "of copy", 0.75),
    goal("timings", "experts/gpt-oss-20b Mxfp4 up tokens=4096", "of matrix", 0.5),
    goal("timings", "experts/gpt-oss-20b Mxfp4 down tokens=4096", "of matrix", 0.5),
    goal("serve", "gpt-oss-20b/N=32 in=1-63 out=100", "out tok/s", 6700.0),
    goal("serve", "gpt-oss-20b/N=4096 in=1-63 out=100", "out tok/s", 27_000.0),
    goal("serve", "gpt-oss-20b/N=4096 in=1-63 out=100", "req/s", 270.0),
    goal("serve", "gpt-oss-20b/N=4096 in=1-63 out=100", "success", 1.0),
    goal("serve", "gpt-oss-20b/N=256 in=1024 out=1024", "out tok/s", 13_890.0),
    goal("serve", "llama-4-scout-fp8/N=32 in=1-63 out=100", "out tok/s", 1410.0),
    goal("serve", "llama-4-scout-fp8/N=512 in=1-63 out=100", "req/s", 70.0),
    goal("serve", "gemma-3-27b-it/N=32 in=1-63 out=100", "out tok/s", 1900.0),
];

/// A model's published numbers at a concurrency of 32, and the highest of its ramp.
struct Reference {
    model: &'static str,
    gpus: u32,
    output_tokens_per_s: f64,
    peak_requests_per_s: f64,
}

const REFERENCE: &[Reference] = &[
    Reference { model: "gpt-oss-20b", gpus: 1, output_tokens_per_s: 3348.5, peak_requests_per_s: 136.0 },
    Reference { model: "gemma-3-27b-it", gpus: 1, output_tokens_per_s: 1242.83, peak_requests_per_s: 59.0 },
    Reference { model: "llama-4-scout", gpus: 4, output_tokens_per_s: 1410.18, peak_requests_per_s: 70.0 },
];

const COLUMNS: &[&str] =
    &["success", "req/s", "out tok/s", "tok/s/user", "TTFT ms", "TPOT ms", "ITL ms", "J/tok", "of copy", "of matrix"];

/// # Errors
/// A part's file is there and is none.
pub fn markdown(folder: &Path) -> Result<String> {
    let mut out = String::new();
    if let Some(commit) = about(folder, "ceilings")?["built"]["commit"].as_str() {
        let _ = writeln!(out, "Commit {commit}.\n");
    }
    for row in read(folder, "ceilings")?.iter().filter(|row| is_ok(row)) {
        let told = row.iter().filter(|(key, _)| !["name", "outcome", "ms"].contains(&key.as_str()));
        let told: Vec<String> = told.map(|(key, value)| format!("{key} {}", number(Some(value)))).collect();
        let _ = writeln!(out, "- {}: {}", name(row), told.join(", "));
    }
    out += &goals(folder)?;
    out += &served(&read(folder, "serve")?);
    Ok(out)
}

fn goals(folder: &Path) -> Result<String> {
    let mut out = "\n| goal | at least | measured | |\n|---|--:|--:|---|\n".to_owned();
    for Goal { part, row, key, at_least } in GOALS {
        let (found, verdict) = match measured(folder, part, row, key)? {
            Some(found) => (digits(found), if found >= *at_least { "reached" } else { "missed" }),
            None => (String::new(), "not measured"),
        };
        let _ = writeln!(out, "| {row}: {key} | {} | {found} | {verdict} |", digits(*at_least));
    }
    Ok(out)
}

/// All loads; and beside the reference result, output tokens at 32 and the most requests of all loads of 100 tokens.
fn served(rows: &[Row]) -> String {
    let mut out = format!("\n| load | {} |\n|---{}|\n", COLUMNS.join(" | "), "|--:".repeat(COLUMNS.len()));
    for row in rows {
        let cells: Vec<String> = COLUMNS.iter().map(|key| number(row.get(*key))).collect();
        let _ = writeln!(out, "| {} | {} |", name(row), cells.join(" | "));
        if !is_ok(row) {
            let _ = writeln!(out, "| ({}) |{}", number(row.get("outcome")), " |".repeat(COLUMNS.len()));
        }
    }
    out += "\n| | reference result | measured | times |\n|---|--:|--:|--:|\n";
    for reference in REFERENCE {
        let of_model = |row: &&Row| name(row).starts_with(reference.model) && name(row).ends_with("out=100");
        let value = |row: &Row, key: &str| row.get(key).and_then(Value::as_f64);
        let most = |key: &str, concurrency: &str| {
            let rows = rows.iter().filter(of_model).filter(|row| name(row).contains(concurrency));
            rows.filter_map(|row| value(row, key)).reduce(f64::max)
        };
        let gpus = if reference.gpus == 1 { String::new() } else { format!(" ({} GPUs)", reference.gpus) };
        for (what, published, found) in [
            ("output tok/s at 32", reference.output_tokens_per_s, most("out tok/s", "/N=32 ")),
            ("most req/s", reference.peak_requests_per_s, most("req/s", "/N=")),
        ] {
            let times = found.map(|found| digits(found / published)).unwrap_or_default();
            let found = found.map(digits).unwrap_or_default();
            let _ = writeln!(out, "| {}, {what} | {}{gpus} | {found} | {times} |", reference.model, digits(published));
        }
    }
    out
}

fn name(row: &Row) -> &str {
    row.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn number(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(value) => value.as_f64().map(digits).unwrap_or_else(|| value.to_string().trim_matches('"').to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::results::{Results, row};

    #[test]
    fn results_stand_beside_goals_and_the_reference() {
        let folder = std::env::temp_dir().join(format!("plimsoll-benchmarks-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let about = json!({"built": {"commit": "abc"}});
        let save = |part: &str, rows: Vec<Value>| {
            let mut results = Results::new(&folder, part, about.clone());
            rows.into_iter().try_for_each(|found| results.push(row(found))).unwrap();
        };
        save("ceilings", vec![json!({"name": "copy", "outcome": "ok", "GB/s": 4000.0, "ms": 7})]);
        let load = |name: &str, rate: f64, requests: f64| json!({"name": name, "outcome": "ok", "out tok/s": rate, "req/s": requests, "success": 1.0, "ITL ms": null});
        save(
            "serve",
            vec![
                load("gpt-oss-20b/N=32 in=1-63 out=100", 6697.0, 67.0),
                load("gpt-oss-20b/N=4096 in=1-63 out=100", 27_200.0, 272.0),
                load("gpt-oss-20b/N=256 in=1024 out=1024", 14_000.0, 500.0),
                json!({"name": "gemma-3-27b-it/start", "outcome": "it ended"}),
            ],
        );
        let text = markdown(&folder).unwrap();
        for line in [
            "Commit abc.",
            "- copy: GB/s 4000",
            "| gpt-oss-20b/N=32 in=1-63 out=100: out tok/s | 6700 | 6697 | missed |",
            "| gpt-oss-20b/N=4096 in=1-63 out=100: req/s | 270.0 | 272.0 | reached |",
            "| gpt-oss-20b/decode 1: of copy | 0.600 |  | not measured |",
            "| gpt-oss-20b/N=32 in=1-63 out=100 | 1.000 | 67.00 | 6697 |  |  |  |  |  |  |  |",
            "| (it ended) | | | | | | | | | | |",
            "| gpt-oss-20b, output tok/s at 32 | 3348 | 6697 | 2.000 |",
            "| gpt-oss-20b, most req/s | 136.0 | 272.0 | 2.000 |",
            "| llama-4-scout, most req/s | 70.00 (4 GPUs) |  |  |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
