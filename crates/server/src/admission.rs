//! The door: how many sequences, and how many prompt tokens that nothing has computed yet, may be in the server at
//! once. A request passes it before a byte of its body is read. What is refused is told when to come back, by the
//! rate at which requests have been finishing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::Caller;
use crate::error::ApiError;
use crate::{LoadLine, ServerConfig};

/// Bytes of text a prompt token, for requests that are not tokenized yet. English has about four and a half.
const BYTES_PER_TOKEN: u64 = 4;

/// Counts and their limits.
pub(crate) struct Admission {
    max_sequences: usize,
    load_line: Option<LoadLine>,
    max_queued_tokens: u64,
    max_per_key: Option<usize>,
    counts: Mutex<Counts>,
}

struct Counts {
    load: Load,
    per_key: HashMap<usize, usize>,
    completions: CompletionRate,
    /// Completions a second, where none was seen of late.
    measured_rate: f64,
}

/// How full the server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Let in and not ended.
    pub(crate) sequences: usize,
    /// Prompt tokens of those that have not begun.
    pub(crate) queued_tokens: u64,
}

impl Admission {
    pub(crate) fn new(config: &ServerConfig) -> Arc<Self> {
        let counts = Counts {
            load: Load::default(),
            per_key: HashMap::new(),
            completions: CompletionRate::new(Instant::now()),
            measured_rate: config.load_line.map_or(0.0, |line| line.requests_per_s),
        };
        Arc::new(Self {
            max_sequences: config.max_sequences.max(1),
            load_line: config.load_line,
            max_queued_tokens: config.max_queued_tokens,
            max_per_key: config.max_sequences_per_key,
            counts: Mutex::new(counts),
        })
    }

    /// Lets one request in whose body is said to have `body_bytes`: one sequence, until [`Permit::resize`] says
    /// better.
    pub(crate) fn admit(self: &Arc<Self>, caller: Caller, body_bytes: u64) -> Result<Permit, ApiError> {
        let mut permit = Permit { admission: Arc::clone(self), caller, sequences: 0, queued_tokens: 0 };
        permit.resize(1, body_bytes / BYTES_PER_TOKEN)?;
        Ok(permit)
    }

    pub(crate) fn load(&self) -> Load {
        self.counts().load
    }

    /// Sequences, and queued prompt tokens, at most.
    pub(crate) fn limits(&self) -> (usize, u64) {
        let line = self.load_line.map_or(usize::MAX, |line| line.sequences);
        (self.max_sequences.min(line), self.max_queued_tokens)
    }

    /// Sequences that fit at all, whatever was measured to be well.
    pub(crate) fn holds(&self) -> usize {
        self.max_sequences
    }

    pub(crate) fn load_line(&self) -> Option<LoadLine> {
        self.load_line
    }

    /// When a client that is refused now should come back: once an eighth of what is inside has finished.
    pub(crate) fn retry_after(&self) -> Duration {
        self.counts().retry_after()
    }

    /// No code under the lock can leave the counts half-changed.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn retry_after(&self) -> Duration {
        let ahead = (self.load.sequences as f64 / 8.0).max(1.0);
        let seen = self.completions.per_second(Instant::now());
        let rate = if seen > 0.0 { seen } else { self.measured_rate };
        let seconds = ahead / rate.max(1e-3);
        Duration::from_secs_f64(seconds.clamp(1.0, 60.0).ceil())
    }
}

/// A request's place. Dropping it makes room.
pub(crate) struct Permit {
    admission: Arc<Admission>,
    caller: Caller,
    sequences: usize,
    queued_tokens: u64,
}

impl Permit {
    /// The request turned out to need `sequences` places and to have `queued_tokens` prompt tokens. Where that is
    /// more than it holds there must be room for the rest.
    pub(crate) fn resize(&mut self, sequences: usize, queued_tokens: u64) -> Result<(), ApiError> {
        let admission = &*self.admission;
        let mut counts = admission.counts();
        let retry_after = counts.retry_after();
        let others = counts.load.sequences - self.sequences;
        let others_tokens = counts.load.queued_tokens - self.queued_tokens;
        let held_by_key = counts.per_key.get(&self.caller.0).copied().unwrap_or(0) - self.sequences;
        if let Some(limit) = admission.max_per_key
            && sequences > self.sequences
            && held_by_key + sequences > limit
        {
            return Err(ApiError::TooManyRequests { limit, retry_after });
        }
        // A request of more choices than the line has places is taken when alone, or it never could be.
        if let Some(line) = admission.load_line
            && sequences > self.sequences
            && others > 0
            && others + sequences > line.sequences
        {
            return Err(ApiError::AtLoadLine { limit: line.sequences, retry_after });
        }
        if sequences > self.sequences && others + sequences > admission.max_sequences {
            return Err(ApiError::QueueFull {
                what: "as many requests as it holds are running or waiting",
                retry_after,
            });
        }
        let grows = queued_tokens > self.queued_tokens;
        // A request longer than the limit is taken when nothing else waits, or it never could be.
        if grows && others_tokens > 0 && others_tokens.saturating_add(queued_tokens) > admission.max_queued_tokens {
            return Err(ApiError::QueueFull { what: "too many prompt tokens are waiting", retry_after });
        }
        counts.load = Load { sequences: others + sequences, queued_tokens: others_tokens + queued_tokens };
        counts.per_key.insert(self.caller.0, held_by_key + sequences);
        (self.sequences, self.queued_tokens) = (sequences, queued_tokens);
        Ok(())
    }

    /// A sequence with this many prompt tokens has begun: they no longer wait.
    pub(crate) fn begin(&mut self, prompt_tokens: u64) {
        let begun = prompt_tokens.min(self.queued_tokens);
        self.queued_tokens -= begun;
        self.admission.counts().load.queued_tokens -= begun;
    }

