//! Products on a GPU against plain loops: biases, and FP8 weights with FP8 activations. `cargo xtask cuda-test` runs them
//! over the stand-ins for CUDA's libraries; where there is no GPU, they fail.

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::{Linear, Placement, RowSource};
use crate::gpu;
use crate::quant::{Codes, GgmlType, Grouped, RowFormat, dequantize_row, encode_row};
use crate::testing::Random;

/// One for all tests: a process opens a GPU once.
fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| gpu::open(0).unwrap_or_else(|why| panic!("{why}"))).clone()
}

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    Random::new(seed).normals(len, 1.0)
}

/// Each sum, and that of its terms' sizes.
fn exact(x: &[f32], w: &[f32], bias: &[f32], columns: usize) -> Vec<(f64, f64)> {
    let sum = |x: &[f32], (w, bias): (&[f32], &f32)| {
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        terms.fold((f64::from(*bias), f64::from(bias.abs())), |(sum, sizes), term| (sum + term, sizes + term.abs()))
    };
    let rows = |x| w.chunks_exact(columns).zip(bias).map(move |row| sum(x, row));
    x.chunks_exact(columns).flat_map(rows).collect()
}

/// Rounded to bf16, and on the GPU.
fn activations(tokens: usize, columns: usize, seed: u64) -> (Vec<f32>, Tensor) {
    let rounded: Vec<bf16> = numbers(tokens * columns, seed).into_iter().map(bf16::from_f32).collect();
    let x = rounded.iter().map(|v| v.to_f32()).collect();
    (x, Tensor::from_vec(rounded, (tokens, columns), &device()).expect("memory for x"))
}

fn values(y: &Tensor) -> Vec<f32> {
    match y.dtype() {
        DType::F32 => y.flatten_all().and_then(|y| y.to_vec1()).expect("f32"),
        _ => {
            let y: Vec<bf16> = y.flatten_all().and_then(|y| y.to_vec1()).expect("bf16");
            y.iter().map(|v| v.to_f32()).collect()
        }
    }
}

fn assert_close(what: &str, got: &[f32], want: &[(f64, f64)], of_sizes: f64, of_value: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, (want, sizes))) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= of_sizes * sizes + of_value * want.abs(), "{what}, element {i}: {got}, expected {want}");
    }
}

#[test]
fn a_bias_is_added_by_every_way_and_to_every_dtype() {
    const SHAPE: (usize, usize) = (48, 64);
    let (rows, columns) = SHAPE;
    let w: Vec<bf16> = numbers(rows * columns, 1).into_iter().map(bf16::from_f32).collect();
    let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let w: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
    let bias = numbers(rows, 2);
    let source = RowSource::new(GgmlType::BF16, rows, columns, &bytes);
    let linear = Linear::load(&[source], Some(bias.clone()), &Placement::Gpu(device())).unwrap();
    // Few tokens, which the kernel for few may take, and many.
    for tokens in [1, 5, 40] {
        let (x, on_gpu) = activations(tokens, columns, 3);
        let want = exact(&x, &w, &bias, columns);
        let narrow = linear.forward(&on_gpu).unwrap();
        assert_eq!(narrow.dtype(), DType::BF16);
        // A bias may be rounded to bf16 first.
        assert_close(&format!("{tokens} to bf16"), &values(&narrow), &want, 1.0 / 512.0, 1.01 / 256.0);
        let wide = linear.logits(&on_gpu, None).unwrap();
        assert_eq!(wide.dtype(), DType::F32);
        assert_close(&format!("{tokens} to f32"), &values(&wide), &want, 1e-6, 0.0);
    }
}

