//! Reports side by side. The first is what the others are compared with, task by task and window by window: a difference
//! of paired outcomes shows with far fewer tasks than one of two shares.

use std::fmt;

use crate::error::{EvalError, Result};
use crate::perplexity::Perplexity;
use crate::report::{Report, TaskReport};
use crate::stats::{mcnemar, mean_of};
use crate::table::in_words;
use crate::task::Category;

/// Reports side by side, for the terminal.
#[derive(Debug)]
pub struct Comparison {
    reports: Vec<Report>,
}

impl Comparison {
    /// Of at least two reports.
    ///
    /// # Errors
    /// There are fewer.
    pub fn new(reports: Vec<Report>) -> Result<Self> {
        match reports.len() {
            0 | 1 => Err(EvalError::Option("a comparison needs at least two reports".to_owned())),
            _ => Ok(Self { reports }),
        }
    }
}

/// Below this a difference is called one.
const SIGNIFICANT: f64 = 0.05;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, report) in (1..).zip(&self.reports) {
            write!(f, "[{number}] {report}")?;
            if let Some(options) = &report.own_server {
                writeln!(f, "  {:<22}{options}", "served with")?;
            }
            writeln!(f)?;
        }
        let (first, others) = self.reports.split_first().expect("at least two");
        for (number, other) in (2..).zip(others) {
            writeln!(f, "[{number}] against [1]")?;
            for line in differences(first, other) {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

fn differences(first: &Report, other: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    match (&first.tasks, &other.tasks) {
        (Some(a), Some(b)) => lines.extend(of_tasks(a, b)),
        _ => lines.push("tasks: not in both".to_owned()),
    }
    match (&first.perplexity, &other.perplexity) {
        (Some(a), Some(b)) => lines.push(of_text(a, b)),
        _ => lines.push("perplexity: not in both".to_owned()),
    }
    if let (Some(a), Some(b)) = (&first.speed, &other.speed) {
        match (a.output_tokens_per_s, b.output_tokens_per_s) {
            (Some(from), Some(to)) if a.concurrency == b.concurrency && from > 0.0 => {
                lines.push(format!("output: {:.2} times as fast (one run each: no interval)", to / from));
            }
            _ => lines.push("output: not comparable".to_owned()),
        }
    }
    lines
}

fn of_tasks(a: &TaskReport, b: &TaskReport) -> Vec<String> {
    if a.set_version != b.set_version {
        return vec![format!("tasks: sets {} and {} cannot be compared", a.set_version, b.set_version)];
    }
    let mut lines = Vec::new();
    if (a.form, a.max_tokens) != (b.form, b.max_tokens) {
        lines.push("tasks: asked in another form or with another --max-tokens, which differs too".to_owned());
    }
    lines.extend(Category::ALL.into_iter().filter_map(|category| of_category(category, a, b)));
    lines
}

fn of_category(category: Category, a: &TaskReport, b: &TaskReport) -> Option<String> {
    let passed = |tasks: &TaskReport, id: &str| {
        let result = tasks.results.iter().find(|result| result.category == category && result.id == id)?;
        result.outcome.has_passed()
    };
    let ids = a.results.iter().filter(|result| result.category == category).map(|result| &result.id);
    let pairs: Vec<_> = ids.filter_map(|id| passed(a, id).zip(passed(b, id))).collect();
    if pairs.is_empty() {
        return None;
    }
    let lost = pairs.iter().filter(|pair| **pair == (true, false)).count();
    let won = pairs.iter().filter(|pair| **pair == (false, true)).count();
    let p = mcnemar(lost, won);
    let says = if p < SIGNIFICANT { "a difference" } else { "no difference shown" };
    let scores: Vec<_> = b.scores.iter().filter(|score| score.category == category).map(in_words).collect();
    Some(format!(
        "{}: {}; passes {won} that [1] fails, fails {lost} that [1] passes, of {}: {says} (McNemar p = {p:.2})",
        category.name(),
        scores.join(""),
        pairs.len()
    ))
}

fn of_text(a: &Perplexity, b: &Perplexity) -> String {
    let facts = |text: &Perplexity| (text.file.clone(), text.file_bytes, text.window_bytes, text.stride_bytes);
    if facts(a) != facts(b) || a.windows.len() != b.windows.len() {
        return "perplexity: of another text or other windows, which cannot be compared".to_owned();
    }
    let relative = 100.0 * (b.bits_per_byte / a.bits_per_byte - 1.0);
    let bits = |w: &crate::perplexity::WindowScore| w.negative_log_probability / std::f64::consts::LN_2;
    let difference = |(a, b): (&_, &_)| {
        let (a, b): (&crate::perplexity::WindowScore, &crate::perplexity::WindowScore) = (a, b);
        (a.bytes > 0 && b.bytes > 0).then(|| bits(b) / b.bytes as f64 - bits(a) / a.bytes as f64)
    };
    let differences: Vec<f64> = a.windows.iter().zip(&b.windows).filter_map(difference).collect();
    let interval = match mean_of(&differences) {
        Some((mean, interval)) => format!(
            "by window {mean:+.4}, 95%: {:+.4} to {:+.4}, {}",
            interval.low,
            interval.high,
            if interval.low > 0.0 || interval.high < 0.0 { "a difference" } else { "no difference shown" }
        ),
        None => "too few windows for an interval".to_owned(),
    };
    let mut line = format!("bits per byte: {:+.4} ({relative:+.2}%; {interval})", b.bits_per_byte - a.bits_per_byte);
    // Of one tokenizer alone are tokens' perplexities of one scale.
    if a.tokens == b.tokens {
        line += &format!("; perplexity {:+.4}", b.perplexity - a.perplexity);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Form;
    use crate::perplexity::WindowScore;
    use crate::report::{Outcome, Score, TaskResult};

    fn report(outcomes: &[Outcome], nats: &[f64]) -> Report {
        let mut report = Report::new("m".into(), "http://h".into(), "m".into(), None);
        let result = |(at, &outcome): (usize, &Outcome)| TaskResult {
            category: Category::Reasoning,
            id: at.to_string(),
            level: 1,
            outcome,
            detail: None,
            finish_reason: None,
            output_tokens: None,
            ttft_ms: None,
            seconds: 1.0,
        };
        let results: Vec<_> = outcomes.iter().enumerate().map(result).collect();
        let scores = Score::of_results(&results);
        let (set_version, form) = (1, Form::Chat);
        report.tasks = Some(TaskReport { set_version, form, max_tokens: 9, sandbox: None, scores, results });
        let window = |&nats: &f64| WindowScore { tokens: 10, bytes: 40, negative_log_probability: nats };
        let total: f64 = nats.iter().sum();
        let (tokens, bytes) = (10 * nats.len(), 40 * nats.len());
        report.perplexity = Some(Perplexity {
            file: "t".into(),
            file_bytes: bytes,
            window_bytes: 64,
            stride_bytes: 32,
            tokens,
            bytes,
            perplexity: (total / tokens as f64).exp(),
            bits_per_byte: total / std::f64::consts::LN_2 / bytes as f64,
            windows: nats.iter().map(window).collect(),
        });
        report
    }

    fn compared(a: Report, b: Report) -> String {
        Comparison::new(vec![a, b]).unwrap().to_string()
    }

    #[test]
    fn runs_are_compared_task_by_task() {
        let (pass, fail) = (Outcome::Pass, Outcome::Fail);
        let text = compared(report(&[pass; 8], &[9.0, 9.5, 9.1, 9.2]), report(&[fail; 8], &[9.9, 10.4, 10.0, 10.1]));
        assert!(text.contains("fails 8 that [1] passes, of 8: a difference (McNemar p = 0.01)"), "{text}");
        assert!(text.contains("95%: +0.0325 to +0.0325, a difference"), "{text}");
        let text = compared(report(&[pass, fail], &[9.0, 9.5, 9.0, 9.5]), report(&[fail, pass], &[9.5, 9.0, 9.5, 9.0]));
        assert!(text.contains("no difference shown (McNemar p = 1.00)"), "{text}");
        assert!(text.contains("+0.0000 (+0.00%"), "{text}");
        assert!(text.contains("not measured") && !text.contains(" 0 J"), "{text}");
    }

    #[test]
    fn a_request_that_failed_is_a_task_that_failed() {
        let (pass, fail, error) = (Outcome::Pass, Outcome::Fail, Outcome::Error);
        let whole = report(&[pass, pass, pass, pass, fail, fail, fail, fail], &[1.0]);
        let broken = report(&[pass, pass, pass, pass, error, error, fail, fail], &[1.0]);
        let [whole_score, broken_score] = [&whole, &broken].map(|report| report.tasks.as_ref().unwrap().scores[0]);
        assert_eq!((broken_score.passed, broken_score.graded, broken_score.errors), (4, 8, 2));
        assert_eq!(broken_score.interval, whole_score.interval, "errors do not improve a score");
        let text = compared(whole, broken);
        assert!(
            text.contains("reasoning: 4 of 8 (50%; 95%: 22% to 78%); 2 of them requests that failed; passes 0"),
            "{text}"
        );
        let text = compared(report(&[pass; 8], &[1.0]), report(&[error; 8], &[1.0]));
        assert!(text.contains("fails 8 that [1] passes, of 8: a difference (McNemar p = 0.01)"), "{text}");
    }

    #[test]
    fn what_cannot_be_compared_is_not() {
        let (mut a, b) = (report(&[Outcome::Pass], &[1.0]), report(&[Outcome::NotGraded], &[1.0, 2.0]));
        let text = compared(a.clone(), b.clone());
        assert!(text.contains("other windows, which cannot be compared") && !text.contains("McNemar"), "{text}");
        a.tasks.as_mut().unwrap().set_version = 2;
        assert!(compared(a.clone(), b).contains("sets 2 and 1 cannot be compared"));
        assert!(Comparison::new(vec![a]).is_err());
    }

    #[test]
    fn a_report_survives_its_file_and_others_are_refused() {
        let path = std::env::temp_dir().join(format!("plimsoll-eval-report-{}.json", std::process::id()));
        let written = report(&[Outcome::Pass, Outcome::Error], &[1.0]);
        written.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap().to_string(), written.to_string());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"schema_version\": 2", "\"schema_version\": 9")).unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("version 9; this program reads"));
        std::fs::write(&path, r#"{"schema": "plimsoll.eval", "schema_version": 1}"#).unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("version 1; this program reads"));
        std::fs::write(&path, "{}").unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("no report of `plimsoll eval`"));
        std::fs::remove_file(&path).unwrap();
        assert!(Report::read(&path).is_err());
    }
}
