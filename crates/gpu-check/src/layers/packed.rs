//! Layers that stay packed: GGUF's blocks of every type, and parts of one layer whose formats, or the orders of whose
//! columns, differ, as merged projections of one checkpoint may.

use anyhow::{Result, ensure};
use candle_core::Device;
use half::bf16;
use plimsoll_gpu_check::results::{Row, row};
use plimsoll_kernel_checks::Random;
use plimsoll_ops::linear::{Linear, Placement, RowSource, gpu_bytes};
use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat, dequantize_row, encode_row};
use serde_json::json;

use super::{BF16, Layer, activations};
use crate::worker::Item;

/// Of each term, of which the weight was rounded to bf16.
const WEIGHT: f64 = 1.05 / 256.0;

pub(super) fn items() -> Vec<Item> {
    let types = GgmlType::ALL.into_iter().filter(|ty| ty.block_len() != 1);
    let blocks = types
        .map(|ty| Item { name: format!("layer/packed, {ty:?}"), run: Box::new(move |gpu| blocks(ty, &gpu.device)) });
    let parts = Item { name: "layer/packed, several parts".into(), run: Box::new(|gpu| parts(&gpu.device)) };
    blocks.chain([parts]).collect()
}

/// Rows of blocks of random bytes, of which no half is infinite or NaN; and what they stand for.
fn random_blocks(ty: GgmlType, [rows, columns]: [usize; 2], random: &mut Random) -> Result<(Vec<u8>, Vec<f32>)> {
    let row_bytes = ty.row_bytes(columns).expect("whole blocks");
    let bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.bits() as u8 & 0xbb).collect();
    let mut values = vec![0.0; rows * columns];
    for (row, values) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(columns)) {
        dequantize_row(ty, row, values)?;
    }
    Ok((bytes, values))
}

fn blocks(ty: GgmlType, device: &Device) -> Result<Row> {
    const SHAPE: [usize; 2] = [40, 512];
    let random = &mut Random::new(ty.id().into());
    let (bytes, weights) = random_blocks(ty, SHAPE, random)?;
    let bias = random.normals(SHAPE[0], 1.0);
    let source = RowSource::new(ty, SHAPE[0], SHAPE[1], &bytes);
    let linear = Linear::load(&[source], Some(bias.clone()), &Placement::Gpu(device.clone()))?;
    let foretold = gpu_bytes(&[(ty.into(), SHAPE[0])], SHAPE[1]);
    let taken = linear.packed_bytes() as u64;
    ensure!(taken == foretold && taken < (2 * SHAPE[0] * SHAPE[1]) as u64, "takes {taken} bytes, not {foretold}");
    let layer = Layer { linear, weights, bias, columns: SHAPE[1] };
    compare(&layer, &[1, 70], random, device)
}

fn parts(device: &Device) -> Result<Row> {
    const COLUMNS: usize = 256;
    let random = &mut Random::new(9);
    let format = RowFormat::from(Grouped { codes: Codes::Int4, group: 64 });
    let order: Vec<u32> = (0..COLUMNS as u32).map(|i| (i * 37 + 11) % COLUMNS as u32).collect();
    let (q4, q4_values) = random_blocks(GgmlType::Q4K, [24, COLUMNS], random)?;
    let (q6, q6_values) = random_blocks(GgmlType::Q6K, [16, COLUMNS], random)?;
    let plain: Vec<bf16> = random.normals(8 * COLUMNS, 1.0).into_iter().map(bf16::from_f32).collect();
    let plain_bytes: Vec<u8> = plain.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (mut grouped, mut grouped_values) = (Vec::new(), vec![0.0; 8 * COLUMNS]);
    for row in grouped_values.chunks_exact_mut(COLUMNS) {
        let (start, mut stored) = (grouped.len(), vec![0.0; COLUMNS]);
        encode_row(format, &random.normals(COLUMNS, 1.0), &mut grouped)?;
        dequantize_row(format, &grouped[start..], &mut stored)?;
        order.iter().zip(stored).for_each(|(&column, value)| row[column as usize] = value);
    }
    let reordered = RowSource::new(format, 8, COLUMNS, &grouped).in_order(Some(&order));
    let sources = [
        RowSource::new(GgmlType::Q4K, 24, COLUMNS, &q4),
        reordered,
        RowSource::new(GgmlType::BF16, 8, COLUMNS, &plain_bytes),
        RowSource::new(GgmlType::Q6K, 16, COLUMNS, &q6),
        reordered,
    ];
    let plain: Vec<f32> = plain.iter().map(|value| value.to_f32()).collect();
    let weights = [q4_values, grouped_values.clone(), plain, q6_values, grouped_values].concat();
    let bias = random.normals(64, 1.0);
    let placement = Placement::Gpu(device.clone());
    let linear = Linear::load(&sources, Some(bias.clone()), &placement)?;
    let formats = [(GgmlType::Q4K.into(), 24), (format, 8), (GgmlType::BF16.into(), 8), (GgmlType::Q6K.into(), 16)];
    let foretold = gpu_bytes(&formats, COLUMNS) + gpu_bytes(&[(format, 8)], COLUMNS);
    ensure!(linear.packed_bytes() as u64 == foretold, "takes {} bytes, not {foretold}", linear.packed_bytes());
    let alike = Linear::load_alike(&sources, None, &placement)?.packed_bytes();
    ensure!(alike == 2 * 64 * COLUMNS, "in one format it takes {alike} bytes");
    compare(&Layer { linear, weights, bias, columns: COLUMNS }, &[1, 9, 140], random, device)
}

/// Products of so many tokens, to bf16 and to f32.
fn compare(layer: &Layer, tokens: &[usize], random: &mut Random, device: &Device) -> Result<Row> {
    let mut worst = 0.0f64;
    for &tokens in tokens {
        let (x, on_gpu) = activations(tokens, layer.columns, random, device)?;
        let narrow = layer.off(&x, &layer.linear.forward(&on_gpu)?, WEIGHT, BF16)?;
        let wide = layer.off(&x, &layer.linear.logits(&on_gpu, None)?, WEIGHT, 0.0)?;
        ensure!(
            narrow <= 1.0 && wide <= 1.0,
            "{tokens} tokens: {narrow:.3} to bf16, {wide:.3} to f32, of what is allowed"
        );
        worst = worst.max(narrow).max(wide);
    }
    Ok(row(json!({"error": worst})))
}