    /// A sequence was generated to its end, which tells how fast the server is.
    pub(crate) fn note_completion(&self) {
        self.admission.counts().completions.note(Instant::now());
    }

    pub(crate) fn retry_after(&self) -> Duration {
        self.admission.retry_after()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        counts.load.sequences -= self.sequences;
        counts.load.queued_tokens -= self.queued_tokens;
        if let Some(held) = counts.per_key.get_mut(&self.caller.0) {
            *held -= self.sequences;
        }
    }
}

/// Completions in each of the last seconds.
struct CompletionRate {
    start: Instant,
    /// Second `s` since `start` is counted in `seconds[s % WINDOW]`.
    seconds: [u32; WINDOW as usize],
    /// The latest second that was counted in.
    latest: u64,
}

/// Seconds that the rate looks back.
const WINDOW: u64 = 32;

impl CompletionRate {
    fn new(start: Instant) -> Self {
        Self { start, seconds: [0; WINDOW as usize], latest: 0 }
    }

    fn note(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.start).as_secs();
        // Seconds in which nothing ended still hold the counts of a window ago.
        for passed in (self.latest + 1..=second).take(WINDOW as usize) {
            self.seconds[(passed % WINDOW) as usize] = 0;
        }
        if second > self.latest + WINDOW {
            self.seconds = [0; WINDOW as usize];
        }
        self.latest = self.latest.max(second);
        self.seconds[(second % WINDOW) as usize] += 1;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.start);
        let idle = elapsed.as_secs().saturating_sub(self.latest);
        // The newest `WINDOW - idle` of the counted seconds are still in the window.
        let counted = WINDOW.saturating_sub(idle).min(self.latest + 1);
        let recent = (0..counted).map(|back| self.seconds[((self.latest - back) % WINDOW) as usize]);
        f64::from(recent.sum::<u32>()) / elapsed.as_secs_f64().clamp(1.0, WINDOW as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(max_sequences: usize, max_queued_tokens: u64, max_sequences_per_key: Option<usize>) -> Arc<Admission> {
        let config =
            ServerConfig { max_sequences, max_queued_tokens, max_sequences_per_key, ..ServerConfig::default() };
        Admission::new(&config)
    }

    #[test]
    fn sequences_are_bounded_and_room_comes_back() {
        let door = door(3, 1000, None);
        let mut first = door.admit(Caller(0), 0).unwrap();
        first.resize(3, 0).unwrap();
        assert!(matches!(door.admit(Caller(0), 0), Err(ApiError::QueueFull { .. })));
        first.resize(2, 0).unwrap();
        let second = door.admit(Caller(0), 0).unwrap();
        assert!(matches!(first.resize(3, 0), Err(ApiError::QueueFull { .. })));
        drop((first, second));
        assert_eq!(door.load(), Load::default());
    }

    #[test]
    fn the_load_line_comes_before_what_the_server_holds() {
        let load_line = Some(LoadLine { sequences: 2, requests_per_s: 0.1 });
        let door = Admission::new(&ServerConfig { max_sequences: 3, load_line, ..ServerConfig::default() });
        let mut alone = door.admit(Caller(0), 0).unwrap();
        alone.resize(3, 0).unwrap();
        alone.resize(2, 0).unwrap();
        let Err(refused) = door.admit(Caller(0), 0) else { panic!("beyond the line") };
        assert_eq!(
            refused,
            ApiError::AtLoadLine { limit: 2, retry_after: Duration::from_secs(10) },
            "by the line's rate"
        );
        alone.note_completion();
        assert_eq!(door.retry_after(), Duration::from_secs(1), "by the rate that is seen");
        alone.resize(1, 0).unwrap();
        let second = door.admit(Caller(0), 0).unwrap();
        assert!(matches!(alone.resize(2, 0), Err(ApiError::AtLoadLine { .. })));
        drop((alone, second));
        assert_eq!(door.load(), Load::default());
    }

    #[test]
    fn queued_tokens_are_estimated_then_known_then_begun() {
        let door = door(10, 100, None);
        let mut first = door.admit(Caller(0), 240).unwrap();
        assert_eq!(door.load().queued_tokens, 60);
        assert!(matches!(door.admit(Caller(0), 200), Err(ApiError::QueueFull { .. })));
        first.resize(1, 30).unwrap();
        let second = door.admit(Caller(0), 200).unwrap();
        assert_eq!(door.load().queued_tokens, 80);
        first.begin(30);
        drop(second);
        let alone = door.admit(Caller(0), 40_000).unwrap();
        assert_eq!(door.load().queued_tokens, 10_000);
        assert!(door.admit(Caller(0), 4).is_err());
        drop((first, alone));
        assert_eq!(door.load(), Load::default());
    }

    #[test]
    fn each_key_has_its_own_limit() {
        let door = door(10, 100, Some(1));
        let _first = door.admit(Caller(0), 0).unwrap();
        assert!(matches!(door.admit(Caller(0), 0), Err(ApiError::TooManyRequests { limit: 1, .. })));
        let _second = door.admit(Caller(1), 0).unwrap();
    }

    #[test]
    fn the_rate_counts_the_last_seconds_only() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut rate = CompletionRate::new(start);
        assert_eq!(rate.per_second(at(0)), 0.0);
        (0..64).for_each(|second| rate.note(at(second)));
        assert_eq!(rate.per_second(at(63)), 1.0);
        assert_eq!(rate.per_second(at(63 + 16)), 0.5);
        assert_eq!(rate.per_second(at(63 + WINDOW)), 0.0);
        rate.note(at(1000));
        assert_eq!(rate.per_second(at(1000)), 1.0 / WINDOW as f64);
    }
}
