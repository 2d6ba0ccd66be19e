//! Reports as a person reads them in a terminal: the answer first, then a row for each concurrency.

use std::fmt;

use crate::preflight::ClientCeiling;
use crate::record::TokenSource;
use crate::report::{BenchReport, RungReport, SaturationReport, WorkloadFacts};
use crate::search::{Answer, Constraint, Fall, OpenLoopFault, Recheck, SearchConfig, Verdict};
use crate::selection::LengthSource;
use crate::summary::{Distribution, RungSummary};

pub(crate) const HEADERS: [&str; 12] =
    ["N", "req/s", "in tok/s", "out tok/s", "±", "tok/s/user", "TTFT mean", "p50", "p95", "TPOT", "ITL", "success"];

impl fmt::Display for ClientCeiling {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.own_process { "a process of its own" } else { "the client's own process" };
        write!(out, "The client alone took {:.0} events/s from a null server in {whose}.", self.events_per_s)
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = &self.rung.summary;
        writeln!(
            out,
            "{} at {}: {:.1} output tok/s, {:.2} req/s, success {}",
            self.model,
            load(summary),
            summary.rates.output_tokens_per_s,
            summary.rates.requests_per_s,
            percent(summary.success_rate)
        )?;
        self.findings.iter().try_for_each(|finding| writeln!(out, "! {}", finding.text))?;
        writeln!(out)?;
        table(out, std::slice::from_ref(&self.rung))?;
        lines(out, &notes(&self.workload, std::slice::from_ref(&self.rung)))
    }
}

/// What a run was driven with.
fn load(summary: &RungSummary) -> String {
    let Some(facts) = &summary.open_loop else { return format!("{} concurrent", summary.concurrency) };
    let backlog = if facts.growth.is_some_and(|growth| !growth.is_flat) { ", and ever more" } else { "" };
    format!("{:.2} arrivals/s ({:.1} in flight on average{backlog})", facts.offered_per_s, facts.in_flight_mean)
}

impl fmt::Display for SaturationReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rung = self.rungs.iter().find(|rung| rung.summary.concurrency == self.answer.saturation);
        let detail = rung.map(|rung| point(&rung.summary)).unwrap_or_default();
        let doubt = if self.is_invalid() { "; not to be believed, see below" } else { "" };
        writeln!(out, "{}: {detail}{}{doubt}", headline(&self.answer), breaks(&self.answer))?;
        let invalidating = self.findings.iter().filter(|finding| finding.invalidates());
        let others = self.findings.iter().filter(|finding| !finding.invalidates());
        invalidating.chain(others).try_for_each(|finding| writeln!(out, "! {}", finding.text))?;
        writeln!(out, "{}", explanation(&self.answer))?;
        writeln!(out, "{}", service(&self.answer, &self.config.search))?;
        let more = open_loop(&self.answer).into_iter().chain(drift(&self.answer));
        more.into_iter().try_for_each(|sentence| writeln!(out, "{sentence}"))?;
        if !self.answer.complete {
            writeln!(out, "Time ran out before all was found: the figures stand, with a larger budget they narrow.")?;
        }
        writeln!(out)?;
        table(out, &self.rungs)?;
        lines(out, &notes(&self.workload, &self.rungs))?;
        writeln!(out, "{}", self.client_ceiling)
    }
}

