//! One streaming request: sends a body, reads the event stream as it comes, and makes a record of it, whatever happens.
//!
//! Works against any OpenAI-compatible server, over http and https, with kept-alive connections.
//!
//! Some servers (llama.cpp's among them) close a connection after a streamed reply without having said so. A client
//! that sends its next request at once then loses it through no fault that a user would see. Such a request is sent
//! again, once, on a new connection, its clock running on; the record says so, and so does the report.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plimsoll_endpoint::{Reuse, SseEvent, SseParser, http_client, refusal, shorten, with_causes};
use reqwest::{Response, Url};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::delta::{self, Delta, Finish};
use crate::error::Result;
use crate::load::Phase;
use crate::record::{Outcome, RequestRecord};
use crate::stop::reached;
use crate::timeline::Timeline;

/// How long the end of the HTTP body may lag behind `[DONE]` before the connection is given up.
const DRAIN: Duration = Duration::from_millis(250);
/// After so many requests lost on closed connections, no connection of this server is used twice.
const MAX_LOST: u32 = 3;

/// Measures offsets from the start of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// A request about to be sent.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) body: Bytes,
    /// Tokens of the prompt's own text.
    pub(crate) prompt_tokens: u32,
    /// Output tokens that it asks for at most.
    pub(crate) max_tokens: u32,
}

/// Sends requests to one URL. Shared by all workers of a run.
#[derive(Debug)]
pub(crate) struct Client {
    http: HttpClients,
    url: Url,
    request_timeout: Duration,
    /// Requests lost so far because the server had closed a kept-alive connection.
    lost: AtomicU32,
}

impl Client {
    pub(crate) fn new(http: HttpClients, url: Url, request_timeout: Duration) -> Self {
        Self { http, url, request_timeout, lost: AtomicU32::new(0) }
    }

    /// Sends `job` and reads the reply to its end, its failure or the timeout, or until `phase` says that what is in
    /// flight is cut off. Output chunks are counted into `timeline` as they come.
    pub(crate) async fn stream(
        &self,
        job: Job,
        scheduled: Duration,
        clock: Clock,
        timeline: &Timeline,
        phase: &mut watch::Receiver<Phase>,
    ) -> RequestRecord {
        let mut reply = Reply::new(job.prompt_tokens, job.max_tokens, scheduled, clock.now());
        let exchange = self.exchange(job.body, &mut reply, clock, timeline);
        let over = tokio::select! {
            biased;
            over = timeout(self.request_timeout, exchange) => Some(over),
            () = reached(phase, Phase::Cut) => None,
        };
        match over {
            Some(Ok(())) => (),
            Some(Err(_)) => reply.fail(Outcome::Timeout, format!("not done within {:?}", self.request_timeout)),
            None => reply.cut(),
        }
        reply.into_record(clock.now())
    }

    async fn exchange(&self, body: Bytes, reply: &mut Reply, clock: Clock, timeline: &Timeline) {
        let mut response = match self.send(body, &mut reply.record).await {
            Ok(response) => response,
            Err(error) => return reply.fail(Outcome::Connection, with_causes(&error)),
        };
        if !response.status().is_success() {
            return refused(response, reply).await;
        }
        while !reply.is_over() {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    let now = clock.now();
                    let chunks = reply.push(&bytes, now);
                    if chunks > 0 {
                        timeline.add(now, chunks);
                    }
                }
                Ok(None) => return reply.end_of_stream(clock.now(), "the stream ended"),
                Err(error) => return reply.end_of_stream(clock.now(), &with_causes(&error)),
            }
        }
        if reply.done_at.is_some() {
            // Reading to the end of the body lets the connection be used again. `[DONE]` has been seen, so what comes
            // now changes nothing.
            let _ = timeout(DRAIN, async { while let Ok(Some(_)) = response.chunk().await {} }).await;
        }
    }
}

impl Client {
    /// Sends a request and waits for the head of the reply.
    async fn send(&self, body: Bytes, record: &mut RequestRecord) -> reqwest::Result<Response> {
        if self.lost.load(Ordering::Relaxed) < MAX_LOST {
            match self.http.kept.post(self.url.clone()).body(body.clone()).send().await {
                Err(error) if closed_before_reply(&error) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    record.resent = true;
                }
                result => return result,
            }
        }
        self.http.fresh.post(self.url.clone()).body(body).send().await
    }
}

/// Whether the connection went away before the reply began.
fn closed_before_reply(error: &reqwest::Error) -> bool {
    if error.is_connect() {
        return false;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<hyper::Error>()
            && error.is_incomplete_message()
        {
            return true;
        }
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset);
        }
        cause = inner.source();
    }
    false
}

/// Two clients for one server.
#[derive(Clone, Debug)]
pub(crate) struct HttpClients {
    /// Keeps connections and uses them again.
    pub(crate) kept: reqwest::Client,
    /// Opens a connection for every request.
    pub(crate) fresh: reqwest::Client,
}

