//! `plimsoll report`: a saturation report read again, as text, as a page with charts, or as rows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use plimsoll_bench::{PageOptions, SaturationReport};

use crate::{devices, plan};

/// What `report` takes.
#[derive(Args, Debug)]
pub(crate) struct ReportOptions {
    /// A saturation.json that `saturate --out` wrote
    #[arg(value_name = "FILE")]
    report: PathBuf,

    #[command(flatten)]
    forms: FormOptions,
}

/// What else a saturation report is written as.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FormOptions {
    /// Write a self-contained page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write comma-separated values, one row each time a concurrency was measured
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// GPUs behind the endpoint, so that the page tells the throughput of one
    #[arg(long, value_name = "N")]
    gpus: Option<u32>,

    /// What `plan --json` printed for this model and GPU: the page draws it beside, and the share of the roofline
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

impl FormOptions {
    /// Writes what was asked for.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write(&self, report: &SaturationReport) -> Result<()> {
        ensure!(self.gpus != Some(0), "--gpus is 0; give at least 1, or leave it out");
        if let Some(path) = &self.html {
            let plan = self.plan.as_deref().map(plan::foretold).transpose()?.unwrap_or_default();
            write(path, &report.page(&PageOptions { gpus: self.gpus, plan }).to_string())?;
        }
        if let Some(path) = &self.csv {
            write(path, &report.csv())?;
        }
        Ok(())
    }

    /// The same files for one of several devices, named after it.
    pub(crate) fn named(&self, device: &str) -> Self {
        let of = |path: &Option<PathBuf>| path.as_ref().map(|path| devices::path_of(path, device));
        Self { html: of(&self.html), csv: of(&self.csv), ..self.clone() }
    }

    /// Where the page goes.
    pub(crate) fn html(&self) -> Option<&Path> {
        self.html.as_deref()
    }

    fn is_none(&self) -> bool {
        self.html.is_none() && self.csv.is_none()
    }
}

/// Writes a file and says so.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

pub(crate) fn run(options: &ReportOptions) -> Result<()> {
    let report = SaturationReport::read(&options.report)?;
    if options.forms.is_none() {
        print!("{report}");
    }
    options.forms.write(&report)
}