fn lines(out: &mut fmt::Formatter<'_>, lines: &[String]) -> fmt::Result {
    writeln!(out)?;
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

pub(crate) fn headline(answer: &Answer) -> String {
    let n = answer.saturation;
    match answer.verdict {
        Verdict::Plateaued | Verdict::Retrograde => format!("saturates at N = {n} concurrent"),
        Verdict::StillScaling => format!("still scaling at N = {n} concurrent"),
        Verdict::AdmissionLimited => format!("limited by admission; best from N = {n} concurrent"),
        Verdict::ServiceBroken => format!("service breaks; best from N = {n} concurrent"),
        Verdict::SloBroken => format!("breaks its latency limits before N = {n} concurrent, where it saturates"),
        Verdict::ServerGone => format!("the server went down; before, best from N = {n} concurrent"),
        Verdict::ClientLimited => format!("limited by this client; at least N = {n} concurrent"),
        Verdict::OutOfTime => format!("no plateau within the time; at least N = {n} concurrent"),
    }
}

/// The breakpoint as far as the first line has room for it.
fn breaks(answer: &Answer) -> String {
    let found = answer.breakpoint.map(|found| format!("; breaks at N = {} to {}", found.last_pass, found.first_fail));
    found.unwrap_or_default()
}

pub(crate) fn explanation(answer: &Answer) -> String {
    let peak = format!("The highest throughput was {:.1} output tok/s at N = {}", answer.peak_throughput, answer.peak);
    let why = match answer.verdict {
        Verdict::Plateaued => "; more concurrency brings no more",
        Verdict::Retrograde => ", and it falls beyond",
        Verdict::StillScaling => ", the highest concurrency tried; raise it to see the plateau",
        Verdict::AdmissionLimited => "; beyond, the server refuses requests (429, 503)",
        Verdict::ServiceBroken => "; beyond, requests fail",
        Verdict::SloBroken => ", but the first tokens or the rest come too late there",
        Verdict::ServerGone => "; beyond, the server stopped answering and did not come back",
        Verdict::ClientLimited => "; the client is too near its own ceiling to blame the server",
        Verdict::OutOfTime => "; give the search more time",
    };
    let (low, high) = (answer.saturation_low, answer.saturation_high);
    let interval = if low < high {
        format!(" By the 95% confidence intervals saturation lies from N = {low} to {high}.")
    } else {
        String::new()
    };
    format!("{peak}{why}.{interval}")
}

/// How far service holds, and what breaks it.
pub(crate) fn service(answer: &Answer, config: &SearchConfig) -> String {
    let Some(found) = answer.breakpoint else {
        return format!("Nothing broke service up to N = {}.", answer.holds_at);
    };
    let slo = &config.slo;
    let over = |limit: Option<f64>| {
        let limit = number(limit, 0);
        format!("more than {} of the requests took over {limit} ms", percent(slo.violating_share()))
    };
    let why = match found.constraint {
        Constraint::Success => format!("fewer than {} of the requests succeed", percent(config.success_floor)),
        Constraint::Refused => format!("more than {} are refused (429, 503)", percent(1.0 - config.success_floor)),
        Constraint::Ttft => format!("{} to the first token", over(slo.ttft_ms)),
        Constraint::Tpot => format!("{} a token", over(slo.tpot_ms)),
    };
    let fall = match found.fall {
        Some(Fall::Cliff) => ", as over a cliff",
        Some(Fall::Smooth) => ", smoothly",
        None => "",
    };
    let sure = match (found.shown_pass, found.shown_fail) {
        (Some(pass), Some(fail)) => format!("That it holds is shown at N = {pass}, that it breaks at N = {fail}."),
        (Some(pass), None) => format!("That it holds is shown at N = {pass}; that it breaks is not."),
        (None, Some(fail)) => format!("That it breaks is shown at N = {fail}; that it holds is shown nowhere."),
        (None, None) => "Neither is shown: there were too few requests.".to_owned(),
    };
    format!("Service holds at N = {} and breaks at N = {}{fall}: {why}. {sure}", found.last_pass, found.first_fail)
}

/// What became of arrivals that do not wait.
pub(crate) fn open_loop(answer: &Answer) -> Option<String> {
    let found = answer.open_loop.as_ref()?;
    let holds = match found.holds_rate {
        Some(rate) => format!("Arrivals that do not wait are served up to {rate:.2} req/s"),
        None => "Arrivals that do not wait are served at no rate that was offered".to_owned(),
    };
    let why = found.fault.map_or("", |fault| match fault {
        OpenLoopFault::Success => "requests fail",
        OpenLoopFault::Ttft => "first tokens come too late",
        OpenLoopFault::Tpot => "replies are too slow",
        OpenLoopFault::Backlog => "ever more requests are in flight",
    });
    let fails = found.fails_rate.map(|rate| format!("; at {rate:.2} {why}")).unwrap_or_default();
    Some(format!("{holds}{fails} (the highest throughput of the ladder comes to {:.2}).", found.max_rate))
}

/// Whether the server was the same at the end.
pub(crate) fn drift(answer: &Answer) -> Option<String> {
    let found = answer.drift.as_ref()?;
    let again = |recheck: &Recheck| format!("{:+.1}% at N = {}", 100.0 * recheck.change, recheck.concurrency);
    let changes: Vec<String> = std::iter::once(&found.at_one).chain(&found.at_saturation).map(again).collect();
    let said = if found.invalidates() {
        "The server had changed by the end"
    } else {
        "The server was not shown to have changed by the end"
    };
    Some(format!("{said}: throughput {}.", changes.join(" and ")))
}

pub(crate) fn point(summary: &RungSummary) -> String {
    let half_width = relative_width(summary).map(|width| format!(" (±{})", percent(width))).unwrap_or_default();
    let per_user = summary.per_user.one_over_tpot.as_ref();
    format!(
        "{:.1} output tok/s{half_width}, {:.2} req/s, {} tok/s/user, TTFT p50 {} ms, success {}",
        summary.rates.output_tokens_per_s,
        summary.rates.requests_per_s,
        number(per_user.map(|d| d.mean), 1),
        number(summary.ttft_ms.as_ref().map(|d| d.p50), 0),
        percent(summary.success_rate)
    )
}

/// The half-width as a share of the rate. None where nothing came out.
fn relative_width(summary: &RungSummary) -> Option<f64> {
    let rate = summary.rates.output_tokens_per_s;
    summary.output_half_width.filter(|_| rate > 0.0).map(|width| width / rate)
}

fn table(out: &mut fmt::Formatter<'_>, rungs: &[RungReport]) -> fmt::Result {
    let rows: Vec<[String; HEADERS.len()]> = rungs.iter().map(|rung| row(&rung.summary)).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADERS[column].chars().count(), 2]).max().unwrap_or(2)
    };
    let widths: Vec<usize> = (0..HEADERS.len()).map(width).collect();
    let mut line = |cells: &[&str]| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        writeln!(out, "| {} |", cells.join(" | "))
    };
    line(&HEADERS)?;
    let rules: Vec<String> = widths.iter().map(|width| format!("{}:", "-".repeat(width - 1))).collect();
    line(&rules.iter().map(String::as_str).collect::<Vec<_>>())?;
    rows.iter().try_for_each(|row| line(&row.each_ref().map(String::as_str)))
}

