//! Paged attention against the CPU op where it has the feature, else against plain sums in f64.

pub(crate) mod e4m3;
mod oracle;
mod setup;
mod timings;

use plimsoll_kernels::attention::{AttentionPlan, KvDtype, PlanSize};

use crate::arrays::{expect_same, to_bf16};
use crate::{Case, Random, TestDevice};
use setup::{Batch, Setup};

pub(crate) use timings::timings;

/// Nothing is cut into parts.
const UNCUT: u32 = 0;
/// Everything is cut as short as it may be.
const CUT: u32 = 1_000_000;

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&dyn TestDevice, &mut Random) -> Result<(), String>| Case {
        name: format!("attention/{name}"),
        run: Box::new(run),
    };
    vec![
        case("decode", decode),
        case("decode of every group size", group_sizes),
        case("decode in parts", decode_in_parts),
        case("prefill", prefill),
        case("prefill in parts", prefill_in_parts),
        case("mixed", mixed),
        case("window", window),
        case("chunks", chunks),
        case("sinks and softcap", sinks_and_softcap),
        case("large scores", large_scores),
        case("fp8", fp8),
        case("alone and in a batch", alone_and_batched),
        case("sizes refused", refused),
    ]
}

/// Lengths around the edges of blocks, runs and tiles, and anything.
fn length(random: &mut Random, block_size: usize) -> usize {
    let edges = [1, 2, 15, 16, 17, 63, 64, 65, block_size - 1, block_size, block_size + 1, 127, 128, 129];
    if random.below(4) == 0 { random.between(1, 300) } else { edges[random.below(edges.len())] }
}

fn block_size(random: &mut Random) -> usize {
    [16, 16, 32, 48, 256][random.below(5)]
}

/// One token each, and an empty sequence of padding.
fn decode_batch(random: &mut Random, block_size: usize, seqs: usize) -> Vec<(usize, usize)> {
    let mut seqs: Vec<_> = (0..seqs).map(|_| (length(random, block_size) - 1, 1)).collect();
    seqs.insert(random.below(seqs.len() + 1), (0, 0));
    seqs
}

fn check(device: &dyn TestDevice, random: &mut Random, setup: &Setup, seqs: &[(usize, usize)]) -> Result<(), String> {
    let batch = Batch::draw(random, setup, seqs);
    let got = batch.attend(device, setup)?;
    oracle::compare(&got, &batch, setup).map_err(|e| format!("{setup:?}, {seqs:?}: {e}"))
}

