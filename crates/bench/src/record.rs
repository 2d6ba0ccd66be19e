//! What is kept of one request: when things happened, how many tokens came, and how it ended.
//!
//! All instants are offsets from the run's start on one monotonic clock. `scheduled <= sent <= first <= last <= done`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::delta::{Finish, Usage};

/// How a request ended. Only `Success` is one: a 2xx head, at least one token, a finish reason, no fault in the stream,
/// and `[DONE]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// Refused with status 429.
    TooManyRequests,
    /// Refused with status 503.
    Unavailable,
    /// Any other status that is not 2xx.
    HttpOther,
    /// Not done within the request timeout.
    Timeout,
    /// A 2xx reply that ended without a finish reason or without `[DONE]`.
    Truncated,
    /// An error inside a 2xx stream.
    InBandError,
    /// A 2xx stream with a payload that is no chunk.
    Malformed,
    /// A stream that ended well and carried no token.
    Empty,
    /// No reply at all: refused, reset or lost before a status line.
    Connection,
    /// Never sent: it was due while as many requests were in flight as may be.
    Dropped,
    /// Still under way when the time for the whole measurement was up. Neither a success nor a failure.
    Cut,
}

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutcomeCounts {
    pub success: u64,
    pub http_429: u64,
    pub http_503: u64,
    pub http_other: u64,
    pub timeout: u64,
    pub truncated: u64,
    pub in_band_error: u64,
    pub malformed: u64,
    pub empty: u64,
    pub connection: u64,
    /// Arrivals of an open loop that were never sent, because the bound on requests in flight was reached: failures.
    #[serde(default)]
    pub dropped: u64,
    /// Requests still under way when the time for the whole measurement was up: neither successes nor failures, and
    /// in no total or rate of success.
    #[serde(default)]
    pub cut: u64,
}

impl OutcomeCounts {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Success => &mut self.success,
            Outcome::TooManyRequests => &mut self.http_429,
            Outcome::Unavailable => &mut self.http_503,
            Outcome::HttpOther => &mut self.http_other,
            Outcome::Timeout => &mut self.timeout,
            Outcome::Truncated => &mut self.truncated,
            Outcome::InBandError => &mut self.in_band_error,
            Outcome::Malformed => &mut self.malformed,
            Outcome::Empty => &mut self.empty,
            Outcome::Connection => &mut self.connection,
            Outcome::Dropped => &mut self.dropped,
            Outcome::Cut => &mut self.cut,
        } += 1;
    }

    /// Each cause of failure by name, with its count.
    pub fn failures(&self) -> [(&'static str, u64); 10] {
        [
            ("429", self.http_429),
            ("503", self.http_503),
            ("other HTTP status", self.http_other),
            ("timeout", self.timeout),
            ("truncated", self.truncated),
            ("in-band error", self.in_band_error),
            ("malformed", self.malformed),
            ("empty", self.empty),
            ("connection", self.connection),
            ("dropped", self.dropped),
        ]
    }

    pub fn failed(&self) -> u64 {
        self.failures().iter().map(|(_, count)| count).sum()
    }

    /// Successes and failures; what was cut is neither.
    pub fn total(&self) -> u64 {
        self.success + self.failed()
    }

    /// Share of all requests that succeeded, 0 to 1. 1 if there was none.
    pub fn success_rate(&self) -> f64 {
        if self.total() == 0 { 1.0 } else { self.success as f64 / self.total() as f64 }
    }
}

/// Where token counts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// The server's `usage`.
    Usage,
    /// The server sent no usage: output tokens are the chunks that carried output, input tokens the prompt's own.
    Chunks,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RequestRecord {
    /// Tokens of the prompt's text as the length filter counted them.
    pub(crate) prompt_tokens: u32,
    /// Output tokens that it asked for at most.
    pub(crate) max_tokens: u32,
    /// When it was due: when the client was free to send it, or when the schedule of an open loop said.
    pub(crate) scheduled: Duration,
    /// When it was handed to the HTTP client; opening a connection, where one is needed, counts as the server's time.
    pub(crate) sent: Duration,
    /// When the first non-empty content, reasoning or tool delta came.
    pub(crate) first: Option<Duration>,
    /// When the first non-empty content delta came.
    pub(crate) first_content: Option<Duration>,
    /// When the last non-empty delta came, or the finish reason of a reply that a stop token ended.
    pub(crate) last: Option<Duration>,
    /// When `[DONE]`, the end of the stream or the failure came.
    pub(crate) done: Duration,
    /// When each chunk that carried output came, in microseconds after `sent`.
    pub(crate) chunk_micros: Vec<u32>,
    /// Bytes of output in the first of those chunks, and in all.
    pub(crate) first_chunk_bytes: usize,
    pub(crate) output_bytes: usize,
    pub(crate) finish: Option<Finish>,
    pub(crate) usage: Option<Usage>,
    /// Output tokens by those of other requests, where this one ended before its usage came.
    pub(crate) estimated_output: Option<u64>,
    pub(crate) outcome: Outcome,
    /// The server had closed the connection that it was to keep, and the request was sent again on a new one.
    pub(crate) resent: bool,
    /// What went wrong, in the server's or the system's words.
    pub(crate) detail: Option<String>,
}