pub(crate) fn row(summary: &RungSummary) -> [String; HEADERS.len()] {
    let mean = |distribution: &Option<Distribution>, decimals| number(distribution.as_ref().map(|d| d.mean), decimals);
    let ttft = summary.ttft_ms.as_ref();
    let width = relative_width(summary);
    let unsteady = if summary.window.steady { "" } else { "*" };
    [
        format!(
            "{}{unsteady}",
            summary.open_loop.map_or(summary.concurrency, |facts| facts.in_flight_mean.round() as u32)
        ),
        format!("{:.2}", summary.rates.requests_per_s),
        format!("{:.1}", summary.rates.input_tokens_per_s),
        format!("{:.1}", summary.rates.output_tokens_per_s),
        width.map_or("-".to_owned(), percent),
        mean(&summary.per_user.one_over_tpot, 1),
        number(ttft.map(|d| d.mean), 1),
        number(ttft.map(|d| d.p50), 1),
        number(ttft.map(|d| d.p95), 1),
        mean(&summary.tpot_ms, 2),
        mean(&summary.itl_ms, 2),
        percent(summary.success_rate),
    ]
}

/// What a reader must know to read the table right; nothing where all is as usual.
pub(crate) fn notes(workload: &WorkloadFacts, rungs: &[RungReport]) -> Vec<String> {
    let mut notes =
        vec!["Times in ms; tok/s/user is 1/TPOT a request; ± is the 95% half-width of output tok/s.".to_owned()];
    let WorkloadFacts { used, source, mean_prompt_tokens, .. } = workload;
    let estimate = match workload.lengths {
        LengthSource::ServerTokenizer => "",
        LengthSource::Estimate => ", by estimate: the server has no /tokenize",
    };
    notes.push(format!("{used} prompts ({source}), {mean_prompt_tokens:.1} tokens each on average{estimate}."));
    let summaries = || rungs.iter().map(|rung| &rung.summary);
    if summaries().any(|summary| !summary.window.steady) {
        let note = "* Too few requests for a steady part: the figures are of the whole run, its ramp and end included.";
        notes.push(note.to_owned());
    }
    if summaries().any(|summary| summary.tokens.source == TokenSource::Chunks) {
        let note = "The server sent no usage: output tokens are chunks, input tokens are the prompts' own.";
        notes.push(note.to_owned());
    }
    let resent: u64 = summaries().map(|summary| summary.resent).sum();
    if resent > 0 {
        notes.push(format!(
            "The server closed kept-alive connections without saying so: {resent} requests were sent again."
        ));
    }
    let with_itl: u64 = summaries().map(|summary| summary.itl_requests).sum();
    let with_tpot: u64 = summaries().filter_map(|summary| summary.e2e_ms.as_ref()).map(|d| d.count).sum();
    if with_itl < with_tpot {
        notes.push(format!("ITL is of the {with_itl} requests of {with_tpot} whose every chunk was one token."));
    }
    let (cached, input) = summaries().fold((0, 0), |sum, s| (sum.0 + s.tokens.cached_input, sum.1 + s.tokens.input));
    if cached > 0 {
        notes
            .push(format!("{} of the input tokens came from the prefix cache.", percent(cached as f64 / input as f64)));
    }
    notes.extend(rungs.iter().filter_map(failures));
    notes
}

