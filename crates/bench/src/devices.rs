//! The devices of one host under the same load, one after another: which of them is slower than the others, if any is.
//!
//! A device is called slow where the 95% interval of its highest throughput lies wholly below those of most of the
//! others, and by more than what passes for no change between two measurements of one server. A single fast device
//! does not make the others slow. The throughput is that of the plateau, not of its luckiest rung. A report that is not
//! finished, or not to be believed, names nobody and is held against nobody.

use std::fmt;

use crate::compare::{Candidate, CompareOptions, Comparison};
use crate::findings::FindingKind;
use crate::page::Page;
use crate::report::SaturationReport;
use crate::search::Verdict;

/// A difference up to this may be the time of day.
const TOLERATED: f64 = 0.03;

/// Reports of the devices of a host. `Display` gives text, its first line the answer.
#[derive(Clone, Debug)]
pub struct Devices(Vec<Candidate>);

/// A highest throughput with its 95% interval, where it has one.
#[derive(Clone, Copy)]
struct Rate {
    value: f64,
    ends: Option<(f64, f64)>,
}

impl Rate {
    fn is_below(self, other: Self) -> bool {
        self.ends.zip(other.ends).is_some_and(|(own, other)| own.1 < (1.0 - TOLERATED) * other.0)
    }
}

impl Devices {
    /// Each device's report under the device's name.
    pub fn new(reports: Vec<Candidate>) -> Self {
        Self(reports)
    }

    /// The names of the slow ones.
    pub fn slow(&self) -> Vec<&str> {
        let rates: Vec<Rate> = self.compared().map(rate).collect();
        let is_slow = |rate: &Rate| 2 * rates.iter().filter(|other| rate.is_below(**other)).count() >= rates.len();
        self.compared().zip(&rates).filter(|(_, rate)| is_slow(rate)).map(|(one, _)| one.name.as_str()).collect()
    }

    /// Those whose figures can be held against one another.
    fn compared(&self) -> impl Iterator<Item = &Candidate> {
        self.0.iter().filter(|one| why_not(&one.report).is_none())
    }

    /// The page that shows them side by side.
    pub fn page(&self) -> Page {
        let page = self.comparison().page();
        let findings = self.sentences().into_iter().chain(page.findings).collect();
        Page { title: self.answer(), answer: self.answer(), findings, ..page }
    }

    fn comparison(&self) -> Comparison {
        Comparison::new(self.0.clone(), CompareOptions::default())
    }

    fn answer(&self) -> String {
        match (self.slow().as_slice(), self.compared().count()) {
            (_, 0 | 1) if self.0.len() > 1 => {
                "Fewer than two devices were measured well enough to be compared".to_owned()
            }
            (_, 0 | 1) => "There is no second device to compare with".to_owned(),
            ([], count) => format!("None of {count} devices is shown to be slower than the others"),
            ([one], _) => format!("{one} is the slow one"),
            (several, _) => format!("{} are the slow ones", several.join(", ")),
        }
    }

    /// How much less each slow one does than the median of the others, and which are left out.
    fn sentences(&self) -> Vec<String> {
        let left_out = |one: &Candidate| Some(format!("{} is left out: {}.", one.name, why_not(&one.report)?));
        self.slowness().into_iter().chain(self.0.iter().filter_map(left_out)).collect()
    }

    fn slowness(&self) -> Vec<String> {
        let slow = self.slow();
        let others = self.compared().filter(|one| !slow.contains(&one.name.as_str())).map(|one| rate(one).value);
        let mut others: Vec<f64> = others.collect();
        others.sort_by(f64::total_cmp);
        let Some(usual) = others.get(others.len().saturating_sub(1) / 2).copied() else { return Vec::new() };
        let tell = |one: &Candidate| {
            let Rate { value, ends } = rate(one);
            let (low, high) = ends?;
            let less = |rate: f64| 100.0 * (1.0 - rate / usual);
            Some(format!(
                "{} makes {value:.1} output tok/s at the most, {:.1}% less than the {usual:.1} of the others (by its 95% \
                 interval {:.1} to {:.1}% less).",
                one.name,
                less(value),
                less(high),
                less(low)
            ))
        };
        self.compared().filter(|one| slow.contains(&one.name.as_str())).filter_map(tell).collect()
    }
}

fn rate(one: &Candidate) -> Rate {
    let answer = &one.report.answer;
    let value = answer.plateau_throughput;
    let width = answer.plateau_half_width.filter(|width| width.is_finite());
    Rate { value, ends: width.map(|width| (value - width, value + width)) }
}