impl HttpClients {
    /// Clients for the server at `url`: one pair a run.
    pub(crate) fn new(url: &Url, api_key: Option<&str>, connect_timeout: Duration) -> Result<Self> {
        let client = |reuse| http_client(url, api_key, connect_timeout, reuse);
        Ok(Self { kept: client(Reuse::Always)?, fresh: client(Reuse::Never)? })
    }
}

/// Makes the record of a reply that is no stream.
async fn refused(response: Response, reply: &mut Reply) {
    let status = response.status();
    let outcome = match status.as_u16() {
        429 => Outcome::TooManyRequests,
        503 => Outcome::Unavailable,
        _ => Outcome::HttpOther,
    };
    reply.fail(outcome, format!("{status}: {}", refusal(response).await));
}

/// A reply as far as it has come.
#[derive(Debug)]
struct Reply {
    parser: SseParser,
    record: RequestRecord,
    done_at: Option<Duration>,
    failed: bool,
}

impl Reply {
    fn new(prompt_tokens: u32, max_tokens: u32, scheduled: Duration, sent: Duration) -> Self {
        let record = RequestRecord {
            prompt_tokens,
            max_tokens,
            scheduled,
            sent,
            first: None,
            first_content: None,
            last: None,
            done: sent,
            chunk_micros: Vec::with_capacity(128),
            first_chunk_bytes: 0,
            output_bytes: 0,
            finish: None,
            usage: None,
            estimated_output: None,
            outcome: Outcome::Success,
            resent: false,
            detail: None,
        };
        Self { parser: SseParser::default(), record, done_at: None, failed: false }
    }

    fn is_over(&self) -> bool {
        self.failed || self.done_at.is_some()
    }

    /// Takes bytes that came at `now`; returns how many chunks with output they completed.
    fn push(&mut self, bytes: &[u8], now: Duration) -> u32 {
        let before = self.record.chunk_micros.len();
        let mut parser = std::mem::take(&mut self.parser);
        let parsed = parser.push(bytes, |event| self.event(event, now));
        self.parser = parser;
        if parsed.is_err() {
            self.fail(Outcome::Malformed, "an event of the stream is too long to be one".to_owned());
        }
        (self.record.chunk_micros.len() - before) as u32
    }

    fn event(&mut self, event: SseEvent<'_>, now: Duration) {
        if self.is_over() {
            return;
        }
        match event {
            SseEvent::Data(b"[DONE]") => self.done_at = Some(now),
            SseEvent::Data(payload) => match delta::read_delta(payload) {
                Ok(delta) => self.delta(delta, now),
                Err(why) => self.fail(Outcome::Malformed, why),
            },
            SseEvent::Error(payload) => {
                let message = shorten(&String::from_utf8_lossy(payload));
                self.fail(Outcome::InBandError, message);
            }
        }
    }

    fn delta(&mut self, delta: Delta, now: Duration) {
        let record = &mut self.record;
        let bytes = delta.content + delta.other;
        if bytes > 0 {
            if record.first.is_none() {
                record.first = Some(now);
                record.first_chunk_bytes = bytes;
            }
            if delta.content > 0 {
                record.first_content.get_or_insert(now);
            }
            record.output_bytes += bytes;
            let micros = (now - record.sent).as_micros();
            record.chunk_micros.push(u32::try_from(micros).unwrap_or(u32::MAX));
        }
        // A stop token is counted by usage and carried by no text: the finish reason is when it came.
        if bytes > 0 || delta.finish == Some(Finish::Stop) {
            record.last = Some(now);
        }
        record.finish = delta.finish.or(record.finish);
        record.usage = delta.usage.or(record.usage);
        if let Some(message) = delta.fault {
            self.fail(Outcome::InBandError, message);
        }
    }

    /// The body is over, well or not: `how` says in what way.
    fn end_of_stream(&mut self, now: Duration, how: &str) {
        let mut parser = std::mem::take(&mut self.parser);
        parser.finish(|event| self.event(event, now));
        if !self.is_over() {
            self.fail(Outcome::Truncated, format!("{how} before [DONE]"));
        }
    }

    /// The first failure is the cause; what follows from it is not.
    fn fail(&mut self, outcome: Outcome, detail: String) {
        if !self.is_over() {
            self.failed = true;
            self.record.outcome = outcome;
            self.record.detail = Some(detail);
        }
    }

    /// The time for the measurement is up. A reply that is over already stays what it is.
    fn cut(&mut self) {
        if !self.is_over() {
            self.failed = true;
            self.record.outcome = Outcome::Cut;
        }
    }

