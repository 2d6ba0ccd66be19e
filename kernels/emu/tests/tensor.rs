//! Each tensor core product and each `ldmatrix` against a plain product of the same matrices.

#![cfg(target_os = "linux")]

use plimsoll_kernels::{Arg, Launch, Queue};
use plimsoll_kernels_emu::{Emulator, EmulatorConfig};

/// A small random byte sequence (xorshift).
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Small exact values of a 16-bit float type: -2 to 2 in quarters.
fn halves(seed: u64, count: usize, encode: fn(f32) -> u16) -> (Vec<f32>, Vec<u8>) {
    let values: Vec<f32> = random_bytes(seed, count).iter().map(|b| f32::from(b % 17) / 4.0 - 2.0).collect();
    let bytes = values.iter().flat_map(|&v| encode(v).to_ne_bytes()).collect();
    (values, bytes)
}

fn to_bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// Exact for multiples of 1/4 up to 2.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    if value == 0.0 {
        return sign;
    }
    let exponent = (bits >> 23 & 255) + 15 - 127;
    sign | (exponent << 10 | bits >> 13 & 1023) as u16
}

/// As the OCP 8-bit float specification has it, table 1.
fn from_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) * 2f32.powi(exponent - 10) };
    if code & 0x80 == 0 { size } else { -size }
}

/// `[16, depth] * [8, depth]^T + initial`, in f64.
fn product(a: &[f64], b: &[f64], depth: usize, initial: f64) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..depth).map(|k| a[i * depth + k] * b[j * depth + k]).sum::<f64>();
    (0..16 * 8).map(|at| dot(at / 8, at % 8) + initial).collect()
}

fn run(kernel: &'static str, seed: u64, left: &[u8], right: &[u8], rest: &[Arg]) -> Vec<[u8; 4]> {
    let emulator = Emulator::new(EmulatorConfig { seed, ..EmulatorConfig::default() });
    let out = emulator.alloc(16 * 8 * 4);
    let operands: [Arg; 3] = [out.into(), emulator.upload(left).into(), emulator.upload(right).into()];
    let args = [&operands[..], rest].concat();
    emulator.launch(&Launch { kernel, grid: [1; 3], threads: 32, shared_bytes: 0, args: &args }).unwrap();
    emulator.download(out, 16 * 8 * 4).as_chunks().0.to_vec()
}

fn assert_floats(found: &[[u8; 4]], expected: &[f64]) {
    for (at, (&found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f64::from(f32::from_ne_bytes(found)), *expected, "row {}, column {}", at / 8, at % 8);
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn sixteen_bit_products() {
    for (kernel, encode) in [("selftest_mma_bf16", to_bf16 as fn(f32) -> u16), ("selftest_mma_f16", to_f16)] {
        for seed in 0..4 {
            let ((a, left), (b, right)) = (halves(seed, 256, encode), halves(seed + 9, 128, encode));
            let found = run(kernel, seed, &left, &right, &[0.5f32.into()]);
            assert_floats(&found, &product(&wide(&a), &wide(&b), 16, 0.5));
        }
    }
}

#[test]
fn fp8_products() {
    for seed in 0..4 {
        // Every code but the two NaNs, whose fraction loses its last bit here.
        let codes = |seed, len| random_bytes(seed, len).into_iter().map(|c| if c & 0x7f == 0x7f { c - 1 } else { c });
        let (left, right): (Vec<u8>, Vec<u8>) = (codes(seed, 512).collect(), codes(seed + 9, 256).collect());
        let values = |codes: &[u8]| codes.iter().map(|&c| f64::from(from_e4m3(c))).collect::<Vec<_>>();
        let expected: Vec<f64> = product(&values(&left), &values(&right), 32, 0.0);
        let rounded: Vec<f64> = expected.iter().map(|&v| f64::from(v as f32)).collect();
        assert_floats(&run("selftest_mma_e4m3", seed, &left, &right, &[0.0f32.into()]), &rounded);
    }
    let found = run("selftest_mma_e4m3", 1, &[0x7f; 512], &[0x38; 256], &[0.0f32.into()]);
    assert!(found.iter().all(|&v| f32::from_ne_bytes(v).is_nan()));
}

#[test]
fn int8_products() {
    for seed in 0..4 {
        let (left, right) = (random_bytes(seed, 512), random_bytes(seed + 9, 256));
        let values = |bytes: &[u8]| bytes.iter().map(|&b| f64::from(b as i8)).collect::<Vec<_>>();
        let expected = product(&values(&left), &values(&right), 32, -7.0);
        for (&found, expected) in run("selftest_mma_s8", seed, &left, &right, &[(-7i32).into()]).iter().zip(expected) {
            assert_eq!(f64::from(i32::from_ne_bytes(found)), expected);
        }
    }
}

#[test]
fn ldmatrix_lays_operands_out() {
    for seed in 0..4 {
        let ((a, left), (b, by_columns)) = (halves(seed, 256, to_bf16), halves(seed + 9, 128, to_bf16));
        let expected = product(&wide(&a), &wide(&b), 16, 0.0);
        let by_rows: Vec<u8> = (0..128).flat_map(|at| to_bf16(b[at % 8 * 16 + at / 8]).to_ne_bytes()).collect();
        for pairs in [0i32, 1] {
            let plain = run("selftest_ldmatrix", seed, &left, &by_columns, &[0i32.into(), pairs.into()]);
            assert_floats(&plain, &expected);
            let transposed = run("selftest_ldmatrix", seed, &left, &by_rows, &[1i32.into(), pairs.into()]);
            assert_floats(&transposed, &expected);
        }
    }
}
