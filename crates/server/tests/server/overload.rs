//! More than the server holds: what is refused, when it may come back, and that nothing inside is lost.

use std::time::Duration;

use hyper::Method;
use plimsoll_sched::{SchedulerConfig, WaitingLimits};
use plimsoll_server::{LoadLine, ServerConfig};

use crate::harness::{Setup, TestServer, next_frame};

const CHAT: &str = r#"{"messages":[{"role":"user","content":"wait"}]}"#;

async fn server_with(server: ServerConfig) -> TestServer {
    TestServer::with(Setup { server, ..Setup::default() }).await
}

#[tokio::test]
async fn beyond_the_limit_requests_are_refused_at_once_and_none_inside_is_lost() {
    let server = server_with(ServerConfig { max_sequences: 3, ..ServerConfig::default() }).await;
    server.gate.close();
    let inside = async { tokio::join!(server.chat(CHAT), server.chat(CHAT), server.chat(CHAT)) };
    let outside = async {
        server.until("three are inside", || server.state.sequences_in_flight() == 3).await;
        // Its body is never read: it could not be parsed.
        let refused = server.chat("not json").await;
        assert_eq!(refused.status, 503, "{}", refused.body);
        assert_eq!(refused.json()["error"]["code"], "queue_full");
        assert!((1..=60).contains(&refused.retry_after().unwrap()));
        assert_eq!(server.get("/health").await.status, 200, "full is not ill");
        assert_eq!(server.get("/load").await.json()["server_load"], 3);
        server.gate.open();
    };
    let ((a, b, c), ()) = tokio::join!(inside, outside);
    for reply in [a, b, c] {
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "wait");
    }
    server.until_empty().await;
    server.prove_alive().await;
}

