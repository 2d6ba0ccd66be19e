//! Runs a part's items in a process of their own, and goes on with the next item in a new process where one crashes,
//! hangs, or leaves the GPU unusable.
//!
//! The worker prints one JSON object a line: `{"begin": INDEX, "name": NAME}` before an item, then its row. What it
//! prints besides, and what it prints to standard error, is shown as it comes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::results::Row;

/// How long a part may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For one item, before its process is taken to hang.
    pub patience: Duration,
    /// For all.
    pub until: Instant,
}

/// What became of a worker.
enum Ended {
    /// It ran out of items.
    Done,
    /// It did not end well; go on from this item.
    Broken {
        next: usize,
    },
    OutOfTime(Option<String>),
}

/// How a part ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// All items were run.
    All,
    /// The time was over; in the middle of this item, if one ran.
    OutOfTime(Option<String>),
}

/// Runs all items and hands each row to `on_row`; `command` starts a worker at an item.
///
/// # Errors
/// A worker does not start, or `on_row` fails.
pub fn run(
    command: impl Fn(usize) -> Command,
    limits: Limits,
    mut on_row: impl FnMut(Row) -> Result<()>,
) -> Result<End> {
    let mut next = 0;
    loop {
        let mut worker = Worker::start(command(next))?;
        let ended = worker.follow(next, limits, &mut on_row)?;
        match ended {
            Ended::Done => return Ok(End::All),
            Ended::OutOfTime(item) => return Ok(End::OutOfTime(item)),
            Ended::Broken { next: after } => next = after,
        }
    }
}

/// A running process; ended with the value.
struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start a worker")?;
        let output = child.stdout.take().context("a worker has no output")?;
        let (sender, lines) = channel();
        // Ends with the child, whose output it reads to the end.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn follow(&mut self, first: usize, limits: Limits, on_row: &mut impl FnMut(Row) -> Result<()>) -> Result<Ended> {
        let mut running: Option<(usize, String)> = None;
        let mut next = first;
        loop {
            let now = Instant::now();
            let patience = limits.patience.min(limits.until.saturating_duration_since(now));
            let line = match self.lines.recv_timeout(patience) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if Instant::now() >= limits.until => {
                    return Ok(Ended::OutOfTime(running.map(|(_, name)| name)));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let (index, name) = running.unwrap_or((next, format!("the worker's start at item {next}")));
                    on_row(failed(&name, &format!("hung for {} s", limits.patience.as_secs())))?;
                    return Ok(Ended::Broken { next: index + 1 });
                }
                Err(RecvTimeoutError::Disconnected) => return self.ended(running, next, first, on_row),
            };
            match parse(&line) {
                Some(Line::Begin(index, name)) => {
                    next = index;
                    running = Some((index, name));
                }
                Some(Line::Row(row)) => {
                    on_row(row)?;
                    next += 1;
                    running = None;
                }
                None => println!("{line}"),
            }
        }
    }

    /// The worker closed its output: at the end of the items, or in the middle of one.
    fn ended(
        &mut self,
        running: Option<(usize, String)>,
        next: usize,
        first: usize,
        on_row: &mut impl FnMut(Row) -> Result<()>,
    ) -> Result<Ended> {
        let status = self.child.wait().context("a worker is lost")?;
        if let Some((index, name)) = running {
            on_row(failed(&name, &format!("the process ended with {status}")))?;
            return Ok(Ended::Broken { next: index + 1 });
        }
        if status.success() {
            return Ok(Ended::Done);
        }
        if next == first {
            // It got nowhere: the next one would neither.
            on_row(failed(&format!("the worker's start at item {next}"), &format!("it ended with {status}")))?;
            return Ok(Ended::Done);
        }
        Ok(Ended::Broken { next })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

enum Line {
    Begin(usize, String),
    Row(Row),
}

fn parse(line: &str) -> Option<Line> {
    let Ok(Value::Object(object)) = serde_json::from_str(line) else { return None };
    let name = object.get("name")?.as_str()?.to_owned();
    match object.get("begin") {
        Some(index) => Some(Line::Begin(index.as_u64()? as usize, name)),
        None => Some(Line::Row(object)),
    }
}

fn failed(name: &str, outcome: &str) -> Row {
    [("name".to_owned(), json!(name)), ("outcome".to_owned(), json!(outcome))].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs shell workers; `$from` is the item to begin at.
    fn outcomes(script: &str, patience_ms: u64, total_s: u64) -> (End, Vec<(String, String)>) {
        let limits = Limits {
            patience: Duration::from_millis(patience_ms),
            until: Instant::now() + Duration::from_secs(total_s),
        };
        let mut rows = Vec::new();
        let command = |from: usize| {
            let mut shell = Command::new("bash");
            shell.arg("-c").arg(format!("from={from}\n{PRELUDE}\n{script}"));
            shell
        };
        let end = run(command, limits, |row| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            rows.push((text("name"), text("outcome")));
            Ok(())
        });
        (end.unwrap(), rows)
    }

    const PRELUDE: &str = r#"
        begin() { echo "{\"begin\": $1, \"name\": \"item $1\"}"; }
        row() { echo "{\"name\": \"item $1\", \"outcome\": \"ok\"}"; }"#;

    fn ok(index: usize) -> (String, String) {
        (format!("item {index}"), "ok".to_owned())
    }

    #[test]
    fn items_run_to_the_end() {
        let (end, rows) = outcomes("for i in 0 1 2; do begin $i; echo chatter; row $i; done", 10_000, 60);
        assert_eq!(end, End::All);
        assert_eq!(rows, [ok(0), ok(1), ok(2)]);
    }

    #[test]
    fn the_item_after_a_crash_runs_in_a_new_process() {
        let script = "for ((i = from; i < 3; i++)); do begin $i; [ $i = 1 ] && kill -9 $$; row $i; done";
        let (end, rows) = outcomes(script, 10_000, 60);
        assert_eq!(end, End::All);
        assert_eq!((&rows[0], &rows[2]), (&ok(0), &ok(2)));
        assert_eq!(rows[1].0, "item 1");
        assert!(rows[1].1.contains("signal: 9"), "{rows:?}");
    }

    #[test]
    fn the_item_after_a_hang_runs_in_a_new_process() {
        let script = "for ((i = from; i < 3; i++)); do begin $i; [ $i = 1 ] && exec sleep 100; row $i; done";
        let (end, rows) = outcomes(script, 1_000, 60);
        assert_eq!(end, End::All);
        assert_eq!((&rows[0], &rows[2]), (&ok(0), &ok(2)));
        assert!(rows[1].1.starts_with("hung"), "{rows:?}");
    }

    #[test]
    fn a_worker_may_ask_for_a_new_process_after_a_row() {
        let script = "for ((i = from; i < 3; i++)); do begin $i; row $i; [ $i = 1 ] && exit 3; done; true";
        let (end, rows) = outcomes(script, 10_000, 60);
        assert_eq!(end, End::All);
        assert_eq!(rows, [ok(0), ok(1), ok(2)]);
    }

    #[test]
    fn a_worker_that_never_starts_is_told_once() {
        let (end, rows) = outcomes("exit 1", 10_000, 60);
        assert_eq!(end, End::All);
        assert_eq!(rows.len(), 1);
        assert!(rows[0].1.contains("exit status: 1"), "{rows:?}");
    }

    #[test]
    fn the_parts_time_ends_it() {
        let (end, rows) = outcomes("begin 0; row 0; begin 1; exec sleep 100", 60_000, 1);
        assert_eq!(end, End::OutOfTime(Some("item 1".to_owned())));
        assert_eq!(rows, [ok(0)]);
    }
}