/// FP8 weights with a scale a row, what they stand for, and a bias.
fn fp8_layer(rows: usize, columns: usize) -> (Linear, Vec<f32>, Vec<f32>) {
    let format = RowFormat::Grouped(Grouped { codes: Codes::E4M3, group: columns });
    let row_bytes = format.row_bytes(columns).expect("whole groups");
    let mut bytes = Vec::new();
    for (row, values) in numbers(rows * columns, 4).chunks_exact(columns).enumerate() {
        let scaled: Vec<f32> = values.iter().map(|v| v * (row % 7 + 1) as f32).collect();
        encode_row(format, &scaled, &mut bytes).unwrap();
    }
    let mut w = vec![0.0; rows * columns];
    for (bytes, w) in bytes.chunks_exact(row_bytes).zip(w.chunks_exact_mut(columns)) {
        dequantize_row(format, bytes, w).unwrap();
    }
    let bias = numbers(rows, 5);
    let source = RowSource::new(format, rows, columns, &bytes);
    let linear = Linear::load(&[source], Some(bias.clone()), &Placement::Gpu(device())).unwrap();
    (linear, w, bias)
}

#[test]
fn fp8_meets_fp8_where_rows_are_many() {
    // One part of the weights; rows of x that are padded; two parts.
    for (tokens, rows, columns) in [(512, 64, 96), (520, 48, 64), (512, 272, 64)] {
        let (plain, w, bias) = fp8_layer(rows, columns);
        let rounding = plain.clone().with_fp8_activations().unwrap();
        let (x, on_gpu) = activations(tokens, columns, 6);
        let y = rounding.forward(&on_gpu).unwrap();
        assert_eq!((y.dims(), y.dtype()), (&[tokens, rows][..], DType::BF16));
        let what = format!("{tokens} x {rows} x {columns}");
        let want = exact(&x, &w, &bias, columns);
        // A 16th of each term at most, from the rounding of x.
        assert_close(&what, &values(&y), &want, 1.05 / 16.0, 1.01 / 256.0);
        assert_ne!(values(&y), values(&plain.forward(&on_gpu).unwrap()), "{what}: activations were not rounded");
    }
}

#[test]
fn few_rows_and_logits_keep_bf16() {
    let (plain, ..) = fp8_layer(64, 96);
    let rounding = plain.clone().with_fp8_activations().unwrap();
    let (_, few) = activations(16, 96, 7);
    assert_eq!(values(&rounding.forward(&few).unwrap()), values(&plain.forward(&few).unwrap()));
    let (_, many) = activations(512, 96, 8);
    assert_eq!(values(&rounding.logits(&many, None).unwrap()), values(&plain.logits(&many, None).unwrap()));
}

#[test]
fn what_is_not_a_number_stays_none() {
    let (plain, ..) = fp8_layer(64, 96);
    let rounding = plain.with_fp8_activations().unwrap();
    let mut x = numbers(512 * 96, 9);
    (x[3], x[5 * 96 + 7]) = (f32::NAN, f32::INFINITY);
    let x: Vec<bf16> = x.into_iter().map(bf16::from_f32).collect();
    let x = Tensor::from_vec(x, (512, 96), &device()).unwrap();
    for (i, y) in values(&rounding.forward(&x).unwrap()).chunks_exact(64).enumerate() {
        assert!(y.iter().all(|y| y.is_finite() != matches!(i, 0 | 5)), "row {i}");
    }
}

/// Rows of blocks of random bytes, of which no half is infinite or NaN; and what they stand for.
fn random_blocks(ty: GgmlType, rows: usize, columns: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let (mut random, row_bytes) = (Random::new(seed), ty.row_bytes(columns).unwrap());
    let bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.bits() as u8 & 0xbb).collect();
    let mut values = vec![0.0; rows * columns];
    for (row, out) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(columns)) {
        dequantize_row(ty, row, out).unwrap();
    }
    (bytes, values)
}

