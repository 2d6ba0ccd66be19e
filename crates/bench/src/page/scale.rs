//! From values to pixels, and where the ticks of an axis stand.

use super::chart::Scale;
use super::markup::is_drawable;

/// Less than this is nothing to a logarithm that is drawn, and no span to an axis.
const SMALLEST: f64 = 1e-12;

/// An axis laid out: the stretch of values it shows, the pixels it goes over, and its ticks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Projection {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    pub(super) ticks: Vec<f64>,
}

impl Projection {
    /// Lays an axis out over the pixels `from..to` so that it shows all `values`, with about `wanted` ticks.
    pub(super) fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64, wanted: usize) -> Self {
        let fits = |value: &f64| is_drawable(*value) && (scale.is_linear() || *value >= SMALLEST);
        let (low, high) = values
            .filter(fits)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let (low, high, ticks) = match scale {
            Scale::Linear => linear(low, high, wanted),
            Scale::Time => {
                let (low, end, ticks) = linear(low, high, wanted);
                let end = if ticks.get(1).is_some_and(|second| high >= *second) { high } else { end };
                (low, end, ticks.into_iter().filter(|tick| *tick <= end).collect())
            }
            Scale::Doubling => doubling(low, high, wanted),
            Scale::Decades => decades(low, high, wanted),
        };
        Self { scale, low, high, from, to, ticks }
    }

    /// Where a value stands, at the axis' end if it is beyond. None: it stands nowhere.
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        if !is_drawable(value) || !self.scale.is_linear() && value < SMALLEST {
            return None;
        }
        let place = |value: f64| if self.scale.is_linear() { value } else { value.ln() };
        let share = (place(value) - place(self.low)) / (place(self.high) - place(self.low));
        share.is_finite().then(|| self.from + share.clamp(0.0, 1.0) * (self.to - self.from))
    }

    /// Whether a value lies on the axis.
    pub(super) fn shows(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// With zero on it, or values that are far from zero and close to each other would have ticks without end.
fn linear(low: f64, high: f64, wanted: usize) -> (f64, f64, Vec<f64>) {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let span = if high - low > SMALLEST { high - low } else { 1.0 };
    let rough = span / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let last = ((low + span) / step * 0.9999).ceil();
    let ticks = (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect();
    (first * step, last * step, ticks)
}

/// Powers of two, of which every first, second, ... has a tick.
fn doubling(low: f64, high: f64, wanted: usize) -> (f64, f64, Vec<f64>) {
    let first = low.log2().floor() as i32;
    let last = (high.log2().ceil() as i32).max(first + 1);
    let step = ((last - first) as usize).div_ceil(wanted.max(1)).max(1);
    (2f64.powi(first), 2f64.powi(last), (first..=last).step_by(step).map(|power| 2f64.powi(power)).collect())
}

/// One, two and five times the powers of ten, as many of them as there is room for.
fn decades(low: f64, high: f64, wanted: usize) -> (f64, f64, Vec<f64>) {
    let steps: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let all = |steps: &[f64]| -> Vec<f64> {
        (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power))).collect()
    };
    let fine = all(steps[0]);
    let start = fine.iter().copied().rfind(|tick| *tick <= low * 1.0001).unwrap_or(low);
    let end = fine.iter().copied().find(|tick| *tick >= high * 0.9999 && *tick > start).unwrap_or(start * 10.0);
    let inside = |ticks: Vec<f64>| -> Vec<f64> {
        ticks.into_iter().filter(|tick| (start * 0.9999..=end * 1.0001).contains(tick)).collect()
    };
    let choices = steps.map(|steps| inside(all(steps)));
    let every = choices[2].len().div_ceil(wanted.max(1)).max(1);
    let fitting = choices.iter().find(|ticks| ticks.len() <= wanted + 1).cloned();
    let ticks = fitting.unwrap_or_else(|| choices[2].iter().copied().step_by(every).collect());
    (start, end, ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, values: &[f64]) -> Vec<f64> {
        Projection::new(scale, values.iter().copied(), 0.0, 100.0, 5).ticks
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(ticks(Scale::Linear, &[3.0, 970.0]), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(ticks(Scale::Linear, &[0.0]), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(Scale::Time, &[3.0, 970.0]), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(ticks(Scale::Doubling, &[1.0, 48.0]), [1.0, 4.0, 16.0, 64.0]);
        assert_eq!(ticks(Scale::Decades, &[17.0, 130.0]), [10.0, 20.0, 50.0, 100.0, 200.0]);
        assert_eq!(ticks(Scale::Decades, &[1.0, 10_000.0]), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }

    #[test]
    fn an_axis_goes_from_end_to_end_and_not_beyond() {
        let axis = Projection::new(Scale::Doubling, [1.0, 16.0].into_iter(), 50.0, 250.0, 5);
        assert_eq!((axis.at(1.0), axis.at(4.0), axis.at(16.0)), (Some(50.0), Some(150.0), Some(250.0)));
        assert_eq!((axis.at(64.0), axis.at(0.0), axis.at(f64::NAN)), (Some(250.0), None, None));
        assert!(axis.shows(16.0) && !axis.shows(17.0));
    }

    #[test]
    fn nothing_and_accidents_leave_a_sane_axis() {
        for scale in [Scale::Linear, Scale::Time, Scale::Doubling, Scale::Decades] {
            for values in [
                &[][..],
                &[f64::NAN, f64::INFINITY, 1e300],
                &[0.0],
                &[1e-12],
                &[1e15, 1.0],
                &[5.0, 5.0],
                &[-1e15, -1e15],
            ] {
                let axis = Projection::new(scale, values.iter().copied(), 0.0, 100.0, 5);
                assert!(axis.low < axis.high, "{scale:?} {values:?}");
                assert!((2..=9).contains(&axis.ticks.len()), "{scale:?} {values:?}: {:?}", axis.ticks);
            }
        }
    }
}
