//! Every kernel against its oracle, in rounds with new random inputs each, until the part's time is over.

use std::rc::Rc;

use plimsoll_gpu_check::results::Row;
use plimsoll_kernel_checks::{Random, cases};
use serde_json::json;

use crate::worker::Item;
use plimsoll_gpu_check::only::Only;

/// More than there is time for.
const ROUNDS: u64 = 50;

/// Items of one round.
pub(crate) fn round(only: &Only) -> usize {
    cases().iter().filter(|case| only.names(&case.name)).count()
}

pub(crate) fn items(seed: u64) -> Vec<Item> {
    let cases: Vec<Rc<_>> = cases().into_iter().map(Rc::new).collect();
    let mut items = Vec::new();
    for round in 0..ROUNDS {
        for (index, case) in cases.iter().enumerate() {
            let case = case.clone();
            // What repeats the case, on a GPU or in the emulator.
            let seed = Random::new(seed ^ (round << 32) ^ index as u64).bits();
            let run = move |gpu: &crate::gpu::Gpu| {
                let told: Row = [("seed".to_owned(), json!(seed))].into_iter().collect();
                let checked = (case.run)(&gpu.memory(), &mut Random::new(seed));
                checked.map(|()| told).map_err(|wrong| anyhow::anyhow!("seed {seed}: {wrong}"))
            };
            items.push(Item { name: cases[index].name.clone(), run: Box::new(run) });
        }
    }
    items
}
