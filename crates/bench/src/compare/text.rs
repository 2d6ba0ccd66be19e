//! A comparison in words.

use std::fmt;

use crate::page::Table;
use crate::table::number;

use super::matrix::{Measured, peak};
use super::{Comparison, is_reference_load, reference};

impl Comparison {
    /// Which serves the most, if that can be told.
    pub(super) fn answer(&self) -> String {
        let invalid = self.candidates.iter().any(|one| one.report.is_invalid());
        format!("{}{}", self.verdict(), if invalid { ", if the reports can be believed" } else { "" })
    }

    fn verdict(&self) -> String {
        let matrix = self.matrix();
        let first = matrix.rows.iter().find(|row| row.name.starts_with("Highest throughput"));
        let best =
            first.and_then(|row| row.best()).and_then(|index| self.candidates.get(index).map(|one| (index, one)));
        match (best, self.candidates.len()) {
            (_, 0) => "Nothing to compare".to_owned(),
            (_, 1) => format!("{}: {:.0} output tok/s at the most", self.candidates[0].name, self.rate(0).value),
            (Some((index, one)), _) => {
                format!("{} serves the most: {:.0} output tok/s", one.name, self.rate(index).value)
            }
            (None, _) => "None serves more than all others beyond doubt".to_owned(),
        }
    }

    fn rate(&self, index: usize) -> Measured {
        peak(&self.candidates[index].report)
    }

    /// Each against the first, with the interval of the ratio.
    pub(super) fn ratios(&self) -> Vec<String> {
        let Some(base) = self.candidates.first().map(|_| self.rate(0)) else { return Vec::new() };
        let against = |index: usize| {
            let (ratio, interval) = ratio(self.rate(index), base)?;
            let told = match interval {
                Some([low, high]) if low <= 1.0 && high >= 1.0 => {
                    format!(" (95%: {low:.2} to {high:.2}, which may be no difference)")
                }
                Some([low, high]) => format!(" (95%: {low:.2} to {high:.2})"),
                None => " (without an interval)".to_owned(),
            };
            let (name, first) = (&self.candidates[index].name, &self.candidates[0].name);
            Some(format!("{name} reaches {ratio:.2} times the highest throughput of {first}{told}."))
        };
        (1..self.candidates.len()).filter_map(against).collect()
    }

    /// The published result as a table, with what the reports have at the same concurrency.
    pub(super) fn published_table(&self) -> Option<Table> {
        let mut rows = Vec::new();
        for published in &self.published {
            let at = &published.at;
            let cell = |value: f64, decimals: usize| format!("{value:.decimals$}");
            rows.push(vec![
                format!("{}, {}, GPUs: {}", published.model, reference::published().description, published.gpus),
                at.concurrency.to_string(),
                cell(at.requests_per_s, 2),
                cell(at.input_tokens_per_s, 1),
                cell(at.output_tokens_per_s, 1),
                cell(at.tokens_per_s_per_user, 1),
                cell(at.ttft_ms, 1),
                cell(at.tpot_ms, 2),
                cell(at.itl_ms, 2),
                format!("{:.1}%", 100.0 * at.success_rate),
            ]);
            for one in self.candidates.iter().filter(|one| published.is_of(&one.report.model)) {
                let Some(rung) = one.report.rung_at(at.concurrency).filter(|_| is_reference_load(&one.report)) else {
                    continue;
                };
                let summary = &rung.summary;
                let mean = |d: &Option<crate::Distribution>, decimals| number(d.as_ref().map(|d| d.mean), decimals);
                rows.push(vec![
                    one.name.clone(),
                    summary.concurrency.to_string(),
                    cell(summary.rates.requests_per_s, 2),
                    cell(summary.rates.input_tokens_per_s, 1),
                    cell(summary.rates.output_tokens_per_s, 1),
                    mean(&summary.per_user.one_over_tpot, 1),
                    mean(&summary.ttft_ms, 1),
                    mean(&summary.tpot_ms, 2),
                    mean(&summary.itl_ms, 2),
                    crate::table::percent(summary.success_rate),
                ]);
            }
        }
        let header = ["", "N", "req/s", "in tok/s", "out tok/s", "tok/s/user", "TTFT mean", "TPOT", "ITL", "success"];
        (!rows.is_empty()).then(|| Table {
            title: "Beside the published result".to_owned(),
            about: self
                .published
                .iter()
                .map(|one| format!("{}: {}.", one.model, one.ramp_note))
                .collect::<Vec<_>>()
                .join(" "),
            header: header.map(str::to_owned).to_vec(),
            rows,
            best: Vec::new(),
        })
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.published.is_empty() {
            notes.push(
                "The published result has other hardware and was measured by other people; its times are means."
                    .to_owned(),
            );
        }
        let salted = self.candidates.iter().any(|one| one.report.config.workload.salt);
        if salted && !self.published.is_empty() {
            notes.push(
                "The salt that keeps prefix caches cold makes prompts longer than those of the published result."
                    .to_owned(),
            );
        }
        notes.push("Throughput has 95% intervals by batch means, latency by order statistics.".to_owned());
        notes
    }
}

/// `a` over `b`, and its 95% interval by the delta method where both have one. None where `b` is nothing.
pub(super) fn ratio(a: Measured, b: Measured) -> Option<(f64, Option<[f64; 2]>)> {
    let ratio = a.value / b.value;
    if !ratio.is_finite() {
        return None;
    }
    let share = |m: Measured| m.interval.map(|[low, high]| (high - low) / 2.0 / m.value);
    let width = share(a).zip(share(b)).map(|(a, b)| ratio * a.hypot(b)).filter(|width| width.is_finite());
    Some((ratio, width.map(|width| [ratio - width, ratio + width])))
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.answer())?;
        self.warnings().iter().try_for_each(|warning| writeln!(out, "! {warning}"))?;
        self.ratios().iter().try_for_each(|ratio| writeln!(out, "{ratio}"))?;
        write_table(out, &self.matrix().table())?;
        if let Some(table) = self.published_table() {
            write_table(out, &table)?;
        }
        writeln!(out)?;
        self.notes().iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

/// Columns that line up; what is best has a star.
fn write_table(out: &mut fmt::Formatter<'_>, table: &Table) -> fmt::Result {
    let mut rows: Vec<Vec<String>> = vec![table.header.clone()];
    rows.extend(table.rows.clone());
    for &(row, column) in &table.best {
        if let Some(cell) = rows.get_mut(row + 1).and_then(|row| row.get_mut(column)) {
            cell.push_str(" *");
        }
    }
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..table.header.len()).map(|column| width(column).unwrap_or(0).max(2)).collect();
    writeln!(out, "\n{}\n", table.title)?;
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
        if index == 0 {
            let rules = widths.iter().enumerate().map(|(column, width)| {
                if column == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) }
            });
            writeln!(out, "| {} |", rules.collect::<Vec<_>>().join(" | "))?;
        }
    }
    writeln!(out, "\n{}", table.about)
}