#[test]
fn blocks_of_every_type_are_multiplied_as_they_are_stored() {
    const SHAPE: (usize, usize) = (40, 512);
    for (seed, ty) in (10..).zip(GgmlType::ALL.into_iter().filter(|ty| ty.block_len() != 1)) {
        let (bytes, w) = random_blocks(ty, SHAPE.0, SHAPE.1, seed);
        let bias = numbers(SHAPE.0, seed + 100);
        let source = RowSource::new(ty, SHAPE.0, SHAPE.1, &bytes);
        let linear = Linear::load(&[source], Some(bias.clone()), &Placement::Gpu(device())).unwrap();
        assert!(linear.packed_bytes() < 2 * SHAPE.0 * SHAPE.1, "{ty:?} is not packed");
        for tokens in [1, 70] {
            let (x, on_gpu) = activations(tokens, SHAPE.1, seed + 200);
            let want = exact(&x, &w, &bias, SHAPE.1);
            let y = linear.forward(&on_gpu).unwrap();
            assert_close(&format!("{ty:?}, {tokens}"), &values(&y), &want, 1.05 / 256.0, 1.01 / 256.0);
        }
    }
}

/// Parts in formats and in orders of columns of their own: as merged projections of one checkpoint may be.
#[test]
fn parts_of_different_formats_and_orders_are_one_layer() {
    const COLUMNS: usize = 256;
    let format = RowFormat::from(Grouped { codes: Codes::Int4, group: 64 });
    let order: Vec<u32> = (0..COLUMNS as u32).map(|i| (i * 37 + 11) % COLUMNS as u32).collect();
    let (q4, q4_values) = random_blocks(GgmlType::Q4K, 24, COLUMNS, 31);
    let (q6, q6_values) = random_blocks(GgmlType::Q6K, 16, COLUMNS, 32);
    let plain: Vec<u8> = numbers(8 * COLUMNS, 33).iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let mut plain_values = vec![0.0; 8 * COLUMNS];
    dequantize_row(GgmlType::BF16, &plain, &mut plain_values).unwrap();
    let (mut grouped, mut grouped_values) = (Vec::new(), Vec::new());
    for row in numbers(8 * COLUMNS, 34).chunks_exact(COLUMNS) {
        let (start, mut values) = (grouped.len(), vec![0.0; COLUMNS]);
        encode_row(format, row, &mut grouped).unwrap();
        dequantize_row(format, &grouped[start..], &mut values).unwrap();
        RowSource::put_in_order(&order, &mut values);
        grouped_values.extend(values);
    }
    let reordered = RowSource::new(format, 8, COLUMNS, &grouped).in_order(Some(&order));
    let sources = [
        RowSource::new(GgmlType::Q4K, 24, COLUMNS, &q4),
        reordered,
        RowSource::new(GgmlType::BF16, 8, COLUMNS, &plain),
        RowSource::new(GgmlType::Q6K, 16, COLUMNS, &q6),
        reordered,
    ];
    let w = [q4_values, grouped_values.clone(), plain_values, q6_values, grouped_values].concat();
    let bias = numbers(64, 35);
    let placement = Placement::Gpu(device());
    let linear = Linear::load(&sources, Some(bias.clone()), &placement).unwrap();
    assert_eq!((linear.in_features(), linear.out_features()), (COLUMNS, 64));
    let parts = [(GgmlType::Q4K.into(), 24), (format, 8), (GgmlType::BF16.into(), 8), (GgmlType::Q6K.into(), 16)];
    let foretold = super::gpu_bytes(&parts, COLUMNS) + super::gpu_bytes(&[(format, 8)], COLUMNS);
    assert_eq!(linear.packed_bytes() as u64, foretold);
    assert!(linear.on_gpu().is_none() && Linear::load_alike(&sources, None, &placement).unwrap().on_gpu().is_some());
    for tokens in [1, 9, 140] {
        let (x, on_gpu) = activations(tokens, COLUMNS, 36);
        let want = exact(&x, &w, &bias, COLUMNS);
        let narrow = values(&linear.forward(&on_gpu).unwrap());
        assert_close(&format!("{tokens} to bf16"), &narrow, &want, 1.05 / 256.0, 1.01 / 256.0);
        let wide = values(&linear.logits(&on_gpu, None).unwrap());
        assert_close(&format!("{tokens} to f32"), &wide, &want, 1.05 / 256.0, 0.0);
    }
}
