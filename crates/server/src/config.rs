//! What a server is told once, at start.

use std::time::Duration;

/// Bounds and habits of one server. The defaults suit a server with the default engine behind it.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Keys of which every request for tokens must carry one (`Authorization: Bearer KEY`); none: everyone may ask.
    pub api_keys: Vec<String>,
    /// Host names that requests may be addressed to, beside loopback ones. Checked where the server listens on
    /// loopback, or where there are any.
    pub allowed_hosts: Vec<String>,
    /// Sequences in the server at most, running and waiting. Beyond: 503. The engine should take as many.
    pub max_sequences: usize,
    /// What the server was measured to carry. Beyond: 429, however many more it could hold.
    pub load_line: Option<LoadLine>,
    /// Prompt tokens at most of sequences that have not begun. Beyond: 503. A longer prompt is taken when alone.
    pub max_queued_tokens: u64,
    /// Sequences at most that one API key (or everyone together, where there are no keys) may have in the server.
    /// Beyond: 429.
    pub max_sequences_per_key: Option<usize>,
    /// Bytes of a request's body at most. Beyond: 413.
    pub max_body: usize,
    /// Connections at most. Beyond: 503, without reading a request.
    pub max_connections: usize,
    /// Bytes of a request's head at most. Beyond: 431.
    pub max_header_bytes: usize,
    /// How long a connection may take for a request's head; also how long it may be idle between requests.
    pub header_timeout: Duration,
    /// How long a request's body may take to arrive. Beyond: 408.
    pub body_timeout: Duration,
    /// How long a client may leave its response unread before it is disconnected.
    pub write_timeout: Duration,
    /// How long a request may take in all. Beyond: 408, or an error in the stream.
    pub request_timeout: Duration,
    /// Silence in a stream after which a comment line is sent, so that nobody between takes it for dead.
    pub keep_alive: Duration,
    /// How long requests may wait for any step to end before `/health` says that the engine is stuck.
    pub stall_timeout: Duration,
    /// How long requests in flight may take to finish once the server is told to stop.
    pub drain_timeout: Duration,
    /// Threads that may render and tokenize at once.
    pub text_threads: usize,
    /// Also expose the metrics under the names that vLLM gave them.
    pub vllm_metrics: bool,
}

/// Where a server's throughput is at its best and its service still holds, as a saturation test found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadLine {
    /// Sequences in the server, running and waiting.
    pub sequences: usize,
    /// Requests that ended in a second with so many inside.
    pub requests_per_s: f64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            max_sequences: 4096,
            load_line: None,
            max_queued_tokens: 1 << 21,
            max_sequences_per_key: None,
            max_body: 4 << 20,
            max_connections: 16_384,
            max_header_bytes: 32 << 10,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(600),
            keep_alive: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            text_threads: std::thread::available_parallelism().map_or(2, usize::from),
            vllm_metrics: true,
        }
    }
}
