//! What the server said of itself, against concurrency: where the time to the first token goes, how full it was, how long
//! a step took, and what a token cost in energy; and what its start took.

use super::{concurrency, counted_rungs, drawn};
use crate::page::{Axis, Bars, Chart, Color, Line, Part, Point, Rule, Scale, Section, Series, Table, number};
use crate::report::{RungReport, SaturationReport};
use crate::series::{ServerSample, TtftSplit};

const GIB: f64 = (1u64 << 30) as f64;

pub(super) fn sections(report: &SaturationReport) -> Vec<Section> {
    let rungs = counted_rungs(report);
    let mut sections: Vec<Section> = ttft_split(&rungs).map(Section::Bars).into_iter().collect();
    sections.extend(drawn([batch(&rungs), kv_cache(&rungs), step(&rungs), memory(report, &rungs), energy(&rungs)]));
    sections
}

/// Joules an output token in the measured window, all GPUs of the server together. None: it is not known.
pub(crate) fn joules_per_token(rung: &RungReport) -> Option<f64> {
    let power = counted_power(rung).or_else(|| mean_in_window(rung, |sample| sample.gpu_sum(|gpu| gpu.power_w)))?;
    let rate = rung.summary.rates.output_tokens_per_s;
    (rate > 0.0).then(|| power / rate)
}

/// Watts by the GPUs' own counters of energy, which miss no peak between two looks.
fn counted_power(rung: &RungReport) -> Option<f64> {
    let counted = |sample: &&ServerSample| Some((sample.at_s, sample.gpu_sum(|gpu| gpu.energy_j)?));
    let (first, last) =
        (in_window(rung).find_map(|s| counted(&s))?, in_window(rung).filter_map(|s| counted(&s)).last()?);
    (last.0 > first.0 && last.1 >= first.1).then(|| (last.1 - first.1) / (last.0 - first.0))
}

/// GPUs behind a server that this program started itself. None: it is another's, or has none.
pub(super) fn own_gpus(report: &SaturationReport) -> Option<u32> {
    report.config.own_server.as_ref()?;
    let samples = report.rungs.iter().flat_map(|rung| &rung.server).flat_map(|server| &server.samples);
    samples.map(|sample| sample.gpus.len() as u32).max().filter(|count| *count > 0)
}

/// What the server's start took, and its memory before and under load. None: it does not tell.
pub(in crate::report) fn start_table(report: &SaturationReport) -> Option<Table> {
    let start = report.server_start.as_ref()?;
    let row = |name: String, value: Option<f64>, unit: &str| Some(vec![name, number(value?), unit.to_owned()]);
    let gib = |bytes: Option<f64>| bytes.map(|bytes| bytes / GIB);
    let part = |part: &crate::series::StartPart| row(format!("Start: {}", part.name), Some(part.seconds), "s");
    let mut rows: Vec<Option<Vec<String>>> = start.parts.iter().map(part).collect();
    let (process, gpus) = steady_memory(report);
    rows.extend([
        row("Start, all parts".to_owned(), start.seconds(), "s"),
        row("Memory of the process, loaded and idle".to_owned(), gib(start.rss_bytes), "GiB"),
        row("Memory of the process at the highest throughput".to_owned(), gib(process), "GiB"),
        row("Memory in use on the GPUs, loaded and idle".to_owned(), gib(start.gpu_memory_bytes), "GiB"),
        row("Memory in use on the GPUs at the highest throughput".to_owned(), gib(gpus), "GiB"),
    ]);
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    (!rows.is_empty()).then(|| Table {
        title: "The server's start and its memory".to_owned(),
        header: ["What", "Value", "Unit"].map(str::to_owned).to_vec(),
        rows,
        ..Table::default()
    })
}

/// Bytes of the server's process and on its GPUs while throughput was highest.
pub(in crate::report) fn steady_memory(report: &SaturationReport) -> (Option<f64>, Option<f64>) {
    let Some(rung) = report.rung_at(report.answer.peak) else { return (None, None) };
    let gpus = mean_in_window(rung, |sample| sample.gpu_sum(|gpu| gpu.memory_bytes));
    (mean_in_window(rung, |sample| sample.rss_bytes), gpus)
}

fn in_window(rung: &RungReport) -> impl Iterator<Item = &ServerSample> {
    let window = rung.summary.window;
    let samples = rung.server.iter().flat_map(|server| &server.samples);
    samples.filter(move |sample| (window.start_s..=window.end_s).contains(&sample.at_s))
}