#[tokio::test]
async fn beyond_the_load_line_clients_are_told_when_to_come_back() {
    let load_line = Some(LoadLine { sequences: 2, requests_per_s: 0.25 });
    let server = server_with(ServerConfig { load_line, ..ServerConfig::default() }).await;
    server.gate.close();
    let inside = async { tokio::join!(server.chat(CHAT), server.chat(CHAT)) };
    let outside = async {
        server.until("two are inside", || server.state.sequences_in_flight() == 2).await;
        let refused = server.chat("not json").await;
        assert_eq!((refused.status.as_u16(), refused.retry_after()), (429, Some(4)), "{}", refused.body);
        assert_eq!(refused.json()["error"]["code"], "load_line");
        assert_eq!(server.get("/load").await.json()["limit"], 2);
        let metrics = server.get("/metrics").await.body;
        assert!(metrics.contains("plimsoll:load_line_sequences{model_name=\"echo\"} 2"), "{metrics}");
        server.gate.open();
    };
    let ((a, b), ()) = tokio::join!(inside, outside);
    assert_eq!((a.status.as_u16(), b.status.as_u16()), (200, 200), "those inside finish");
    server.until_empty().await;
    let alone = server.complete(r#"{"prompt":"a","n":3}"#).await;
    assert_eq!(alone.status, 200, "more choices than the line has places, alone: {}", alone.body);
    server.until_empty().await;
    server.prove_alive().await;
}

#[tokio::test]
async fn every_choice_takes_a_place() {
    let server = server_with(ServerConfig { max_sequences: 3, ..ServerConfig::default() }).await;
    let never = server.complete(r#"{"prompt":["a","b"],"n":2}"#).await;
    assert_eq!((never.status.as_u16(), &never.json()["error"]["param"]), (400, &"n".into()), "{}", never.body);
    server.gate.close();
    let pair = server.complete(r#"{"prompt":"a","n":2}"#);
    let outside = async {
        server.until("two are inside", || server.state.sequences_in_flight() == 2).await;
        let refused = server.complete(r#"{"prompt":"a","n":2}"#).await;
        assert_eq!(refused.status, 503, "{}", refused.body);
        server.gate.open();
    };
    let (pair, ()) = tokio::join!(pair, outside);
    assert_eq!(pair.status, 200);
    server.until_empty().await;
}

#[tokio::test]
async fn waiting_prompt_tokens_are_bounded() {
    let server = server_with(ServerConfig { max_queued_tokens: 50, ..ServerConfig::default() }).await;
    server.gate.close();
    let long = format!(r#"{{"prompt":"{}","max_tokens":1}}"#, "x".repeat(40));
    let first = server.complete(&long);
    let outside = async {
        server.until("the first is tokenized", || server.engine.stats().live_requests == 1).await;
        let refused = server.complete(&long).await;
        assert_eq!(refused.status, 503, "{}", refused.body);
        assert!(refused.body.contains("prompt tokens"), "{}", refused.body);
        assert!(refused.retry_after().is_some());
        server.gate.open();
    };
    let (first, ()) = tokio::join!(first, outside);
    assert_eq!(first.status, 200);
    server.until_empty().await;
    assert_eq!(server.complete(&long).await.status, 200);
}

#[tokio::test]
async fn each_key_has_a_limit_of_its_own() {
    let config = ServerConfig {
        api_keys: vec!["one".to_owned(), "two".to_owned()],
        max_sequences_per_key: Some(1),
        ..ServerConfig::default()
    };
    let server = server_with(config).await;
    server.gate.close();
    let as_key = |key: &'static str| {
        let headers = [("content-type", "application/json"), ("authorization", key)];
        let server = &server;
        async move { server.send(Method::POST, "/v1/chat/completions", &headers, CHAT).await }
    };
    let first = as_key("Bearer one");
    let outside = async {
        server.until("one is inside", || server.state.sequences_in_flight() == 1).await;
        let refused = as_key("Bearer one").await;
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["type"]), (429, &"rate_limit_error".into()));
        assert!(refused.retry_after().is_some());
        let (other, ()) = tokio::join!(as_key("Bearer two"), async {
            server.until("two are inside", || server.state.sequences_in_flight() == 2).await;
            server.gate.open();
        });
        assert_eq!(other.status, 200);
    };
    let (first, ()) = tokio::join!(first, outside);
    assert_eq!(first.status, 200);
    for wrong in ["Bearer three", "Basic one", "Bearer"] {
        let reply = as_key(wrong).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (401, &"invalid_api_key".into()));
    }
    assert_eq!(server.get("/v1/models").await.status, 401);
    assert_eq!(server.get("/health").await.status, 200, "probes have no keys");
}

#[tokio::test]
async fn the_scheduler_s_own_full_queue_is_a_503_too() {
    let waiting = WaitingLimits { requests: 1, prompt_tokens: 64 };
    let scheduler = SchedulerConfig { max_num_seqs: 1, max_waiting: waiting, ..Setup::default().scheduler };
    let server = TestServer::with(Setup { scheduler, ..Setup::default() }).await;
    server.gate.close();
    server.gate.allow(1);
    let first = server.chat(CHAT);
    let others = async {
        server.until("the first runs", || server.engine.stats().scheduler.running == 1).await;
        let all = async { tokio::join!(server.chat(CHAT), server.chat(CHAT), server.chat(CHAT)) };
        let opening = async {
            server.until("all are inside", || server.engine.stats().live_requests == 4).await;
            server.gate.open();
        };
        tokio::join!(all, opening).0
    };
    let (first, (a, b, c)) = tokio::join!(first, others);
    assert_eq!(first.status, 200);
    let mut statuses = [a, b, c].map(|reply| reply.status.as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503, 503]);
    server.until_empty().await;
    server.prove_alive().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let server = TestServer::start().await;
    let endless = r#"{"prompt":"endless","ignore_eos":true,"max_tokens":57,"stream":true}"#;
    let json = [("content-type", "application/json")];
    server.gate.close();
    server.gate.allow(2);
    let mut response = server.open(Method::POST, "/v1/completions", &json, endless).await;
    next_frame(&mut response).await.expect("the first token");
    let held = || server.engine.stats().scheduler.blocks[0].used;
    server.until("it holds blocks", || held() > 0).await;
    drop(response);
    server.until("its place is free", || server.state.sequences_in_flight() == 0).await;
    server.gate.allow(1);
    server.until("its blocks are free after the step", || held() == 0).await;
    assert!(server.engine.stats().steps.steps <= 3, "cancelled long before its end");
    server.gate.open();

    // And one that never heard anything: it waits for a response that does not stream.
    server.gate.close();
    let waiting = server.chat(CHAT);
    let gone = tokio::time::timeout(Duration::from_millis(100), waiting).await;
    assert!(gone.is_err(), "the gate is closed");
    server.until("its place is free", || server.state.sequences_in_flight() == 0).await;
    server.gate.open();
    server.until_empty().await;
    let text = server.get("/metrics").await.body;
    assert!(text.contains(r#"http_responses_total{path="/v1/chat/completions",status="499","#), "{text}");
    assert!(text.contains(r#"request_success_total{finished_reason="abort",model_name="echo"} 2"#), "{text}");
    server.prove_alive().await;
}

#[tokio::test]
async fn a_request_ends_at_its_deadline() {
    let config = ServerConfig { request_timeout: Duration::from_millis(150), ..ServerConfig::default() };
    let server = server_with(config).await;
    server.gate.close();
    let late = server.chat(CHAT).await;
    assert_eq!((late.status.as_u16(), &late.json()["error"]["code"]), (408, &"deadline_exceeded".into()));
    server.gate.allow(2);
    let mut response = server.open_chat(&CHAT.replace("]}", r#"],"stream":true}"#)).await;
    assert_eq!(response.status(), 200);
    let mut text = String::new();
    while let Some(frame) = next_frame(&mut response).await {
        text.push_str(&frame);
    }
    assert!(text.contains(r#""code":"deadline_exceeded""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    server.gate.open();
    server.until_empty().await;
}
