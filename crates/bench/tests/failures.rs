//! Servers that go wrong, each in one way: every request is accounted for, under the right cause.

use std::io;
use std::time::Duration;

use plimsoll_bench::{
    BenchConfig, BenchError, FindingKind, OutcomeCounts, RungReport, SaturateConfig, Verdict, run, saturate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"four tokens in this"},"finish_reason":null}]}"#;
const THOUGHT: &str = r#"{"choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":null}]}"#;
const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":2}}}"#;
const FAULT: &str = r#"{"error":{"message":"the device is gone","type":"server_error"}}"#;
const DONE: &str = "[DONE]";

/// What a server does once a request has come in.
#[derive(Clone, Debug)]
enum Act {
    Say(String),
    Wait(Duration),
}

fn stream(events: &[&str]) -> Act {
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    Act::Say(format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}"))
}

fn status(line: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {line}\r\nretry-after: 1\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

/// Starts a server that plays `script` for each request, then closes. Returns its base URL.
async fn server(script: Vec<Act>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let script = script.clone();
            tokio::spawn(async move { drop(play(connection, script).await) });
        }
    });
    format!("http://{address}")
}

async fn play(mut connection: TcpStream, script: Vec<Act>) -> io::Result<()> {
    let mut received = vec![0; 64 << 10];
    let mut length = 0;
    // The bodies here are small JSON objects: one has come whole when its last brace is there.
    while !received[..length].ends_with(b"}") {
        match connection.read(&mut received[length..]).await? {
            0 => return Ok(()),
            more => length += more,
        }
    }
    for act in script {
        match act {
            Act::Say(text) => connection.write_all(text.as_bytes()).await?,
            Act::Wait(time) => tokio::time::sleep(time).await,
        }
    }
    connection.shutdown().await
}

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
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ";
    let line = "x".repeat(10 << 20);
    all_end(vec![Act::Say(head.to_owned()), Act::Say(line)], |c| &mut c.malformed, "too long").await;
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
    let pause = || Act::Wait(Duration::from_millis(20));
    let event = |json: &str| Act::Say(format!("data: {json}\n\n"));
    let script = vec![
        stream(&[ROLE]),
        pause(),
        event(THOUGHT),
        pause(),
        event(TEXT),
        pause(),
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
    let report = run(&config(&server(vec![stream(&[ROLE, TEXT, TEXT, TEXT, END, USAGE, DONE])]).await), |_| ()).await;
    let rung = report.expect("a run").rung.summary;
    assert_eq!((rung.outcomes.success, rung.tokens.output), (6, 54));
    // What lies between two chunks of one packet is no time a token took.
    assert!(rung.itl_ms.is_none() && rung.tokens_per_chunk == Some(3.0), "{:?}", rung.itl_ms);
}

#[tokio::test]
async fn usage_that_cannot_be_is_told() {
    let lie = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5000,"total_tokens":5007}}"#;
    let report = run(&config(&server(vec![stream(&[ROLE, TEXT, END, lie, DONE])]).await), |_| ()).await.expect("a run");
    let told = report.findings.iter().find(|finding| finding.kind == FindingKind::UsageWrong).expect("a finding");
    assert!(told.invalidates() && told.text.contains("6 replies"), "{}", told.text);
}

/// A server with a tokenizer by which every text has `count` tokens.
async fn server_with_tokenizer(script: Vec<Act>, count: u32) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let mut head = [0; 14];
            let peeked = connection.peek(&mut head).await.is_ok();
            let script = match peeked && &head == b"POST /tokenize" {
                true => vec![status("200 OK", &format!("{{\"count\": {count}}}"))],
                false => script.clone(),
            };
            tokio::spawn(async move { drop(play(connection, script).await) });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn usage_is_held_against_the_server_s_own_tokenizer() {
    for (count, lies) in [(9, false), (60, true)] {
        let url = server_with_tokenizer(vec![stream(&[ROLE, TEXT, TEXT, END, USAGE, DONE])], count).await;
        let mut config = config(&url);
        config.warmup = 1;
        let report = run(&config, |_| ()).await.expect("a run");
        assert_eq!(report.rung.summary.outcomes.success, 6, "{:?}", report.rung.failure_samples);
        assert_eq!(report.findings.iter().any(|finding| finding.invalidates()), lies, "{:?}", report.findings);
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_not_the_end_of_what_was_measured() {
    let report = run(&config(&server(vec![stream(&[ROLE, TEXT, END, USAGE, DONE])]).await), |_| ()).await;
    let report = report.expect("a run");
    let folder = std::env::temp_dir().join(format!("plimsoll-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    // Every write to this device fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", folder.join("bench.json")).expect("a link");
    let error = report.write(&folder).expect_err("no space");
    assert!(error.to_string().contains("bench.json"), "{error}");
    assert!(report.to_string().contains("output tok/s"), "{report}");
    std::fs::remove_dir_all(&folder).expect("our own folder");
}

#[tokio::test]
async fn without_usage_chunks_are_counted_and_it_is_said() {
    let url = server(vec![stream(&[ROLE, TEXT, TEXT, END, DONE])]).await;
    let report = run(&config(&url), |_| ()).await.expect("a run");
    assert_eq!(report.rung.summary.tokens.output, 12);
    assert!(report.to_string().contains("sent no usage"), "{report}");
}

#[tokio::test]
async fn a_search_against_a_server_that_serves_nothing_says_why() {
    let url = server(vec![status("500 Internal Server Error", "{\"error\":{\"message\":\"no weights\"}}")]).await;
    let mut config = SaturateConfig::new(url);
    config.endpoint.model = Some("m".to_owned());
    config.rung.min_time = Duration::from_millis(100);
    config.rung.max_time = Duration::from_millis(400);
    let error = saturate(&config, |_| ()).await.expect_err("nothing to measure");
    assert!(matches!(&error, BenchError::NothingWorks(why) if why.contains("no weights")), "{error}");
}

#[tokio::test]
async fn a_search_out_of_time_answers_from_what_it_has() {
    let script = vec![Act::Wait(Duration::from_millis(10)), stream(&[ROLE, TEXT, END, USAGE, DONE])];
    let mut config = SaturateConfig::new(server(script).await);
    config.endpoint.model = Some("m".to_owned());
    config.rung.min_time = Duration::from_millis(100);
    config.rung.max_time = Duration::from_millis(400);
    config.budget = Duration::ZERO;
    let report = saturate(&config, |_| ()).await.expect("one rung");
    assert_eq!((report.rungs.len(), report.answer.verdict, report.answer.saturation), (1, Verdict::OutOfTime, 1));
}
