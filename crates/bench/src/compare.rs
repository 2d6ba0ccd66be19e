//! Saturation reports side by side: what each can do, with the confidence of the measurement, and what that costs.
//!
//! A difference counts only where the confidence intervals are apart. The published result is drawn beside reports of the
//! same model under the same load.

mod charts;
mod matrix;
mod reference;
#[cfg(test)]
mod tests;
mod text;

use crate::config::PromptSource;
use crate::page::{self, Fact, Page, Section};
use crate::report::{RungReport, SaturationReport};

use self::reference::Published;

/// What a comparison is told beside the reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompareOptions {
    /// Price of an hour of each report's server: one for all, or one each; none leaves cost out.
    pub prices_per_hour: Vec<f64>,
    /// GPUs behind each report's endpoint: one number for all, or one each; none leaves out what counts by the GPU.
    pub gpus: Vec<u32>,
}

/// One report and what it is called.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub name: String,
    pub report: SaturationReport,
}

/// Reports side by side. `Display` gives text.
#[derive(Clone, Debug)]
pub struct Comparison {
    candidates: Vec<Candidate>,
    options: CompareOptions,
    published: Vec<&'static Published>,
}

impl Comparison {
    /// Compares reports in the order given; the first is what the others are held against.
    pub fn new(mut candidates: Vec<Candidate>, options: CompareOptions) -> Self {
        tell_apart(&mut candidates);
        let all = &reference::published().results;
        let is_drawn = |published: &&Published| {
            candidates.iter().any(|one| is_reference_load(&one.report) && published.is_of(&one.report.model))
        };
        let published = all.iter().filter(is_drawn).collect();
        Self { candidates, options, published }
    }

    /// The page that shows it.
    pub fn page(&self) -> Page {
        let mut sections: Vec<Section> = charts::all(self).into_iter().map(Section::Chart).collect();
        let at = sections.len().min(1);
        sections.insert(at, Section::Table(self.matrix().table()));
        sections.extend(self.published_table().map(Section::Table));
        Page {
            title: self.answer(),
            answer: self.answer(),
            detail: self.ratios().first().cloned().unwrap_or_default(),
            subject: self
                .candidates
                .iter()
                .map(|one| format!("{}: {}", one.name, one.report.model))
                .collect::<Vec<_>>()
                .join(" \u{b7} "),
            facts: self.candidates.iter().map(fact).collect(),
            warnings: self.warnings(),
            findings: self.ratios(),
            sections,
            notes: self.notes(),
        }
    }

    fn price(&self, index: usize) -> Option<f64> {
        one_or_each(&self.options.prices_per_hour, index)
    }

    fn gpus(&self, index: usize) -> Option<u32> {
        one_or_each(&self.options.gpus, index)
    }

    /// The greatest concurrency that all of them measured, but no more than 32, which is where others publish.
    fn common_concurrency(&self) -> Option<u32> {
        let (first, others) = self.candidates.split_first()?;
        let measured = |report: &SaturationReport, n: u32| report.rung_at(n).is_some();
        let shared = first.report.rungs.iter().map(|rung| rung.summary.concurrency);
        shared.filter(|n| *n <= 32 && others.iter().all(|other| measured(&other.report, *n))).max()
    }

    /// What makes the reports hard to compare.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for one in self.candidates.iter().filter(|one| one.report.is_invalid()) {
            warnings.push(format!("{} says of itself that it is not to be believed.", one.name));
        }
        let Some((first, others)) = self.candidates.split_first() else { return warnings };
        for other in others {
            let differences = differences(&first.report, &other.report);
            if !differences.is_empty() {
                let what = differences.join(", ");
                warnings
                    .push(format!("{} and {} were measured under different loads: {what}.", first.name, other.name));
            }
        }
        warnings
    }
}

fn one_or_each<T: Copy>(values: &[T], index: usize) -> Option<T> {
    if values.len() == 1 { values.first().copied() } else { values.get(index).copied() }
}

/// Two of the same name get a number each.
fn tell_apart(candidates: &mut [Candidate]) {
    let names: Vec<String> = candidates.iter().map(|one| one.name.clone()).collect();
    for (index, one) in candidates.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == one.name).count() > 1 {
            one.name = format!("{} ({})", one.name, index + 1);
        }
    }
}

/// Whether a report's load is the one that the published results are of.
fn is_reference_load(report: &SaturationReport) -> bool {
    let load = &reference::published().workload;
    let config = &report.config;
    let single = config.workload.turns == 1 && config.workload.shared_prefix.is_none();
    let texts = matches!(config.workload.prompts, PromptSource::Bundled | PromptSource::File(_));
    single
        && texts
        && config.workload.min_tokens == load.min_prompt_tokens
        && config.workload.max_tokens == load.max_prompt_tokens
        && config.generation.max_tokens == load.max_output_tokens
}

/// In what two loads differ, in words.
fn differences(a: &SaturationReport, b: &SaturationReport) -> Vec<String> {
    let (a_load, b_load) = (&a.config.workload, &b.config.workload);
    let (a_made, b_made) = (&a.config.generation, &b.config.generation);
    let source = |source: &PromptSource| match source {
        PromptSource::Bundled => "the bundled prompts".to_owned(),
        other => format!("{other:?}"),
    };
    let prompts = |load: &crate::Workload| format!("prompts of {} to {} tokens", load.min_tokens, load.max_tokens);
    let shape = |load: &crate::Workload| match load.shared_prefix {
        Some(prefix) => format!("turns {}, prefixes of {} tokens shared", load.turns, prefix.tokens),
        None => format!("turns {}, no prefix shared", load.turns),
    };
    let pairs = [
        (a.model.clone(), b.model.clone()),
        (source(&a_load.prompts), source(&b_load.prompts)),
        (prompts(a_load), prompts(b_load)),
        (format!("at most {} output tokens", a_made.max_tokens), format!("{}", b_made.max_tokens)),
        (format!("ignore_eos {}", a_made.ignore_eos), format!("ignore_eos {}", b_made.ignore_eos)),
        (format!("salted {}", a_load.salt), format!("salted {}", b_load.salt)),
        (shape(a_load), shape(b_load)),
    ];
    let same = |index: usize| match index {
        3 => a_made.max_tokens == b_made.max_tokens,
        4 => a_made.ignore_eos == b_made.ignore_eos,
        5 => a_load.salt == b_load.salt,
        _ => pairs[index].0 == pairs[index].1,
    };
    let differing = (0..pairs.len()).filter(|index| !same(*index));
    differing.map(|index| format!("{} against {}", pairs[index].0, pairs[index].1)).collect()
}

fn fact(one: &Candidate) -> Fact {
    let answer = &one.report.answer;
    let width = answer.plateau_half_width.filter(|_| answer.plateau_throughput > 0.0);
    let width =
        width.map(|width| format!("\u{b1}{:.1}%, ", 100.0 * width / answer.plateau_throughput)).unwrap_or_default();
    Fact {
        name: one.name.clone(),
        value: page::number(answer.plateau_throughput),
        unit: "output tok/s".to_owned(),
        detail: format!("{width}saturates at N = {}", answer.saturation),
    }
}

/// The rung that stands for the highest throughput.
fn at_peak(report: &SaturationReport) -> Option<&RungReport> {
    report.rung_at(report.answer.peak)
}
