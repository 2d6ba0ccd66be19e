//! Every format, shape and instruction set against f64 products of the dequantized weights.

use candle_core::{DType, Device};

use super::packing::Packing;
use super::panel::BLOCK;
use super::quantize::{ActBlock, quantize};
use super::*;
use crate::quant::{Codes, GgmlType, Grouped, dequantize_row};

/// A small generator of test data (xorshift64*).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in -1 .. 1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.bits() >> 33) as usize % bound
    }
}

/// Every format; of those under scales of groups, groups that divide the rows and that do not, and whole rows.
fn formats() -> Vec<RowFormat> {
    let grouped = [Codes::Int4, Codes::Int8]
        .into_iter()
        .flat_map(|codes| [32, 96, 128, 1 << 20].map(|group| Grouped { codes, group }))
        .chain([1, 40, 128, 300, 1 << 20].map(|group| Grouped { codes: Codes::E4M3, group }));
    GgmlType::ALL.into_iter().map(RowFormat::from).chain(grouped.map(RowFormat::from)).collect()
}

/// Where a block has its halves, which random bytes could make infinite.
fn halves_of(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
        GgmlType::Q2K => &[80, 82],
        GgmlType::Q3K => &[108],
        GgmlType::Q6K => &[208],
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => &[],
    }
}

fn random_rows(format: RowFormat, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    match format {
        RowFormat::Ggml(ty) => random_ggml(ty, rows, cols, random),
        RowFormat::Grouped(format) => (0..rows).flat_map(|_| random_grouped(format, cols, random)).collect(),
    }
}

/// A row of any codes but those that are no numbers, and zeros beyond the codes too.
fn random_grouped(format: Grouped, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut row = Vec::new();
    for start in (0..cols).step_by(format.group) {
        let count = format.group.min(cols - start);
        let (bytes, scale, zero) = match format.codes {
            Codes::Int4 => (count / 2, 0.02, random.below(20) as i16 - 2),
            Codes::Int8 => (count, 0.001, random.below(300) as i16 - 20),
            Codes::E4M3 => (count, 0.001, 0),
        };
        let code = |random: &mut Random| match random.bits() as u8 {
            code if format.codes == Codes::E4M3 && code & 0x7f == 0x7f => 0x7e,
            code => code,
        };
        let codes: Vec<u8> = (0..bytes).map(|_| code(random)).collect();
        format.push_group(&mut row, scale * random.unit(), zero, codes);
    }
    row
}

fn random_ggml(ty: GgmlType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let bytes = rows * ty.row_bytes(cols).unwrap();
    match ty {
        GgmlType::F32 => random.floats(rows * cols).into_iter().flat_map(f32::to_le_bytes).collect(),
        GgmlType::F16 => {
            random.floats(rows * cols).into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()
        }
        GgmlType::BF16 => {
            random.floats(rows * cols).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect()
        }
        _ => {
            let mut bytes: Vec<u8> = (0..bytes).map(|_| random.bits() as u8).collect();
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                for &at in halves_of(ty) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.1 * random.unit()).to_le_bytes());
                }
                if ty == GgmlType::MXFP4 {
                    block[0] = 120 + random.below(8) as u8;
                }
            }
            bytes
        }
    }
}

struct Matrix {
    format: RowFormat,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Matrix {
    fn random(format: impl Into<RowFormat>, rows: usize, cols: usize, random: &mut Random) -> Matrix {
        let format = format.into();
        let bytes = random_rows(format, rows, cols, random);
        let mut values = vec![0f32; rows * cols];
        for (bytes, out) in bytes.chunks_exact(format.row_bytes(cols).unwrap()).zip(values.chunks_exact_mut(cols)) {
            dequantize_row(format, bytes, out).unwrap();
        }
        Matrix { format, rows, cols, bytes, values }
    }

    fn source(&self) -> RowSource<'_> {
        RowSource::new(self.format, self.rows, self.cols, &self.bytes)
    }