/// Why a device's highest throughput is not known. None: it is.
fn why_not(report: &SaturationReport) -> Option<&'static str> {
    let has = |kind| report.findings.iter().any(|finding| finding.kind == kind);
    let answer = &report.answer;
    // What comes after the plateau may be missing.
    let has_end = answer.complete || matches!(answer.verdict, Verdict::Plateaued | Verdict::Retrograde);
    if report.is_invalid() {
        Some("its figures are not to be used")
    } else if has(FindingKind::ServerEnded) || answer.verdict == Verdict::ServerGone {
        Some("its server ended")
    } else if has(FindingKind::NotIdle) {
        Some("it had other work")
    } else if has_end && answer.verdict != Verdict::OutOfTime {
        None
    } else if has(FindingKind::Interrupted) {
        Some("its search was interrupted")
    } else {
        Some("its search ran out of time")
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.answer())?;
        self.sentences().iter().try_for_each(|sentence| writeln!(out, "{sentence}"))?;
        write!(out, "{}", self.comparison())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::{Finding, FindingKind};
    use crate::report::sample;

    /// A highest throughput and its half-width.
    type Planted = (f64, Option<f64>);

    /// A device for each.
    fn devices(rates: &[Planted]) -> Devices {
        let device = |(index, &(rate, width)): (usize, &Planted)| {
            let mut report = sample::report();
            (report.answer.plateau_throughput, report.answer.plateau_half_width) = (rate, width);
            Candidate { name: format!("cuda:{index}"), report }
        };
        Devices::new(rates.iter().enumerate().map(device).collect())
    }

    #[test]
    fn a_slow_device_is_named_only_where_the_intervals_say_so() {
        let sure = Some(10.0);
        let cases: [(&[Planted], &[&str]); 8] = [
            (&[(1000.0, sure), (900.0, sure)], &["cuda:1"]),
            (&[(1000.0, sure), (1005.0, sure), (998.0, sure), (850.0, sure)], &["cuda:3"]),
            // One that is faster than all others makes none of them slow.
            (&[(1000.0, sure), (1002.0, sure), (1200.0, sure)], &[]),
            // Intervals that touch, none at all, and a difference that is sure and small.
            (&[(1000.0, Some(60.0)), (900.0, Some(60.0))], &[]),
            (&[(1000.0, sure), (500.0, None)], &[]),
            (&[(1000.0, Some(1.0)), (980.0, Some(1.0))], &[]),
            (&[(1000.0, sure), (1001.0, sure), (999.0, sure), (700.0, sure), (600.0, sure)], &["cuda:3", "cuda:4"]),
            (&[(1000.0, sure)], &[]),
        ];
        for (rates, expected) in cases {
            assert_eq!(devices(rates).slow(), expected, "{rates:?}");
        }
    }

    #[test]
    fn a_report_that_is_not_to_be_believed_names_nobody() {
        let mut devices = devices(&[(1000.0, Some(5.0)), (500.0, Some(5.0))]);
        assert_eq!(devices.slow(), ["cuda:1"]);
        for kind in [FindingKind::Drift, FindingKind::ServerEnded, FindingKind::NotIdle] {
            devices.0[1].report.findings = vec![Finding::new(kind, "It changed.")];
            assert_eq!(devices.slow(), [""; 0], "{kind:?}");
            let text = devices.to_string();
            assert!(text.starts_with("Fewer than two devices") && text.contains("cuda:1 is left out: "), "{text}");
        }
    }

    #[test]
    fn a_search_that_was_not_finished_names_nobody_unless_it_saw_the_plateau() {
        let mut devices = devices(&[(1000.0, Some(5.0)), (500.0, Some(5.0)), (1001.0, Some(5.0))]);
        let answer = &mut devices.0[1].report.answer;
        (answer.complete, answer.verdict) = (false, Verdict::Plateaued);
        assert_eq!(devices.slow(), ["cuda:1"], "it lacks the breakpoint at the most");
        for verdict in [Verdict::OutOfTime, Verdict::ServiceBroken, Verdict::ServerGone] {
            devices.0[1].report.answer.verdict = verdict;
            assert_eq!(devices.slow(), [""; 0], "{verdict:?}");
        }
        devices.0[1].report.answer.verdict = Verdict::OutOfTime;
        devices.0[1].report.findings = vec![Finding::new(FindingKind::Interrupted, "It was interrupted.")];
        let text = devices.to_string();
        assert!(text.contains("cuda:1 is left out: its search was interrupted"), "{text}");
    }

    #[test]
    fn the_first_line_is_the_answer() {
        let text = devices(&[(1000.0, Some(10.0)), (900.0, Some(10.0))]).to_string();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("cuda:1 is the slow one"));
        assert!(
            lines.next().is_some_and(|line| line.contains("10.0% less") && line.contains("9.0 to 11.0%")),
            "{text}"
        );
        let none = devices(&[(1000.0, Some(90.0)), (990.0, Some(90.0))]);
        assert!(none.to_string().starts_with("None of 2 devices is shown"), "{none}");
        crate::page::tests::check(&none.page().to_string());
    }
}
