//! The charts of a saturation report: all that it has the data for.

mod offered;
mod roofline;
mod server;
mod time;

pub(crate) use self::server::joules_per_token;
pub(super) use self::server::mean_in_window;
pub(super) use self::server::{start_table, steady_memory};

use crate::page::{Axis, Bars, Chart, Color, Line, Part, Point, Rule, Scale, Section, Series, Span, number};
use crate::report::{PageOptions, RungReport, SaturationReport};
use crate::search::Verdict;
use crate::summary::{Distribution, RungSummary};

/// What each cause of failure is drawn in, in the order of `OutcomeCounts::failures`.
const FAILURE_COLORS: [Color; 10] = [
    Color::Yellow,
    Color::Orange,
    Color::Brown,
    Color::Violet,
    Color::Magenta,
    Color::Red,
    Color::Aqua,
    Color::Green,
    Color::Grey,
    Color::Grey,
];

/// All that the report has the data for.
pub(super) fn all(report: &SaturationReport, options: &PageOptions) -> Vec<Section> {
    let rungs = counted(report);
    let charts = [
        throughput(report, &rungs, options),
        latency(report, &rungs, "Time to first token", Latency::Ttft),
        latency(report, &rungs, "Time a token, after the first", Latency::Tpot),
        trade_off(report, &rungs, options),
    ];
    let mut sections = drawn(charts);
    sections.extend(outcomes(&report.rungs).map(Section::Bars));
    sections.extend(drawn([goodput(report, &rungs), roofline::share(&rungs, &options.plan)]));
    sections.extend(drawn(offered::charts(report)));
    sections.extend(server::sections(report));
    sections.extend(time::stacks(report).into_iter().map(Section::Stack));
    sections
}

/// Those charts that show anything.
fn drawn(charts: impl IntoIterator<Item = Chart>) -> Vec<Section> {
    charts.into_iter().filter(|chart| !chart.is_empty()).map(Section::Chart).collect()
}

/// One rung for each concurrency, ascending: the one that counts where there were several.
fn counted(report: &SaturationReport) -> Vec<&RungSummary> {
    counted_rungs(report).into_iter().map(|rung| &rung.summary).collect()
}

fn counted_rungs(report: &SaturationReport) -> Vec<&RungReport> {
    let mut concurrencies: Vec<u32> = report.rungs.iter().map(|rung| rung.summary.concurrency).collect();
    concurrencies.sort_unstable();
    concurrencies.dedup();
    concurrencies.into_iter().filter_map(|n| report.rung_at(n)).collect()
}

/// The axis of the ladder.
fn concurrency() -> Axis {
    Axis::new("concurrent requests", Scale::Doubling)
}

fn throughput(report: &SaturationReport, rungs: &[&RungSummary], options: &PageOptions) -> Chart {
    let point = |summary: &RungSummary| {
        let rate = summary.rates.output_tokens_per_s;
        let interval = summary.output_half_width.map(|width| ((rate - width).max(0.0), rate + width));
        Point { interval, ..Point::new(summary.concurrency.into(), rate) }
    };
    let others = report
        .rungs
        .iter()
        .map(|rung| &rung.summary)
        .filter(|summary| !rungs.iter().any(|counted| std::ptr::eq(*counted, *summary)));
    let per_chunk = rungs.iter().rev().find_map(|summary| summary.tokens_per_chunk).unwrap_or(1.0);
    let ceiling = report.client_ceiling.events_per_s * per_chunk;
    let mut about = "Output tokens a second of successful requests, with 95% intervals.".to_owned();
    let most = report.answer.peak_throughput;
    if ceiling > 0.0 && most > 0.0 {
        about.push_str(&format!(
            " The client's own ceiling, {} tok/s, is {} times the highest throughput.",
            number(ceiling),
            number(ceiling / most)
        ));
    }
    let series = vec![
        Series {
            name: "output tok/s".to_owned(),
            color: Color::Blue,
            line: Line::Solid,
            points: rungs.iter().copied().map(point).collect(),
        },
        Series {
            name: "measured again".to_owned(),
            color: Color::Blue,
            line: Line::Dots,
            points: others.map(point).collect(),
        },
    ];
    Chart {
        title: "Throughput against concurrency".to_owned(),
        about,
        x: concurrency(),
        y: Axis::new("output tok/s", Scale::Linear),
        series: series.into_iter().chain(roofline::foretold(&options.plan)).collect(),
        spans: spans(report),
        rules: marks(report).into_iter().chain([ceiling_rule(ceiling)]).collect(),
        wide: true,
    }
}

