//! When requests are to be sent, fixed before the first is: the schedule of an open loop.
//!
//! It must never know how the server fares: that arrivals do not wait for it is what makes an open loop one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{BenchError, Result};
use crate::lengths::standard_normal;

/// How requests arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// A fixed number of clients, each sending its next request when its last one has ended.
    #[default]
    Closed,
    /// Evenly spaced, so many a second.
    Constant { rate: f64 },
    /// Independent of one another: exponential gaps.
    Poisson { rate: f64 },
    /// Gamma-distributed gaps of this shape: 1 is Poisson, less is burstier, more is more even.
    Gamma { rate: f64, shape: f64 },
    /// Poisson arrivals whose rate rises in a straight line from nothing to `rate` over the run's time.
    Ramp { rate: f64 },
    /// At the times that the workload's trace gives.
    Trace,
}

impl Arrivals {
    /// Requests a second that are asked for; of a ramp, at its end. None: nothing is asked for.
    pub fn rate(&self) -> Option<f64> {
        match *self {
            Self::Constant { rate } | Self::Poisson { rate } | Self::Gamma { rate, .. } | Self::Ramp { rate } => {
                Some(rate)
            }
            Self::Closed | Self::Trace => None,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let wrong = |what: &str| Err(BenchError::Config(what.to_owned()));
        if self.rate().is_some_and(|rate| !(rate.is_finite() && rate > 0.0 && rate <= 1e6)) {
            return wrong("an arrival rate must be more than 0 and at most 1000000 requests a second");
        }
        match self {
            Self::Gamma { shape, .. } if !(0.01..=1000.0).contains(shape) => {
                wrong("the shape of gamma arrivals must be from 0.01 (very bursty) to 1000 (even)")
            }
            _ => Ok(()),
        }
    }
}

/// The times of arrival after the run's start, one after another, without end or up to the trace's.
#[derive(Debug)]
pub(crate) struct Schedule<'a> {
    arrivals: Arrivals,
    rng: StdRng,
    /// Seconds of the last arrival; for a ramp, expected arrivals so far.
    at: f64,
    count: u64,
    /// How long a ramp rises.
    span: f64,
    trace: &'a [Duration],
}

impl<'a> Schedule<'a> {
    /// `trace` is used by [`Arrivals::Trace`] alone, and ascends.
    pub(crate) fn new(arrivals: Arrivals, seed: u64, span: Duration, trace: &'a [Duration]) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { arrivals, rng, at: 0.0, count: 0, span: span.as_secs_f64(), trace }
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.rng.random::<f64>()).ln()
    }

    /// A gamma-distributed number of mean 1 (Marsaglia and Tsang, "A simple method for generating gamma variables",
    /// 2000; shapes below 1 by their boost).
    fn gamma(&mut self, shape: f64) -> f64 {
        let boosted = if shape < 1.0 { shape + 1.0 } else { shape };
        let d = boosted - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        let value = loop {
            let x = standard_normal(&mut self.rng);
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.rng.random::<f64>()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                break d * v;
            }
        };
        let boost = if shape < 1.0 { (1.0 - self.rng.random::<f64>()).powf(1.0 / shape) } else { 1.0 };
        value * boost / shape
    }
}

impl Iterator for Schedule<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let index = self.count;
        self.count += 1;
        let seconds = match self.arrivals {
            Arrivals::Closed => return None,
            Arrivals::Trace => return self.trace.get(index as usize).copied(),
            Arrivals::Constant { rate } => index as f64 / rate,
            Arrivals::Poisson { rate } => {
                self.at += self.exponential() / rate;
                self.at
            }
            Arrivals::Gamma { rate, shape } => {
                self.at += self.gamma(shape) / rate;
                self.at
            }
            Arrivals::Ramp { rate } => {
                // Expected arrivals by time t are rate t^2 / (2 span) up to the span, and grow by `rate` a second after.
                self.at += self.exponential();
                let by_span = rate * self.span / 2.0;
                if self.at <= by_span {
                    (2.0 * self.at * self.span / rate).sqrt()
                } else {
                    self.span + (self.at - by_span) / rate
                }
            }
        };
        // Far beyond any run; a Duration would overflow.
        Some(Duration::from_secs_f64(seconds.min(1e12)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(100);

    fn times(arrivals: Arrivals, seed: u64, count: usize) -> Vec<f64> {
        Schedule::new(arrivals, seed, SPAN, &[]).take(count).map(|at| at.as_secs_f64()).collect()
    }

    /// Mean and squared coefficient of variation of the gaps.
    fn gaps(arrivals: Arrivals) -> (f64, f64) {
        let times = times(arrivals, 1, 20_001);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance / (mean * mean))
    }

    #[test]
    fn gaps_have_their_rate_and_their_burstiness() {
        let cases = [
            (Arrivals::Constant { rate: 50.0 }, 0.0),
            (Arrivals::Poisson { rate: 50.0 }, 1.0),
            (Arrivals::Gamma { rate: 50.0, shape: 1.0 }, 1.0),
            (Arrivals::Gamma { rate: 50.0, shape: 0.25 }, 4.0),
            (Arrivals::Gamma { rate: 50.0, shape: 4.0 }, 0.25),
        ];
        for (arrivals, variation) in cases {
            let (mean, squared) = gaps(arrivals);
            assert!((mean - 0.02).abs() < 0.001, "{arrivals:?}: {mean}");
            assert!((squared - variation).abs() < 0.1 * variation + 1e-6, "{arrivals:?}: {squared}");
        }
    }

    #[test]
    fn a_ramp_rises_in_a_straight_line_and_then_holds() {
        let times = times(Arrivals::Ramp { rate: 40.0 }, 3, 6000);
        let between = |from: f64, to: f64| times.iter().filter(|at| (from..to).contains(*at)).count() as f64;
        for (from, to, expected) in [(0.0, 50.0, 500.0), (50.0, 100.0, 1500.0), (100.0, 150.0, 2000.0_f64)] {
            let count = between(from, to);
            assert!((count - expected).abs() < 4.0 * expected.sqrt(), "{from} to {to} s: {count}");
        }
    }

    #[test]
    fn schedules_are_seeded_and_ascend() {
        let poisson = Arrivals::Poisson { rate: 9.0 };
        assert_eq!(times(poisson, 5, 100), times(poisson, 5, 100));
        assert_ne!(times(poisson, 5, 100), times(poisson, 6, 100));
        assert!(times(Arrivals::Gamma { rate: 9.0, shape: 0.1 }, 5, 100).is_sorted());
    }

    #[test]
    fn a_trace_ends_and_a_closed_loop_has_no_schedule() {
        let trace = [1, 2, 2].map(Duration::from_secs);
        assert_eq!(Schedule::new(Arrivals::Trace, 0, SPAN, &trace).collect::<Vec<_>>(), trace);
        assert_eq!(Schedule::new(Arrivals::Closed, 0, SPAN, &trace).next(), None);
    }

    #[test]
    fn rates_that_are_none_are_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Arrivals::Poisson { rate }.validate().is_err(), "{rate}");
        }
        assert!(Arrivals::Gamma { rate: 1.0, shape: 0.0 }.validate().is_err());
        assert!(Arrivals::Gamma { rate: 1.0, shape: 0.5 }.validate().is_ok());
    }
}
