//! Single rungs over time: what the client saw, what the server and its GPUs did meanwhile, and what was left out.

use crate::page::{Axis, Chart, Color, Line, Point, Scale, Series, Span, Stack};
use crate::report::{RungReport, SaturationReport};
use crate::series::{self, ServerSample};

const GIB: f64 = (1u64 << 30) as f64;

/// The rungs at the saturation point, at the highest throughput, and where service first broke.
pub(super) fn stacks(report: &SaturationReport) -> Vec<Stack> {
    let answer = &report.answer;
    let breaks = answer.breakpoint.map(|found| found.first_fail);
    let wanted = [
        ("the saturation point", Some(answer.saturation)),
        ("the highest throughput", Some(answer.peak)),
        ("the breakpoint", breaks),
    ];
    let mut shown: Vec<u32> = Vec::new();
    let mut stacks = Vec::new();
    for (what, concurrency) in wanted {
        let Some(rung) = concurrency.filter(|n| !shown.contains(n)).and_then(|n| report.rung_at(n)) else { continue };
        shown.push(rung.summary.concurrency);
        stacks.push(stack(rung, format!("Over time at {what} (N = {})", rung.summary.concurrency)));
    }
    stacks.into_iter().filter(|stack| !stack.is_empty()).collect()
}

fn stack(rung: &RungReport, title: String) -> Stack {
    let one = |name, color, value: fn(&ServerSample) -> Option<f64>| vec![sampled(rung, name, color, value)];
    let panels = [
        vec![client(rung, "output tok/s", Color::Blue, |slice| slice.output_tokens_per_s)],
        requests(rung),
        shares(rung),
        one("a step, ms", Color::Violet, |sample| sample.step_ms),
        one("power of the GPUs, W", Color::Orange, |sample| sample.gpu_sum(|gpu| gpu.power_w)),
        one("SM clock of the GPUs, MHz", Color::Green, |sample| sample.gpu_mean(|gpu| gpu.sm_clock_mhz)),
        memory(rung),
        host_gpus(rung),
        one("processors that the server keeps busy", Color::Brown, |sample| sample.cpu_cores),
    ];
    let spans = discarded(rung);
    let panel = |series: Vec<Series>| Chart {
        title: title.clone(),
        x: Axis::new("seconds", Scale::Time),
        series,
        spans: spans.clone(),
        ..Chart::default()
    };
    Stack {
        about: "One run from its first request to the end of its last; what is shaded did not count.".to_owned(),
        panels: panels.into_iter().map(panel).collect(),
        title,
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

fn requests(rung: &RungReport) -> Vec<Series> {
    let mut series = vec![
        client(rung, "requests in flight, as the client sees it", Color::Grey, |slice| slice.in_flight.into()),
        sampled(rung, "running in the server", Color::Blue, |sample| sample.running),
        sampled(rung, "waiting in the server", Color::Orange, |sample| sample.waiting),
    ];
    if rung.series.iter().any(|slice| slice.failed > 0) {
        series.push(client(rung, "failed in a slice", Color::Red, |slice| slice.failed.into()));
    }
    let before = rung.server.iter().flat_map(|server| &server.samples).find_map(|sample| sample.preemptions);
    if rung.server.as_ref().and_then(|server| server.preemptions).is_some_and(|count| count > 0) {
        let preempted = move |sample: &ServerSample| Some(sample.preemptions? - before?);
        series.push(sampled(rung, "preempted so far", Color::Magenta, preempted));
    }
    series
}

fn shares(rung: &RungReport) -> Vec<Series> {
    let percent = |share: f64| 100.0 * share;
    vec![
        sampled(rung, "KV cache in use, %", Color::Aqua, move |sample| sample.kv_cache_usage.map(percent)),
        sampled(rung, "GPUs busy, %", Color::Blue, move |sample| sample.gpu_mean(|gpu| gpu.utilization).map(percent)),
    ]
}

fn memory(rung: &RungReport) -> Vec<Series> {
    vec![
        sampled(rung, "memory of the server's process, GiB", Color::Brown, |sample| {
            sample.rss_bytes.map(|bytes| bytes / GIB)
        }),
        sampled(rung, "in use on the GPUs, GiB", Color::Violet, |sample| {
            sample.gpu_sum(|gpu| gpu.memory_bytes).map(|bytes| bytes / GIB)
        }),
    ]
}

/// Of GPUs of which it is not known whether the server computes on them.
fn host_gpus(rung: &RungReport) -> Vec<Series> {
    let busy = |sample: &ServerSample| {
        let all = series::sum(&sample.host_gpus, |gpu| gpu.utilization)?;
        Some(100.0 * all / sample.host_gpus.len() as f64)
    };
    vec![sampled(rung, "all GPUs of this machine busy, whoever uses them, %", Color::Grey, busy)]
}

fn client(rung: &RungReport, name: &str, color: Color, value: fn(&series::TimeSlice) -> f64) -> Series {
    thin(name, color, rung.series.iter().map(|slice| Point::new(slice.at_s, value(slice))).collect())
}

fn sampled(rung: &RungReport, name: &str, color: Color, value: impl Fn(&ServerSample) -> Option<f64>) -> Series {
    let samples = rung.server.iter().flat_map(|server| &server.samples);
    thin(name, color, samples.filter_map(|sample| Some(Point::new(sample.at_s, value(sample)?))).collect())
}

fn thin(name: &str, color: Color, points: Vec<Point>) -> Series {
    Series { name: name.to_owned(), color, line: Line::Thin, points }
}
