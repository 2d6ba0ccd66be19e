//! Measurements that cannot be finished or kept: interrupted, short of descriptors, on a full disk. Each says so, and
//! what was measured is not lost.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use support::{Ended, SHORT, Server, folder, plimsoll, read, run};

/// 5 ms a step, so that a server of these has a capacity, and far less than the client's.
const DEVICE: [&str; 4] = ["--device", "null:5000:50", "--max-num-seqs", "16"];

fn finds<'a>(report: &'a Value, kind: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["kind"] == kind);
    found.and_then(|finding| finding["text"].as_str()).unwrap_or_else(|| panic!("no {kind} in {findings:?}"))
}

/// `plimsoll` with no more than so many files open.
fn with_few_descriptors(limit: u32, arguments: &[&str]) -> Output {
    let plimsoll = plimsoll();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")]).arg(plimsoll.get_program());
    for (name, value) in plimsoll.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(arguments).output().expect("sh starts")
}

#[test]
fn too_few_descriptors_bound_the_load_and_are_told() {
    let server = Server::start(&DEVICE);
    let out = folder("few-descriptors");
    let to = out.to_string_lossy();
    let load = ["bench", "--url", &server.url, "--concurrency", "200", "--requests", "100", "--max-tokens", "4"];
    let output = with_few_descriptors(96, &[&load[..], &["--out", &to]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = read(&out.join("bench.json"));
    assert!(finds(&report, "descriptors").contains("32 of 200 connections"), "{report}");
    assert_eq!(report["rung"]["outcomes"]["success"], 100, "{report}");

    let search = ["saturate", "--url", &server.url, "--max-concurrency", "64", "--out", &to];
    let output = with_few_descriptors(96, &[&search[..], &SHORT].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = read(&out.join("saturation.json"));
    assert!(finds(&report, "descriptors").contains("32 of 64 connections"), "{report}");
    let rungs = report["rungs"].as_array().expect("rungs");
    assert!(rungs.iter().all(|rung| rung["concurrency"].as_u64() <= Some(32) && rung["success_rate"] == 1.0));
}

/// Sends a signal to a process, or to a whole group of them.
fn signal(name: &str, to: i64) {
    let status = Command::new("kill").args([name, "--", &to.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

/// Reads what a command says on its standard error until `what` comes; what comes after is read as well.
fn wait_until_it_says(what: &str, command: &mut Child) {
    let mut lines = BufReader::new(command.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(what)), "it ended without a word of {what}");
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn a_search_that_ctrl_c_ends_reports_what_was_measured() {
    let out = folder("interrupted-search");
    let to = out.to_string_lossy();
    let mut command = plimsoll();
    command.arg("saturate").args(DEVICE).args(SHORT).args(["--out", &to]);
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = Ended(command.spawn().expect("plimsoll starts"));
    wait_until_it_says("N = 1: ", &mut command.0);
    // As a terminal does it: to all that it started as well.
    signal("-INT", -i64::from(command.0.id()));
    let mut said = String::new();
    command.0.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(command.0.wait().expect("it ends").success());
    let report = read(&out.join("saturation.json"));
    finds(&report, "interrupted");
    assert_eq!(report["answer"]["verdict"], "out_of_time", "{report}");
    let rungs = report["rungs"].as_array().expect("rungs");
    assert!(rungs.iter().all(|rung| rung["success_rate"] == 1.0), "its own server has not failed it: {report}");
    assert!(said.contains("interrupted") && !said.contains("\nload line: "), "{said}");
}

#[test]
fn a_run_that_ctrl_c_ends_reports_what_was_measured() {
    let server = Server::start(&DEVICE);
    let out = folder("interrupted-run");
    let to = out.to_string_lossy();
    let mut command = plimsoll();
    command.args(["bench", "--url", &server.url, "--concurrency", "4", "--requests", "1000000", "--out", &to]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = Ended(command.spawn().expect("plimsoll starts"));
    let began = Instant::now();
    while server.metric("vllm:e2e_request_latency_seconds_count") < 20.0 {
        let ended = command.0.try_wait().expect("our own child");
        assert!(ended.is_none() && began.elapsed() < Duration::from_secs(120), "nothing is asked: {ended:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal("-INT", command.0.id().into());
    assert!(command.0.wait().expect("it ends").success());
    let report = read(&out.join("bench.json"));
    finds(&report, "interrupted");
    let outcomes = &report["rung"]["outcomes"];
    assert!(outcomes["success"].as_u64() >= Some(10) && report["rung"]["success_rate"] == 1.0, "{outcomes}");
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_the_figures_are_printed() {
    let server = Server::start(&DEVICE);
    let out = folder("full-disk");
    // Every write to this device fails as on a full disk.
    for name in ["bench.json.new", "saturation.json.new", "page.html"] {
        symlink("/dev/full", out.join(name)).expect("a link");
    }
    let (to, page, table) = (out.to_string_lossy(), out.join("page.html"), out.join("rungs.csv"));
    let failed = |output: Output, named: &str| {
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && error.contains(named) && error.contains("No space left"), "{error}");
        assert!(said.contains("req/s") && said.contains("TTFT"), "{said}");
    };
    let load = ["bench", "--url", &server.url, "--requests", "5", "--max-tokens", "4", "--out", &to];
    failed(run(&load), "bench.json");

    let search = ["saturate", "--url", &server.url, "--max-concurrency", "1", "--out", &to];
    let forms = ["--html", &page.to_string_lossy(), "--csv", &table.to_string_lossy()];
    failed(run(&[&search[..], &SHORT, &forms].concat()), "saturation.json");
    assert!(std::fs::metadata(&table).is_ok_and(|table| table.len() > 0), "what can be written is");
}

#[test]
fn what_cannot_be_printed_is_written_all_the_same() {
    let server = Server::start(&DEVICE);
    let out = folder("full-output");
    let to = out.to_string_lossy();
    let load = ["bench", "--url", &server.url, "--requests", "5", "--max-tokens", "4", "--out", &to];
    let search = ["saturate", "--url", &server.url, "--max-concurrency", "1", "--out", &to];
    for (arguments, name) in [(&load[..], "bench.json"), (&[&search[..], &SHORT].concat(), "saturation.json")] {
        let output = plimsoll().args(arguments).stdout(full()).output().expect("plimsoll starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !error.contains("panicked"), "{error}");
        assert!(error.contains("standard output"), "{error}");
        assert!(read(&out.join(name))["model"].is_string());
    }
}

/// Every write to it fails as on a full disk.
fn full() -> File {
    File::options().write(true).open("/dev/full").expect("Linux")
}

#[test]
fn a_standard_error_that_takes_nothing_costs_no_measurement() {
    let out = folder("full-error");
    let to = out.to_string_lossy();
    let search = ["saturate", "--device", "null:5000:50", "--max-concurrency", "1", "--out", &to];
    let output = plimsoll().args(search).args(SHORT).stderr(full()).output().expect("plimsoll starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(read(&out.join("saturation.json"))["model"].is_string());
}

#[test]
fn a_page_takes_an_older_one_s_place_only_when_it_is_whole() {
    let server = Server::start(&DEVICE);
    let out = folder("full-page");
    let (page, to) = (out.join("page.html"), out.to_string_lossy());
    std::fs::write(&page, "of an earlier run").expect("writable");
    symlink("/dev/full", out.join("page.html.new")).expect("a link");
    let search = ["saturate", "--url", &server.url, "--max-concurrency", "1", "--out", &to];
    let output = run(&[&search[..], &SHORT, &["--html", &page.to_string_lossy()]].concat());
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("page.html"));
    assert_eq!(std::fs::read_to_string(&page).expect("still there"), "of an earlier run");
}
