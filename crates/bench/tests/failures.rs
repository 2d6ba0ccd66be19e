//! Servers that go wrong, each in one way: every request is accounted for, under the right cause.

#[allow(dead_code, reason = "each test uses a part of it")]
mod scripted;

use std::cell::RefCell;
use std::time::Duration;

use plimsoll_bench::{
    BenchConfig, BenchReport, FindingKind, LengthSource, NullServer, NullServerConfig, OutcomeCounts, Progress,
    RungReport, run,
};
use scripted::{
    Act, DONE, END, FAULT, LIE, ROLE, TEXT, THOUGHT, USAGE, endless_line, event, server, server_with_tokenizer, status,
    stream, wait,
};

fn config(url: &str) -> BenchConfig {
    let mut config = BenchConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.concurrency = 2;
    config.requests = 6;
    config.warmup = 0;
    config.ramp = Duration::ZERO;
    config.request_timeout = Duration::from_secs(10);
    config.connect_timeout = Duration::from_millis(500);
    config
}

async fn measure(script: Vec<Act>) -> RungReport {
    let url = server(script).await;
    run(&config(&url), |_| ()).await.expect("a run, whatever the server does").rung
}

fn finds(report: &BenchReport, kind: FindingKind) -> bool {
    report.findings.iter().any(|finding| finding.kind == kind)
}

/// Checks that all six requests end with the one cause that `expected` holds, and the reason in `message`.
async fn all_end(script: Vec<Act>, expected: fn(&mut OutcomeCounts) -> &mut u64, message: &str) {
    let shown = format!("{script:?}");
    let rung = measure(script).await;
    let mut counts = OutcomeCounts::default();
    *expected(&mut counts) = 6;
    assert_eq!(rung.summary.outcomes, counts, "{shown} {:?}", rung.failure_samples);
    assert_eq!(rung.summary.success_rate, counts.success as f64 / 6.0);
    assert!(rung.failure_samples.concat().contains(message), "{shown} {:?}", rung.failure_samples);
}

#[tokio::test]
async fn each_failure_has_its_cause() {
    all_end(vec![stream(&[ROLE, TEXT, END, USAGE, DONE])], |c| &mut c.success, "").await;
    all_end(
        vec![status("429 Too Many Requests", "{\"error\":{\"message\":\"slow down\"}}")],
        |c| &mut c.http_429,
        "slow down",
    )
    .await;
    all_end(vec![status("503 Service Unavailable", "loading")], |c| &mut c.http_503, "loading").await;
    all_end(vec![status("500 Internal Server Error", "")], |c| &mut c.http_other, "500").await;
    all_end(vec![status("302 Found", "")], |c| &mut c.http_other, "302").await;
    all_end(vec![stream(&[ROLE, TEXT, END, USAGE])], |c| &mut c.truncated, "[DONE]").await;
    all_end(vec![stream(&[ROLE, TEXT, USAGE, DONE])], |c| &mut c.truncated, "finish_reason").await;
    all_end(vec![stream(&[ROLE, TEXT, FAULT, END, USAGE, DONE])], |c| &mut c.in_band_error, "the device is gone").await;
    all_end(vec![stream(&[ROLE, "<html>", DONE])], |c| &mut c.malformed, "<html>").await;
    all_end(vec![stream(&[ROLE, END, DONE])], |c| &mut c.empty, "no token").await;
    all_end(vec![], |c| &mut c.connection, "").await;
    all_end(vec![Act::Say("garbage\r\n\r\n".to_owned())], |c| &mut c.connection, "").await;
}

#[tokio::test]
async fn a_body_cut_off_in_the_middle_is_truncated() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5000\r\n\r\n";
    all_end(vec![Act::Say(format!("{head}data: {TEXT}\n\n"))], |c| &mut c.truncated, "before [DONE]").await;
}

