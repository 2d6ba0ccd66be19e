//! `saturate` with servers of its own: on several devices, killed, and where one of its servers is.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Ended, SHORT, folder, plimsoll, read, run};

#[test]
fn devices_are_measured_in_turn_and_the_slow_one_is_named() {
    let out = folder("devices");
    let page = out.join("page.html");
    let (to, html) = (out.to_string_lossy(), page.to_string_lossy());
    // 20 and 40 ms a step, nearly all of it sleep.
    let devices = ["saturate", "--devices", "null:20000:50,null:40000:50", "--max-concurrency", "4"];
    // Long enough that each has an interval on a busy machine as well.
    let longer = ["--rung-seconds", "3", "--max-tokens", "8", "--no-open-loop", "--no-drift-check"];
    let output = run(&[&devices[..], &longer, &["--out", &to, "--html", &html]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().any(|line| line == "null:40000:50 is the slow one"), "{said}");
    for name in ["null-20000-50", "null-40000-50"] {
        let report = read(&out.join(name).join("saturation.json"));
        assert!(report["answer"]["peak_throughput"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
        assert!(out.join(format!("page-{name}.html")).is_file(), "{name} has a page of its own");
    }
    let page = std::fs::read_to_string(page).expect("the comparison's page");
    assert!(page.contains("<h1>null:40000:50 is the slow one</h1>"));
}

#[test]
fn a_device_that_cannot_be_used_is_said_and_the_others_are_measured() {
    // A build with CUDA on a host with GPUs sees none either.
    let output = plimsoll().env("CUDA_VISIBLE_DEVICES", "").args(["saturate", "--devices", "all"]).output();
    let output = output.expect("plimsoll runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("--devices all"), "{error}");
    let devices = ["saturate", "--devices", "cuda:9,null", "--max-concurrency", "2"];
    let output = run(&[&devices[..], &SHORT].concat());
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && error.contains("not measured: cuda:9"), "{error}");
    assert!(said.contains("null (2 of 2)") && said.contains("There is no second device"), "{said}");
}

/// `saturate` once it has said `what`, and what it goes on to say.
fn started(arguments: &[&str], what: &str) -> (Ended, impl Iterator<Item = String> + use<>) {
    let mut command = plimsoll();
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Ended(command.spawn().expect("plimsoll starts"));
    let mut lines = BufReader::new(child.0.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let found = lines.by_ref().any(|line| {
        said.push(line);
        said.last().is_some_and(|line| line.contains(what))
    });
    assert!(found, "{said:?}");
    (child, lines)
}

/// Processes whose parent is `parent`, with their command lines.
fn children(parent: u32) -> Vec<(u32, String)> {
    let processes = std::fs::read_dir("/proc").expect("Linux").filter_map(Result::ok);
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent_of = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let line = |process: u32| {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ")
    };
    numbers.filter(|process| parent_of(*process) == Some(parent)).map(|process| (process, line(process))).collect()
}

fn kill(process: u32) {
    let status = Command::new("kill").args(["-KILL", &process.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

/// Whether a process is there and more than a zombie.
fn lives(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn servers_end_with_a_command_that_was_killed() {
    let (mut command, _open) = started(&["saturate", "--device", "null"], "the null server is ready");
    let servers = children(command.0.id());
    assert_eq!(servers.len(), 2, "{servers:?}");
    kill(command.0.id());
    command.0.wait().expect("it ended");
    for _ in 0..600 {
        if !servers.iter().any(|(process, _)| lives(*process)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("a minute later there is still one of {servers:?}");
}

fn interrupt(process: u32) {
    let status = Command::new("kill").args(["-INT", &process.to_string()]).status().expect("kill runs");
    assert!(status.success());
}

#[test]
fn ctrl_c_ends_the_search_of_all_devices() {
    let out = folder("devices-interrupted");
    let to = out.to_string_lossy();
    let devices = ["saturate", "--devices", "null:5000:50,null:5000:60,null:5000:70", "--budget", "10m", "--out", &to];
    let (mut command, rest) = started(&devices, "N = 1: ");
    interrupt(command.0.id());
    let said: Vec<String> = rest.collect();
    assert!(!command.0.wait().expect("it ends").success(), "not all was measured");
    let error = said.iter().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{said:?}"));
    for left in ["null:5000:60", "null:5000:70"] {
        assert!(error.contains(&format!("not measured: {left}: interrupted")), "{error}");
    }
    assert!(out.join("null-5000-50/saturation.json").is_file(), "what was measured is kept");
}

#[test]
fn ctrl_c_while_the_server_loads_ends_the_search() {
    // It is being started, and not ready.
    let (mut command, rest) = started(&["saturate", "--device", "null"], "listening on");
    interrupt(command.0.id());
    let said: Vec<String> = rest.collect();
    let status = command.0.wait().expect("it ends");
    assert!(!status.success() && said.iter().any(|line| line.contains("interrupted before")), "{status} {said:?}");
}

#[test]
fn a_quick_search_has_an_answer_within_its_time() {
    let out = folder("quick");
    let to = out.to_string_lossy();
    let quick = ["saturate", "--device", "null:5000:50", "--quick", "--max-concurrency", "2", "--out", &to];
    let began = Instant::now();
    let output = run(&quick);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(150), "two minutes, and what a server takes to start: {took:?}");
    let report = read(&out.join("saturation.json"));
    assert!(report["answer"]["peak_throughput"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    assert!(report["answer"]["open_loop"].is_null() && report["answer"]["drift"].is_null(), "{report}");
}

#[test]
fn a_server_that_is_killed_is_reported_with_its_last_lines_and_what_was_measured() {
    let out = folder("killed");
    let to = out.to_string_lossy();
    let device = ["saturate", "--device", "null:5000:50", "--budget", "30s", "--out", &to];
    let (mut command, rest) = started(&[&device[..], &SHORT].concat(), "N = 1: ");
    let servers = children(command.0.id());
    let server = servers.iter().find(|(_, line)| line.contains(" serve ")).expect("a server");
    kill(server.0);
    rest.for_each(drop);
    assert!(command.0.wait().expect("it ends").success());
    let report = read(&out.join("saturation.json"));
    assert!(report["rungs"].as_array().is_some_and(|rungs| !rungs.is_empty()), "{report}");
    let findings = report["findings"].as_array().expect("findings");
    let ended = findings.iter().find(|finding| finding["kind"] == "server_ended").expect("it is said");
    let text = ended["text"].as_str().expect("a text");
    assert!(text.contains("SIGKILL") && text.contains("is ready at"), "{text}");
}
