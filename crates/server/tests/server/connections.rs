//! Connections that are slow, large, many or addressed to someone else.

use std::time::Duration;

use hyper::Method;
use plimsoll_sched::SchedulerConfig;
use plimsoll_server::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Setup, TestServer, next_frame};

const SOON: Duration = Duration::from_millis(150);

async fn server_with(server: ServerConfig) -> TestServer {
    TestServer::with(Setup { server, ..Setup::default() }).await
}

/// Sends bytes and returns all that comes back until the server closes.
async fn exchange(server: &TestServer, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = server_with(ServerConfig { header_timeout: SOON, ..ServerConfig::default() }).await;
    assert_eq!(exchange(&server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await, "");
    assert_eq!(exchange(&server, b"").await, "", "nor is silence");
    server.prove_alive().await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_off() {
    let server = server_with(ServerConfig { body_timeout: SOON, ..ServerConfig::default() }).await;
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let answer = exchange(&server, format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains(r#""code":"body_timeout""#), "{answer}");
    server.until_empty().await;
    server.prove_alive().await;
}

#[tokio::test]
async fn a_body_in_tiny_chunks_is_read() {
    let server = TestServer::start().await;
    let body = r#"{"prompt":"tiny"}"#;
    let mut request = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_owned();
    body.chars().for_each(|byte| request.push_str(&format!("1\r\n{byte}\r\n")));
    request.push_str("0\r\n\r\n");
    let answer = exchange(&server, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""text":"tiny""#), "{answer}");
}

#[tokio::test]
async fn a_chunked_body_beyond_the_limit_is_refused() {
    let server = server_with(ServerConfig { max_body: 100, ..ServerConfig::default() }).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = exchange(&server, format!("{head}c8\r\n{}\r\n0\r\n\r\n", " ".repeat(200)).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    server.prove_alive().await;
}

#[tokio::test]
async fn giant_heads_are_refused() {
    let server = TestServer::start().await;
    let one = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let answer = exchange(&server, one.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(500));
    let answer = exchange(&server, many.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    server.prove_alive().await;
}

#[tokio::test]
async fn malformed_http_is_refused() {
    let server = TestServer::start().await;
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"]
    {
        let mut with_end = bytes.to_vec();
        with_end.extend_from_slice(b"\r\n\r\n");
        let answer = exchange(&server, &with_end).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    server.prove_alive().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let server = server_with(ServerConfig { max_connections: 1, ..ServerConfig::default() }).await;
    let held = TcpStream::connect(server.address).await.unwrap();
    let answer = exchange(&server, b"").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
    drop(held);
    let freed = async {
        while exchange(&server, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .contains("503")
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the place is free again");
    server.prove_alive().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_let_go() {
    let config = ServerConfig { write_timeout: SOON, ..ServerConfig::default() };
    let mut scheduler = SchedulerConfig { max_model_len: 16_384, ..Setup::default().scheduler };
    scheduler.cache.groups[0].num_blocks = 8192;
    let server = TestServer::with(Setup { server: config, scheduler, ..Setup::default() }).await;
    // Far more than the system buffers for a connection.
    let body = r#"{"prompt":"endless","ignore_eos":true,"max_tokens":16000,"logprobs":20,"n":8,"stream":true}"#;
    let json = [("content-type", "application/json")];
    let mut response = server.open(Method::POST, "/v1/completions", &json, body).await;
    next_frame(&mut response).await.expect("the first tokens");
    server.until("its place is free", || server.state.sequences_in_flight() == 0).await;
    server.prove_alive().await;
    drop(response);
}

#[tokio::test]
async fn a_page_of_another_host_cannot_reach_a_server_on_loopback() {
    let config = ServerConfig { allowed_hosts: vec!["box.lan".to_owned()], ..ServerConfig::default() };
    let server = server_with(config).await;
    for headers in [
        &[("host", "evil.example:8000")][..],
        &[("host", "localhost.evil.example")],
        &[("host", "localhost"), ("origin", "https://evil.example")],
        &[("host", "localhost"), ("origin", "null")],
        &[("host", "")],
    ] {
        let reply = server.send(Method::GET, "/v1/models", headers, "").await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (403, &"unknown_host".into()),
            "{headers:?}"
        );
    }
    for headers in [
        &[("host", "localhost:8000")][..],
        &[("host", "[::1]:8000")],
        &[("host", "box.lan"), ("origin", "http://127.0.0.1:3000")],
    ] {
        assert_eq!(server.send(Method::GET, "/v1/models", headers, "").await.status, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn requests_have_ids() {
    let server = TestServer::start().await;
    let given = server.send(Method::GET, "/health", &[("x-request-id", "my-id.1")], "").await;
    assert_eq!(given.headers["x-request-id"], "my-id.1");
    for unfit in ["", "a b", "\"quoted\"", &"x".repeat(200)] {
        let made = server.send(Method::GET, "/health", &[("x-request-id", unfit)], "").await;
        assert_eq!(made.headers["x-request-id"].len(), 32, "{unfit}");
    }
}