impl RequestRecord {
    /// A request that was due at `due` and never sent.
    pub(crate) fn dropped(prompt_tokens: u32, due: Duration, now: Duration) -> Self {
        Self {
            prompt_tokens,
            max_tokens: 0,
            scheduled: due,
            sent: now,
            first: None,
            first_content: None,
            last: None,
            done: now,
            chunk_micros: Vec::new(),
            first_chunk_bytes: 0,
            output_bytes: 0,
            finish: None,
            usage: None,
            estimated_output: None,
            outcome: Outcome::Dropped,
            resent: false,
            detail: Some("as many requests were in flight as may be".to_owned()),
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.outcome == Outcome::Success
    }

    /// Whether its output counts for throughput: what had come of a request that was cut was service, too.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.outcome, Outcome::Success | Outcome::Cut)
    }

    /// From sending to the first token.
    pub(crate) fn ttft(&self) -> Option<Duration> {
        Some(self.first? - self.sent)
    }

    /// From the moment a client was free to the first token.
    pub(crate) fn ttft_from_schedule(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.scheduled))
    }

    pub(crate) fn time_to_first_content(&self) -> Option<Duration> {
        Some(self.first_content? - self.sent)
    }

    pub(crate) fn e2e_from_schedule(&self) -> Duration {
        self.done.saturating_sub(self.scheduled)
    }

    /// How late it was sent. A timer that fires a moment early is on time.
    pub(crate) fn lag(&self) -> Duration {
        self.sent.saturating_sub(self.scheduled)
    }

    /// From sending to the end.
    pub(crate) fn e2e(&self) -> Duration {
        self.done - self.sent
    }

    pub(crate) fn output_tokens(&self) -> u64 {
        let counted = self.usage.map(|usage| usage.completion_tokens).or(self.estimated_output);
        counted.unwrap_or(self.chunk_micros.len() as u64)
    }

    pub(crate) fn input_tokens(&self) -> u64 {
        self.usage.map_or(u64::from(self.prompt_tokens), |usage| usage.prompt_tokens)
    }

    /// Whether each output token came in a chunk of its own. An end-of-sequence token is counted by most servers and
    /// carried by no chunk.
    pub(crate) fn one_token_chunks(&self) -> bool {
        let chunks = self.chunk_micros.len() as u64;
        let silent_end = u64::from(self.finish == Some(Finish::Stop));
        chunks > 0 && (chunks..=chunks + silent_end).contains(&self.output_tokens())
    }

    /// Tokens in the first chunk that carried output: 1 where chunks are tokens, else by its share of the text.
    pub(crate) fn first_chunk_tokens(&self) -> f64 {
        if self.one_token_chunks() || self.output_bytes == 0 {
            return 1.0;
        }
        let share = self.first_chunk_bytes as f64 / self.output_bytes as f64;
        (share * self.output_tokens() as f64).max(1.0)
    }

    /// Seconds an output token after the first chunk: (last - first) / (tokens - tokens in the first chunk). None if
    /// everything came at once.
    pub(crate) fn tpot(&self) -> Option<f64> {
        let later = self.output_tokens() as f64 - self.first_chunk_tokens();
        let time = (self.last? - self.first?).as_secs_f64();
        (later > 0.5 && time > 0.0).then(|| time / later)
    }

    /// Seconds between successive chunks that carried output.
    pub(crate) fn chunk_gaps(&self) -> impl Iterator<Item = f64> {
        self.chunk_micros.windows(2).map(|pair| f64::from(pair[1] - pair[0]) / 1e6)
    }

    /// When each chunk came, and how many output tokens it stands for.
    pub(crate) fn emissions(&self) -> impl Iterator<Item = (Duration, f64)> {
        let tokens = self.output_tokens() as f64 / self.chunk_micros.len().max(1) as f64;
        self.chunk_micros.iter().map(move |&micros| (self.sent + Duration::from_micros(micros.into()), tokens))
    }
}

/// Makes records by hand for the tests of what reads them.
#[cfg(test)]
pub(crate) mod fixture {
    use super::*;

