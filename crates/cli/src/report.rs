//! `plimsoll report`: a saturation report read again, as text, as a page with charts, or as rows.

use std::fmt::Display;
use std::io::{self, Write};
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
    /// What would only show when a long search is over.
    ///
    /// # Errors
    /// A number that cannot be, or a file that cannot be read.
    pub(crate) fn check(&self) -> Result<()> {
        self.page_options().map(drop)
    }

    /// Writes what was asked for: one after the other, whatever becomes of the first.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write(&self, report: &SaturationReport) -> Result<()> {
        let page = self.html.as_ref().map(|path| write(path, &report.page(&self.page_options()?).to_string()));
        let rows = self.csv.as_ref().map(|path| write(path, &report.csv()));
        page.into_iter().chain(rows).fold(Ok(()), Result::and)
    }

    fn page_options(&self) -> Result<PageOptions> {
        ensure!(self.gpus != Some(0), "--gpus is 0; give at least 1, or leave it out");
        let plan = self.plan.as_deref().map(plan::foretold).transpose()?.unwrap_or_default();
        Ok(PageOptions { gpus: self.gpus, plan })
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

/// Writes a file, in place of an older one when it is whole, and says so.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    plimsoll_bench::write_file(path, text.as_bytes())?;
    say(format_args!("written to {}", path.display()))
}

/// Prints a line.
///
/// # Errors
/// Standard output takes no more: it was closed, or goes to a full disk. What is still to be kept is to be kept before
/// that is told.
pub(crate) fn say(line: impl Display) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot print to standard output")
}

pub(crate) fn run(options: &ReportOptions) -> Result<()> {
    let report = SaturationReport::read(&options.report)?;
    if options.forms.is_none() {
        say(&report)?;
    }
    options.forms.write(&report)
}
