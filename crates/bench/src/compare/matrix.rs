//! The selection matrix: a row for each thing that one may choose by, a column for each report. What is best is marked
//! only where its interval is apart from every other's.

use crate::page::Table;
use crate::report::{RungReport, SaturationReport, joules_per_token};
use crate::summary::{Distribution, RungSummary};

use super::{Candidate, Comparison, at_peak};

/// A value and the ends of its confidence interval, where it has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) value: f64,
    pub(super) interval: Option<[f64; 2]>,
}

/// Which end of a scale is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    better: Better,
    decimals: usize,
    pub(super) cells: Vec<Option<Measured>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    columns: Vec<String>,
    pub(super) rows: Vec<Row>,
}

impl Measured {
    fn exact(value: f64) -> Self {
        Self { value, interval: None }
    }

    /// The value and its ends, each turned by `map`, which may turn them around.
    fn map(self, map: impl Fn(f64) -> f64) -> Self {
        let turned = |[low, high]: [f64; 2]| {
            let (a, b) = (map(low), map(high));
            [a.min(b), a.max(b)]
        };
        Self { value: map(self.value), interval: self.interval.map(turned) }
    }

    fn ends(&self) -> [f64; 2] {
        self.interval.unwrap_or([self.value, self.value])
    }

    fn shown(&self, decimals: usize) -> String {
        // Beyond a thousand a decimal says nothing.
        let decimals = if self.value.abs() < 1e3 { decimals } else { 0 };
        let interval = self.interval.map(|[low, high]| format!(" ({low:.decimals$} to {high:.decimals$})"));
        format!("{:.decimals$}{}", self.value, interval.unwrap_or_default())
    }
}

impl Row {
    /// The column that is better than all others beyond doubt. None if there is none, or nothing to compare with.
    pub(super) fn best(&self) -> Option<usize> {
        let known: Vec<(usize, Measured)> =
            self.cells.iter().enumerate().filter_map(|(index, cell)| Some((index, (*cell)?))).collect();
        let beats = |a: &Measured, b: &Measured| match self.better {
            Better::Higher => a.ends()[0] > b.ends()[1],
            Better::Lower => a.ends()[1] < b.ends()[0],
        };
        let is_best = |(index, cell): &&(usize, Measured)| {
            known.len() > 1 && known.iter().all(|(other, rival)| other == index || beats(cell, rival))
        };
        known.iter().find(is_best).map(|(index, _)| *index)
    }

    pub(super) fn shown(&self) -> Vec<String> {
        self.cells.iter().map(|cell| cell.map_or("-".to_owned(), |cell| cell.shown(self.decimals))).collect()
    }
}

impl Matrix {
    pub(super) fn table(&self) -> Table {
        let best = self.rows.iter().enumerate().filter_map(|(row, cells)| Some((row, 1 + cells.best()?)));
        Table {
            title: "Which to choose".to_owned(),
            about:
                "With 95% intervals where there are any. What is best is marked where no other's interval reaches it."
                    .to_owned(),
            header: std::iter::once(String::new()).chain(self.columns.iter().cloned()).collect(),
            rows: self.rows.iter().map(|row| std::iter::once(row.name.clone()).chain(row.shown()).collect()).collect(),
            best: best.collect(),
        }
    }
}

impl Comparison {
    pub(super) fn matrix(&self) -> Matrix {
        let mut rows = self.throughput_rows();
        rows.extend(self.latency_rows());
        rows.extend(self.cost_rows());
        // What no report knows is no reason to choose by.
        rows.retain(|row| row.cells.iter().any(Option::is_some));
        Matrix { columns: self.candidates.iter().map(|one| one.name.clone()).collect(), rows }
    }

    fn row(
        &self,
        name: &str,
        better: Better,
        decimals: usize,
        cell: impl Fn(usize, &Candidate) -> Option<Measured>,
    ) -> Row {
        let finite = |cell: Measured| cell.value.is_finite().then_some(cell);
        let cells = self.candidates.iter().enumerate().map(|(index, one)| cell(index, one).and_then(finite)).collect();
        Row { name: name.to_owned(), better, decimals, cells }
    }

    fn throughput_rows(&self) -> Vec<Row> {
        use Better::Higher;
        let whole = |value: u32| Some(Measured::exact(value.into()));
        vec![
            self.row("Highest throughput, output tok/s", Higher, 0, |_, one| Some(peak(&one.report))),
            self.row("the same for each GPU", Higher, 0, |index, one| {
                let gpus = self.gpus(index)?;
                Some(peak(&one.report).map(|rate| rate / f64::from(gpus)))
            }),
            self.row("Saturation point, concurrent", Higher, 0, |_, one| {
                let answer = &one.report.answer;
                let interval = [answer.saturation_low, answer.saturation_high].map(f64::from);
                Some(Measured { value: answer.saturation.into(), interval: Some(interval) })
            }),
            self.row("Service holds to, concurrent", Higher, 0, |_, one| {
                let answer = &one.report.answer;
                whole(answer.breakpoint.map_or(answer.holds_at, |found| found.last_pass))
            }),
            self.row("Arrivals that do not wait, req/s", Higher, 2, |_, one| {
                one.report.answer.open_loop?.holds_rate.map(Measured::exact)
            }),
        ]
    }

