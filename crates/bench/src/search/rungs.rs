//! The rungs measured so far: replicates pooled, in order of concurrency.

use std::collections::BTreeMap;

use super::breakpoint::{Constraint, shown_broken};
use super::{RungPoint, SearchConfig};
use crate::evidence::{Shown, shown};

/// A throughput without an interval, of a rung that was not steady, could be off by this share of itself.
const UNSTEADY_WIDTH: f64 = 0.05;
/// So many more measurements of a rung that is worse than a higher one.
const MORE_IF_CONTRADICTED: u32 = 2;
/// One-sided, so that both ends of the interval for the share of successes make 95%.
pub(super) const SUCCESS_CONFIDENCE: f64 = 0.975;

/// All measurements at one concurrency.
#[derive(Debug)]
pub(super) struct Rung {
    /// Of the measurements that count: the throughput is their median, so that one lucky one does not decide; counts
    /// are sums.
    pub(super) point: RungPoint,
    /// How many there were; of these, how many were left out; and whether some limit was shown to be broken by just half
    /// of them, or by the only one.
    replicates: usize,
    left_out: usize,
    in_doubt: bool,
}

impl Rung {
    /// None of no measurements. One that is shown to break a limit which most of the others are not shown to break had a
    /// hiccup, and counts for nothing.
    pub(super) fn pooled(points: Vec<RungPoint>, breaks: impl Fn(&RungPoint) -> Vec<Constraint>) -> Option<Self> {
        let replicates = points.len();
        let broken: Vec<Vec<Constraint>> = points.iter().map(breaks).collect();
        let times = |limit: &Constraint| broken.iter().filter(|limits| limits.contains(limit)).count();
        let repeats = |limits: &Vec<Constraint>| limits.iter().all(|limit| times(limit) * 2 >= replicates);
        let kept: Vec<RungPoint> =
            points.iter().zip(&broken).filter(|(_, limits)| repeats(limits)).map(|(point, _)| *point).collect();
        let left_out = replicates - kept.len();
        let halved = |limit: &Constraint| times(limit) * 2 == replicates || replicates == 1;
        let in_doubt = broken.iter().flatten().any(halved);
        Some(Self { point: pool(if kept.is_empty() { &points } else { &kept })?, replicates, left_out, in_doubt })
    }

    pub(super) fn n(&self) -> u32 {
        self.point.concurrency
    }

    pub(super) fn throughput(&self) -> f64 {
        self.point.throughput
    }

    /// Of the throughput's interval; wide where there is none.
    pub(super) fn half_width(&self) -> f64 {
        half_width(&self.point)
    }

    pub(super) fn replicates(&self) -> u32 {
        self.replicates as u32
    }

    /// Measurements that failed where most did not.
    pub(super) fn hiccups(&self) -> usize {
        self.left_out
    }

    /// Whether it failed once and has not been measured again, or failed half of the times.
    pub(super) fn is_doubtful_failure(&self) -> bool {
        self.in_doubt
    }

    fn is_split(&self) -> bool {
        self.in_doubt && self.replicates > 1
    }
}

/// Of a measurement's interval; wide where there is none.
pub(super) fn half_width(point: &RungPoint) -> f64 {
    point.half_width.unwrap_or(UNSTEADY_WIDTH * point.throughput)
}

fn pool(points: &[RungPoint]) -> Option<RungPoint> {
    let mut pooled = *points.first()?;
    let mut throughputs: Vec<f64> = points.iter().map(|point| point.throughput).collect();
    throughputs.sort_unstable_by(f64::total_cmp);
    let (last, count) = (throughputs.len() - 1, throughputs.len() as f64);
    pooled.throughput = (throughputs[last / 2] + throughputs[last.div_ceil(2)]) / 2.0;
    // Measurements that lie further apart than their own intervals say are no surer for being several.
    let apart = (throughputs[last] - throughputs[0]) / 2.0 / count.sqrt();
    // One that was not steady takes nothing from what the others know.
    let widths: Vec<f64> = points.iter().filter_map(|point| point.half_width).collect();
    let squares: f64 = widths.iter().map(|width| width * width).sum();
    pooled.half_width = (!widths.is_empty()).then(|| (squares.sqrt() / widths.len() as f64).max(apart));
    for point in &points[1..] {
        pooled.requests += point.requests;
        pooled.failed += point.failed;
        pooled.refused += point.refused;
        pooled.slo_requests += point.slo_requests;
        pooled.ttft_violations += point.ttft_violations;
        pooled.tpot_violations += point.tpot_violations;
        pooled.client_limited |= point.client_limited;
    }
    Some(pooled)
}

