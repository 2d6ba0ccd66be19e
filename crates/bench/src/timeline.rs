//! Output chunks counted by the time they came in, while a run is under way.
//!
//! Records reach the collector only when their request ends. What is in flight would be missing from a live rate, so
//! the stop rule and the progress display read this instead.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Width of a bucket.
const BUCKET: Duration = Duration::from_millis(50);
/// The most buckets that are kept (10,000 seconds); what comes later falls into the last one.
const MAX_BUCKETS: usize = 200_000;

/// Counts by bucket. Written by every client at once.
#[derive(Debug)]
pub(crate) struct Timeline {
    counts: Box<[AtomicU32]>,
}

impl Timeline {
    /// Room for a run of `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        let buckets = (longest.as_millis() / BUCKET.as_millis() + 1).min(MAX_BUCKETS as u128) as usize;
        Self { counts: (0..buckets).map(|_| AtomicU32::new(0)).collect() }
    }

    pub(crate) fn add(&self, at: Duration, chunks: u32) {
        self.counts[self.bucket(at)].fetch_add(chunks, Ordering::Relaxed);
    }

    /// The rate in chunks a second of each whole bucket in `from..to`.
    pub(crate) fn rates(&self, from: Duration, to: Duration) -> Vec<f64> {
        let first = from.as_nanos().div_ceil(BUCKET.as_nanos()) as usize;
        let end = self.bucket(to);
        let counts = self.counts.get(first..end).unwrap_or_default();
        counts.iter().map(|count| f64::from(count.load(Ordering::Relaxed)) / BUCKET.as_secs_f64()).collect()
    }

    fn bucket(&self, at: Duration) -> usize {
        ((at.as_nanos() / BUCKET.as_nanos()) as usize).min(self.counts.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_cover_whole_buckets_only() {
        let timeline = Timeline::new(Duration::from_secs(1));
        timeline.add(Duration::from_millis(60), 3);
        timeline.add(Duration::from_millis(110), 1);
        timeline.add(Duration::from_secs(99), 7);
        assert_eq!(timeline.rates(Duration::from_millis(10), Duration::from_millis(149)), [60.0]);
        assert_eq!(timeline.rates(Duration::ZERO, Duration::from_millis(150)), [0.0, 60.0, 20.0]);
        assert_eq!(timeline.rates(Duration::from_secs(5), Duration::from_secs(9)), Vec::<f64>::new());
    }
}
