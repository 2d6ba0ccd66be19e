//! The terminal while a measurement runs, and Ctrl-C, which ends it without losing what was measured.

use std::fmt::Display;
use std::io::{self, Write};
use std::ops::Deref;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_bench::{Progress, RungReport, Running, Stage, Stop};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// A bar for so many requests; without a number, a spinner.
pub(crate) fn bar(requests: Option<u64>) -> ProgressBar {
    match requests {
        Some(requests) => ProgressBar::new(requests).with_style(style("  {wide_bar} {pos}/{len} {elapsed} {msg}")),
        None => {
            let bar = ProgressBar::new_spinner().with_style(style("  {spinner} {wide_msg}"));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows news of a measurement on `bar`, and what is worth keeping above it.
pub(crate) fn show(news: &Progress, bar: &ProgressBar) {
    match news {
        Progress::Preflight(ceiling) => say(bar, ceiling),
        Progress::Ready { model, workload, watched } => {
            let (used, mean, source) = (workload.used, workload.mean_prompt_tokens, &workload.source);
            say(bar, format!("model {model}; {used} prompts of {mean:.1} tokens on average ({source})"));
            say(bar, format!("looking meanwhile at {watched}"));
        }
        Progress::Running(running) => {
            bar.set_position(running.done);
            bar.set_message(line(running));
        }
        Progress::Rung(stage, rung) => say(bar, ended(*stage, rung)),
    }
}

/// A line to keep: above the bar, or, where no terminal shows one, in a log.
fn say(bar: &ProgressBar, line: impl Display) {
    if bar.is_hidden() { tell(line) } else { bar.println(line.to_string()) }
}

/// A line on standard error, if it takes one: what is said there is never worth a measurement.
pub(crate) fn tell(line: impl Display) {
    writeln!(io::stderr(), "{line}").ok();
}

/// For instance `N = 64: 1320 chunks/s ±3.1%, 412 done, 0 failed, 12 s; 6m 20s left`.
fn line(running: &Running) -> String {
    let Running { chunks_per_s, done, failed, elapsed, .. } = running;
    let sure = running.half_width.map_or(String::new(), |width| format!(" ±{:.1}%", 100.0 * width));
    let left = running.left.map_or(String::new(), |left| format!("; {} left at most", clock(left)));
    format!(
        "{}: {chunks_per_s:.0} chunks/s{sure}, {done} done, {failed} failed, {}{left}",
        load(running.stage, running.concurrency),
        clock(*elapsed)
    )
}

fn load(stage: Stage, concurrency: u32) -> String {
    match stage {
        Stage::ClosedLoop => format!("N = {concurrency}"),
        Stage::OpenLoop { rate: Some(rate) } => format!("{rate:.2} arrivals/s"),
        Stage::OpenLoop { rate: None } => "arrivals of the trace".to_owned(),
        Stage::Recheck => format!("N = {concurrency} again"),
    }
}

fn ended(stage: Stage, rung: &RungReport) -> String {
    let summary = &rung.summary;
    let flat = summary.open_loop.and_then(|facts| facts.growth).map(|growth| growth.is_flat);
    let backlog = if flat == Some(false) { ", ever more in flight" } else { "" };
    let rate = summary.rates.output_tokens_per_s;
    let width = summary.output_half_width.filter(|_| rate > 0.0);
    let sure = width.map_or(String::new(), |width| format!(" ±{:.1}%", 100.0 * width / rate));
    format!(
        "{}: {:.2} req/s, {rate:.1} output tok/s{sure}, {:.1}% succeeded{backlog}",
        load(stage, summary.concurrency),
        summary.rates.requests_per_s,
        100.0 * summary.success_rate
    )
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{seconds} s") } else { format!("{}m {:02}s", seconds / 60, seconds % 60) }
}

/// What the first Ctrl-C (or SIGTERM) sets, while this lives; the second one ends the process. Once it is dropped these
/// signals do nothing until something else listens: it is to live as long as the command.
pub(crate) struct StopOnSignal {
    stop: Stop,
    listening: JoinHandle<()>,
}

impl StopOnSignal {
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn new() -> Result<Self> {
        let stop = Stop::default();
        let handle = stop.clone();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listening = tokio::spawn(async move {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            handle.now();
            tell("  interrupted: the report is of what was measured; once more to end at once");
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            std::process::exit(130);
        });
        Ok(Self { stop, listening })
    }
}

impl Deref for StopOnSignal {
    type Target = Stop;

    fn deref(&self) -> &Stop {
        &self.stop
    }
}

impl Drop for StopOnSignal {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_measured_how_surely_and_for_how_long() {
        let running = Running {
            stage: Stage::ClosedLoop,
            concurrency: 64,
            done: 412,
            failed: 1,
            chunks_per_s: 1320.4,
            half_width: Some(0.031),
            elapsed: Duration::from_secs(12),
            left: Some(Duration::from_secs(380)),
        };
        assert_eq!(line(&running), "N = 64: 1320 chunks/s ±3.1%, 412 done, 1 failed, 12 s; 6m 20s left at most");
        let open = Running { stage: Stage::OpenLoop { rate: Some(7.5) }, half_width: None, left: None, ..running };
        assert_eq!(line(&open), "7.50 arrivals/s: 1320 chunks/s, 412 done, 1 failed, 12 s");
    }
}
