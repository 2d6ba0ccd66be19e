//! The door: how many requests, and how many prompt tokens that no step has taken up yet, may be in the engine at once.
//! Counted from submission on, so that what still lies in the inbox is counted too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shared counts and their limits.
#[derive(Debug)]
pub(crate) struct Admission {
    max_requests: usize,
    max_queued_tokens: u64,
    requests: AtomicUsize,
    queued_tokens: AtomicU64,
}

impl Admission {
    pub(crate) fn new(max_requests: usize, max_queued_tokens: u64) -> Arc<Self> {
        let (requests, queued_tokens) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { max_requests, max_queued_tokens, requests, queued_tokens })
    }

    /// Lets one request in, or not. A prompt longer than the token limit is let in where no other is queued.
    /// Callers take turns (they hold the inbox's lock); permits may be released meanwhile, which only makes room.
    pub(crate) fn admit(self: &Arc<Self>, prompt_tokens: usize) -> Option<Permit> {
        let prompt_tokens = prompt_tokens as u64;
        let queued = self.queued_tokens();
        let no_room = queued > 0 && queued.saturating_add(prompt_tokens) > self.max_queued_tokens;
        if no_room || self.requests() >= self.max_requests {
            return None;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.queued_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
        Some(Permit { admission: Arc::clone(self), queued_tokens: prompt_tokens })
    }

    /// Requests that were let in and have not ended.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Prompt tokens of those whose first step is still to come.
    pub(crate) fn queued_tokens(&self) -> u64 {
        self.queued_tokens.load(Ordering::Relaxed)
    }
}

/// One request's place. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    queued_tokens: u64,
}

impl Permit {
    /// The request's first step was planned: its prompt no longer waits.
    pub(crate) fn leave_queue(&mut self) {
        self.admission.queued_tokens.fetch_sub(std::mem::take(&mut self.queued_tokens), Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave_queue();
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_and_room_comes_back() {
        let door = Admission::new(2, u64::MAX);
        let first = door.admit(5).expect("room for one");
        let _second = door.admit(5).expect("room for two");
        assert!(door.admit(5).is_none());
        drop(first);
        assert_eq!((door.requests(), door.queued_tokens()), (1, 5));
        assert!(door.admit(5).is_some());
    }

    #[test]
    fn queued_tokens_are_bounded_but_a_lone_long_prompt_enters() {
        let door = Admission::new(10, 100);
        let mut long = door.admit(1000).expect("nothing else is queued");
        assert!(door.admit(1).is_none());
        long.leave_queue();
        let _short = door.admit(60).expect("the long prompt left the queue");
        assert!(door.admit(41).is_none());
        let _fits = door.admit(40).expect("exactly at the limit");
        drop(long);
        assert_eq!((door.requests(), door.queued_tokens()), (2, 100));
    }
}
