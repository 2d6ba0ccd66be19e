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

/// Of a mixture of experts, where rounding sends a token elsewhere whose scores for two experts are nearly the same.
const MIXTURE_TOLERANCE: f64 = 0.15;

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
    let most = if golden.is_mixture { MIXTURE_TOLERANCE } else { TOLERANCE };
    for (what, error, most) in [
        ("the error of half the positions", found.typical_error, TOLERANCE),
        ("the error", found.error, most),
        ("what decoding differs by from prefill", found.decode_error, most),
    ] {
        ensure!(error < most, "{what} is {error:.4} of the logits' deviation; {most} is allowed");
    }
    Ok(row(json!({
        "error": found.error, "decode error": found.decode_error,
        "same choice": format!("{}/{}", found.same_choice, found.positions),
    })))
}
