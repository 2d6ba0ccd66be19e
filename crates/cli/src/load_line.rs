//! The load line file: how many requests at once a model carries on a device in a configuration, as `saturate` found it
//! there, for `serve` to hold itself to. One file a subject, in a folder of the user's cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use plimsoll_bench::{Finding, FindingKind, SaturationReport, Verdict};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::catalogue;
use crate::config::Config;
use crate::model::Found;

/// The layout of the file. A reader of another is told to measure anew.
const SCHEMA: &str = "plimsoll.load-line/1";

/// What was measured: a line holds for this and for nothing else. Every field is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) version: String,
    pub(crate) model: String,
    /// What tells these weights from others.
    pub(crate) weights: String,
    /// The GPU's name, or the CPU's.
    pub(crate) device: String,
    pub(crate) threads: usize,
    /// The engine's settings, as the command line gives them.
    pub(crate) settings: String,
}

/// A load line and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoadLine {
    schema: String,
    subject: Subject,
    /// Seconds since 1970.
    measured_unix_s: u64,
    /// Requests at once.
    sequences: u32,
    requests_per_s: f64,
    output_tokens_per_s: f64,
    /// What was found of the server, in the report's words.
    verdict: Verdict,
}

impl LoadLine {
    /// From a search that found an end of the throughput: the saturation point, or where that is more than service holds
    /// at, the most it holds at. `None` if the figures are not to be used, if service held nowhere, or if throughput still
    /// rose where the search ended: how far it was looked for says nothing about the server.
    pub(crate) fn of(report: &SaturationReport, subject: Subject) -> Option<Self> {
        let answer = &report.answer;
        let is_cut = |finding: &Finding| finding.invalidates() || finding.kind == FindingKind::Interrupted;
        if !has_end(answer.verdict) || report.findings.iter().any(is_cut) {
            return None;
        }
        let rung = &report.rung_at(answer.saturation.min(answer.holds_at))?.summary;
        Some(Self {
            schema: SCHEMA.into(),
            subject,
            measured_unix_s: report.started_unix_s,
            sequences: rung.concurrency,
            requests_per_s: rung.rates.requests_per_s,
            output_tokens_per_s: rung.rates.output_tokens_per_s,
            verdict: answer.verdict,
        })
    }

    /// The line of `subject`, if it was measured.
    ///
    /// # Errors
    /// The file is there and cannot be read or understood.
    pub(crate) fn find(subject: &Subject) -> Result<Option<Self>> {
        Self::read(&subject.path()?, subject)
    }

    fn read(path: &Path, subject: &Subject) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read the load line {}", path.display()))?,
        };
        let broken = || format!("the load line {} cannot be understood; delete it and measure anew", path.display());
        let line: Self = serde_json::from_slice(&text).with_context(broken)?;
        ensure!(line.schema == SCHEMA && line.sequences > 0 && line.requests_per_s.is_finite(), broken());
        Ok((line.subject == *subject).then_some(line))
    }

    /// Keeps it for `serve`, in place of an older one. Returns where.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let path = self.subject.path()?;
        self.write_to(&path)?;
        Ok(path)
    }

    fn write_to(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        plimsoll_bench::write_file(path, &text).context("the load line is not kept")
    }

    /// As the server takes it.
    pub(crate) fn limit(&self) -> plimsoll_server::LoadLine {
        plimsoll_server::LoadLine { sequences: self.sequences as usize, requests_per_s: self.requests_per_s }
    }
}

/// Whether the search saw where throughput ends, or service.
fn has_end(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Plateaued
        | Verdict::Retrograde
        | Verdict::AdmissionLimited
        | Verdict::ServiceBroken
        | Verdict::SloBroken => true,
        Verdict::StillScaling | Verdict::ServerGone | Verdict::ClientLimited | Verdict::OutOfTime => false,
    }
}

impl fmt::Display for LoadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let age = Duration::from_secs(age.saturating_sub(self.measured_unix_s));
        write!(
            f,
            "{} requests at once, {:.1} req/s and {:.0} output tok/s there (measured {} ago)",
            self.sequences,
            self.requests_per_s,
            self.output_tokens_per_s,
            indicatif::HumanDuration(age)
        )
    }
}

