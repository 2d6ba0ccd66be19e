//! A report for the terminal.

use std::fmt;

use crate::ask::Form;
use crate::measure::{Energy, Memory};
use crate::report::{Outcome, Report, Score, TaskReport};
use crate::sandbox::Sandbox;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.label)?;
        if let Some(tasks) = &self.tasks {
            write_tasks(f, tasks)?;
        }
        if let Some(text) = &self.perplexity {
            row(f, "perplexity", &format!("{:.4} a token, of {}", text.perplexity, text.file))?;
            row(f, "bits per byte", &format!("{:.4}", text.bits_per_byte))?;
            let windows = format!(
                "{} tokens, {} bytes, in {} windows of {} bytes",
                text.tokens,
                text.bytes,
                text.windows.len(),
                text.window_bytes
            );
            row(f, "", &windows)?;
        }
        for (name, value) in self.facts() {
            row(f, name, &value)?;
        }
        Ok(())
    }
}

impl Report {
    /// Speed, memory, start-up and energy, in words.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = Vec::new();
        if let Some(speed) = &self.speed {
            let rate = told(speed.output_tokens_per_s, |rate| format!("{rate:.1} tok/s"));
            facts.push(("output", format!("{rate} at {} at once", speed.concurrency)));
            facts.push(("first token, median", told(speed.ttft_ms_median, |ms| format!("{ms:.0} ms"))));
        }
        facts.push(("memory, host", host_memory(&self.cost.memory)));
        facts.push(("memory, GPU", told(self.cost.memory.gpu.map(|bytes| bytes as f64), mib)));
        facts.push(("start-up", told(self.cost.startup_seconds, |seconds| format!("{seconds:.2} s"))));
        facts.push(("energy", energy(&self.cost.energy)));
        facts
    }
}

fn write_tasks(f: &mut fmt::Formatter<'_>, tasks: &TaskReport) -> fmt::Result {
    let form = match tasks.form {
        Form::Chat => "chat",
        Form::Completions => "completions, with examples",
    };
    row(f, "asked as", &format!("{form}, {} tokens at most", tasks.max_tokens))?;
    for score in &tasks.scores {
        row(f, score.category.name(), &in_words(score))?;
        let of_level = |level| {
            let results = || tasks.results.iter().filter(|r| (r.category, r.level) == (score.category, level));
            let passed = results().filter(|result| result.outcome == Outcome::Pass).count();
            format!("{passed}/{}", results().count())
        };
        if score.graded > 0 {
            row(f, "", &format!("levels 1 to 4: {}", [1, 2, 3, 4].map(of_level).join("  ")))?;
        }
    }
    let count = |test: &dyn Fn(&crate::report::TaskResult) -> bool| tasks.results.iter().filter(|r| test(r)).count();
    let cut = count(&|result| result.outcome == Outcome::Fail && result.finish_reason.as_deref() == Some("length"));
    if cut > 0 {
        row(f, "", &format!("{cut} of the failed answers ended at --max-tokens"))?;
    }
    let errors = count(&|result| result.outcome == Outcome::Error);
    if errors > 0 {
        row(f, "", &format!("{errors} requests failed, and their tasks with them; the log says why"))?;
    }
    if tasks.sandbox == Some(Sandbox::Limits) {
        row(f, "", "programs could reach the network: unshare does not work here")?;
    }
    Ok(())
}

/// `14 of 20 (70%; 95%: 48% to 85%)`, and what else is to be known of them.
pub(crate) fn in_words(score: &Score) -> String {
    if score.graded == 0 {
        return format!("not graded ({} answers logged; programs are run with --run-code alone)", score.not_graded);
    }
    let percent = |share: f64| format!("{:.0}%", 100.0 * share);
    let share = percent(score.passed as f64 / score.graded as f64);
    let interval = format!("{} to {}", percent(score.interval.low), percent(score.interval.high));
    let more = [(score.errors, "of them requests that failed"), (score.not_graded, "not graded")];
    let more = more.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("; {count} {what}"));
    format!("{} of {} ({share}; 95%: {interval}){}", score.passed, score.graded, more.collect::<String>())
}

fn host_memory(memory: &Memory) -> String {
    let peak = memory.peak_resident.map(|bytes| format!(", {} at most", mib(bytes as f64))).unwrap_or_default();
    told(memory.resident.map(|bytes| bytes as f64), mib) + &peak
}

fn energy(energy: &Energy) -> String {
    let parts = [(energy.cpu_joules, "CPU"), (energy.gpu_joules, "GPU")];
    let parts: Vec<_> = parts
        .into_iter()
        .filter_map(|(joules, what)| Some(format!("{:.0} J ({what}, whole machine)", joules?)))
        .collect();
    if parts.is_empty() { NOT_MEASURED.to_owned() } else { parts.join(", ") }
}

/// Never 0.
const NOT_MEASURED: &str = "not measured";

fn told(value: Option<f64>, in_words: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NOT_MEASURED.to_owned(), in_words)
}

fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {name:<22}{value}")
}
