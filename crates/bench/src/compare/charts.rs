//! The reports in common charts, a colour each, the published result in grey.

use crate::page::{Axis, Chart, Color, Line, Point, Rule, Scale, Series};
use crate::report::SaturationReport;
use crate::summary::RungSummary;

use super::{Candidate, Comparison, reference};

const COLORS: [Color; 8] =
    [Color::Blue, Color::Orange, Color::Aqua, Color::Violet, Color::Yellow, Color::Magenta, Color::Green, Color::Brown];

pub(super) fn all(comparison: &Comparison) -> Vec<Chart> {
    let charts = [
        throughput(comparison),
        requests(comparison),
        latency(comparison, "Time to first token", |summary| summary.ttft_ms.as_ref().map(|d| (d.p95, d.p95_interval))),
        latency(comparison, "Time a token, after the first", |summary| {
            summary.tpot_ms.as_ref().map(|d| (d.p95, d.p95_interval))
        }),
        trade_off(comparison),
    ];
    charts.into_iter().filter(|chart| !chart.is_empty()).collect()
}

fn concurrency() -> Axis {
    Axis::new("concurrent requests", Scale::Doubling)
}

/// A series for each report, a point for each concurrency.
fn series(comparison: &Comparison, point: impl Fn(usize, &RungSummary) -> Option<Point>) -> Vec<Series> {
    let one = |(index, one): (usize, &Candidate)| Series {
        name: one.name.clone(),
        color: COLORS[index % COLORS.len()],
        line: if index < COLORS.len() { Line::Solid } else { Line::Dashed },
        points: counted(&one.report).into_iter().filter_map(|summary| point(index, summary)).collect(),
    };
    comparison.candidates.iter().enumerate().map(one).collect()
}

fn counted(report: &SaturationReport) -> Vec<&RungSummary> {
    let mut ns: Vec<u32> = report.rungs.iter().map(|rung| rung.summary.concurrency).collect();
    ns.sort_unstable();
    ns.dedup();
    ns.into_iter().filter_map(|n| report.rung_at(n)).map(|rung| &rung.summary).collect()
}

fn throughput(comparison: &Comparison) -> Chart {
    let mut all = series(comparison, |_, summary| {
        let rate = summary.rates.output_tokens_per_s;
        let interval = summary.output_half_width.map(|width| ((rate - width).max(0.0), rate + width));
        Some(Point { interval, ..Point::new(summary.concurrency.into(), rate) })
    });
    all.extend(published(comparison, |one| one.at.output_tokens_per_s));
    let marks = comparison.candidates.iter().enumerate().take(COLORS.len()).map(|(index, one)| Rule::X {
        name: format!("{} saturates at {}", one.name, one.report.answer.saturation),
        at: one.report.answer.saturation.into(),
        color: COLORS[index],
    });
    Chart {
        title: "Throughput against concurrency".to_owned(),
        about: "Output tokens a second of successful requests, with 95% intervals.".to_owned(),
        x: concurrency(),
        y: Axis::new("output tok/s", Scale::Linear),
        series: all,
        rules: marks.collect(),
        wide: true,
        ..Chart::default()
    }
}

/// One dot for each published result at its concurrency.
fn published(comparison: &Comparison, value: impl Fn(&reference::Published) -> f64) -> Vec<Series> {
    let one = |published: &&reference::Published| Series {
        name: format!("{}, {}", published.model, reference::published().description),
        color: Color::Grey,
        line: Line::Dots,
        points: vec![Point::new(published.at.concurrency.into(), value(published))],
    };
    comparison.published.iter().map(one).collect()
}

fn requests(comparison: &Comparison) -> Chart {
    let mut all =
        series(comparison, |_, summary| Some(Point::new(summary.concurrency.into(), summary.rates.requests_per_s)));
    let ramp = |published: &&reference::Published| {
        let ends = |stretch: &reference::Stretch| {
            let [low, high] = stretch.requests_per_s;
            let interval = (low < high).then_some((low, high));
            let mut concurrencies = stretch.concurrency.to_vec();
            concurrencies.dedup();
            let point = move |n: u32| Point { interval, ..Point::new(n.into(), (low + high) / 2.0) };
            concurrencies.into_iter().map(point).collect::<Vec<_>>()
        };
        Series {
            name: format!("{}, {}", published.model, reference::published().description),
            color: Color::Grey,
            line: Line::Dashed,
            points: published.ramp.iter().flat_map(ends).collect(),
        }
    };
    all.extend(comparison.published.iter().map(ramp));
    Chart {
        title: "Requests a second".to_owned(),
        about: "Successful requests.".to_owned(),
        x: concurrency(),
        y: Axis::new("req/s", Scale::Linear),
        series: all,
        ..Chart::default()
    }
}

fn latency(
    comparison: &Comparison,
    title: &str,
    value: impl Fn(&RungSummary) -> Option<(f64, Option<[f64; 2]>)>,
) -> Chart {
    let all = series(comparison, |_, summary| {
        let (y, interval) = value(summary)?;
        Some(Point { interval: interval.map(<(f64, f64)>::from), ..Point::new(summary.concurrency.into(), y) })
    });
    Chart {
        title: title.to_owned(),
        about: "The 95th percentile of successful requests, with its 95% interval; both axes are logarithmic."
            .to_owned(),
        x: concurrency(),
        y: Axis::new("ms, p95", Scale::Decades),
        series: all,
        ..Chart::default()
    }
}

fn trade_off(comparison: &Comparison) -> Chart {
    let known = (0..comparison.candidates.len()).all(|index| comparison.gpus(index).is_some());
    let all = series(comparison, |index, summary| {
        let gpus = if known { comparison.gpus(index).unwrap_or(1) } else { 1 };
        let user = summary.per_user.one_over_tpot.as_ref()?.p50;
        let name = format!("N = {}", summary.concurrency);
        Some(Point { name, ..Point::new(user, summary.rates.output_tokens_per_s / f64::from(gpus.max(1))) })
    });
    Chart {
        title: "What all get against what each gets".to_owned(),
        about: "Each dot is a concurrency; up and to the right is better. tok/s/user is the median of 1/TPOT."
            .to_owned(),
        x: Axis::new("tok/s/user", Scale::Linear),
        y: Axis::new(if known { "output tok/s per GPU" } else { "output tok/s" }, Scale::Linear),
        series: all,
        ..Chart::default()
    }
}
