//! Single rungs over time, with what was left out of the measurement shaded.

use crate::page::{Axis, Chart, Color, Line, Point, Scale, Series, Span};
use crate::report::{RungReport, SaturationReport};
use crate::series::{GpuSample, ServerSample};

/// The rungs at the saturation point, at the highest throughput, and where service first broke.
pub(super) fn charts(report: &SaturationReport) -> Vec<Chart> {
    let answer = &report.answer;
    let breaks = answer.breakpoint.map(|found| found.first_fail);
    let wanted = [
        ("the saturation point", Some(answer.saturation)),
        ("its highest throughput", Some(answer.peak)),
        ("the breakpoint", breaks),
    ];
    let mut shown: Vec<u32> = Vec::new();
    let mut charts = Vec::new();
    for (what, concurrency) in wanted {
        let Some(rung) = concurrency.filter(|n| !shown.contains(n)).and_then(|n| report.rung_at(n)) else { continue };
        shown.push(rung.summary.concurrency);
        let when = format!("at {what} (N = {})", rung.summary.concurrency);
        charts.extend([throughput(rung, &when), requests(rung, &when), gpus(rung, &when)]);
    }
    charts
}

fn chart(rung: &RungReport, title: String, label: &str, series: Vec<Series>) -> Chart {
    Chart {
        title,
        about: String::new(),
        x: Axis::new("seconds", Scale::Linear),
        y: Axis::new(label, Scale::Linear),
        series,
        spans: discarded(rung),
        ..Chart::default()
    }
}

/// Before and after the measured window.
fn discarded(rung: &RungReport) -> Vec<Span> {
    let summary = &rung.summary;
    let span = |name: &str, from, to| Span { name: name.to_owned(), from, to, color: Color::Grey };
    let parts = [
        span("left out: ramp and transient", 0.0, summary.window.start_s),
        span("left out: drain", summary.window.end_s, summary.duration_s),
    ];
    parts.into_iter().filter(|span| span.to > span.from + 1e-6).collect()
}

fn throughput(rung: &RungReport, when: &str) -> Chart {
    let points = rung.series.iter().map(|slice| Point::new(slice.at_s, slice.output_tokens_per_s)).collect();
    let series = vec![Series { name: "output tok/s".to_owned(), color: Color::Blue, line: Line::Thin, points }];
    chart(rung, format!("Throughput over time {when}"), "output tok/s", series)
}

fn requests(rung: &RungReport, when: &str) -> Chart {
    let in_flight = rung.series.iter().map(|slice| Point::new(slice.at_s, slice.in_flight.into())).collect();
    let failed = rung.series.iter().map(|slice| Point::new(slice.at_s, slice.failed.into())).collect();
    let mut series = vec![thin("in flight, as the client sees it", Color::Grey, in_flight)];
    if rung.series.iter().any(|slice| slice.failed > 0) {
        series.push(thin("failed in a slice", Color::Red, failed));
    }
    series.push(thin("running in the server", Color::Blue, sampled(rung, |sample| sample.running)));
    series.push(thin("waiting in the server", Color::Orange, sampled(rung, |sample| sample.waiting)));
    let usage = sampled(rung, |sample| sample.kv_cache_usage.map(|share| 100.0 * share));
    series.push(thin("KV cache in use, %", Color::Violet, usage));
    chart(rung, format!("Requests over time {when}"), "requests", series)
}

fn gpus(rung: &RungReport, when: &str) -> Chart {
    let mean = |value: fn(&GpuSample) -> Option<f64>| {
        move |sample: &ServerSample| {
            let values: Vec<f64> = sample.gpus.iter().filter_map(value).collect();
            crate::stats::mean(&values)
        }
    };
    let series = vec![
        thin("power, W", Color::Orange, sampled(rung, mean(|gpu| gpu.power_w))),
        thin("utilization, %", Color::Blue, sampled(rung, mean(|gpu| gpu.utilization.map(|share| 100.0 * share)))),
        thin("SM clock, 10 MHz", Color::Aqua, sampled(rung, mean(|gpu| gpu.sm_clock_mhz.map(|clock| clock / 10.0)))),
        thin("memory, GB", Color::Violet, sampled(rung, mean(|gpu| gpu.memory_bytes.map(|bytes| bytes / 1e9)))),
    ];
    chart(rung, format!("GPUs over time {when}"), "mean of the GPUs", series)
}

fn thin(name: &str, color: Color, points: Vec<Point>) -> Series {
    Series { name: name.to_owned(), color, line: Line::Thin, points }
}

fn sampled(rung: &RungReport, value: impl Fn(&ServerSample) -> Option<f64>) -> Vec<Point> {
    let samples = rung.server.iter().flat_map(|server| &server.samples);
    samples.filter_map(|sample| Some(Point::new(sample.at_s, value(sample)?))).collect()
}
