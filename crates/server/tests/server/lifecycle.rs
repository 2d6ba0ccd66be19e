//! From loading to drained.

use std::time::Duration;

use plimsoll_core::{Executor, ExecutorError, StepOutput, StepPlan, Ticket};
use plimsoll_server::ServerConfig;
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, Setup, TestServer, next_frame};

const STREAM: &str = r#"{"messages":[{"role":"user","content":"drain"}],"stream":true}"#;

#[tokio::test]
async fn a_server_listens_before_its_model_is_loaded() {
    let server = TestServer::with(Setup { is_loaded: false, ..Setup::default() }).await;
    for path in ["/health", "/health/ready", "/v1/models"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (503, &"loading".into()), "{path}");
        assert!(reply.retry_after().is_some());
    }
    assert_eq!(server.chat(STREAM).await.status, 503);
    assert_eq!(server.get("/health/live").await.status, 200);
    assert!(server.get("/metrics").await.body.contains("plimsoll:is_model_loaded 0"));
    server.state.set_ready(server.model.clone());
    assert_eq!(server.get("/health/ready").await.status, 200);
    server.prove_alive().await;
}

#[tokio::test]
async fn a_server_that_stops_finishes_what_it_has_begun() {
    let mut server = TestServer::start().await;
    server.gate.close();
    server.gate.allow(1);
    let mut response = server.open_chat(STREAM).await;
    let mut text = next_frame(&mut response).await.unwrap();
    server.stop();
    let draining = async { while server.get("/health/ready").await.status != 503 {} };
    tokio::time::timeout(PATIENCE, draining).await.expect("it drains");
    let refused = server.chat(STREAM).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.json()["error"]["code"], "draining");
    assert!(refused.retry_after().is_some());
    assert_eq!(refused.headers["connection"], "close");
    assert_eq!(server.get("/health").await.status, 200, "it still makes tokens");
    server.gate.open();
    while let Some(frame) = next_frame(&mut response).await {
        text.push_str(&frame);
    }
    assert!(text.contains(r#""finish_reason":"stop""#) && text.ends_with("data: [DONE]\n\n"), "{text}");
    let address = server.address;
    server.ended().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_off() {
    let config = ServerConfig { drain_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let mut server = TestServer::with(Setup { server: config, ..Setup::default() }).await;
    server.gate.close();
    server.gate.allow(1);
    let mut response = server.open_chat(STREAM).await;
    next_frame(&mut response).await.unwrap();
    let gate = server.gate.clone();
    server.stop();
    server.ended().await;
    gate.open();
    let rest = tokio::time::timeout(PATIENCE, async {
        use http_body_util::BodyExt;
        while let Some(frame) = response.body_mut().frame().await {
            if frame.is_err() {
                return true;
            }
        }
        false
    });
    assert!(rest.await.unwrap(), "the client sees that the stream broke off");
}

/// Fails at its first step.
struct BrokenDevice;

impl Executor for BrokenDevice {
    fn submit(&mut self, _: &StepPlan) -> Result<Ticket, ExecutorError> {
        Err(ExecutorError("it came unplugged".to_owned()))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, ExecutorError> {
        unreachable!("nothing was submitted")
    }
}

#[tokio::test]
async fn a_dead_engine_is_a_500_that_is_not_to_be_repeated() {
    let server = TestServer::with(Setup { executor: Some(Box::new(BrokenDevice)), ..Setup::default() }).await;
    assert_eq!(server.get("/health").await.status, 200);
    for _ in 0..2 {
        let reply = server.chat(STREAM).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (500, &"engine_fault".into()));
        assert_eq!(reply.headers["x-should-retry"], "false");
    }
    server.until("it is known to be dead", || !server.engine.stats().is_alive).await;
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(path).await.status, 500, "{path}");
    }
    assert_eq!(server.state.sequences_in_flight(), 0);
}

#[tokio::test]
async fn a_stuck_engine_is_not_healthy() {
    let config = ServerConfig { stall_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let server = TestServer::with(Setup { server: config, ..Setup::default() }).await;
    server.gate.close();
    let stuck = server.open_chat(STREAM);
    let watching = async {
        let seen = async {
            while server.get("/health").await.status == 200 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("health notices");
        server.gate.open();
    };
    tokio::join!(stuck, watching);
    server.until_empty().await;
    assert_eq!(server.get("/health").await.status, 200);
}