/// The mean of what was sampled inside the measured window.
pub(crate) fn mean_in_window(rung: &RungReport, value: impl Fn(&ServerSample) -> Option<f64>) -> Option<f64> {
    crate::stats::mean(&in_window(rung).filter_map(value).collect::<Vec<f64>>())
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
    let busy = |rung: &RungReport| percent(mean_in_window(rung, |sample| sample.gpu_mean(|gpu| gpu.utilization)));
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

fn step(rungs: &[&RungReport]) -> Chart {
    let time = |rung: &RungReport| mean_in_window(rung, |sample| sample.step_ms);
    Chart {
        title: "Time of a step".to_owned(),
        about: "Mean time in which the server computes one step of its batch: one token of each running request."
            .to_owned(),
        x: concurrency(),
        y: Axis::new("ms", Scale::Linear),
        series: vec![series(rungs, "a step", Color::Violet, time)],
        ..Chart::default()
    }
}

fn memory(report: &SaturationReport, rungs: &[&RungReport]) -> Chart {
    let gib = |value: Option<f64>| value.map(|bytes| bytes / GIB);
    let process = |rung: &RungReport| gib(mean_in_window(rung, |sample| sample.rss_bytes));
    let gpus = |rung: &RungReport| gib(mean_in_window(rung, |sample| sample.gpu_sum(|gpu| gpu.memory_bytes)));
    let start = report.server_start.as_ref();
    let idle = |name: &str, bytes: Option<f64>, color| {
        gib(bytes).map(|at| Rule::Y { name: format!("{name}, loaded and idle"), at, color })
    };
    let rules = [
        idle("process", start.and_then(|start| start.rss_bytes), Color::Brown),
        idle("GPUs", start.and_then(|start| start.gpu_memory_bytes), Color::Violet),
    ];
    Chart {
        title: "Memory".to_owned(),
        about:
            "Resident memory of the server's process and memory in use on its GPUs; dashed lines are before any load."
                .to_owned(),
        x: concurrency(),
        y: Axis::new("GiB", Scale::Linear),
        series: vec![
            series(rungs, "the server's process", Color::Brown, process),
            series(rungs, "in use on the GPUs", Color::Violet, gpus),
        ],
        rules: rules.into_iter().flatten().collect(),
        ..Chart::default()
    }
}

fn energy(rungs: &[&RungReport]) -> Chart {
    Chart {
        title: "Energy a token".to_owned(),
        about: "The energy that the server's GPUs took in the measured part, over the output tokens of it.".to_owned(),
        x: concurrency(),
        y: Axis::new("J/token", Scale::Linear),
        series: vec![series(rungs, "joules an output token", Color::Green, joules_per_token)],
        ..Chart::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn energy_is_that_of_the_counters_and_of_power_where_there_are_none() {
        let mut rung = sample::report().rungs[3].clone();
        let rate = rung.summary.rates.output_tokens_per_s;
        let mut plant = |watts: f64, joules: Option<f64>| {
            for sample in rung.server.iter_mut().flat_map(|server| &mut server.samples) {
                sample.gpus[0].power_w = Some(watts);
                sample.gpus[0].energy_j = joules.map(|a_second| a_second * sample.at_s);
            }
            joules_per_token(&rung).expect("energy") * rate
        };
        assert!((plant(100.0, Some(250.0)) - 250.0).abs() < 1e-6);
        assert!((plant(100.0, None) - 100.0).abs() < 1e-6);
    }

    #[test]
    fn gpus_are_counted_where_the_server_is_our_own() {
        let mut report = sample::report();
        report.config.own_server = None;
        assert_eq!(own_gpus(&report), None);
        report.config.own_server = Some(crate::OwnServer { process: 7, gpu: None });
        assert_eq!(own_gpus(&report), Some(1));
    }

    #[test]
    fn a_start_is_told_in_parts_with_memory_before_and_after() {
        let mut report = sample::report();
        let table = start_table(&report).expect("a start");
        let names: Vec<&str> = table.rows.iter().map(|row| row[0].as_str()).collect();
        assert!(names.contains(&"Start: weights") && names.iter().any(|name| name.contains("highest")), "{names:?}");
        assert_eq!(table.rows[4], ["Start, all parts", "4.50", "s"]);
        report.server_start = None;
        assert_eq!(start_table(&report), None);
    }
}