impl Subject {
    /// What would be measured, or served, under this configuration.
    ///
    /// # Errors
    /// The model's files cannot be looked at.
    pub(crate) fn of(found: &Found, config: &Config) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            model: found.name.clone(),
            weights: found.weights_identity()?,
            device: found.device_name()?,
            threads: config.shared.threads,
            settings: format!("{:?} {:?}", found.steps(), config.engine),
        })
    }

    fn path(&self) -> Result<PathBuf> {
        let digest = Sha256::digest(serde_json::to_vec(self)?);
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let model: String = self.model.chars().take(80).map(|c| if is_plain(c) { c } else { '-' }).collect();
        Ok(catalogue::load_lines_dir()?.join(format!("{model}-{digest}.json")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::options::{LoadFormat, ServeOptions, SharedOptions};
    use crate::paced::Pace;

    fn subject(model: &str) -> Subject {
        Subject {
            version: "1".into(),
            model: model.into(),
            weights: "w".into(),
            device: "d".into(),
            threads: 2,
            settings: "s".into(),
        }
    }

    #[test]
    fn what_is_written_is_found_for_its_subject_alone() {
        let line = LoadLine {
            schema: SCHEMA.into(),
            subject: subject("m"),
            measured_unix_s: 1,
            sequences: 48,
            requests_per_s: 17.25,
            output_tokens_per_s: 1373.0,
            verdict: Verdict::Plateaued,
        };
        let folder = std::env::temp_dir().join(format!("plimsoll-load-lines-{}", std::process::id()));
        let path = folder.join("m.json");
        assert_eq!(LoadLine::read(&path, &line.subject).unwrap(), None);
        line.write_to(&path).unwrap();
        assert_eq!(LoadLine::read(&path, &line.subject).unwrap(), Some(line.clone()));
        assert_eq!(LoadLine::read(&path, &subject("other")).unwrap(), None);
        let empty = serde_json::to_string(&LoadLine { sequences: 0, ..line.clone() }).unwrap();
        for broken in ["{", &empty] {
            std::fs::write(&path, broken).unwrap();
            let told = LoadLine::read(&path, &line.subject).unwrap_err().to_string();
            assert!(told.contains("delete it"), "{told}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_served_decides_the_subject() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/architectures");
        let of = |name: &str, change: &dyn Fn(&mut ServeOptions)| {
            let shared = SharedOptions {
                device: Some(Device::Null(Pace::default())),
                config: vec![folder.join(name)],
                ..SharedOptions::default()
            };
            let mut options = ServeOptions { load_format: Some(LoadFormat::Dummy), ..ServeOptions::default() };
            change(&mut options);
            let config = Config::resolve(shared, options).unwrap();
            Subject::of(&crate::model::find(&config).unwrap(), &config).unwrap()
        };
        let plain = of("llama-3.2-1b.json", &|_| ());
        let same = of("llama-3.2-1b.json", &|options| options.max_queued_requests = Some(7));
        assert_eq!(plain, same, "who waits outside does not matter");
        let others = [
            of("llama-3.1-8b.json", &|_| ()),
            of("llama-3.2-1b.json", &|options| options.max_num_seqs = Some(3)),
            of("llama-3.2-1b.json", &|options| options.prefix_caching = Some(false)),
        ];
        for other in others {
            assert_ne!(plain, other);
            assert_ne!(plain.path().unwrap(), other.path().unwrap());
        }
    }

    #[test]
    fn a_search_without_an_end_gives_no_line() {
        let ends = [Verdict::Plateaued, Verdict::Retrograde, Verdict::SloBroken, Verdict::ServiceBroken];
        assert!(ends.into_iter().all(has_end));
        let open = [Verdict::StillScaling, Verdict::OutOfTime, Verdict::ClientLimited, Verdict::ServerGone];
        assert!(!open.into_iter().any(has_end));
    }

    #[test]
    fn a_subject_has_a_file_of_its_own_inside_the_folder() {
        let folder = catalogue::load_lines_dir().unwrap();
        let hostile = subject("../../etc/passwd").path().unwrap();
        assert_eq!(hostile.parent(), Some(folder.as_path()));
        assert_ne!(subject("m").path().unwrap(), Subject { threads: 3, ..subject("m") }.path().unwrap());
    }
}