fn failures(rung: &RungReport) -> Option<String> {
    let outcomes = &rung.summary.outcomes;
    if outcomes.failed() == 0 {
        return None;
    }
    let causes = outcomes.failures().into_iter().filter(|(_, count)| *count > 0);
    let causes: Vec<String> = causes.map(|(cause, count)| format!("{count} {cause}")).collect();
    let (n, total) = (rung.summary.concurrency, outcomes.total());
    let samples = rung.failure_samples.join("; ");
    Some(format!("N = {n}: of {total} requests failed {}; {samples}", causes.join(", ")))
}

pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// A share as a percentage, with a decimal only where it says something.
pub(crate) fn percent(share: f64) -> String {
    let value = share * 100.0;
    // 99.96 must not be shown as 100.0.
    let shown = if value < 100.0 { value.min(99.9) } else { value };
    if shown >= 100.0 || shown == 0.0 { format!("{shown:.0}%") } else { format!("{shown:.1}%") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::RunLog;
    use crate::record::Outcome;
    use crate::record::fixture::{failure, success};
    use crate::report::SATURATION_SCHEMA;
    use crate::search::Breakpoint;
    use crate::slo::Slo;

    fn rung(concurrency: u32, fails: bool) -> RungReport {
        let clients = (0..20 * concurrency).map(|i| success(f64::from(i / concurrency), 0.1, 0.1, 10));
        let mut records: Vec<_> = clients.collect();
        if fails {
            let refused = failure(3.0, 0.1, Outcome::TooManyRequests);
            records.push(crate::record::RequestRecord { detail: Some("429: slow down".to_owned()), ..refused });
        }
        let end = Duration::from_secs(20);
        RungReport::new(&RunLog::of(concurrency, records, Duration::ZERO, end), &Slo::default())
    }

    fn report(verdict: Verdict) -> SaturationReport {
        SaturationReport {
            schema: SATURATION_SCHEMA.to_owned(),
            tool_version: "0".to_owned(),
            started_unix_s: 0,
            model: "m".to_owned(),
            config: crate::SaturateConfig::new("http://h"),
            workload: WorkloadFacts {
                source: "bundled".to_owned(),
                loaded: 9,
                without_prompt: 0,
                examined: 9,
                used: 9,
                lengths: LengthSource::Estimate,
                mean_prompt_tokens: 12.0,
            },
            server_start: None,
            client_ceiling: ClientCeiling { events_per_s: 60_000.0, concurrency: 64, own_process: false },
            answer: Answer {
                verdict,
                saturation: 2,
                saturation_low: 2,
                saturation_high: 4,
                peak: 4,
                peak_throughput: 40.0,
                peak_half_width: None,
                plateau_throughput: 40.0,
                plateau_half_width: None,
                complete: true,
                holds_at: 4,
                breakpoint: None,
                open_loop: None,
                drift: None,
            },
            offered: Vec::new(),
            rechecks: Vec::new(),
            findings: Vec::new(),
            rungs: vec![rung(2, false), rung(4, true)],
        }
    }

    #[test]
    fn the_first_line_is_the_answer_and_the_columns_line_up() {
        let text = report(Verdict::Plateaued).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("saturates at N = 2 concurrent: 19.9 output tok/s"), "{text}");
        assert!(lines[1].contains("from N = 2 to 4"), "{text}");
        let widths: Vec<usize> =
            lines.iter().filter(|line| line.starts_with('|')).map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 4, "{text}");
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(text.contains("N = 4: of 81 requests failed 1 429; 429: slow down"), "{text}");
        assert!(text.contains("by estimate"), "{text}");
    }

    #[test]
    fn the_breakpoint_is_in_the_first_line_and_its_reasons_below() {
        let mut report = report(Verdict::Plateaued);
        assert!(report.to_string().contains("Nothing broke service up to N = 4."), "{report}");
        report.config.search.slo = Slo { ttft_ms: Some(2000.0), ..Slo::default() };
        report.answer.breakpoint = Some(Breakpoint {
            last_pass: 40,
            first_fail: 42,
            shown_pass: Some(38),
            shown_fail: Some(42),
            constraint: Constraint::Ttft,
            fall: Some(Fall::Smooth),
        });
        let text = report.to_string();
        assert!(text.lines().next().is_some_and(|line| line.ends_with("; breaks at N = 40 to 42")), "{text}");
        let reason = "holds at N = 40 and breaks at N = 42, smoothly: more than 1.0% of the requests took over 2000 ms \
                      to the first token. That it holds is shown at N = 38, that it breaks at N = 42.";
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains("Time ran out"), "{text}");
        report.answer.complete = false;
        assert!(report.to_string().contains("Time ran out"), "{report}");
    }

    #[test]
    fn every_verdict_reads_differently() {
        let verdicts = [
            Verdict::Plateaued,
            Verdict::Retrograde,
            Verdict::StillScaling,
            Verdict::AdmissionLimited,
            Verdict::ServiceBroken,
            Verdict::SloBroken,
            Verdict::ServerGone,
            Verdict::ClientLimited,
            Verdict::OutOfTime,
        ];
        let mut answers: Vec<String> = verdicts
            .iter()
            .map(|verdict| report(*verdict).to_string().lines().take(2).collect::<Vec<_>>().join("\n"))
            .collect();
        answers.sort();
        answers.dedup();
        assert_eq!(answers.len(), verdicts.len());
    }

    #[test]
    fn shares_are_never_rounded_up_to_all() {
        for (share, shown) in [(1.0, "100%"), (0.99999, "99.9%"), (0.5, "50.0%"), (0.0, "0%"), (0.0213, "2.1%")] {
            assert_eq!(percent(share), shown);
        }
    }
}
