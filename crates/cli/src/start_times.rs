//! How long each part of a start takes, for the log and for /metrics.

use std::fmt;
use std::time::{Duration, Instant};

use crate::bytes::ByteSize;

/// The parts of a start so far, in their order.
#[derive(Clone, Debug)]
pub(crate) struct StartTimes {
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
    /// As stored.
    weight_bytes: u64,
}

/// The part in which the weights are read and packed.
pub(crate) const WEIGHTS: &str = "weights";

impl StartTimes {
    /// The first part begins now.
    pub(crate) fn begin() -> Self {
        Self { last: Instant::now(), parts: Vec::new(), weight_bytes: 0 }
    }

    /// What was done since the part before.
    pub(crate) fn end_part(&mut self, part: &'static str) {
        let now = Instant::now();
        self.parts.push((part, now - self.last));
        self.last = now;
    }

    /// As [`StartTimes::end_part`], of the weights, which were so many bytes.
    pub(crate) fn end_weights(&mut self, bytes: u64) {
        self.end_part(WEIGHTS);
        self.weight_bytes = bytes;
    }

    pub(crate) fn parts(&self) -> &[(&'static str, Duration)] {
        &self.parts
    }
}

/// One line.
impl fmt::Display for StartTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.parts.iter().map(|(_, time)| *time).sum();
        write!(f, "started in {:.2} s:", total.as_secs_f64())?;
        for (index, (part, time)) in self.parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {part} {:.2}", time.as_secs_f64())?;
            if *part == WEIGHTS && self.weight_bytes > 0 {
                let rate = self.weight_bytes as f64 / time.as_secs_f64().max(1e-9);
                write!(f, " ({} at {}/s)", ByteSize(self.weight_bytes), ByteSize(rate as u64))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stand_in_one_line() {
        let mut times = StartTimes::begin();
        times.end_part("open");
        times.end_weights(3 << 20);
        let (open, weights) = (Duration::from_millis(250), Duration::from_millis(1500));
        (times.parts[0].1, times.parts[1].1) = (open, weights);
        assert_eq!(times.to_string(), "started in 1.75 s: open 0.25, weights 1.50 (3.0 MiB at 2.0 MiB/s)");
        assert_eq!(times.parts(), [("open", open), (WEIGHTS, weights)]);
    }
}
