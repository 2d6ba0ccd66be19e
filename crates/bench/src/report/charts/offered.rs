//! Arrivals that do not wait for the server: latency against the rate offered.

use crate::page::{Axis, Chart, Color, Line, Point, Rule, Scale, Series};
use crate::report::{OfferedReport, SaturationReport};
use crate::summary::Distribution;

pub(super) fn charts(report: &SaturationReport) -> Vec<Chart> {
    let mut offered: Vec<&OfferedReport> = report.offered.iter().collect();
    offered.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    vec![latency(report, &offered), service(report, &offered)]
}

fn rate_axis() -> Axis {
    Axis::new("requests offered a second", Scale::Linear)
}

fn latency(report: &SaturationReport, offered: &[&OfferedReport]) -> Chart {
    let series = |name: &str, color, line, of: Of, value: fn(&Distribution) -> (f64, Option<[f64; 2]>)| {
        let point = |rung: &&OfferedReport| {
            let (y, interval) = value(of(rung)?);
            Some(Point { interval: interval.map(<(f64, f64)>::from), ..Point::new(rung.rate, y) })
        };
        Series { name: name.to_owned(), color, line, points: offered.iter().filter_map(point).collect() }
    };
    let limit = report.config.search.slo.ttft_ms.map(|at| Rule::Y {
        name: format!("limit of TTFT {at} ms"),
        at,
        color: Color::Red,
    });
    Chart {
        title: "Latency against offered rate".to_owned(),
        about: "Poisson arrivals that do not wait for the server. Times count from when a request was due, so that a \
                late start is not forgiven; with 95% intervals."
            .to_owned(),
        x: rate_axis(),
        y: Axis::new("ms", Scale::Decades),
        series: vec![
            series("TTFT p50", Color::Violet, Line::Solid, ttft, |d| (d.p50, d.p50_interval)),
            series("TTFT p99", Color::Violet, Line::Dotted, ttft, |d| (d.p99, d.p99_interval)),
            series("whole reply p50", Color::Blue, Line::Solid, whole, |d| (d.p50, d.p50_interval)),
            series("whole reply p99", Color::Blue, Line::Dotted, whole, |d| (d.p99, d.p99_interval)),
        ],
        rules: marks(report).into_iter().chain(limit).collect(),
        ..Chart::default()
    }
}

/// A latency of a rung.
type Of = fn(&OfferedReport) -> Option<&Distribution>;

fn ttft(rung: &OfferedReport) -> Option<&Distribution> {
    rung.rung.summary.ttft_from_schedule_ms.as_ref()
}

fn whole(rung: &OfferedReport) -> Option<&Distribution> {
    rung.rung.summary.e2e_from_schedule_ms.as_ref()
}

/// What was served of what was offered, and how many requests piled up.
fn service(report: &SaturationReport, offered: &[&OfferedReport]) -> Chart {
    let served = offered.iter().map(|rung| Point::new(rung.rate, rung.rung.summary.rates.requests_per_s));
    let asked = offered.iter().map(|rung| Point::new(rung.rate, rung.rate));
    Chart {
        title: "Served of what was offered".to_owned(),
        about: "Where the lines part, the server no longer keeps up.".to_owned(),
        x: rate_axis(),
        y: Axis::new("req/s", Scale::Linear),
        series: vec![
            Series { name: "offered".to_owned(), color: Color::Grey, line: Line::Dashed, points: asked.collect() },
            Series { name: "served".to_owned(), color: Color::Blue, line: Line::Solid, points: served.collect() },
        ],
        rules: marks(report),
        ..Chart::default()
    }
}

fn marks(report: &SaturationReport) -> Vec<Rule> {
    let Some(answer) = &report.answer.open_loop else { return Vec::new() };
    let holds = answer.holds_rate.map(|at| Rule::X { name: format!("holds at {at:.1}/s"), at, color: Color::Aqua });
    let fails = answer.fails_rate.map(|at| Rule::X { name: format!("fails at {at:.1}/s"), at, color: Color::Red });
    holds.into_iter().chain(fails).collect()
}
