//! A saturation report as a page: the answer, what it rests on, and its charts.

use crate::findings::{Finding, FindingKind};
use crate::page::{self, Fact, Page, Section, Table};
use crate::report::{RungReport, SaturationReport, charts};
use crate::search::{Answer, Constraint, Fall};
use crate::series::ServerStart;
use crate::summary::RungSummary;
use crate::table::{self, number, percent};

/// What a report does not know of its server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PageOptions {
    /// GPUs behind the endpoint, by which the throughput of one is told. None: not told.
    pub gpus: Option<u32>,
    /// What a plan foretells of the same server; empty: there is none.
    pub plan: Vec<Foretold>,
}

/// What a plan says of one concurrency. Output tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foretold {
    pub concurrency: u32,
    pub predicted: f64,
    /// If the device did all that its datasheet says.
    pub roofline: f64,
}

impl SaturationReport {
    /// The page that shows this report.
    pub fn page(&self, options: &PageOptions) -> Page {
        let at_saturation = self.at_saturation().map(|rung| &rung.summary);
        let charts = charts::all(self, options);
        let mut sections = charts;
        if !self.rungs.is_empty() {
            sections.push(Section::Table(rung_table(&self.rungs)));
        }
        sections.extend(charts::start_table(self).map(Section::Table));
        sections.push(Section::Table(self.conditions()));
        let mut findings = vec![table::explanation(&self.answer), table::service(&self.answer, &self.config.search)];
        findings.extend(table::open_loop(&self.answer).into_iter().chain(table::drift(&self.answer)));
        findings.push(self.client_ceiling.to_string());
        Page {
            title: format!("{}: {}", self.model, table::headline(&self.answer)),
            answer: self.headline(),
            detail: at_saturation.map(table::point).unwrap_or_default(),
            subject: self.model.clone(),
            facts: facts(&self.answer, at_saturation).into_iter().chain(self.costs()).collect(),
            warnings: self.warnings(),
            findings,
            sections,
            notes: table::notes(&self.workload, &self.rungs),
        }
    }

    /// What it takes to serve so: energy, memory and the time to start, as far as they are known.
    fn costs(&self) -> Vec<Fact> {
        let fact = |name: &str, value: Option<f64>, unit: &str, detail: String| {
            Some(Fact { name: name.to_owned(), value: page::number(value?), unit: unit.to_owned(), detail })
        };
        let peak = self.rung_at(self.answer.peak);
        let at = format!("at N = {}", self.answer.peak);
        let (process, gpus) = charts::steady_memory(self);
        let (memory, whose) = if gpus.is_some() { (gpus, "on its GPUs") } else { (process, "of its process") };
        let gib = memory.map(|bytes| bytes / f64::from(1 << 30));
        let start = self.server_start.as_ref().and_then(ServerStart::seconds);
        let facts = [
            fact("Energy", peak.and_then(charts::joules_per_token), "J a token", at.clone()),
            fact("Memory", gib, "GiB", format!("{whose} {at}")),
            fact("Start-up", start, "s", "until it was ready".to_owned()),
        ];
        facts.into_iter().flatten().collect()
    }

    /// The page's first line, whose `N = 48` does not break.
    fn headline(&self) -> String {
        let doubt = if self.is_invalid() { ", if it can be believed" } else { "" };
        format!("{}{doubt}", capitalized(&table::headline(&self.answer))).replace("N = ", "N\u{a0}=\u{a0}")
    }

    /// Whether a finding says that the answer must not be used.
    pub(crate) fn is_invalid(&self) -> bool {
        self.findings.iter().any(Finding::invalidates)
    }

    /// The rung that stands for the saturation point.
    pub(crate) fn at_saturation(&self) -> Option<&RungReport> {
        self.rung_at(self.answer.saturation)
    }

    /// Of a concurrency that was measured more than once, the rung with the median throughput: the one that counts.
    pub fn rung_at(&self, concurrency: u32) -> Option<&RungReport> {
        let mut replicates: Vec<&RungReport> =
            self.rungs.iter().filter(|rung| rung.summary.concurrency == concurrency).collect();
        let throughput = |rung: &RungReport| rung.summary.rates.output_tokens_per_s;
        replicates.sort_by(|a, b| throughput(a).total_cmp(&throughput(b)));
        replicates.get(replicates.len().saturating_sub(1) / 2).copied()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let (invalid, others): (Vec<_>, Vec<_>) = self.findings.iter().partition(|finding| finding.invalidates());
        warnings.extend(invalid.into_iter().chain(others).map(|finding| finding.text.clone()));
        if !self.answer.complete {
            let text = "time ran out before all was found. The figures stand; with a larger budget they narrow.";
            warnings.push(text.to_owned());
        }
        let limited = |rung: &&RungReport| !self.client_ceiling.has_headroom_for(rung.summary.chunks_per_s);
        let said = self.findings.iter().any(|finding| finding.kind == FindingKind::ClientLimited);
        if let Some(rung) = self.rungs.iter().find(limited).filter(|_| !said) {
            warnings.push(format!(
                "from N = {} on the client is within a quarter of its own ceiling, so the figures may be the client's.",
                rung.summary.concurrency
            ));
        }
        warnings
    }

