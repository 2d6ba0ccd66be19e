//! A server that plays a script for each request: every way in which one can go wrong.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const ROLE: &str =
    r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
pub(crate) const TEXT: &str =
    r#"{"choices":[{"index":0,"delta":{"content":"four tokens in this"},"finish_reason":null}]}"#;
pub(crate) const THOUGHT: &str = r#"{"choices":[{"index":0,"delta":{"reasoning":"hm"},"finish_reason":null}]}"#;
pub(crate) const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
pub(crate) const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16,"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":2}}}"#;
pub(crate) const LIE: &str =
    r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5000,"total_tokens":5007}}"#;
pub(crate) const FAULT: &str = r#"{"error":{"message":"the device is gone","type":"server_error"}}"#;
pub(crate) const DONE: &str = "[DONE]";

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What a server does once a request has come in.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Say(String),
    Wait(Duration),
}

/// The head of a reply, and events.
pub(crate) fn stream(events: &[&str]) -> Act {
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    Act::Say(format!("{HEAD}{body}"))
}

pub(crate) fn event(json: &str) -> Act {
    Act::Say(format!("data: {json}\n\n"))
}

pub(crate) fn wait(milliseconds: u64) -> Act {
    Act::Wait(Duration::from_millis(milliseconds))
}

pub(crate) fn status(line: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {line}\r\nretry-after: 1\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

/// A reply that goes well: its two chunks come apart, so that a token has a time.
pub(crate) fn good() -> Vec<Act> {
    vec![wait(10), stream(&[ROLE, TEXT]), wait(10), event(TEXT), event(END), event(USAGE), event(DONE)]
}

/// An event of 10 MB.
pub(crate) fn endless_line() -> Vec<Act> {
    vec![Act::Say(format!("{HEAD}data: ")), Act::Say("x".repeat(10 << 20))]
}

/// Starts a server that plays `script` for each request, then closes. Returns its base URL.
pub(crate) async fn server(script: Vec<Act>) -> String {
    server_by(move |_| script.clone()).await
}

/// Starts one whose script depends on how many requests are in flight, this one included.
pub(crate) async fn server_by(script: impl Fn(u32) -> Vec<Act> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (script, in_flight) = (Arc::new(script), Arc::new(AtomicU32::new(0)));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (script, in_flight) = (script.clone(), in_flight.clone());
            tokio::spawn(async move {
                let script = script(in_flight.fetch_add(1, Ordering::Relaxed) + 1);
                drop(play(connection, script).await);
                in_flight.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    format!("http://{address}")
}

/// Starts one with a tokenizer that answers `counted` to every text.
pub(crate) async fn server_with_tokenizer(script: Vec<Act>, counted: &str) -> String {
    let counted = status("200 OK", counted);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let mut head = [0; 14];
            let peeked = connection.peek(&mut head).await.is_ok();
            let script = match peeked && &head == b"POST /tokenize" {
                true => vec![counted.clone()],
                false => script.clone(),
            };
            tokio::spawn(async move { drop(play(connection, script).await) });
        }
    });
    format!("http://{address}")
}

/// Starts one that serves well and keeps the bodies of what it was asked.
pub(crate) async fn recording_server() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let Ok(request) = receive(&mut connection).await else { continue };
            let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            record.lock().expect("no panic").extend(serde_json::from_str(body).ok());
            tokio::spawn(async move { drop(reply(connection, good()).await) });
        }
    });
    (format!("http://{address}"), asked)
}

async fn play(mut connection: TcpStream, script: Vec<Act>) -> io::Result<()> {
    receive(&mut connection).await?;
    reply(connection, script).await
}

/// A whole request, or an error if none comes.
async fn receive(connection: &mut TcpStream) -> io::Result<String> {
    let mut received = vec![0; 64 << 10];
    let mut length = 0;
    // The bodies here are small JSON objects: one has come whole when its last brace is there.
    while !received[..length].ends_with(b"}") {
        match connection.read(&mut received[length..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    Ok(String::from_utf8_lossy(&received[..length]).into_owned())
}

async fn reply(mut connection: TcpStream, script: Vec<Act>) -> io::Result<()> {
    for act in script {
        match act {
            Act::Say(text) => connection.write_all(text.as_bytes()).await?,
            // A client that has gone is noticed.
            Act::Wait(time) => tokio::select! {
                () = tokio::time::sleep(time) => (),
                _ = connection.read_u8() => return Ok(()),
            },
        }
    }
    connection.shutdown().await
}
