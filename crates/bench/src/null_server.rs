//! A server that answers every completion with canned tokens as fast as it can write: what is left to measure against
//! it is the client.
//!
//! It speaks just enough HTTP/1.1 for that, on one thread of its own. It must never be reachable from elsewhere: it
//! listens on the loopback address alone.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::error::{BenchError, Result};

/// Limits on a request, so that a stray client cannot fill the memory.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 64 << 20;
/// Connections that may wait to be accepted: thousands of clients begin at once.
const BACKLOG: i32 = 4096;
const MAX_TOKENS: u32 = 100_000;

/// What the null server does.
#[derive(Clone, Debug)]
pub struct NullServerConfig {
    /// 0 lets the system choose.
    pub port: u16,
    /// Tokens of a reply whose request does not limit them.
    pub tokens: u32,
    /// Time between two tokens of a reply. None: no pause.
    pub pace: Option<Duration>,
}

impl Default for NullServerConfig {
    fn default() -> Self {
        Self { port: 0, tokens: 100, pace: None }
    }
}

/// A running null server. Dropping it stops it.
#[derive(Debug)]
pub struct NullServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl NullServer {
    /// Starts listening on 127.0.0.1.
    ///
    /// # Errors
    /// A port that is taken, or no thread to be had.
    pub fn start(config: NullServerConfig) -> Result<Self> {
        Self::try_start(config).map_err(BenchError::NullServer)
    }

    fn try_start(config: NullServerConfig) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, config.port))?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("null-server".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(listener, Arc::new(config)) => (),
                    // The sender's end going away stops the server as well.
                    _ = stopped => (),
                }
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The base URL to drive.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already, and there is nothing left to serve.
            let _ = thread.join();
        }
    }
}

impl Drop for NullServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // As in `wait`.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, config: Arc<NullServerConfig>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let config = config.clone();
                // An error of a connection is the end of that connection, and nobody waits for it.
                tokio::spawn(async move { drop(serve(stream, &config).await) });
            }
            // Out of file descriptors, most likely: wait for some to come free.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves one connection's requests, one after another.
async fn serve(mut stream: TcpStream, config: &NullServerConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(4096);
    while let Some(request) = read_request(&mut stream, &mut received).await? {
        match request.path.as_str() {
            "/v1/chat/completions" => reply(&mut stream, config, &request.body, true).await?,
            "/v1/completions" => reply(&mut stream, config, &request.body, false).await?,
            "/v1/models" => {
                plain(&mut stream, "200 OK", r#"{"object":"list","data":[{"id":"null","object":"model"}]}"#).await?;
            }
            _ => {
                plain(&mut stream, "404 Not Found", r#"{"error":{"message":"the null server has no such path"}}"#)
                    .await?
            }
        }
    }
    Ok(())
}

struct Request {
    path: String,
    body: Vec<u8>,
}

/// Reads one request; what was received after it stays in `received`. None at the end of the connection.
async fn read_request(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let head_end = loop {
        if let Some(end) = memchr::memmem::find(received, b"\r\n\r\n") {
            break end + 4;
        }
        if received.len() > MAX_HEAD {
            return Err(io::Error::other("a request head without end"));
        }
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&received[..head_end]).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
    if length > MAX_BODY {
        return Err(io::Error::other("a request body too long"));
    }
    while received.len() < head_end + length {
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
    let body = received[head_end..head_end + length].to_vec();
    received.drain(..head_end + length);
    Ok(Some(Request { path, body }))
}

async fn plain(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    max_tokens: Option<u32>,
}

/// Streams a completion: each token an event, a chunk of the HTTP body and a write of its own, as a server that sends
/// tokens when it has them would.
async fn reply(stream: &mut TcpStream, config: &NullServerConfig, body: &[u8], chat: bool) -> io::Result<()> {
    let asked: Asked = serde_json::from_slice(body).unwrap_or_default();
    let tokens = asked.max_tokens.unwrap_or(config.tokens).min(MAX_TOKENS);
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event = |choices: &str, usage: &str| {
        let json = format!(
            r#"{{"id":"chatcmpl-null","object":"{object}","created":0,"model":"null","choices":[{choices}]{usage}}}"#
        );
        http_chunk(&format!("data: {json}\n\n"))
    };
    let (token, end) = if chat {
        (
            event(r#"{"index":0,"delta":{"content":" token"},"finish_reason":null}"#, ""),
            event(r#"{"index":0,"delta":{},"finish_reason":"length"}"#, ""),
        )
    } else {
        (
            event(r#"{"index":0,"text":" token","finish_reason":null}"#, ""),
            event(r#"{"index":0,"text":"","finish_reason":"length"}"#, ""),
        )
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let role = event(r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}"#, "");
    stream.write_all(format!("{head}{}", if chat { &role } else { "" }).as_bytes()).await?;
    let began = tokio::time::Instant::now();
    for token_number in 1..=tokens {
        match config.pace {
            // By the clock, so that a token that comes late makes none of those behind it late.
            Some(pace) => tokio::time::sleep_until(began + pace * token_number).await,
            // The socket takes many tokens before it would block; the other connections are to have their turn.
            None => tokio::task::yield_now().await,
        }
        stream.write_all(token.as_bytes()).await?;
    }
    let total = tokens + 1;
    let usage = format!(r#","usage":{{"prompt_tokens":1,"completion_tokens":{tokens},"total_tokens":{total}}}"#);
    let tail = [&end, &event("", &usage), &http_chunk("data: [DONE]\n\n"), "0\r\n\r\n"].concat();
    stream.write_all(tail.as_bytes()).await
}

fn http_chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}
