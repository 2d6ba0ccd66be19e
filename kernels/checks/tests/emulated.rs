//! Runs every kernel's checks in the emulator, each with several seeds; a seed draws the inputs and the order in which
//! threads run. `PLIMSOLL_CHECK_SEED=7` repeats one seed, `PLIMSOLL_CHECK_FILTER=attention` selects cases by name.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::{env, thread};

use plimsoll_kernel_checks::{Case, Random, TestDevice, cases};
use plimsoll_kernels::{DevicePtr, Queue};
use plimsoll_kernels_emu::{Emulator, EmulatorConfig, unsupported};

const SEEDS: u64 = 3;

struct Emulated(Emulator);

impl TestDevice for Emulated {
    fn queue(&self) -> &dyn Queue {
        &self.0
    }

    fn upload(&self, bytes: &[u8]) -> DevicePtr {
        self.0.upload(bytes)
    }

    fn download(&self, at: DevicePtr, len: usize) -> Vec<u8> {
        self.0.download(at, len)
    }
}

/// One case with one seed.
struct Outcome {
    case: String,
    seed: u64,
    result: Result<(), String>,
}

#[test]
fn every_kernel_agrees_with_its_oracle() {
    if let Some(reason) = unsupported() {
        println!("the kernels' checks are skipped: {reason}");
        return;
    }
    let seeds = match env::var("PLIMSOLL_CHECK_SEED").ok().map(|seed| seed.parse()) {
        Some(Ok(seed)) => vec![seed],
        Some(Err(_)) => panic!("PLIMSOLL_CHECK_SEED must be a number"),
        None => (1..=SEEDS).collect(),
    };
    let filter = env::var("PLIMSOLL_CHECK_FILTER").unwrap_or_default();
    let failures = failures(&run_all(&seeds, &filter));
    assert!(failures.is_empty(), "{failures}");
}

fn run_all(seeds: &[u64], filter: &str) -> Vec<Outcome> {
    let selected = |case: &Case| case.name.contains(filter);
    let numbers: Vec<usize> = (0..cases().len()).filter(|&i| selected(&cases()[i])).collect();
    let work: VecDeque<(usize, u64)> = numbers.iter().flat_map(|&i| seeds.iter().map(move |&seed| (i, seed))).collect();
    let work = Mutex::new(work);
    let outcomes = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let cases = cases();
                while let Some((number, seed)) = take(&work) {
                    let outcome = run(&cases[number], seed);
                    outcomes.lock().expect("no panic holds it").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no panic holds it")
}

fn take(work: &Mutex<VecDeque<(usize, u64)>>) -> Option<(usize, u64)> {
    work.lock().expect("no panic holds it").pop_front()
}

fn run(case: &Case, seed: u64) -> Outcome {
    let device = Emulated(Emulator::new(EmulatorConfig { seed, ..EmulatorConfig::default() }));
    let mut random = Random::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&device, &mut random)))
        .unwrap_or_else(|_| Err("panicked; the message is above".to_owned()));
    match &result {
        Ok(()) => println!("ok    {} (seed {seed})", case.name),
        Err(problem) => println!("FAILED {} (seed {seed}): {problem}", case.name),
    }
    Outcome { case: case.name.clone(), seed, result }
}

/// All failures, each with how to repeat it; empty if there are none.
fn failures(outcomes: &[Outcome]) -> String {
    let mut failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.result.is_err()).collect();
    failed.sort_by(|a, b| (&a.case, a.seed).cmp(&(&b.case, b.seed)));
    println!("{} checks of kernels in the emulator, {} failed", outcomes.len(), failed.len());
    let mut text = String::new();
    for Outcome { case, seed, result } in failed {
        let problem = result.as_ref().err().map_or("", String::as_str);
        text += &format!("\n{case} (PLIMSOLL_CHECK_SEED={seed} PLIMSOLL_CHECK_FILTER={case}): {problem}\n");
    }
    text
}