    fn pack(&self, activations: Activations) -> Linear {
        Linear::pack(&[self.source()], None, activations).unwrap()
    }
}

/// Whether products may be in integers.
fn is_quantized(format: RowFormat) -> bool {
    Packing::of(format).block_format().is_some()
}

/// Columns for a test: of a few blocks, or ragged where the format allows it.
fn some_cols(format: RowFormat, random: &mut Random) -> usize {
    match format {
        RowFormat::Ggml(ty) if ty.block_len() == 256 => 256 * (1 + random.below(3)),
        format if is_quantized(format) => 32 * (1 + random.below(20)),
        _ => 1 + random.below(600),
    }
}

fn packed(linear: &Linear) -> &Weights {
    match &linear.weights {
        Form::Packed(weights) => weights,
        #[cfg(feature = "cuda")]
        _ => panic!("on a GPU"),
    }
}

fn run(linear: &Linear, isa: Isa, x: &[f32]) -> Vec<f32> {
    product::forward(packed(linear), isa, x)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Fails unless every output is within `tolerance(w, x)` of the product in f64.
fn check_product(y: &[f32], matrix: &Matrix, x: &[f32], tolerance: impl Fn(&[f32], &[f32]) -> f64) {
    for (x, y) in x.chunks_exact(matrix.cols).zip(y.chunks_exact(matrix.rows)) {
        for (w, y) in matrix.values.chunks_exact(matrix.cols).zip(y) {
            let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let error = (exact - f64::from(*y)).abs();
            let allowed = tolerance(w, x);
            assert!(error <= allowed, "{:?}: {y} for {exact}, off by {error} > {allowed}", matrix.format);
        }
    }
}

/// What f32 products and sums of `w.len()` terms can be off by.
fn f32_rounding(w: &[f32], x: &[f32]) -> f64 {
    let magnitude: f64 = w.iter().zip(x).map(|(w, x)| f64::from((w * x).abs())).sum();
    (w.len() + 1) as f64 * f64::from(f32::EPSILON) * magnitude + 1e-30
}

#[test]
fn f32_products_are_exact_to_rounding_in_every_format() {
    let mut random = Random(1);
    for format in formats() {
        for m in [1, 2, 5, 9] {
            let (rows, cols) = (1 + random.below(50), some_cols(format, &mut random));
            let matrix = Matrix::random(format, rows, cols, &mut random);
            let x = random.floats(m * cols);
            for isa in Isa::available() {
                check_product(&run(&matrix.pack(Activations::F32), isa, &x), &matrix, &x, f32_rounding);
            }
        }
    }
}

#[test]
fn int8_products_are_within_half_a_quantization_step() {
    let mut random = Random(2);
    for format in formats() {
        for m in [1, 3, 8, 13, 40] {
            let (rows, cols) = (1 + random.below(50), some_cols(format, &mut random));
            let matrix = Matrix::random(format, rows, cols, &mut random);
            let x = random.floats(m * cols);
            for isa in Isa::available() {
                let y = run(&matrix.pack(Activations::Int8), isa, &x);
                check_product(&y, &matrix, &x, |w, x| {
                    if !is_quantized(format) {
                        return f32_rounding(w, x);
                    }
                    w.chunks_exact(BLOCK).zip(x.chunks_exact(BLOCK)).map(|(w, x)| block_error(w, x)).sum()
                });
            }
        }
    }
}

/// Half a step of the activations' scale for each weight, and for the arithmetic 1e-5 of the largest sum possible.
fn block_error(w: &[f32], x: &[f32]) -> f64 {
    let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let weights: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    let largest_weight = w.iter().fold(0f32, |most, w| most.max(w.abs()));
    weights * f64::from(largest) / 253.9 + 1e-5 * 32.0 * f64::from(largest_weight * largest)
}

/// The integer arithmetic itself has next to no error: against the quantized activations, not the true ones.
#[test]
fn int8_products_of_quantized_activations_are_exact_to_rounding() {
    let mut random = Random(3);
    for format in formats().into_iter().filter(|format| is_quantized(*format)) {
        let (m, rows, cols) = (11, 37, 2 * some_cols(format, &mut random));
        let matrix = Matrix::random(format, rows, cols, &mut random);
        let x = random.floats(m * cols);
        let rounded: Vec<f32> = x.as_chunks::<BLOCK>().0.iter().flat_map(dequantized).collect();
        for isa in Isa::available() {
            let y = run(&matrix.pack(Activations::Int8), isa, &x);
            check_product(&y, &matrix, &rounded, |w, x| {
                w.chunks_exact(BLOCK).zip(x.chunks_exact(BLOCK)).map(|(w, x)| block_rounding(w, x)).sum()
            });
        }
    }
}

fn dequantized(x: &[f32; BLOCK]) -> [f32; BLOCK] {
    let block = ActBlock::quantize(x);
    block.codes.map(|code| f32::from(code) * block.scale)
}

fn block_rounding(w: &[f32], x: &[f32]) -> f64 {
    let largest_weight = w.iter().fold(0f32, |most, w| most.max(w.abs()));
    let magnitude: f64 = x.iter().map(|x| f64::from(x.abs())).sum();
    4e-6 * f64::from(largest_weight) * magnitude
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut random = Random(4);
    let mut isas = Isa::available();
    let portable = isas.next().unwrap();
    let others: Vec<Isa> = isas.collect();
    for format in formats() {
        for activations in [Activations::Int8, Activations::F32] {
            for m in (1..=9).chain([16, 40]) {
                let (rows, cols) = (1 + random.below(40), some_cols(format, &mut random));
                let linear = Matrix::random(format, rows, cols, &mut random).pack(activations);
                let x = random.floats(m * cols);
                let want = bits(&run(&linear, portable, &x));
                for &isa in &others {
                    assert!(bits(&run(&linear, isa, &x)) == want, "{format:?} {activations:?} m = {m} on {isa:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_in_any_batch() {
    let mut random = Random(5);
    for format in formats() {
        for activations in [Activations::Int8, Activations::F32] {
            let (rows, cols) = (1 + random.below(60), some_cols(format, &mut random));
            let linear = Matrix::random(format, rows, cols, &mut random).pack(activations);
            let x = random.floats(40 * cols);
            for isa in Isa::available() {
                let alone: Vec<u32> = x.chunks_exact(cols).flat_map(|x| bits(&run(&linear, isa, x))).collect();
                for m in 2..=40 {
                    let y = bits(&run(&linear, isa, &x[..m * cols]));
                    assert!(y[..] == alone[..m * rows], "{format:?} {activations:?} m = {m} on {isa:?}");
                }
            }
        }
    }
}

#[test]
fn merged_sources_with_bias_equal_separate_layers() {
    let mut random = Random(6);
    let cols = 256;
    let types = [GgmlType::Q4K, GgmlType::F16, GgmlType::Q6K, GgmlType::Q8_0, GgmlType::F32];
    let matrices: Vec<Matrix> = types
        .iter()
        .zip([33, 16, 1, 7, 20])
        .map(|(format, rows)| Matrix::random(*format, rows, cols, &mut random))
        .collect();
    let bias = random.floats(77);
    let x = Tensor::from_vec(random.floats(6 * cols), (6, cols), &Device::Cpu).unwrap();
    for activations in [Activations::Int8, Activations::F32] {
        let sources: Vec<RowSource<'_>> = matrices.iter().map(Matrix::source).collect();
        let merged = Linear::pack(&sources, Some(bias.clone()), activations).unwrap();
        assert_eq!((merged.in_features(), merged.out_features()), (cols, 77));
        let y = merged.forward(&x).unwrap().to_vec2::<f32>().unwrap();
        let mut first = 0;
        for matrix in &matrices {
            let part = matrix.pack(activations).forward(&x).unwrap().to_vec2::<f32>().unwrap();
            for (y, part) in y.iter().zip(&part) {
                let want: Vec<f32> = part.iter().zip(&bias[first..]).map(|(y, b)| y + b).collect();
                assert_eq!(bits(&y[first..first + matrix.rows]), bits(&want), "{:?}", matrix.format);
            }
            first += matrix.rows;
        }
        let rows = merged.embed((&[76, 0, 33, 49, 50][..]).into(), 1.0).unwrap().to_vec2::<f32>().unwrap();
        for (row, (matrix, at)) in rows.iter().zip([(4, 19), (0, 0), (1, 0), (2, 0), (3, 0)]) {
            assert_eq!(bits(row), bits(&matrices[matrix].values[at * cols..][..cols]));
        }
    }
}

#[test]
fn gathered_rows_are_the_dequantized_ones_to_the_bit() {
    let mut random = Random(7);
    for format in formats() {
        let (rows, cols) = (1 + random.below(50), some_cols(format, &mut random));
        let matrix = Matrix::random(format, rows, cols, &mut random);
        let linear = Linear::load_widened(&[matrix.source()], None, &Activations::Int8.into()).unwrap();
        let ids: Vec<u32> = (0..rows as u32).rev().collect();
        let got = linear.embed(ids[..].into(), 1.0).unwrap();
        assert_eq!(got.dims(), [rows, cols]);
        for (got, want) in got.to_vec2::<f32>().unwrap().iter().zip(matrix.values.chunks_exact(cols).rev()) {
            assert_eq!(bits(got), bits(want), "{format:?}");
        }
        let error = linear.embed((&[0, rows as u32][..]).into(), 1.0).unwrap_err().to_string();
        assert!(error.contains(&format!("row {rows} of a matrix of {rows}")), "{error}");
        assert!(linear.embed((&[u32::MAX][..]).into(), 1.0).is_err());
        assert_eq!(linear.embed((&[][..]).into(), 1.0).unwrap().dims(), [0, cols]);
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_stays_in_its_row() {
    let mut random = Random(8);
    for format in formats() {
        for activations in [Activations::Int8, Activations::F32] {
            let (rows, cols, m) = (20, 256, 11);
            let linear = Matrix::random(format, rows, cols, &mut random).pack(activations);
            let clean = random.floats(m * cols);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let row = random.below(m);
                let mut x = clean.clone();
                x[row * cols + random.below(cols)] = bad;
                for isa in Isa::available() {
                    let (want, got) = (run(&linear, isa, &clean), run(&linear, isa, &x));
                    for (at, (want, got)) in want.chunks_exact(rows).zip(got.chunks_exact(rows)).enumerate() {
                        if at == row {
                            assert!(got.iter().all(|v| !v.is_finite()), "{format:?} {activations:?} {bad} on {isa:?}");
                        } else {
                            assert_eq!(bits(got), bits(want), "{format:?} {activations:?} {bad} on {isa:?}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn activations_keep_zero_tiny_and_huge_blocks() {
    let mut random = Random(9);
    for factor in [0.0, f32::MIN_POSITIVE, 1e-32, 1e-20, 1.0, 1e30, f32::MAX] {
        let x: Vec<f32> = random.floats(32 * 24).iter().map(|v| v * factor).collect();
        let want = quantize(Isa::available().next().unwrap(), &x, 96, 3);
        for (x, block) in x.as_chunks::<BLOCK>().0.iter().zip(x.as_chunks::<BLOCK>().0.iter().map(ActBlock::quantize)) {
            let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (x, code) in x.iter().zip(block.codes) {
                assert!((x - f32::from(code) * block.scale).abs() <= largest / 253.9 + 1e-30);
            }
            assert_eq!(block.neg_sum, -block.codes.iter().map(|c| i32::from(*c)).sum::<i32>());
            assert_eq!(block.neg_sum, block.neg_half_sums.iter().sum::<i32>());
        }
        for isa in Isa::available() {
            for (want, got) in want.iter().zip(quantize(isa, &x, 96, 3)) {
                assert_eq!(format!("{want:?}"), format!("{got:?}"), "{isa:?}");
            }
        }
    }
}

#[test]
fn no_rows_in_no_rows_out() {
    let mut random = Random(10);
    for format in [GgmlType::Q4_1, GgmlType::F32] {
        let linear = Matrix::random(format, 5, 64, &mut random).pack(Activations::Int8);
        let x = Tensor::zeros((0, 64), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear.forward(&x).unwrap().dims(), [0, 5]);
        let empty = Matrix::random(format, 0, 64, &mut random).pack(Activations::Int8);
        let x = Tensor::zeros((3, 64), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(empty.forward(&x).unwrap().dims(), [3, 0]);
    }
}

#[test]
fn a_view_into_a_larger_tensor_is_fine_and_a_strided_one_an_error() {
    let mut random = Random(11);
    let linear = Matrix::random(GgmlType::Q4_0, 20, 64, &mut random).pack(Activations::Int8);
    let x = Tensor::from_vec(random.floats(10 * 64), (10, 64), &Device::Cpu).unwrap();
    let part = x.narrow(0, 3, 4).unwrap();
    let want = linear.forward(&part.copy().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(linear.forward(&part).unwrap().to_vec2::<f32>().unwrap(), want);

    let wide = Tensor::from_vec(random.floats(10 * 128), (10, 128), &Device::Cpu).unwrap();
    let error = linear.forward(&wide.narrow(1, 0, 64).unwrap()).unwrap_err().to_string();
    assert!(error.contains("contiguous"), "{error}");
}

#[test]
fn wrong_shapes_and_types_are_errors() {
    let mut random = Random(12);
    let linear = Matrix::random(GgmlType::Q8_0, 20, 64, &mut random).pack(Activations::Int8);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let error = linear.forward(&zeros(&[2, 32], DType::F32)).unwrap_err().to_string();
    assert!(error.contains("64 input features was given 32"), "{error}");
    assert!(linear.forward(&zeros(&[64], DType::F32)).is_err());
    assert!(linear.forward(&zeros(&[1, 2, 64], DType::F32)).is_err());
    assert!(linear.forward(&zeros(&[2, 64], DType::F16)).is_err());
}

#[test]
fn sources_that_do_not_fit_are_errors() {
    let bytes = vec![0u8; 2 * 18 * 4];
    let source = |ty: GgmlType, rows, cols, bytes| RowSource::new(ty, rows, cols, bytes);
    let pack =
        |sources: &[RowSource<'_>], bias| Linear::pack(sources, bias, Activations::Int8).map_err(|e| e.to_string());
    assert!(pack(&[source(GgmlType::Q4_0, 4, 64, &bytes)], None).is_ok());
    assert!(pack(&[source(GgmlType::Q4_0, 4, 64, &bytes)], Some(vec![0.0; 4])).is_ok());

    let bad = [
        source(GgmlType::Q4_0, 4, 64, &bytes[1..]),
        source(GgmlType::Q4_0, 5, 64, &bytes),
        source(GgmlType::Q4_0, 4, 48, &bytes),
        source(GgmlType::Q4K, 4, 64, &bytes),
        source(GgmlType::Q4_0, usize::MAX, 64, &bytes),
        source(GgmlType::F32, usize::MAX / 2, usize::MAX / 2, &bytes),
        source(GgmlType::F32, 7, 0, &[]),
        source(GgmlType::F32, usize::MAX, 0, &[]),
    ];
    for bad in bad {
        assert!(pack(&[bad], None).is_err(), "{} [{}, {}]", bad.format, bad.rows, bad.cols);
    }
    let error = pack(&[source(GgmlType::Q4_0, 4, 64, &bytes[1..])], None).unwrap_err();
    assert!(error.contains("143 bytes are not 4 rows of 64 Q4_0"), "{error}");
    assert!(pack(&[], None).is_err());
    let order = |order: &[u32]| pack(&[source(GgmlType::Q4_0, 4, 64, &bytes).in_order(Some(order))], None);
    let backwards: Vec<u32> = (0..64).rev().collect();
    assert!(order(&backwards).is_ok());
    for bad in [&backwards[1..], &[&backwards[..63], &[64]].concat(), &[&backwards[..63], &[63]].concat()] {
        assert!(order(bad).unwrap_err().contains("does not name each of 64 once"));
    }
    let mixed = [source(GgmlType::Q4_0, 4, 64, &bytes), source(GgmlType::Q4_0, 8, 32, &bytes)];
    assert!(pack(&mixed, None).unwrap_err().contains("32 and of 64 columns"));
    assert!(pack(&mixed[..1], Some(vec![0.0; 3])).unwrap_err().contains("a bias of 3"));
}

#[test]
fn groups_of_what_is_not_a_number_are_errors() {
    let grouped = |codes, scale: f32, code: u8| {
        let format = Grouped { codes, group: 32 };
        let mut row = Vec::new();
        format.push_group(&mut row, 1.0, 8, vec![0; if codes == Codes::Int4 { 16 } else { 32 }]);
        format.push_group(&mut row, scale, 8, vec![code; if codes == Codes::Int4 { 16 } else { 32 }]);
        Linear::pack(&[RowSource::new(format, 1, 64, &row)], None, Activations::Int8).map_err(|e| e.to_string())
    };
    for codes in [Codes::Int4, Codes::Int8, Codes::E4M3] {
        assert!(grouped(codes, -0.5, 0x80).is_ok());
        for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            assert!(grouped(codes, scale, 0).unwrap_err().contains("a scale of"), "{codes:?} {scale}");
        }
    }
    assert!(grouped(Codes::Int8, 1.0, 0x7f).is_ok());
    assert!(grouped(Codes::E4M3, 1.0, 0x7e).is_ok());
    for code in [0x7f, 0xff] {
        assert!(grouped(Codes::E4M3, 1.0, code).unwrap_err().contains("not a number"));
    }
    for (codes, group, cols) in
        [(Codes::Int4, 0, 64), (Codes::Int4, 16, 64), (Codes::Int8, 32, 48), (Codes::E4M3, 0, 8)]
    {
        let error =
            Linear::pack(&[RowSource::new(Grouped { codes, group }, 1, cols, &[0; 76])], None, Activations::Int8);
        assert!(error.is_err(), "{codes:?} {group} {cols}");
    }
}

/// Whatever thread meets it: in the first panel, in the last, and beside a source that is whole.
#[test]
fn a_row_that_holds_no_numbers_is_found() {
    let (rows, cols) = (70, 256);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q4K, GgmlType::Q8_0, GgmlType::MXFP4] {
        let whole = vec![0x11; rows * ty.row_bytes(cols).unwrap()];
        for row in [0, 31, 32, 69] {
            let mut bytes = whole.clone();
            bytes[row * ty.row_bytes(cols).unwrap()..][..4].fill(0xff);
            let (faulty, whole) = (RowSource::new(ty, rows, cols, &bytes), RowSource::new(ty, rows, cols, &whole));
            assert!(Linear::pack(&[whole], None, Activations::F32).is_ok(), "{ty:?}");
            let refused = Linear::pack(&[whole, faulty], None, Activations::F32).unwrap_err().to_string();
            assert!(refused.contains("not a number"), "{ty:?}: {refused}");
            let (found, problem) = faulty.faulty_row().expect("one row");
            assert!(found == row && refused.contains(&problem), "{ty:?}: {found} {problem}, {row} {refused}");
            assert!(faulty.check().is_ok() && whole.faulty_row().is_none());
        }
    }
}

/// Sources whose columns are stored in orders of their own, beside one that is not: the same as put in order before.
#[test]
fn columns_may_be_stored_in_any_order() {
    let mut random = Random(14);
    let (cols, m) = (96, 11);
    let shuffled = |random: &mut Random| {
        let mut order: Vec<u32> = (0..cols as u32).collect();
        (1..cols).rev().for_each(|at| order.swap(at, random.below(at + 1)));
        order
    };
    let (one, other) = (shuffled(&mut random), shuffled(&mut random));
    let orders = [Some(&one[..]), None, Some(&other[..]), Some(&one[..])];
    let matrices: Vec<Matrix> = [Codes::Int4, Codes::Int8, Codes::E4M3, Codes::Int4]
        .map(|codes| Matrix::random(Grouped { codes, group: 32 }, 37, cols, &mut random))
        .into();
    let sources: Vec<_> = matrices.iter().zip(orders).map(|(matrix, order)| matrix.source().in_order(order)).collect();
    let x = random.floats(m * cols);
    for activations in [Activations::Int8, Activations::F32] {
        let merged = Linear::pack(&sources, None, activations).unwrap();
        let y = run(&merged, Isa::best(), &x);
        for (part, (matrix, order)) in matrices.iter().zip(orders).enumerate() {
            let gathered: Vec<f32> = match order {
                Some(order) => x.chunks(cols).flat_map(|x| order.iter().map(|&col| x[col as usize])).collect(),
                None => x.clone(),
            };
            let want = run(&matrix.pack(activations), Isa::best(), &gathered);
            for (y, want) in y.chunks(4 * 37).zip(want.chunks(37)) {
                assert_eq!(bits(&y[part * 37..][..37]), bits(want), "{part} {activations:?}");
            }
        }
        let row = merged.embed((&[40, 2][..]).into(), 1.0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(bits(&row[0]), bits(&matrices[1].values[3 * cols..][..cols]));
        let stored = &matrices[0].values[2 * cols..][..cols];
        one.iter().zip(stored).for_each(|(&col, value)| assert_eq!(row[1][col as usize], *value));
    }
}

/// Packing must not cost much more memory than the file has: what is stored is what is streamed.
#[test]
fn packed_sizes_are_as_documented() {
    let mut random = Random(13);
    let expected = [
        (GgmlType::F32, 4.0),
        (GgmlType::F16, 2.0),
        (GgmlType::BF16, 2.0),
        (GgmlType::Q4_0, 18.0 / 32.0),
        (GgmlType::Q4_1, 20.0 / 32.0),
        (GgmlType::Q5_0, 34.0 / 32.0),
        (GgmlType::Q5_1, 36.0 / 32.0),
        (GgmlType::Q8_0, 34.0 / 32.0),
        (GgmlType::Q2K, 164.0 / 256.0),
        (GgmlType::Q3K, 146.0 / 256.0),
        (GgmlType::Q4K, 148.0 / 256.0),
        (GgmlType::Q5K, 276.0 / 256.0),
        (GgmlType::Q6K, 274.0 / 256.0),
        (GgmlType::MXFP4, 18.0 / 32.0),
    ];
    let grouped = |codes, group| RowFormat::from(Grouped { codes, group });
    let expected = expected.map(|(ty, bytes)| (ty.into(), bytes)).into_iter().chain([
        (grouped(Codes::Int4, 128), 0.5 + 6.0 / 128.0),
        (grouped(Codes::Int8, 512), 1.0 + 6.0 / 512.0),
        (grouped(Codes::E4M3, 128), 1.0 + 4.0 / 128.0),
    ]);
    for (format, bytes) in expected {
        let linear = Matrix::random(format, 64, 512, &mut random).pack(Activations::Int8);
        assert_eq!(linear.packed_bytes() as f64, 64.0 * 512.0 * bytes, "{format:?}");
    }
}
