//! `plimsoll compare`: saturation reports side by side.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use plimsoll_bench::{Candidate, CompareOptions, Comparison, SaturationReport};

use crate::name::name_of;
use crate::report;

/// What `compare` takes.
#[derive(Args, Debug)]
pub(crate) struct ComparisonOptions {
    /// Files that `saturate --out` wrote; the first is what the others are held against
    #[arg(value_name = "FILE", required = true)]
    reports: Vec<PathBuf>,

    /// What each is to be called, in the order of the files [default: their names]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    names: Vec<String>,

    /// Price of an hour of the server, in whatever currency; once for all, or once for each
    #[arg(long, value_name = "PRICE", value_delimiter = ',')]
    price_per_hour: Vec<f64>,

    /// GPUs behind the endpoint; once for all, or once for each
    #[arg(long, value_name = "N", value_delimiter = ',')]
    gpus: Vec<u32>,

    /// Write a self-contained page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) fn run(options: &ComparisonOptions) -> Result<()> {
    let count = options.reports.len();
    check("--price-per-hour", options.price_per_hour.len(), count, true)?;
    check("--gpus", options.gpus.len(), count, true)?;
    check("--names", options.names.len(), count, false)?;
    for price in &options.price_per_hour {
        ensure!(price.is_finite() && *price > 0.0, "--price-per-hour is {price}; give more than 0");
    }
    ensure!(!options.gpus.contains(&0), "--gpus is 0; give at least 1");
    let candidate = |(index, path): (usize, &PathBuf)| {
        let name = options.names.get(index).cloned().unwrap_or_else(|| name_of(path));
        Ok(Candidate { name, report: SaturationReport::read(path)? })
    };
    let candidates = options.reports.iter().enumerate().map(candidate).collect::<Result<_>>()?;
    let told = CompareOptions { prices_per_hour: options.price_per_hour.clone(), gpus: options.gpus.clone() };
    let comparison = Comparison::new(candidates, told);
    print!("{comparison}");
    match &options.html {
        Some(path) => report::write(path, &comparison.page().to_string()),
        None => Ok(()),
    }
}

/// A list must have an entry for each file, or, where one `serves_all`, a single one.
fn check(flag: &str, given: usize, files: usize, serves_all: bool) -> Result<()> {
    let right = given == 0 || given == files || serves_all && given == 1;
    ensure!(right, "{flag} is given {given} times for {files} files; give it {}", wanted(files, serves_all));
    Ok(())
}

fn wanted(files: usize, serves_all: bool) -> String {
    if serves_all { format!("once, or {files} times") } else { format!("{files} times, or not at all") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_must_fit_the_files() {
        for (given, files, all, right) in
            [(0, 2, true, true), (1, 2, true, true), (2, 2, true, true), (3, 2, true, false), (1, 2, false, false)]
        {
            assert_eq!(check("--gpus", given, files, all).is_ok(), right, "{given} for {files}");
        }
        let error = check("--names", 1, 3, false).expect_err("too few").to_string();
        assert!(error.contains("--names is given 1 times for 3 files; give it 3 times"), "{error}");
    }
}