pub(super) struct Rungs<'a> {
    pub(super) config: &'a SearchConfig,
    /// By concurrency, ascending.
    pub(super) all: Vec<Rung>,
    /// The server no longer serves even one request at a time.
    pub(super) gone: bool,
    /// Nothing succeeded in the last rung, and whether the server survived it is not known yet.
    pub(super) is_it_gone: bool,
}

impl<'a> Rungs<'a> {
    /// `points` in the order they were measured.
    pub(super) fn new(config: &'a SearchConfig, points: &[RungPoint]) -> Self {
        let silent = |point: &RungPoint| point.failed == point.requests;
        let (gone, is_it_gone) = match points {
            [] | [_] => (false, false),
            [.., last] => (silent(last) && last.concurrency == 1, silent(last) && last.concurrency > 1),
        };
        // That the server is gone says nothing about a concurrency of 1.
        let points = if gone { &points[..points.len() - 1] } else { points };
        let mut by_concurrency: BTreeMap<u32, Vec<RungPoint>> = BTreeMap::new();
        for point in points {
            by_concurrency.entry(point.concurrency).or_default().push(*point);
        }
        let breaks = |point: &RungPoint| shown_broken(config, point);
        let all = by_concurrency.into_values().filter_map(|points| Rung::pooled(points, breaks)).collect();
        Self { config, all, gone, is_it_gone }
    }

    /// The concurrency to measure again before its failure is believed: the ladder's last rung, one that failed half of
    /// the times, or one that breaks a limit which a higher one is shown to keep. Where the bisection is, the two ends
    /// that are left are measured again.
    pub(super) fn to_repeat(&self) -> Option<u32> {
        let most = self.config.replicates;
        let is_doubtful = |rung: &&Rung| {
            let is_top = rung.n() == self.top() && rung.is_doubtful_failure();
            (is_top || rung.is_split()) && rung.replicates() < most
        };
        let is_odd =
            |rung: &&Rung| (2..most + MORE_IF_CONTRADICTED).contains(&rung.replicates()) && self.is_contradicted(rung);
        self.all.iter().find(|rung| is_doubtful(rung) || is_odd(rung)).map(Rung::n)
    }

    /// Whether the last rung may have failed by accident.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.to_repeat().is_some()
    }

    /// Requests a second that the highest throughput comes to; 0 if it is not known how long a reply is.
    pub(super) fn max_rate(&self) -> f64 {
        let serving = || self.serving().iter().map(|rung| &rung.point).filter(|point| point.tokens_per_request > 0.0);
        let (tokens, requests) = serving().fold((0.0, 0.0), |(tokens, requests), point| {
            let of = point.requests as f64;
            (tokens + of * point.tokens_per_request, requests + of)
        });
        match self.maximum() {
            Some((throughput, _)) if tokens > 0.0 => throughput * requests / tokens,
            _ => 0.0,
        }
    }

    pub(super) fn top(&self) -> u32 {
        self.all.last().map_or(0, Rung::n)
    }

    /// The next rung of the ladder, unless the last is the highest.
    pub(super) fn above(&self) -> Option<u32> {
        let next = if self.top() == 0 { 1 } else { (self.top() + 1).next_power_of_two() };
        (self.top() < self.config.max_concurrency).then_some(next.min(self.config.max_concurrency))
    }

    /// How many rungs there are below the first that serves nothing or is shown to be below the success floor.
    fn serving_end(&self) -> usize {
        let limit = 1.0 - self.config.success_floor;
        let serves = |rung: &Rung| {
            let RungPoint { failed, requests, throughput, .. } = rung.point;
            throughput > 0.0 && shown(failed, requests, limit, SUCCESS_CONFIDENCE) != Shown::Beyond
        };
        self.all.iter().position(|rung| !serves(rung)).unwrap_or(self.all.len())
    }

    /// The rungs whose throughput counts.
    pub(super) fn serving(&self) -> &[Rung] {
        &self.all[..self.serving_end()]
    }

    /// The first rung whose throughput does not count.
    pub(super) fn broken(&self) -> Option<&Rung> {
        self.all.get(self.serving_end())
    }

    /// The rungs between `low` and `high`, none of which is nearer than the resolution: where to measure next.
    pub(super) fn middle(&self, low: u32, high: u32) -> Option<u32> {
        let resolution = ((f64::from(high) * self.config.resolution) as u32).max(1);
        (high - low > resolution).then_some(low + (high - low) / 2)
    }
}
