//! A server on a free port, and a client that shows what it says byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use plimsoll_core::{CacheConfig, Executor, KvGroup};
use plimsoll_engine::{EngineConfig, EngineHandle};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_server::{SamplingDefaults, ServeError, ServedModel, ServerConfig, ServerState, serve};
use plimsoll_text::{Dialect, GgufVocab, Tokenizer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::echo::{EchoExecutor, Gate};

/// Nothing that a test waits for takes longer, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Ids that the model's logits have; the tokenizer knows fewer, as with real models.
pub(crate) const VOCAB_SIZE: u32 = 264;
pub(crate) const END_TOKEN: u32 = 257;
pub(crate) const MAX_MODEL_LEN: u32 = 64;

/// What differs from test to test.
pub(crate) struct Setup {
    pub(crate) server: ServerConfig,
    pub(crate) scheduler: SchedulerConfig,
    /// `None`: an [`EchoExecutor`].
    pub(crate) executor: Option<Box<dyn Executor>>,
    /// Whether the model is loaded when the server starts.
    pub(crate) is_loaded: bool,
    pub(crate) chat_template: String,
    /// `None`: the tokenizer's.
    pub(crate) dialect: Option<Dialect>,
    pub(crate) adds_reasoning_content: bool,
}

/// All messages but the system's, one after the other.
pub(crate) const PLAIN_TEMPLATE: &str =
    "{% for message in messages %}{% if message.role != 'system' %}{{ message.content }}{% endif %}{% endfor %}";

impl Default for Setup {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            scheduler: SchedulerConfig {
                cache: CacheConfig { block_size: 4, groups: vec![KvGroup { window: None, num_blocks: 256 }] },
                max_num_seqs: 8,
                max_num_batched_tokens: 64,
                max_model_len: MAX_MODEL_LEN,
                max_waiting: WaitingLimits { requests: 4096, prompt_tokens: 1 << 20 },
                policy: Policy::Fcfs,
                prefix_caching: true,
            },
            executor: None,
            is_loaded: true,
            chat_template: PLAIN_TEMPLATE.to_owned(),
            dialect: None,
            adds_reasoning_content: false,
        }
    }
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) state: ServerState,
    pub(crate) engine: EngineHandle,
    pub(crate) gate: Gate,
    pub(crate) model: ServedModel,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let gate = Gate::default();
        let max_model_len = setup.scheduler.max_model_len;
        let scheduler = Scheduler::new(setup.scheduler).unwrap();
        let executor = setup.executor.unwrap_or_else(|| Box::new(EchoExecutor::new(gate.clone())));
        let config = EngineConfig { vocab_size: VOCAB_SIZE, ..EngineConfig::default() };
        let engine = plimsoll_engine::spawn(scheduler, executor, config).unwrap().handle;
        let tokenizer = tokenizer(&setup.chat_template);
        let model = ServedModel {
            name: "echo".to_owned(),
            aliases: vec!["also/echo".to_owned()],
            engine: engine.clone(),
            dialect: setup.dialect.unwrap_or(tokenizer.dialect()),
            adds_reasoning_content: setup.adds_reasoning_content,
            tokenizer,
            max_model_len,
            vocab_size: VOCAB_SIZE,
            eos_token_ids: vec![END_TOKEN],
            defaults: SamplingDefaults::default(),
        };
        let state = ServerState::new(setup.server);
        if setup.is_loaded {
            state.set_ready(model.clone());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            // Dropped without a word at the end of most tests.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let serving = tokio::spawn(serve(listener, state.clone(), shutdown));
        Self { address, state, engine, gate, model, stop: Some(stop), serving }
    }

    /// Tells the server to stop, as SIGTERM would.
    pub(crate) fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).unwrap();
    }

    /// Waits until the server has ended.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.serving).await.expect("it ends").unwrap().unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.send(Method::POST, path, &[(CONTENT_TYPE.as_str(), "application/json")], body).await
    }

    pub(crate) async fn chat(&self, body: &str) -> Reply {
        self.post("/v1/chat/completions", body).await
    }

    pub(crate) async fn complete(&self, body: &str) -> Reply {
        self.post("/v1/completions", body).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let response = self.open(method, path, headers, body).await;
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("a whole body").unwrap().to_bytes();
        Reply { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// Sends a request on a connection of its own; the body is still to be read. Dropping it closes the connection.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header(HOST, self.address.to_string());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("a response").unwrap()
    }

    /// A chat that streams, with its body still to be read.
    pub(crate) async fn open_chat(&self, body: &str) -> Response<Incoming> {
        let json = [(CONTENT_TYPE.as_str(), "application/json")];
        self.open(Method::POST, "/v1/chat/completions", &json, body).await
    }

    /// Waits until every request has left the engine and its cache, or panics.
    pub(crate) async fn until_empty(&self) {
        let is_empty = || {
            let stats = self.engine.stats();
            let held: u32 = stats.scheduler.blocks.iter().map(|group| group.used).sum();
            stats.live_requests == 0 && held == 0 && self.state.sequences_in_flight() == 0
        };
        self.until("the server is empty", is_empty).await;
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let waited = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waited).await;
        assert!(in_time.is_ok(), "waited in vain until {what}: {:?}", self.engine.stats());
    }

    /// The server still answers, and answers right.
    pub(crate) async fn prove_alive(&self) {
        let reply = self.chat(r#"{"messages":[{"role":"user","content":"alive"}]}"#).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "alive");
    }
}

/// The next bytes of a body.
pub(crate) async fn next_frame(response: &mut Response<Incoming>) -> Option<String> {
    let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await.expect("a frame or the end")?;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The body's text with what differs from run to run replaced.
    pub(crate) fn redacted(&self) -> String {
        redacted(&self.body)
    }

    /// The objects of a stream, without its end.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// The text that a chat's stream makes for one choice.
    pub(crate) fn streamed_text(&self, choice: u64) -> String {
        let chunks = self.events().into_iter().flat_map(|event| event["choices"].as_array().unwrap().clone());
        let own = chunks.filter(|chunk| chunk["index"] == choice);
        own.filter_map(|chunk| chunk["delta"]["content"].as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.headers.get("retry-after").map(|seconds| seconds.to_str().unwrap().parse().unwrap())
    }
}

/// Ids and times, which differ from run to run, replaced.
pub(crate) fn redacted(body: &str) -> String {
    let id = replace_after(body, "\"id\":\"", |c| c != '"', "[id]");
    replace_after(&id, "\"created\":", |c| c.is_ascii_digit(), "0")
}

fn replace_after(text: &str, mark: &str, is_value: impl Fn(char) -> bool, with: &str) -> String {
    let mut parts = text.split(mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(mark);
        out.push_str(with);
        out.push_str(part.trim_start_matches(&is_value));
    }
    out
}

/// Token `b` is the byte `b`; then come two control tokens and a word.
fn tokenizer(chat_template: &str) -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(["<|im_start|>", "<|im_end|>", "Ġworld"].map(str::to_owned));
    let mut token_types = vec![1; tokens.len()];
    (token_types[256], token_types[257]) = (3, 3);
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        tokens,
        token_types,
        eos: Some(END_TOKEN),
        add_bos: Some(false),
        chat_template: Some(chat_template.to_owned()),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

/// How byte-level vocabularies write a byte: itself where it is visible, else a character from U+0100 on.
fn byte_char(byte: u8) -> char {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden_before = (0..byte).filter(|&earlier| !is_visible(earlier)).count() as u32;
    if is_visible(byte) { char::from(byte) } else { char::from_u32(0x100 + hidden_before).unwrap() }
}
