//! What was measured beside what a plan foretold.

use crate::page::{Axis, Chart, Color, Line, Point, Scale, Series};
use crate::report::Foretold;
use crate::summary::RungSummary;

/// The plan's two curves.
pub(super) fn foretold(plan: &[Foretold]) -> Vec<Series> {
    let series = |name: &str, line, value: fn(&Foretold) -> f64| Series {
        name: name.to_owned(),
        color: Color::Grey,
        line,
        points: plan.iter().map(|rung| Point::new(rung.concurrency.into(), value(rung))).collect(),
    };
    if plan.is_empty() {
        return Vec::new();
    }
    vec![
        series("foretold by the plan", Line::Dashed, |rung| rung.predicted),
        series("the roofline", Line::Dotted, |rung| rung.roofline),
    ]
}

/// Throughput as a share of the roofline's at the same concurrency.
pub(super) fn share(rungs: &[&RungSummary], plan: &[Foretold]) -> Chart {
    let point = |summary: &&RungSummary| {
        let most = roofline_at(plan, summary.concurrency)?;
        Some(Point::new(summary.concurrency.into(), 100.0 * summary.rates.output_tokens_per_s / most))
    };
    Chart {
        title: "Share of the roofline".to_owned(),
        about: "Measured throughput over what the GPU's published bandwidth and arithmetic would give at the same \
                concurrency."
            .to_owned(),
        x: super::concurrency(),
        y: Axis::new("%", Scale::Linear),
        series: vec![Series {
            name: "measured, of the roofline".to_owned(),
            color: Color::Blue,
            line: Line::Solid,
            points: rungs.iter().filter_map(point).collect(),
        }],
        ..Chart::default()
    }
}

/// Between the plan's concurrencies in a straight line over their logarithm. None outside of them.
fn roofline_at(plan: &[Foretold], concurrency: u32) -> Option<f64> {
    let above = plan.iter().filter(|rung| rung.concurrency >= concurrency).min_by_key(|rung| rung.concurrency)?;
    let below = plan.iter().filter(|rung| rung.concurrency <= concurrency).max_by_key(|rung| rung.concurrency)?;
    let place = |n: u32| f64::from(n).ln();
    let span = place(above.concurrency) - place(below.concurrency);
    let along = if span > 0.0 { (place(concurrency) - place(below.concurrency)) / span } else { 0.0 };
    let value = below.roofline + along * (above.roofline - below.roofline);
    (value > 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roofline_between_two_concurrencies_lies_between_theirs() {
        let at = |concurrency, roofline| Foretold { concurrency, predicted: 0.0, roofline };
        let plan = [at(4, 100.0), at(1, 50.0), at(16, 200.0)];
        let cases =
            [(1, Some(50.0)), (2, Some(75.0)), (4, Some(100.0)), (8, Some(150.0)), (16, Some(200.0)), (17, None)];
        for (concurrency, expected) in cases {
            let found = roofline_at(&plan, concurrency);
            assert!(
                found.zip(expected).map_or(found == expected, |(a, b)| (a - b).abs() < 1e-9),
                "{concurrency}: {found:?}"
            );
        }
        assert_eq!(roofline_at(&[], 1), None);
    }
}