    /// A success that was sent at `sent` seconds and got `tokens` tokens, one a chunk: the first `ttft` seconds later,
    /// each of the others `tpot` seconds after the one before.
    pub(crate) fn success(sent: f64, ttft: f64, tpot: f64, tokens: u32) -> RequestRecord {
        let sent = Duration::from_secs_f64(sent);
        let chunk_micros: Vec<u32> = (0..tokens).map(|i| ((ttft + f64::from(i) * tpot) * 1e6).round() as u32).collect();
        let at = |micros: Option<&u32>| micros.map(|&micros| sent + Duration::from_micros(micros.into()));
        let (first, last) = (at(chunk_micros.first()), at(chunk_micros.last()));
        RequestRecord {
            prompt_tokens: 10,
            max_tokens: tokens,
            scheduled: sent,
            sent,
            first,
            first_content: first,
            last,
            done: last.unwrap_or(sent),
            chunk_micros,
            first_chunk_bytes: 4,
            output_bytes: 4 * tokens as usize,
            finish: Some(Finish::Length),
            usage: Some(Usage { prompt_tokens: 20, completion_tokens: tokens.into(), ..Usage::default() }),
            estimated_output: None,
            outcome: Outcome::Success,
            resent: false,
            detail: None,
        }
    }

    /// A request that failed `after` seconds without a token.
    pub(crate) fn failure(sent: f64, after: f64, outcome: Outcome) -> RequestRecord {
        let record = success(sent, 0.0, 0.0, 0);
        let done = record.sent + Duration::from_secs_f64(after);
        RequestRecord { usage: None, finish: None, output_bytes: 0, outcome, done, ..record }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::success;
    use super::*;

    #[test]
    fn times_are_from_sending_and_from_schedule() {
        let mut record = success(10.0, 0.5, 0.1, 11);
        record.scheduled = Duration::from_secs(7);
        assert_eq!(record.ttft(), Some(Duration::from_millis(500)));
        assert_eq!(record.ttft_from_schedule(), Some(Duration::from_millis(3500)));
        assert!((record.tpot().expect("eleven tokens") - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_request_that_was_sent_early_was_not_late() {
        let mut record = success(10.0, 0.5, 0.1, 11);
        record.scheduled = record.sent + Duration::from_nanos(900);
        assert_eq!(record.lag(), Duration::ZERO);
        assert_eq!(record.ttft_from_schedule(), Some(Duration::from_nanos(499_999_100)));
    }

    #[test]
    fn chunks_of_several_tokens_are_no_tokens() {
        // 40 tokens in 10 equal chunks, 100 ms apart: 4 tokens in the first, 36 in 900 ms.
        let mut record = success(0.0, 0.5, 0.1, 10);
        record.usage = Some(Usage { prompt_tokens: 1, completion_tokens: 40, ..Usage::default() });
        assert!(!record.one_token_chunks());
        assert!((record.first_chunk_tokens() - 4.0).abs() < 1e-9);
        assert!((record.tpot().expect("a rate") - 0.025).abs() < 1e-9);
        assert_eq!(record.emissions().map(|(_, tokens)| tokens).sum::<f64>(), 40.0);
    }

    #[test]
    fn an_end_token_needs_no_chunk() {
        let mut record = success(0.0, 0.5, 0.1, 10);
        record.usage = Some(Usage { prompt_tokens: 1, completion_tokens: 11, ..Usage::default() });
        assert!(!record.one_token_chunks());
        record.finish = Some(Finish::Stop);
        assert!(record.one_token_chunks());
    }

    #[test]
    fn a_reply_in_one_burst_has_no_tpot() {
        let record = success(0.0, 0.5, 0.0, 10);
        assert_eq!(record.tpot(), None);
        assert_eq!(success(0.0, 0.5, 0.1, 1).tpot(), None);
    }

    #[test]
    fn without_usage_the_chunks_are_counted() {
        let mut record = success(0.0, 0.5, 0.1, 10);
        record.usage = None;
        assert_eq!((record.input_tokens(), record.output_tokens()), (10, 10));
    }

    #[test]
    fn outcomes_add_up() {
        let mut counts = OutcomeCounts::default();
        for outcome in [
            Outcome::Success,
            Outcome::TooManyRequests,
            Outcome::Unavailable,
            Outcome::HttpOther,
            Outcome::Timeout,
            Outcome::Truncated,
            Outcome::InBandError,
            Outcome::Malformed,
            Outcome::Empty,
            Outcome::Connection,
            Outcome::Dropped,
            Outcome::Cut,
        ] {
            counts.add(outcome);
        }
        assert_eq!((counts.total(), counts.success, counts.failed(), counts.cut), (11, 1, 10, 1));
        assert!(counts.failures().iter().all(|(_, count)| *count == 1));
        assert!((counts.success_rate() - 1.0 / 11.0).abs() < 1e-12);
    }
}
