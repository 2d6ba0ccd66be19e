//! What is made of reports: pages, rows, and what of it a browser shows.

mod browser;

use proptest::prelude::*;

use super::*;
use crate::page;
use crate::report::sample;
use crate::search::Verdict;

fn html(report: &SaturationReport) -> String {
    let foretold = |concurrency| {
        let roofline = 3000.0_f64.min(300.0 * f64::from(concurrency));
        Foretold { concurrency, predicted: 0.6 * roofline, roofline }
    };
    report.page(&PageOptions { gpus: Some(2), plan: [1, 16, 256].map(foretold).to_vec() }).to_string()
}

#[test]
fn a_full_report_gives_every_chart_and_the_answer_first() {
    let report = sample::report();
    let html = html(&report);
    page::tests::check(&html);
    for title in [
        "Throughput against concurrency",
        "Time to first token",
        "Time a token, after the first",
        "What all get against what each gets",
        "output tok/s per GPU",
        "How requests ended",
        "Latency against offered rate",
        "Served of what was offered",
        "Where the time to the first token goes",
        "Inside the server",
        "How full the server was",
        "Energy a token",
        "Share of the roofline",
        "foretold by the plan",
        "Time of a step",
        "Memory",
        "GPUs, loaded and idle",
        "Over time at the saturation point (N = 48)",
        "SM clock",
        "power of the GPUs",
        "preempted so far",
        "Start: weights",
        "J a token",
        "left out: ramp and transient",
        "saturates at 48",
        "breaks at 128",
        "All rungs",
    ] {
        assert!(html.contains(title), "no {title}");
    }
    let document = roxmltree::Document::parse_with_options(
        &html,
        roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() },
    )
    .expect("well-formed");
    let body = document.descendants().find(|node| node.has_tag_name("body")).expect("a body");
    let first =
        body.descendants().filter(|node| node.is_text()).find_map(|node| node.text().filter(|t| !t.trim().is_empty()));
    assert_eq!(first, Some("Saturates at N\u{a0}=\u{a0}48 concurrent"));
}

#[test]
fn reports_that_hold_little_give_a_page_too() {
    let full = sample::report();
    let mut bare = full.clone();
    bare.rungs.clear();
    bare.offered.clear();
    bare.answer.breakpoint = None;
    bare.answer.open_loop = None;
    bare.answer.drift = None;
    page::tests::check(&html(&bare));
    let mut single = full.clone();
    single.rungs.truncate(1);
    page::tests::check(&html(&single));
    let mut failed = full;
    for rung in &mut failed.rungs {
        rung.summary = RungSummary {
            success_rate: 0.0,
            rates: crate::summary::Rates::default(),
            ttft_ms: None,
            tpot_ms: None,
            itl_ms: None,
            e2e_ms: None,
            output_half_width: None,
            ..rung.summary.clone()
        };
        rung.summary.outcomes.success = 0;
        rung.server = None;
    }
    let html = html(&failed);
    page::tests::check(&html);
    assert!(html.contains("How requests ended"));
}

#[test]
fn an_invalid_result_says_so_before_all_else() {
    use crate::findings::{Finding, FindingKind};
    let mut report = sample::report();
    report.findings.push(Finding::new(FindingKind::Drift, "The machine became slower."));
    let text = report.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains("not to be believed"), "{text}");
    assert_eq!(lines[1], "! The machine became slower.");
    let html = html(&report);
    assert!(html.contains("if it can be believed") && html.contains("The machine became slower."));
}

#[test]
fn open_loop_and_drift_are_told() {
    let text = sample::report().to_string();
    assert!(text.contains("Arrivals that do not wait are served up to 15.75 req/s; at 17.50 ever more"), "{text}");
    assert!(
        text.contains(
            "The server was not shown to have changed by the end: throughput +0.4% at N = 1 and -1.1% at N = 48."
        ),
        "{text}"
    );
}

#[test]
fn rows_have_as_many_cells_as_there_are_columns() {
    let report = sample::report();
    let csv = report.csv();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 1 + report.rungs.len() + report.offered.len());
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
    let column = |name: &str| lines[0].iter().position(|column| *column == name).expect("a column");
    let at = |row: usize, name: &str| lines[row][column(name)];
    assert_eq!((at(1, "kind"), at(1, "concurrency"), at(1, "offered_requests_per_s")), ("closed", "1", ""));
    assert_eq!(at(1, "output_tokens_per_s"), report.rungs[0].summary.rates.output_tokens_per_s.to_string());
    assert_eq!(at(1, "ttft_ms_p99"), report.rungs[0].summary.ttft_ms.as_ref().expect("successes").p99.to_string());
    assert_eq!(at(1 + report.rungs.len(), "kind"), "open");
}

#[test]
fn a_report_is_read_as_it_was_written_and_others_are_refused_by_name() {
    let folder = std::env::temp_dir().join(format!("plimsoll-report-{}", std::process::id()));
    let report = sample::report();
    let path = report.write(&folder).expect("a folder to write to");
    let read = SaturationReport::read(&path).expect("a report");
    assert_eq!(read.to_string(), report.to_string());
    for (text, part) in [
        ("", "not JSON"),
        ("[]", "names no schema"),
        (r#"{"schema":"plimsoll.bench/1"}"#, "plimsoll.bench/1"),
        (r#"{"schema":"plimsoll.saturation/2"}"#, "measure again"),
        (r#"{"schema":"plimsoll.saturation/3"}"#, "missing field"),
    ] {
        std::fs::write(&path, text).expect("written");
        let error = SaturationReport::read(&path).expect_err("no report").to_string();
        assert!(error.contains(part) && error.contains("saturation.json"), "{text}: {error}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
    assert!(SaturationReport::read(&path).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Numbers in a report may be anything that JSON can hold.
    #[test]
    fn pages_of_broken_reports_are_sound(
        factor in prop::sample::select(vec![0.0, -1.0, 1e-300, 1e300, f64::MAX, 1e15, 0.3]),
        keep in 0_usize..6,
        saturation in any::<u32>(),
        low in any::<u32>(),
        verdict in prop::sample::select(vec![Verdict::OutOfTime, Verdict::ServerGone, Verdict::SloBroken]),
        name in "\\PC{0,40}",
    ) {
        let mut report = sample::report();
        report.model = format!("{name}<svg onload=alert(1)>");
        report.rungs.truncate(keep);
        report.answer = Answer { verdict, saturation, saturation_low: low, saturation_high: low.saturating_add(9), ..report.answer };
        report.answer.peak_throughput *= factor;
        report.answer.plateau_throughput *= factor;
        report.client_ceiling.events_per_s *= factor;
        for rung in &mut report.rungs {
            rung.summary.rates.output_tokens_per_s *= factor;
            rung.summary.output_half_width = Some(factor);
            rung.summary.window.start_s *= factor;
            rung.summary.duration_s *= factor;
            for distribution in [&mut rung.summary.ttft_ms, &mut rung.summary.tpot_ms].into_iter().flatten() {
                distribution.p50 *= factor;
                distribution.p99 *= factor;
            }
            rung.series.iter_mut().for_each(|slice| slice.at_s *= factor);
        }
        page::tests::check(&html(&report));
        report.to_string();
        report.csv();
    }
}