fn ceiling_rule(at: f64) -> Rule {
    Rule::Y { name: "the client's ceiling".to_owned(), at, color: Color::Grey }
}

/// Where the saturation point may lie, and where the breakpoint does.
fn spans(report: &SaturationReport) -> Vec<Span> {
    let answer = &report.answer;
    let mut spans = Vec::new();
    if answer.saturation_low < answer.saturation_high {
        spans.push(Span {
            name: format!("saturation, 95% interval ({} to {})", answer.saturation_low, answer.saturation_high),
            from: answer.saturation_low.into(),
            to: answer.saturation_high.into(),
            color: Color::Aqua,
        });
    }
    if let Some(found) = answer.breakpoint {
        spans.push(Span {
            name: format!("breakpoint ({} holds, {} breaks)", found.last_pass, found.first_fail),
            from: found.last_pass.max(1).into(),
            to: found.first_fail.into(),
            color: Color::Red,
        });
    }
    spans
}

/// The saturation point and the breakpoint as lines.
fn marks(report: &SaturationReport) -> Vec<Rule> {
    let answer = &report.answer;
    let saturation = (answer.saturation > 0).then(|| Rule::X {
        name: format!("{} {}", called(answer.verdict), answer.saturation),
        at: answer.saturation.into(),
        color: Color::Aqua,
    });
    let breaks = answer.breakpoint.map(|found| Rule::X {
        name: format!("breaks at {}", found.first_fail),
        at: found.first_fail.into(),
        color: Color::Red,
    });
    saturation.into_iter().chain(breaks).collect()
}

/// What the saturation point of such a search may be called.
fn called(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Plateaued | Verdict::Retrograde | Verdict::SloBroken => "saturates at",
        Verdict::StillScaling | Verdict::ClientLimited | Verdict::OutOfTime => "at least",
        Verdict::AdmissionLimited | Verdict::ServiceBroken | Verdict::ServerGone => "best from",
    }
}

#[derive(Clone, Copy)]
enum Latency {
    Ttft,
    Tpot,
}

/// Percentiles of a latency against concurrency, with its limit.
fn latency(report: &SaturationReport, rungs: &[&RungSummary], title: &str, which: Latency) -> Chart {
    let slo = &report.config.search.slo;
    let (name, limit, color) = match which {
        Latency::Ttft => ("TTFT", slo.ttft_ms, Color::Violet),
        Latency::Tpot => ("TPOT", slo.tpot_ms, Color::Orange),
    };
    let of = |summary: &'_ RungSummary| match which {
        Latency::Ttft => summary.ttft_ms.clone(),
        Latency::Tpot => summary.tpot_ms.clone(),
    };
    let series = |name: &str, line, value: fn(&Distribution) -> (f64, Option<[f64; 2]>)| {
        let point = |summary: &&RungSummary| {
            let (y, interval) = value(&of(summary)?);
            Some(Point { interval: interval.map(<(f64, f64)>::from), ..Point::new(summary.concurrency.into(), y) })
        };
        Series { name: name.to_owned(), color, line, points: rungs.iter().filter_map(point).collect() }
    };
    let limit = limit.map(|at| Rule::Y { name: format!("limit {at} ms"), at, color: Color::Red });
    Chart {
        title: title.to_owned(),
        about: format!("{name} of successful requests by percentile, with 95% intervals; both axes are logarithmic."),
        x: concurrency(),
        y: Axis::new("ms", Scale::Decades),
        series: vec![
            series("p50", Line::Solid, |d| (d.p50, d.p50_interval)),
            series("p95", Line::Dashed, |d| (d.p95, d.p95_interval)),
            series("p99", Line::Dotted, |d| (d.p99, d.p99_interval)),
        ],
        spans: Vec::new(),
        rules: marks(report).into_iter().chain(limit).collect(),
        wide: false,
    }
}