    fn latency_rows(&self) -> Vec<Row> {
        use Better::{Higher, Lower};
        let mut rows = Vec::new();
        if let Some(n) = self.common_concurrency() {
            let rung = move |one: &Candidate| one.report.rung_at(n).map(|rung| rung.summary.clone());
            rows.push(self.row(&format!("TTFT p50 at N = {n}, ms"), Lower, 1, move |_, one| {
                rung(one)?.ttft_ms.map(|d| with_interval(d.p50, d.p50_interval))
            }));
            rows.push(self.row(&format!("TTFT p95 at N = {n}, ms"), Lower, 1, move |_, one| {
                rung(one)?.ttft_ms.map(|d| with_interval(d.p95, d.p95_interval))
            }));
            rows.push(self.row(&format!("TPOT p50 at N = {n}, ms"), Lower, 2, move |_, one| {
                rung(one)?.tpot_ms.map(|d| with_interval(d.p50, d.p50_interval))
            }));
        }
        let at = |one: &Candidate| one.report.at_saturation().map(|rung| rung.summary.clone());
        let per_user = |summary: RungSummary| summary.per_user.one_over_tpot;
        let user = |d: Distribution| with_interval(d.p50, d.p50_interval);
        rows.push(self.row("TTFT p95 at its saturation, ms", Lower, 1, move |_, one| {
            at(one)?.ttft_ms.map(|d| with_interval(d.p95, d.p95_interval))
        }));
        rows.push(self.row("tok/s/user at its saturation, median", Higher, 1, move |_, one| {
            at(one).and_then(per_user).map(user)
        }));
        rows.push(self.row("Success at its saturation, %", Higher, 2, move |_, one| {
            Some(Measured::exact(100.0 * at(one)?.success_rate))
        }));
        rows
    }

    fn cost_rows(&self) -> Vec<Row> {
        use Better::Lower;
        let gib = |bytes: f64| Measured::exact(bytes / f64::from(1 << 30));
        vec![
            self.row("Start-up, s", Lower, 1, |_, one| {
                one.report.server_start.as_ref()?.seconds().map(Measured::exact)
            }),
            self.row("Memory of the server's process, GiB", Lower, 2, |_, one| {
                most(at_peak(&one.report)?, |rung, index| rung.server.as_ref()?.samples[index].rss_bytes).map(gib)
            }),
            self.row("Memory of its GPUs, GiB", Lower, 2, |_, one| {
                most(at_peak(&one.report)?, |rung, index| {
                    let gpus = &rung.server.as_ref()?.samples[index].gpus;
                    let bytes: Vec<f64> = gpus.iter().filter_map(|gpu| gpu.memory_bytes).collect();
                    (!bytes.is_empty()).then(|| bytes.iter().sum())
                })
                .map(gib)
            }),
            self.row("Energy at the highest throughput, J/token", Lower, 3, |_, one| {
                joules_per_token(at_peak(&one.report)?).map(Measured::exact)
            }),
            self.row("Price of a million output tokens at the highest throughput", Lower, 4, |index, one| {
                let price = self.price(index)?;
                Some(peak(&one.report).map(|rate| cost_of_a_million(price, rate)))
            }),
            self.row("Price of a million output tokens at its saturation", Lower, 4, |index, one| {
                let price = self.price(index)?;
                let summary = &one.report.at_saturation()?.summary;
                let rate = around(summary.rates.output_tokens_per_s, summary.output_half_width);
                Some(rate.map(|rate| cost_of_a_million(price, rate)))
            }),
        ]
    }
}

/// What a million tokens cost where a second makes `rate` of them, at `price` an hour.
pub(super) fn cost_of_a_million(price: f64, rate: f64) -> f64 {
    price / (rate * 3600.0) * 1e6
}

pub(super) fn peak(report: &SaturationReport) -> Measured {
    around(report.answer.plateau_throughput, report.answer.plateau_half_width)
}

fn around(value: f64, half_width: Option<f64>) -> Measured {
    Measured { value, interval: half_width.map(|width| [(value - width).max(0.0), value + width]) }
}

fn with_interval(value: f64, interval: Option<[f64; 2]>) -> Measured {
    Measured { value, interval }
}

/// The greatest of what was sampled.
fn most(rung: &RungReport, value: impl Fn(&RungReport, usize) -> Option<f64>) -> Option<f64> {
    let samples = rung.server.as_ref()?.samples.len();
    (0..samples).filter_map(|index| value(rung, index)).reduce(f64::max)
}
