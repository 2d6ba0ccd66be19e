//! What the server said of itself, against concurrency: where the time to the first token goes, how full it was, and
//! what a token cost in energy.

use super::{concurrency, counted_rungs, drawn};
use crate::page::{Axis, Bars, Chart, Color, Line, Part, Point, Scale, Section, Series};
use crate::report::{RungReport, SaturationReport};
use crate::series::{ServerSample, TtftSplit};

pub(super) fn sections(report: &SaturationReport) -> Vec<Section> {
    let rungs = counted_rungs(report);
    let mut sections: Vec<Section> = ttft_split(&rungs).map(Section::Bars).into_iter().collect();
    sections.extend(drawn([batch(&rungs), kv_cache(&rungs), energy(&rungs)]));
    sections
}

/// Joules an output token in the measured window, all GPUs together. None: power is not known.
pub(crate) fn joules_per_token(rung: &RungReport) -> Option<f64> {
    let power = mean_in_window(rung, |sample| {
        let watts: Vec<f64> = sample.gpus.iter().filter_map(|gpu| gpu.power_w).collect();
        (!watts.is_empty()).then(|| watts.iter().sum())
    })?;
    let rate = rung.summary.rates.output_tokens_per_s;
    (rate > 0.0).then(|| power / rate)
}

/// The mean of what was sampled inside the measured window.
pub(crate) fn mean_in_window(rung: &RungReport, value: impl Fn(&ServerSample) -> Option<f64>) -> Option<f64> {
    let window = rung.summary.window;
    let samples = rung.server.iter().flat_map(|server| &server.samples);
    let inside = samples.filter(|sample| (window.start_s..=window.end_s).contains(&sample.at_s));
    crate::stats::mean(&inside.filter_map(value).collect::<Vec<f64>>())
}

fn ttft_split(rungs: &[&RungReport]) -> Option<Bars> {
    let split = |rung: &&RungReport| Some((rung.summary.concurrency, rung.server.as_ref()?.ttft_split?));
    let splits: Vec<(u32, TtftSplit)> = rungs.iter().filter_map(split).collect();
    if splits.is_empty() {
        return None;
    }
    let part = |name: &str, color, value: fn(&TtftSplit) -> f64| Part {
        name: name.to_owned(),
        color,
        amounts: splits.iter().map(|(_, split)| value(split).max(0.0)).collect(),
    };
    Some(Bars {
        title: "Where the time to the first token goes".to_owned(),
        about: "Means, in ms: waiting in the server's queue, computing the prompt, and everything between the two."
            .to_owned(),
        x: "concurrent requests".to_owned(),
        categories: splits.iter().map(|(n, _)| n.to_string()).collect(),
        parts: vec![
            part("network and HTTP", Color::Grey, |split| split.network_ms),
            part("prefill", Color::Blue, |split| split.prefill_ms),
            part("queue", Color::Orange, |split| split.queue_ms),
        ],
    })
}

fn series(rungs: &[&RungReport], name: &str, color: Color, value: impl Fn(&RungReport) -> Option<f64>) -> Series {
    let point = |rung: &&RungReport| Some(Point::new(rung.summary.concurrency.into(), value(rung)?));
    Series { name: name.to_owned(), color, line: Line::Solid, points: rungs.iter().filter_map(point).collect() }
}

fn batch(rungs: &[&RungReport]) -> Chart {
    let sampled = |value: fn(&ServerSample) -> Option<f64>| move |rung: &RungReport| mean_in_window(rung, value);
    let preemptions = |rung: &RungReport| rung.server.as_ref()?.preemptions.map(|count| count as f64);
    Chart {
        title: "Inside the server".to_owned(),
        about: "Requests in a step's batch and in the queue on average, and requests preempted during the rung."
            .to_owned(),
        x: concurrency(),
        y: Axis::new("requests", Scale::Linear),
        series: vec![
            series(rungs, "running", Color::Blue, sampled(|sample| sample.running)),
            series(rungs, "waiting", Color::Orange, sampled(|sample| sample.waiting)),
            series(rungs, "preempted", Color::Red, preemptions),
        ],
        ..Chart::default()
    }
}

fn kv_cache(rungs: &[&RungReport]) -> Chart {
    let percent = |value: Option<f64>| value.map(|share| 100.0 * share);
    let kv = |rung: &RungReport| percent(mean_in_window(rung, |sample| sample.kv_cache_usage));
    let busy = |rung: &RungReport| {
        percent(mean_in_window(rung, |sample| {
            crate::stats::mean(&sample.gpus.iter().filter_map(|gpu| gpu.utilization).collect::<Vec<_>>())
        }))
    };
    Chart {
        title: "How full the server was".to_owned(),
        about: "Means over the measured part of each rung.".to_owned(),
        x: concurrency(),
        y: Axis::new("%", Scale::Linear),
        series: vec![
            series(rungs, "KV cache in use", Color::Violet, kv),
            series(rungs, "GPU utilization", Color::Blue, busy),
        ],
        ..Chart::default()
    }
}

fn energy(rungs: &[&RungReport]) -> Chart {
    Chart {
        title: "Energy a token".to_owned(),
        about: "The mean power of all GPUs over output tokens a second.".to_owned(),
        x: concurrency(),
        y: Axis::new("J/token", Scale::Linear),
        series: vec![series(rungs, "joules an output token", Color::Green, joules_per_token)],
        ..Chart::default()
    }
}