    /// The record, its success decided by everything that a success takes.
    fn into_record(mut self, now: Duration) -> RequestRecord {
        self.record.done = self.done_at.unwrap_or(now);
        if !self.failed {
            let generated = self.record.first.is_some() || self.record.usage.is_some_and(|u| u.completion_tokens > 0);
            if self.record.finish.is_none() {
                self.record.outcome = Outcome::Truncated;
                self.record.detail = Some("the stream ended without a finish_reason".to_owned());
            } else if !generated {
                self.record.outcome = Outcome::Empty;
                self.record.detail = Some("the reply holds no token".to_owned());
            }
        }
        self.record
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_millis(5);

    fn read(pieces: &[&[u8]]) -> RequestRecord {
        let mut reply = Reply::new(3, 100, Duration::ZERO, Duration::from_millis(1));
        for piece in pieces {
            reply.push(piece, NOW);
        }
        if !reply.is_over() {
            reply.end_of_stream(NOW, "the stream ended");
        }
        reply.into_record(NOW)
    }

    fn chunk(delta: &str, finish: &str) -> String {
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
        )
    }

    const ROLE: &str = r#"{"role":"assistant","content":""}"#;
    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    fn good_stream() -> String {
        [
            ": hello\n\n",
            &chunk(ROLE, "null"),
            &chunk(r#"{"reasoning":"hm"}"#, "null"),
            &chunk(r#"{"content":"Gr\u00fc\u00dfe"}"#, "null"),
            &chunk(r#"{"content":"!"}"#, "null"),
            &chunk("{}", "\"length\""),
            USAGE,
            DONE,
        ]
        .concat()
    }

    #[test]
    fn a_good_stream_is_a_success() {
        let record = read(&[good_stream().as_bytes()]);
        assert_eq!(record.outcome, Outcome::Success, "{:?}", record.detail);
        assert_eq!((record.input_tokens(), record.output_tokens()), (9, 3));
        assert_eq!((record.chunk_micros.len(), record.first_chunk_bytes, record.output_bytes), (3, 2, 10));
        assert!(record.one_token_chunks());
    }

    #[test]
    fn the_first_token_is_neither_the_role_nor_only_the_answer() {
        let mut reply = Reply::new(3, 100, Duration::ZERO, Duration::ZERO);
        let at = Duration::from_millis;
        reply.push(chunk(ROLE, "null").as_bytes(), at(1));
        assert_eq!(reply.record.first, None);
        reply.push(chunk(r#"{"reasoning":"hm"}"#, "null").as_bytes(), at(2));
        reply.push(chunk(r#"{"content":"x"}"#, "null").as_bytes(), at(3));
        reply.push(chunk("{}", "\"length\"").as_bytes(), at(4));
        reply.push(DONE.as_bytes(), at(5));
        let record = reply.into_record(at(9));
        assert_eq!(record.first, Some(at(2)));
        assert_eq!(record.first_content, Some(at(3)));
        assert_eq!((record.last, record.done), (Some(at(3)), at(5)));
    }

    #[test]
    fn a_stop_token_comes_with_the_finish_reason() {
        let mut reply = Reply::new(3, 100, Duration::ZERO, Duration::ZERO);
        let at = Duration::from_millis;
        reply.push(chunk(r#"{"content":"x"}"#, "null").as_bytes(), at(3));
        reply.push([&chunk("{}", "\"stop\""), DONE].concat().as_bytes(), at(4));
        assert_eq!(reply.into_record(at(9)).last, Some(at(4)));
    }

    #[test]
    fn what_is_no_success_has_its_cause() {
        let text = chunk(r#"{"content":"a"}"#, "null");
        let end = chunk("{}", "\"stop\"");
        let fault = "data: {\"error\":{\"message\":\"device lost\"}}\n\n";
        for (stream, outcome) in [
            ([&text, &end, DONE].concat(), Outcome::Success),
            ([&text, &end, ""].concat(), Outcome::Truncated),
            ([&text, DONE].concat(), Outcome::Truncated),
            ([&text, fault, &end, DONE].concat(), Outcome::InBandError),
            ([&text, &end, fault, DONE].concat(), Outcome::InBandError),
            ([&text, "error: {}\n\n", &end, DONE].concat(), Outcome::InBandError),
            ([&text, "data: oops\n\n", &end, DONE].concat(), Outcome::Malformed),
            ([&end, DONE].concat(), Outcome::Empty),
            ([&end, USAGE, DONE].concat(), Outcome::Success),
            (String::new(), Outcome::Truncated),
            ("{\"choices\":[{\"message\":{\"content\":\"not a stream\"}}]}".to_owned(), Outcome::Truncated),
        ] {
            let record = read(&[stream.as_bytes()]);
            assert_eq!(record.outcome, outcome, "{stream}");
            assert_eq!(record.detail.is_some(), outcome != Outcome::Success, "{stream}");
        }
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_record(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40), crlf: bool) {
            let stream = if crlf { good_stream().replace('\n', "\r\n") } else { good_stream() };
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[stream.as_bytes()]));
        }
    }
}
