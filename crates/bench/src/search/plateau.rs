//! Where throughput stops rising.

use super::Verdict;
use super::rungs::{Rung, Rungs};

/// A saturation point: the smallest concurrency surely there, and the smallest and greatest that could be it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saturation {
    pub(super) at: u32,
    pub(super) low: u32,
    pub(super) high: u32,
}

impl Rungs<'_> {
    pub(super) fn peak(&self) -> Option<&Rung> {
        self.serving().iter().max_by(|a, b| a.throughput().total_cmp(&b.throughput()))
    }

    /// The rungs of the ladder, which the bisections' are not: each concurrency twice the one before, and the highest.
    fn ladder(&self) -> Vec<&Rung> {
        let max = self.config.max_concurrency;
        self.serving().iter().filter(|rung| rung.n().is_power_of_two() || rung.n() == max).collect()
    }

    /// Whether throughput is known to rise no more: so many flat doublings in a row, and no rise behind them.
    pub(super) fn has_plateau(&self) -> bool {
        let ladder = self.ladder();
        let mut flat = 0;
        (1..ladder.len()).any(|i| {
            flat = if self.is_flat(ladder[i - 1], ladder[i]) { flat + 1 } else { 0 };
            let highest = |rungs: &[&Rung]| rungs.iter().map(|rung| rung.throughput()).fold(0.0, f64::max);
            flat >= self.config.flat_doublings
                && highest(&ladder[i + 1..]) < highest(&ladder[..=i]) * (1.0 + self.config.flat_gain)
        })
    }

    /// Whether the last doubling, which is all there is where the ladder ends, gained little.
    pub(super) fn ends_flat(&self) -> bool {
        match self.ladder()[..] {
            [.., low, high] => gain(low, high) < self.config.flat_gain,
            _ => false,
        }
    }

    /// Whether throughput gained less than `flat_gain` from `low` to `high`, with confidence where there is one.
    fn is_flat(&self, low: &Rung, high: &Rung) -> bool {
        let relative = |rung: &Rung| rung.half_width() / rung.throughput();
        let gain = gain(low, high);
        let error = (1.0 + gain) * relative(low).hypot(relative(high));
        // An interval wider than what is looked for can tell nothing apart: then the estimate itself decides, or a
        // noisy server would be driven to the highest concurrency on the strength of its noise.
        let bound = if error < self.config.flat_gain { gain + error } else { gain };
        bound < self.config.flat_gain
    }

    /// A plateau, or a peak with a fall behind it.
    pub(super) fn shape(&self) -> Verdict {
        let (Some(peak), Some(last)) = (self.peak(), self.serving().last()) else { return Verdict::Plateaued };
        let falls = last.throughput() + last.half_width() < peak.throughput() * (1.0 - 2.0 * self.config.flat_gain);
        if falls { Verdict::Retrograde } else { Verdict::Plateaued }
    }

    /// The next concurrency for the saturation point: about the peak first, where throughput falls behind it, then
    /// between the greatest that is not saturated and the smallest that is.
    pub(super) fn toward_saturation(&self) -> Option<u32> {
        if let Some(next) = self.toward_peak() {
            return Some(next);
        }
        let high = self.saturation()?.at;
        let low = self.all.iter().map(Rung::n).filter(|n| *n < high).max()?;
        self.middle(low, high)
    }

    /// A peak that throughput rises to and falls from is sharp, and may lie between two rungs of the ladder: the middle
    /// of the gap on the peak's higher side, until both gaps are small. One that stands out from all other rungs is
    /// measured again first: it may have been luck.
    fn toward_peak(&self) -> Option<u32> {
        if self.shape() != Verdict::Retrograde {
            return None;
        }
        let (serving, top) = (self.serving(), self.peak()?);
        let peak = top.n();
        let lower = |rung: &Rung| rung.n() == peak || rung.throughput() + rung.half_width() < top.throughput();
        if top.replicates() < self.config.replicates && serving.iter().all(lower) {
            return Some(peak);
        }
        let at = serving.iter().position(|rung| rung.n() == peak)?;
        let neighbours = [at.checked_sub(1).map(|left| &serving[left]), serving.get(at + 1)];
        let wide = |side: &&Rung| {
            let (low, high) = (side.n().min(peak), side.n().max(peak));
            f64::from(high - low) > (2.0 * self.config.resolution * f64::from(high)).max(1.0)
        };
        let higher = |a: &&Rung, b: &&Rung| a.throughput().total_cmp(&b.throughput());
        let side = neighbours.into_iter().flatten().filter(wide).max_by(higher)?.n();
        Some(peak.min(side) + peak.abs_diff(side) / 2)
    }

    pub(super) fn saturation(&self) -> Option<Saturation> {
        let (share, maximum) = (self.config.saturation_share, self.maximum()?);
        // A rung whose interval is wider than half of what separates it from the maximum would fail by its width alone.
        let widest = (1.0 - share) / 2.0;
        let surely = |rung: &Rung| {
            let width = rung.half_width();
            if width <= widest * rung.throughput() { rung.throughput() - width } else { rung.throughput() }
        };
        let at = self.first(maximum.0, surely)?;
        let possible = self.first(maximum.0 - maximum.1, |rung| rung.throughput() + rung.half_width())?;
        // What was not measured below the first that could be it is not ruled out either.
        let low = self.all.iter().map(Rung::n).filter(|n| *n < possible).max().map_or(1, |n| n + 1);
        let high = self.first(maximum.0 + maximum.1, |rung| rung.throughput() - rung.half_width())?;
        Some(Saturation { at, low: low.min(at), high: high.max(at) })
    }

    /// The smallest concurrency whose throughput, by `value`, has the share of the maximum.
    fn first(&self, maximum: f64, value: impl Fn(&Rung) -> f64) -> Option<u32> {
        let enough = maximum * self.config.saturation_share;
        let first = self.serving().iter().find(|rung| value(rung) >= enough);
        Some(first.or_else(|| self.peak())?.n())
    }

    /// The highest throughput and its half-width: the mean of all rungs within a flat gain that cannot be told from the
    /// highest, whose own figure is too high the more rungs it was chosen from.
    pub(super) fn maximum(&self) -> Option<(f64, f64)> {
        let alike = self.alike()?;
        let count = alike.len() as f64;
        let mean = alike.iter().map(|rung| rung.throughput()).sum::<f64>() / count;
        let width = alike.iter().map(|rung| rung.half_width().powi(2)).sum::<f64>().sqrt() / count;
        Some((mean, width))
    }

    /// The same to be told; without an interval where none of its rungs has one.
    pub(super) fn plateau(&self) -> Option<(f64, Option<f64>)> {
        let (mean, width) = self.maximum()?;
        let is_known = self.alike()?.iter().any(|rung| rung.point.half_width.is_some());
        Some((mean, is_known.then_some(width)))
    }

    fn alike(&self) -> Option<Vec<&Rung>> {
        let peak = self.peak()?;
        let (least, near) = (peak.throughput() - peak.half_width(), peak.throughput() * (1.0 - self.config.flat_gain));
        let is_alike = |rung: &&Rung| rung.throughput() >= near && rung.throughput() + rung.half_width() >= least;
        Some(self.serving().iter().filter(is_alike).collect())
    }
}

fn gain(low: &Rung, high: &Rung) -> f64 {
    high.throughput() / low.throughput() - 1.0
}
