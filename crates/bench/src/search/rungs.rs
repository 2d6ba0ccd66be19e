//! The rungs measured so far: replicates pooled, in order of concurrency.

use super::{RungPoint, SearchConfig};
use crate::evidence::{Shown, shown};

/// One-sided, so that both ends of the interval for the share of successes make 95%.
pub(super) const SUCCESS_CONFIDENCE: f64 = 0.975;

/// All measurements at one concurrency.
#[derive(Debug)]
pub(super) struct Rung {
    /// The throughput is the median of the measurements', so that one lucky one does not decide; counts are sums.
    pub(super) point: RungPoint,
    /// Of each measurement, ascending.
    throughputs: Vec<f64>,
}

impl Rung {
    pub(super) fn new(point: RungPoint) -> Self {
        Self { point, throughputs: vec![point.throughput] }
    }

    pub(super) fn n(&self) -> u32 {
        self.point.concurrency
    }

    pub(super) fn throughput(&self) -> f64 {
        self.point.throughput
    }

    pub(super) fn half_width(&self) -> f64 {
        self.point.half_width.unwrap_or(0.0)
    }

    pub(super) fn replicates(&self) -> u32 {
        self.throughputs.len() as u32
    }

    pub(super) fn add(&mut self, other: &RungPoint) {
        let count = f64::from(self.replicates());
        self.throughputs.push(other.throughput);
        self.throughputs.sort_unstable_by(f64::total_cmp);
        let (last, point) = (self.throughputs.len() - 1, &mut self.point);
        point.throughput = (self.throughputs[last / 2] + self.throughputs[last.div_ceil(2)]) / 2.0;
        let widths = point.half_width.zip(other.half_width);
        // Measurements that lie further apart than their own intervals say are no surer for being several.
        let apart = (self.throughputs[last] - self.throughputs[0]) / 2.0 / (count + 1.0).sqrt();
        point.half_width = widths.map(|(pooled, new)| ((pooled * count).hypot(new) / (count + 1.0)).max(apart));
        point.requests += other.requests;
        point.failed += other.failed;
        point.refused += other.refused;
        point.slo_requests += other.slo_requests;
        point.ttft_violations += other.ttft_violations;
        point.tpot_violations += other.tpot_violations;
        point.client_limited |= other.client_limited;
    }
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
        let mut all: Vec<Rung> = Vec::new();
        for point in points {
            match all.binary_search_by_key(&point.concurrency, Rung::n) {
                Ok(at) => all[at].add(point),
                Err(at) => all.insert(at, Rung::new(*point)),
            }
        }
        Self { config, all, gone, is_it_gone }
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
