//! The devices of one host under the same load, one after another: which of them is slower than the others, if any is.
//!
//! A device is called slow where the 95% interval of its highest throughput lies wholly below those of most of the
//! others, and by more than what passes for no change between two measurements of one server. A single fast device
//! does not make the others slow.

use std::fmt;

use crate::compare::{Candidate, CompareOptions, Comparison};
use crate::page::Page;

/// A difference up to this may be the time of day.
const TOLERATED: f64 = 0.03;

/// Reports of the devices of a host. `Display` gives text, its first line the answer.
#[derive(Clone, Debug)]
pub struct Devices(Vec<Candidate>);

/// A highest throughput with its 95% interval, where the report is to be believed and has one.
#[derive(Clone, Copy)]
struct Rate {
    value: f64,
    ends: Option<(f64, f64)>,
}

impl Rate {
    fn is_below(self, other: Self) -> bool {
        let apart = self.ends.zip(other.ends).is_some_and(|(own, other)| own.1 < other.0);
        apart && self.value < (1.0 - TOLERATED) * other.value
    }
}

impl Devices {
    /// Each device's report under the device's name.
    pub fn new(reports: Vec<Candidate>) -> Self {
        Self(reports)
    }

    /// The names of the slow ones.
    pub fn slow(&self) -> Vec<&str> {
        let rates: Vec<Rate> = self.0.iter().map(rate).collect();
        let is_slow = |rate: &Rate| 2 * rates.iter().filter(|other| rate.is_below(**other)).count() >= rates.len();
        self.0.iter().zip(&rates).filter(|(_, rate)| is_slow(rate)).map(|(one, _)| one.name.as_str()).collect()
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
        match (self.slow().as_slice(), self.0.len()) {
            (_, 0 | 1) => "There is no second device to compare with".to_owned(),
            ([], count) => format!("None of {count} devices is shown to be slower than the others"),
            ([one], _) => format!("{one} is the slow one"),
            (several, _) => format!("{} are the slow ones", several.join(", ")),
        }
    }

    /// How much less each slow one does than the median of the others.
    fn sentences(&self) -> Vec<String> {
        let slow = self.slow();
        let others = self.0.iter().filter(|one| !slow.contains(&one.name.as_str())).map(|one| rate(one).value);
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
        self.0.iter().filter(|one| slow.contains(&one.name.as_str())).filter_map(tell).collect()
    }
}

fn rate(one: &Candidate) -> Rate {
    let answer = &one.report.answer;
    let value = answer.peak_throughput;
    let width = answer.peak_half_width.filter(|width| width.is_finite() && !one.report.is_invalid());
    Rate { value, ends: width.map(|width| (value - width, value + width)) }
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
            (report.answer.peak_throughput, report.answer.peak_half_width) = (rate, width);
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
        devices.0[1].report.findings.push(Finding::new(FindingKind::Drift, "It changed."));
        assert_eq!(devices.slow(), [""; 0]);
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