fn decode(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for dim in [16, 32, 64, 128, 256] {
        let kv_heads = random.between(1, 2);
        let heads = kv_heads * random.between(1, 8);
        let setup = Setup { block_size: block_size(random), ..Setup::new(heads, kv_heads, dim) };
        let seqs = decode_batch(random, setup.block_size, 4);
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

fn group_sizes(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for group in 1..=16 {
        let seqs = [(length(random, 16), 1), (31, 2.min(16 / group))];
        check(device, random, &Setup::new(group, 1, 16), &seqs)?;
    }
    Ok(())
}

fn decode_in_parts(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for dim in [32, 64, 128, 256] {
        let setup = Setup { multiprocessors: CUT, block_size: 32, ..Setup::new(6, 2, dim) };
        let long = random.between(257, 520);
        check(device, random, &setup, &[(long, 1), (3, 1), (0, 0), (127, 1), (128, 1), (200, 2)])?;
    }
    Ok(())
}

fn prefill(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for dim in [16, 32, 64, 128, 256] {
        let group = random.between(1, 5);
        let setup = Setup { block_size: block_size(random), ..Setup::new(group, 1, dim) };
        let (before, tokens) = (length(random, setup.block_size), length(random, setup.block_size).max(17));
        check(device, random, &setup, &[(0, tokens), (before, 18)])?;
    }
    Ok(())
}

fn prefill_in_parts(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let setup = Setup { multiprocessors: CUT, ..Setup::new(3, 1, 32) };
    let before = random.between(700, 1100);
    check(device, random, &setup, &[(before, 40), (512, 17), (0, 30)])
}

fn mixed(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for dim in [64, 128] {
        let setup = Setup { spare: 3, ..Setup::new(4, 2, dim) };
        let mut seqs = decode_batch(random, setup.block_size, 3);
        seqs.insert(random.below(4), (length(random, 16), 300));
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

fn window(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for window in [1, 2, 16, 17, 64, random.between(3, 100)] {
        let multiprocessors = [UNCUT, CUT][random.below(2)];
        let setup = Setup { window: Some(window), multiprocessors, ..Setup::new(6, 2, 32) };
        // The edges of the window and one past them, blocks before it gone.
        let mut seqs = vec![(window - 1, 1), (window, 1), (window + 16, 1), (random.between(100, 400), 1)];
        seqs.extend([(window + 7, 45), (random.between(0, 300), 60), (0, window + 40)]);
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

fn chunks(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for chunk in [16, 40, 128, random.between(1, 100)] {
        let window = if random.below(3) == 0 { Some(random.between(1, 60)) } else { None };
        let setup = Setup { chunk: Some(chunk), window, ..Setup::new(4, 2, 32) };
        let seqs =
            [(chunk - 1, 1), (chunk, 1), (2 * chunk + 1, 1), (random.between(0, 300), 1), (chunk / 2, chunk + 40)];
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

fn sinks_and_softcap(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (sinks, softcap) in [(true, None), (false, Some(5.0)), (true, Some(30.0))] {
        for multiprocessors in [UNCUT, CUT] {
            let setup = Setup { sinks, softcap, multiprocessors, ..Setup::new(4, 2, 64) };
            check(device, random, &setup, &[(200, 1), (0, 1), (150, 3), (20, 50)])?;
        }
    }
    Ok(())
}

/// Scores of some hundreds, so that most weights vanish and maxima jump.
fn large_scores(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for multiprocessors in [UNCUT, CUT] {
        let setup = Setup { q_size: 100.0, multiprocessors, ..Setup::new(4, 1, 64) };
        let seqs = [(random.between(130, 300), 1), (0, 1), (random.between(0, 100), 40)];
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

fn fp8(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for dim in [64, 128, 256] {
        let multiprocessors = [UNCUT, CUT][random.below(2)];
        let setup = Setup { dtype: KvDtype::Fp8, multiprocessors, ..Setup::new(4, 2, dim) };
        let setup = Setup { block_size: block_size(random), ..setup };
        let mut seqs = decode_batch(random, setup.block_size, 3);
        seqs.push((length(random, setup.block_size), random.between(17, 70)));
        check(device, random, &setup, &seqs)?;
    }
    Ok(())
}

/// A sequence that is not cut has the same bits whatever else is in the batch; a prompt's token also has the same bits
/// whatever chunk it comes in.
fn alone_and_batched(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for window in [None, Some(random.between(1, 80))] {
        let setup = Setup { window, ..Setup::new(6, 2, 32) };
        let seqs = [(random.between(0, 200), 1), (40, 90), (random.between(0, 99), 1), (7, 20)];
        let batch = Batch::draw(random, &setup, &seqs);
        let all = batch.attend(device, &setup)?;
        let row = setup.heads * setup.dim * 2;
        let mut at = 0;
        for (seq, (_, tokens)) in seqs.iter().enumerate() {
            let alone = batch.only(seq, 0..*tokens).attend(device, &setup)?;
            let bytes = tokens * row;
            expect_same(&format!("sequence {seq}"), &to_bf16(&all[at..at + bytes]), &to_bf16(&alone[..bytes]))?;
            at += bytes;
        }
        let late = batch.only(1, 50..90).attend(device, &setup)?;
        let whole = &all[(1 + 50) * row..(1 + 90) * row];
        expect_same("a chunk of a prompt", &to_bf16(&late[..whole.len()]), &to_bf16(whole))?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let good = Setup::new(2, 1, 64);
    let batch = Batch::draw(random, &good, &[(3, 1)]);
    batch.attend(device, &good)?;
    for bad in [
        Setup { dim: 80, ..good },
        Setup { heads: 17, ..good },
        Setup { heads: 3, kv_heads: 2, ..good },
        Setup { block_size: 24, ..good },
        Setup { window: Some(0), ..good },
        Setup { dim: 32, dtype: KvDtype::Fp8, ..good },
        Setup { softcap: Some(0.0), ..good },
    ] {
        if batch.attend(device, &bad).is_ok() {
            return Err(format!("{bad:?} was not refused"));
        }
    }
    let plan = AttentionPlan::new(&batch.view(), &good.group(), UNCUT).map_err(|e| e.to_string())?;
    match plan.words(&PlanSize::default()) {
        Ok(_) => Err("a plan was laid out for a size that it exceeds".to_owned()),
        Err(_) => Ok(()),
    }
}
