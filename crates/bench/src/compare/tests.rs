//! Comparisons whose outcome is known beforehand.

use super::matrix::{Measured, cost_of_a_million};
use super::text::ratio;
use super::*;
use crate::page;
use crate::report::sample;

fn faster(factor: f64) -> SaturationReport {
    let mut report = sample::report();
    report.answer.plateau_throughput *= factor;
    report.answer.plateau_half_width = Some(10.0 * factor);
    report
}

fn candidate(name: &str, report: SaturationReport) -> Candidate {
    Candidate { name: name.to_owned(), report }
}

fn compared(factor: f64, options: CompareOptions) -> Comparison {
    Comparison::new(vec![candidate("a", faster(1.0)), candidate("b", faster(factor))], options)
}

#[test]
fn a_difference_beyond_the_intervals_is_named_and_one_within_is_not() {
    let clear = compared(1.5, CompareOptions::default()).to_string();
    assert!(clear.starts_with("b serves the most: "), "{clear}");
    assert!(clear.contains("b reaches 1.50 times the highest throughput of a (95%: 1.4"), "{clear}");
    assert!(clear.lines().any(|line| line.contains("Highest throughput") && line.contains(" *")), "{clear}");
    let close = compared(1.005, CompareOptions::default()).to_string();
    assert!(close.starts_with("None serves more than all others beyond doubt"), "{close}");
    assert!(close.contains("which may be no difference"), "{close}");
}

#[test]
fn the_ratio_of_two_intervals_is_that_of_the_delta_method() {
    let around = |value: f64, width: f64| Measured { value, interval: Some([value - width, value + width]) };
    let (value, interval) = ratio(around(200.0, 6.0), around(100.0, 4.0)).expect("a ratio");
    assert_eq!((value, interval), (2.0, Some([1.9, 2.1])), "3% and 4% make 5%");
    assert_eq!(ratio(around(1.0, 0.1), around(0.0, 0.0)), None);
    let exact = Measured { value: 3.0, interval: None };
    assert_eq!(ratio(exact, around(1.5, 0.1)), Some((2.0, None)));
}

#[test]
fn cost_follows_from_price_and_throughput() {
    // 1,000 tokens a second are 3.6 million an hour.
    assert!((cost_of_a_million(3.6, 1000.0) - 1.0).abs() < 1e-12);
    let options = CompareOptions { prices_per_hour: vec![2.0, 3.0], gpus: vec![1, 2] };
    let comparison = compared(2.0, options);
    let matrix = comparison.matrix();
    let row = |name: &str| matrix.rows.iter().find(|row| row.name.starts_with(name)).expect("a row");
    let cost = row("Price of a million output tokens at the highest throughput");
    let [a, b] = [0, 1].map(|index| cost.cells[index].expect("a price"));
    assert!((b.value / a.value - 0.75).abs() < 1e-9, "half the time at one and a half times the price");
    let [low, high] = a.interval.expect("throughput has one");
    assert!(low < a.value && a.value < high);
    assert_eq!(cost.best(), Some(1));
    let each = row("the same for each GPU");
    assert_eq!(each.cells[0].map(|cell| cell.value), each.cells[1].map(|cell| cell.value));
    assert!(!compared(2.0, CompareOptions::default()).to_string().contains("Price"));
}

#[test]
fn the_published_result_stands_beside_the_same_model_under_the_same_load_alone() {
    let mut ours = sample::report();
    ours.model = "GPT_OSS-20B-dummy".to_owned();
    let shown = |report: SaturationReport| {
        let comparison = Comparison::new(vec![candidate("ours", report)], CompareOptions::default());
        let html = comparison.page().to_string();
        page::tests::check(&html);
        (comparison.to_string(), html)
    };
    let (text, html) = shown(ours.clone());
    assert!(text.contains("gpt-oss-20b, published result, GPUs: 1 | 32 | 33.82 |"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("| ours ") && line.contains("| 32 |")), "{text}");
    assert!(html.contains("gpt-oss-20b, published result") && html.contains("130 to 136"));
    let mut longer = ours.clone();
    longer.config.generation.max_tokens = 200;
    assert!(!shown(longer).0.contains("published"));
    let mut turns = ours.clone();
    turns.config.workload.turns = 3;
    assert!(!shown(turns).0.contains("published"));
    ours.model = "another".to_owned();
    assert!(!shown(ours).0.contains("published"));
}

#[test]
fn the_published_table_is_the_method_pages() {
    let all = &reference::published().results;
    let rows: Vec<_> = all.iter().map(|one| (one.gpus, one.at.requests_per_s, one.at.output_tokens_per_s)).collect();
    assert_eq!(rows, [(1, 33.82, 3348.5), (1, 12.43, 1242.83), (4, 14.1, 1410.18)]);
    assert!(all.iter().all(|one| one.at.concurrency == 32 && one.at.success_rate == 1.0));
    for (index, name) in ["openai/gpt-oss-20b", "google/gemma-3-27b-it", "Llama-4-Scout-17B-16E"].iter().enumerate() {
        let matching: Vec<usize> = (0..3).filter(|at| all[*at].is_of(name)).collect();
        assert_eq!(matching, [index], "{name}");
    }
}

#[test]
fn what_makes_reports_hard_to_compare_is_said() {
    let mut other = faster(1.0);
    other.config.generation.max_tokens = 50;
    other.config.workload.salt = false;
    let text = Comparison::new(vec![candidate("a", faster(1.0)), candidate("a", other)], CompareOptions::default());
    let text = text.to_string();
    let warning = "! a (1) and a (2) were measured under different loads: at most 100 output tokens against 50, salted \
                   true against salted false.";
    assert!(text.contains(warning), "{text}");
}

#[test]
fn any_number_of_reports_gives_a_page() {
    for count in [0, 1, 2, 11] {
        let candidates = (0..count).map(|index| candidate(&format!("<b>{index}"), faster(1.0))).collect();
        let comparison = Comparison::new(candidates, CompareOptions::default());
        page::tests::check(&comparison.page().to_string());
        assert!(!comparison.to_string().is_empty());
    }
    let mut empty = sample::report();
    empty.rungs.clear();
    empty.answer.plateau_throughput = 0.0;
    let comparison =
        Comparison::new(vec![candidate("a", empty), candidate("b", faster(1.0))], CompareOptions::default());
    page::tests::check(&comparison.page().to_string());
    assert!(!comparison.to_string().contains("NaN"), "{comparison}");
}