/// What all get against what each one gets.
fn trade_off(report: &SaturationReport, rungs: &[&RungSummary], options: &PageOptions) -> Chart {
    let known = options.gpus.or_else(|| server::own_gpus(report));
    let gpus = f64::from(known.unwrap_or(1).max(1));
    let label = if known.is_some() { "output tok/s per GPU" } else { "output tok/s" };
    let point = |summary: &&RungSummary| {
        let user = summary.per_user.one_over_tpot.as_ref()?.p50;
        let name = format!("N = {}", summary.concurrency);
        Some(Point { name, ..Point::new(user, summary.rates.output_tokens_per_s / gpus) })
    };
    let marked = rungs.iter().filter(|summary| summary.concurrency == report.answer.saturation);
    Chart {
        title: "What all get against what each gets".to_owned(),
        about: "Each dot is a concurrency, from one request on the right to the most on the left; up and to the right \
                is better. tok/s/user is the median of 1/TPOT."
            .to_owned(),
        x: Axis::new("tok/s/user", Scale::Linear),
        y: Axis::new(label, Scale::Linear),
        series: vec![
            Series {
                name: "by concurrency".to_owned(),
                color: Color::Blue,
                line: Line::Solid,
                points: rungs.iter().filter_map(point).collect(),
            },
            Series {
                name: "saturation point".to_owned(),
                color: Color::Aqua,
                line: Line::Dots,
                points: marked.filter_map(point).collect(),
            },
        ],
        ..Chart::default()
    }
}

/// Requests a second, and those of them that kept every limit.
fn goodput(report: &SaturationReport, rungs: &[&RungSummary]) -> Chart {
    let series = |name: &str, color, value: fn(&RungSummary) -> Option<f64>| {
        let point = |summary: &&RungSummary| Some(Point::new(summary.concurrency.into(), value(summary)?));
        Series { name: name.to_owned(), color, line: Line::Solid, points: rungs.iter().filter_map(point).collect() }
    };
    Chart {
        title: "Requests a second".to_owned(),
        about: "Successful requests, and, where limits were set, those of them that kept every one.".to_owned(),
        x: concurrency(),
        y: Axis::new("req/s", Scale::Linear),
        series: vec![
            series("successful", Color::Blue, |summary| Some(summary.rates.requests_per_s)),
            series("within the limits", Color::Aqua, |summary| summary.slo.as_ref().map(|slo| slo.goodput_per_s)),
        ],
        rules: marks(report),
        ..Chart::default()
    }
}

/// How requests ended, by cause. None: there were none.
fn outcomes(rungs: &[RungReport]) -> Option<Bars> {
    let counts: Vec<_> =
        rungs.iter().map(|rung| rung.summary.outcomes).filter(|outcomes| outcomes.total() > 0).collect();
    if counts.is_empty() {
        return None;
    }
    let amounts = |count: &dyn Fn(usize) -> u64| (0..counts.len()).map(|rung| count(rung) as f64).collect::<Vec<_>>();
    let success = Part { name: "success".to_owned(), color: Color::Blue, amounts: amounts(&|at| counts[at].success) };
    let causes = counts[0].failures().into_iter().enumerate().map(|(cause, (name, _))| Part {
        name: name.to_owned(),
        color: FAILURE_COLORS[cause],
        amounts: amounts(&|at| counts[at].failures()[cause].1),
    });
    let seen = causes.filter(|part| part.amounts.iter().any(|amount| *amount > 0.0));
    let served = rungs.iter().filter(|rung| rung.summary.outcomes.total() > 0);
    Some(Bars {
        title: "How requests ended".to_owned(),
        about: "Every request that was sent, by outcome and cause; a bar each time a concurrency was measured."
            .to_owned(),
        x: "concurrent requests".to_owned(),
        categories: served.map(|rung| rung.summary.concurrency.to_string()).collect(),
        parts: std::iter::once(success).chain(seen).collect(),
    })
}