    /// What was measured, with what.
    fn conditions(&self) -> Table {
        let config = &self.config;
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let slo = &config.search.slo;
        let limit = |limit: Option<f64>| limit.map_or("none".to_owned(), |ms| format!("{ms} ms"));
        Table {
            title: "Conditions".to_owned(),
            about: String::new(),
            header: vec!["What".to_owned(), "Value".to_owned()],
            rows: vec![
                row("Endpoint", config.endpoint.url.clone()),
                row("Begun", utc(self.started_unix_s)),
                row("Output tokens at most", config.generation.max_tokens.to_string()),
                row("Prompt tokens", format!("{} to {}", config.workload.min_tokens, config.workload.max_tokens)),
                row("Prompts salted", if config.workload.salt { "yes" } else { "no" }.to_owned()),
                row("Limit of TTFT", limit(slo.ttft_ms)),
                row("Limit of TPOT", limit(slo.tpot_ms)),
                row("Requests that must keep them", format!("{}%", slo.percentile)),
                row("Requests that must succeed", percent(config.search.success_floor)),
                row("Budget", format!("{} s", config.budget.as_secs())),
                row("Rungs", self.rungs.len().to_string()),
                row("Plimsoll", self.tool_version.clone()),
            ],
            best: Vec::new(),
        }
    }
}

fn facts(answer: &Answer, at_saturation: Option<&RungSummary>) -> Vec<Fact> {
    let fact = |name: &str, value: String, unit: &str, detail: String| Fact {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        detail,
    };
    let (low, high) = (answer.saturation_low, answer.saturation_high);
    let interval = if low < high { format!("95% interval {low} to {high}") } else { "no other rung comes near".into() };
    let width = answer.peak_half_width.filter(|_| answer.peak_throughput > 0.0);
    let width = width.map(|width| format!("±{} ", percent(width / answer.peak_throughput))).unwrap_or_default();
    let holds = match answer.breakpoint {
        None => "nothing broke service".to_owned(),
        Some(found) => format!("breaks at {}: {}{}", found.first_fail, cause(found.constraint), fall(found.fall)),
    };
    let holds_at = answer.breakpoint.map_or(answer.holds_at, |found| found.last_pass);
    let mut facts = vec![
        fact("Saturation point", answer.saturation.to_string(), "concurrent", interval),
        fact(
            "Highest throughput",
            page::number(answer.peak_throughput),
            "output tok/s",
            format!("{width}at N = {}", answer.peak),
        ),
        fact("Service holds to", holds_at.to_string(), "concurrent", holds),
    ];
    if let Some(summary) = at_saturation {
        let at = format!("at N = {}", summary.concurrency);
        if let Some(ttft) = &summary.ttft_ms {
            let detail = format!("p95 {} ms, {at}", number(Some(ttft.p95), 0));
            facts.push(fact("Time to first token", number(Some(ttft.p50), 0), "ms, p50", detail));
        }
        let user = summary.per_user.one_over_tpot.as_ref().map(|user| user.mean);
        facts.push(fact("Each user sees", user.map_or("-".to_owned(), page::number), "tok/s", at.clone()));
        facts.push(fact("Success", percent(summary.success_rate), "", at));
    }
    facts
}

fn cause(constraint: Constraint) -> &'static str {
    match constraint {
        Constraint::Success => "requests fail",
        Constraint::Refused => "requests are refused",
        Constraint::Ttft => "first tokens too late",
        Constraint::Tpot => "replies too slow",
    }
}

fn fall(fall: Option<Fall>) -> &'static str {
    match fall {
        Some(Fall::Cliff) => ", a cliff",
        Some(Fall::Smooth) | None => "",
    }
}

fn rung_table(rungs: &[RungReport]) -> Table {
    Table {
        title: "All rungs".to_owned(),
        about: "One row each time a concurrency was measured.".to_owned(),
        header: table::HEADERS.map(str::to_owned).to_vec(),
        rows: rungs.iter().map(|rung| table::row(&rung.summary).to_vec()).collect(),
        best: Vec::new(),
    }
}

fn capitalized(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// A time as `2026-11-22 00:05 UTC`, by the civil calendar.
pub(crate) fn utc(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    // Years that begin in March put the leap day last; 400 of them have 146,097 days, and the first began 719,468 days
    // before 1970.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        let cases = [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_305_900, "2026-11-22 00:05 UTC"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(utc(seconds), expected);
        }
        assert!(utc(u64::MAX / 4).ends_with("UTC"));
    }
}
