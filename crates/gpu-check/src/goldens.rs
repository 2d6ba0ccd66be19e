//! The golden checkpoints on the GPU.

use std::path::Path;

use anyhow::{Result, ensure};
use plimsoll_gpu_check::golden::{self, Golden};
use plimsoll_gpu_check::results::{Row, row};
use serde_json::json;

use crate::worker::Item;

/// Weights, activations and cache are bf16 here and f32 in the recording. What rounding makes of random weights stays
/// under this; a wrong kernel does not.
const TOLERANCE: f64 = 0.05;

/// # Errors
/// A recording cannot be read.
pub(crate) fn items(folder: &Path) -> Result<Vec<Item>> {
    let item = |golden: Golden| Item {
        name: format!("golden/{}", golden.name),
        run: Box::new(move |gpu| check(&golden, &gpu.device)),
    };
    Ok(golden::all(folder)?.into_iter().map(item).collect())
}

fn check(golden: &Golden, device: &candle_core::Device) -> Result<Row> {
    let found = golden.run(device)?;
    ensure!(
        found.error < TOLERANCE,
        "the error is {:.4} of the logits' deviation; {TOLERANCE} is allowed",
        found.error
    );
    ensure!(found.decode_error < TOLERANCE, "decoding differs from prefill by {:.4} of the same", found.decode_error);
    Ok(row(json!({
        "error": found.error, "decode error": found.decode_error,
        "same choice": format!("{}/{}", found.same_choice, found.positions),
    })))
}