#[tokio::test]
async fn an_endless_line_is_malformed_and_not_kept() {
    all_end(endless_line(), |c| &mut c.malformed, "too long").await;
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout() {
    let head = stream(&[ROLE, TEXT]);
    for script in [vec![Act::Wait(Duration::from_secs(60))], vec![head, Act::Wait(Duration::from_secs(60))]] {
        let url = server(script).await;
        let mut config = config(&url);
        config.request_timeout = Duration::from_millis(300);
        config.requests = 3;
        let rung = run(&config, |_| ()).await.expect("a run").rung;
        assert_eq!((rung.summary.outcomes.timeout, rung.summary.outcomes.total()), (3, 3));
    }
}

#[tokio::test]
async fn a_connection_left_open_after_the_end_is_still_a_success() {
    let text: String = [ROLE, TEXT, END, DONE].iter().map(|event| format!("data: {event}\r\n\r\n")).collect();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let script = vec![Act::Say(format!("{head}: ping\r\n\r\n{text}")), Act::Wait(Duration::from_secs(60))];
    all_end(script, |c| &mut c.success, "").await;
}

#[tokio::test]
async fn a_server_that_closes_kept_connections_loses_no_request() {
    let text: String = [ROLE, TEXT, END, DONE].iter().map(|event| format!("data: {event}\n\n")).collect();
    let length = text.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n");
    // The client takes the reply for complete and the connection for usable, and sends; then the server closes.
    let rung = measure(vec![Act::Say(head + &text), Act::Wait(Duration::from_millis(100))]).await;
    assert_eq!((rung.summary.outcomes.success, rung.summary.outcomes.total()), (6, 6), "{:?}", rung.failure_samples);
    assert!((1..=4).contains(&rung.summary.resent), "{}", rung.summary.resent);
}

#[tokio::test]
async fn tokens_are_what_the_server_says_and_not_the_chunks() {
    let script = vec![
        stream(&[ROLE]),
        wait(20),
        event(THOUGHT),
        wait(20),
        event(TEXT),
        wait(20),
        event(TEXT),
        event(END),
        event(USAGE),
        event(DONE),
    ];
    let rung = measure(script).await.summary;
    assert_eq!((rung.outcomes.success, rung.tokens.output, rung.tokens.input), (6, 54, 42));
    assert_eq!((rung.tokens.cached_input, rung.tokens.reasoning_output), (30, 12));
    assert_eq!(rung.tokens_per_chunk, Some(3.0));
    assert!(rung.itl_ms.is_none(), "chunks of several tokens are no tokens");
    assert!(rung.inter_chunk_ms.is_some());
    let ttft = rung.ttft_ms.expect("reasoning is output too").min;
    let content = rung.time_to_first_content_ms.expect("there is content").min;
    assert!((19.0..).contains(&ttft), "the role is no token: {ttft}");
    assert!((39.0..).contains(&content), "the thought is not the answer: {content}");
}

#[tokio::test]
async fn all_tokens_in_one_burst_are_no_speed() {
    let url = server(vec![stream(&[ROLE, TEXT, TEXT, TEXT, END, USAGE, DONE])]).await;
    let report = run(&config(&url), |_| ()).await.expect("a run");
    assert!(finds(&report, FindingKind::Burst), "{:?}", report.findings);
    let rung = report.rung.summary;
    assert_eq!((rung.outcomes.success, rung.tokens.output), (6, 54));
    // What lies between two chunks of one packet is no time a token took.
    assert!(rung.itl_ms.is_none() && rung.tokens_per_chunk == Some(3.0), "{:?}", rung.itl_ms);
}

#[tokio::test]
async fn usage_that_cannot_be_is_told() {
    let report = run(&config(&server(vec![stream(&[ROLE, TEXT, END, LIE, DONE])]).await), |_| ()).await.expect("a run");
    let told = report.findings.iter().find(|finding| finding.kind == FindingKind::UsageWrong).expect("a finding");
    assert!(told.invalidates() && told.text.contains("6 replies"), "{}", told.text);
}

#[tokio::test]
async fn usage_is_held_against_the_server_s_own_tokenizer() {
    for (count, lies) in [(9, false), (60, true)] {
        let reply = vec![stream(&[ROLE, TEXT, TEXT, END, USAGE, DONE])];
        let url = server_with_tokenizer(reply, &format!("{{\"count\": {count}}}")).await;
        let mut config = config(&url);
        config.warmup = 1;
        let report = run(&config, |_| ()).await.expect("a run");
        assert_eq!(report.rung.summary.outcomes.success, 6, "{:?}", report.rung.failure_samples);
        assert_eq!(report.findings.iter().any(|finding| finding.invalidates()), lies, "{:?}", report.findings);
    }
}

#[tokio::test]
async fn a_tokenizer_that_answers_without_end_is_not_listened_to() {
    for (padding, source) in [(10, LengthSource::ServerTokenizer), (10 << 20, LengthSource::Estimate)] {
        let counted = format!("{{\"count\": 9, \"why\": \"{}\"}}", "x".repeat(padding));
        let url = server_with_tokenizer(vec![stream(&[ROLE, TEXT, END, USAGE, DONE])], &counted).await;
        let report = run(&config(&url), |_| ()).await.expect("a run");
        assert_eq!((report.workload.lengths, report.rung.summary.outcomes.success), (source, 6));
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_not_the_end_of_what_was_measured() {
    let report = run(&config(&server(vec![stream(&[ROLE, TEXT, END, USAGE, DONE])]).await), |_| ()).await;
    let report = report.expect("a run");
    let folder = std::env::temp_dir().join(format!("plimsoll-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", folder.join("bench.json.new")).expect("a link");
    std::fs::write(folder.join("bench.json"), "of an earlier run").expect("a file");
    let error = report.write(&folder).expect_err("no space");
    assert!(error.to_string().contains("bench.json"), "{error}");
    assert_eq!(std::fs::read_to_string(folder.join("bench.json")).expect("still there"), "of an earlier run");
    assert!(!folder.join("bench.json.new").exists(), "no half of a report is left");
    report.write(&folder).expect("there is room again");
    assert!(report.to_string().contains("output tok/s"), "{report}");
    std::fs::remove_dir_all(&folder).expect("our own folder");
}

#[tokio::test]
async fn without_usage_chunks_are_counted_and_it_is_said() {
    let url = server(vec![stream(&[ROLE, TEXT, TEXT, END, DONE])]).await;
    let report = run(&config(&url), |_| ()).await.expect("a run");
    assert_eq!(report.rung.summary.tokens.output, 12);
    assert!(finds(&report, FindingKind::UsageMissing), "{:?}", report.findings);
    assert!(report.to_string().contains("sent no usage"), "{report}");
}

#[tokio::test]
async fn a_reply_that_is_all_reasoning_has_a_first_token() {
    let script = vec![stream(&[ROLE]), wait(20), event(THOUGHT), wait(20), event(THOUGHT), event(END), event(DONE)];
    let rung = measure(script).await.summary;
    assert_eq!((rung.outcomes.success, rung.tokens.output), (6, 12));
    // Of those in the measured window, which ends when the first client finds no more to send.
    let ended = rung.e2e_ms.expect("replies").count;
    assert!(rung.ttft_ms.is_some_and(|ttft| ttft.count == ended && ttft.min >= 19.0), "the first thought is a token");
    assert!(rung.time_to_first_content_ms.is_none(), "there is no content");
}

#[tokio::test]
async fn a_warm_prefix_cache_is_told_where_every_prompt_was_to_be_new() {
    let url = server(vec![stream(&[ROLE, TEXT, END, USAGE, DONE])]).await;
    for salt in [true, false] {
        let mut config = config(&url);
        config.workload.salt = salt;
        let report = run(&config, |_| ()).await.expect("a run");
        assert_eq!((report.rung.summary.tokens.cached_input, report.rung.summary.tokens.input), (30, 42));
        assert_eq!(finds(&report, FindingKind::CachedTokens), salt, "{:?}", report.findings);
        assert!(report.to_string().contains("71.4% of the input tokens came from the prefix cache"), "{report}");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_leaves_what_it_served_and_the_cause() {
    let pace = Some(Duration::from_millis(5));
    let server = NullServer::start(NullServerConfig { pace, ..NullServerConfig::default() }).expect("a free port");
    let mut config = config(&server.url());
    config.generation.max_tokens = 10;
    (config.concurrency, config.requests, config.max_duration) = (4, 1 << 20, Duration::from_secs(3));
    let server = RefCell::new(Some(server));
    let report = run(&config, |news| {
        if matches!(news, Progress::Running(running) if running.done >= 5) {
            drop(server.borrow_mut().take());
        }
    });
    let report = report.await.expect("a run");
    let outcomes = report.rung.summary.outcomes;
    assert!(outcomes.success >= 5 && outcomes.connection > 0, "{outcomes:?}");
    assert_eq!(outcomes.failed(), outcomes.connection + outcomes.truncated, "{outcomes:?}");
    assert!(report.to_string().contains(&format!("{} connection", outcomes.connection)), "{report}");
}
