//! Every kernel's time at the shapes of real models, as shares of the ceilings.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use plimsoll_gpu_check::results::Row;
use plimsoll_kernel_checks::{Run, Timing, timings};

use crate::ceilings::Ceilings;
use crate::clock;
use crate::gpu::Gpu;
use crate::worker::Item;
use plimsoll_gpu_check::scale::Scale;

/// Sets of inputs that launches go round.
const MOST_SETS: u64 = 16;

/// What making further sets may take: they are made on the host.
const PREPARING: Duration = Duration::from_millis(1500);

pub(crate) fn items(folder: &Path, scale: &Scale) -> Vec<Item> {
    let ceilings = Ceilings::read(folder);
    let item =
        |timing: Timing| Item { name: timing.name.clone(), run: Box::new(move |gpu| time(gpu, &timing, ceilings)) };
    timings().into_iter().filter(|timing| timing.bytes <= scale.most_bytes).map(item).collect()
}

fn time(gpu: &Gpu, timing: &Timing, ceilings: Ceilings) -> Result<Row> {
    let memory = gpu.memory();
    // Inputs that fit the cache would be read from there the second time, as no model does it: so several sets.
    let wanted = (3 * gpu.cache_bytes()?).div_ceil(timing.bytes.max(1)).clamp(1, MOST_SETS);
    let mut sets: Vec<Run> = Vec::new();
    let started = Instant::now();
    while sets.is_empty() || ((sets.len() as u64) < wanted && started.elapsed() < PREPARING) {
        sets.push((timing.prepare)(&memory));
    }
    let seconds = clock::per_launch(gpu, &sets)?;
    let mut row = ceilings.rates(timing.bytes, timing.flops, seconds);
    row.insert("sets".to_owned(), sets.len().into());
    Ok(row)
}
