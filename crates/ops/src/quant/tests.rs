//! Block formats against values that the reference implementation's Python package gave.

use super::*;

/// Blocks of random bytes and what the GGML project's own Python package (`gguf` 0.19, `dequantize`) makes of them, a
/// line each: type id, block bytes, then the f32 values, both in hexadecimal, little-endian.
const VECTORS: &str = include_str!("../../tests/data/ggml_blocks.txt");

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn every_format_reads_as_the_reference_does_to_the_bit() {
    let mut seen = Vec::new();
    for line in VECTORS.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let ty = GgmlType::from_id(fields[0].parse().unwrap()).unwrap();
        let want: Vec<u32> = unhex(fields[2]).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let mut got = vec![0f32; want.len()];
        dequantize_row(ty, &unhex(fields[1]), &mut got).unwrap();
        assert_eq!(got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want, "{ty:?}");
        seen.push(ty);
    }
    assert!(GgmlType::ALL.iter().all(|ty| seen.contains(ty)), "a format has no vector");
}

#[test]
fn ids_round_trip_and_unknown_ids_are_none() {
    for ty in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
    }
    for id in [4, 5, 9, 15, 16, 31, 38, 40, u32::MAX] {
        assert_eq!(GgmlType::from_id(id), None);
    }
}

#[test]
fn row_bytes_wants_whole_blocks_and_does_not_overflow() {
    assert_eq!(GgmlType::Q4_1.row_bytes(576), Some(360));
    assert_eq!(GgmlType::Q4_1.row_bytes(577), None);
    assert_eq!(GgmlType::Q6K.row_bytes(512), Some(420));
    assert_eq!(GgmlType::Q6K.row_bytes(576), None);
    assert_eq!(GgmlType::F16.row_bytes(7), Some(14));
    assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None);
    assert_eq!(GgmlType::F32.row_bytes(0), Some(0));
}

#[test]
fn wrong_lengths_are_errors_that_name_both_sizes() {
    let mut out = [0f32; 32];
    for bytes in [0, 17, 19, 36] {
        let error = dequantize_row(GgmlType::Q4_0, &vec![0; bytes], &mut out).unwrap_err().to_string();
        assert!(error.contains(&format!("{bytes} bytes")) && error.contains("32 Q4_0"), "{error}");
    }
    assert!(dequantize_row(GgmlType::Q4_0, &[0; 18], &mut out[..31]).is_err());
    assert!(dequantize_row(GgmlType::F32, &[0; 127], &mut out).is_err());
    assert!(dequantize_row(GgmlType::F32, &[], &mut []).is_ok());
}

#[test]
fn mxfp4_without_a_number_for_a_scale_is_not_a_number() {
    let mut out = [0f32; 32];
    let mut bytes = [0x12; 17];
    bytes[0] = 255;
    dequantize_row(GgmlType::MXFP4, &bytes, &mut out).unwrap();
    assert!(out.iter().all(|value| value.is_nan()), "{out:?}");
    bytes[0] = 127;
    dequantize_row(GgmlType::MXFP4, &bytes, &mut out).unwrap();
    assert_eq!((out[0], out[16]), (1.0, 0.5), "low nibbles first");
}

fn encoded(format: impl Into<RowFormat>, values: &[f32]) -> Vec<u8> {
    let mut row = Vec::new();
    encode_row(format.into(), values, &mut row).unwrap();
    row
}

fn decoded(format: impl Into<RowFormat>, row: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    dequantize_row(format, row, &mut values).unwrap();
    values
}

#[test]
fn every_code_under_a_scale_is_what_it_says() {
    // Scales that make most products inexact; each code of 256, or pair of codes, once a group.
    let (first, second) = (0.1f32, -3.3e-5f32);
    let check = |codes, zero: i16, value: &dyn Fn(u8) -> f32| {
        let per_byte = if codes == Codes::Int4 { 2 } else { 1 };
        let format = Grouped { codes, group: 256 * per_byte };
        let mut row = Vec::new();
        format.push_group(&mut row, first, zero, 0..=255);
        format.push_group(&mut row, second, zero, 0..=255);
        let values = decoded(format, &row, 512 * per_byte);
        for (at, got) in values.into_iter().enumerate() {
            let (scale, byte) = (if at < 256 * per_byte { first } else { second }, at / per_byte % 256);
            let code = if per_byte == 2 { byte >> (4 * (at % 2)) & 15 } else { byte };
            let want = value(code as u8) * scale;
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{codes:?} {code}: {got} {want}");
        }
    };
    for zero in [0, 8, 16, -3, 128, 255] {
        check(Codes::Int4, zero, &|code| f32::from(i16::from(code) - zero));
        check(Codes::Int8, zero, &|code| f32::from(i16::from(code) - zero));
    }
    check(Codes::E4M3, 0, &crate::e4m3::decode);
}

#[test]
fn grouped_rows_end_in_a_shorter_group() {
    let format = Grouped { codes: Codes::Int4, group: 64 };
    assert_eq!(format.row_bytes(96), Some(2 * 6 + 48));
    assert_eq!(format.row_bytes(80), None);
    assert_eq!(Grouped { codes: Codes::E4M3, group: 100 }.row_bytes(101), Some(2 * 4 + 101));
    assert_eq!(Grouped { codes: Codes::Int8, group: 1 << 40 }.row_bytes(64), Some(6 + 64));
    for (group, cols) in [(0, 64), (33, 66), (32, usize::MAX / 2 / 32 * 32 * 2)] {
        assert_eq!(Grouped { codes: Codes::Int8, group }.row_bytes(cols), None, "{group}, {cols}");
    }
    assert!(dequantize_row(format, &[0; 59], &mut [0.0; 96]).is_err());
}

/// Numbers come back within half a step of their group, of floats half a unit of the mantissa's last place.
#[test]
fn rows_are_encoded_to_the_nearest() {
    let values: Vec<f32> = (0..192).map(|i: i32| ((i * 37 % 101) as f32 - 47.0) * 0.013).collect();
    let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = |format: RowFormat, allowed: &dyn Fn(f32) -> f32| {
        for (got, want) in decoded(format, &encoded(format, &values), 192).into_iter().zip(&values) {
            assert!((got - want).abs() <= allowed(*want), "{format}: {want} became {got}");
        }
    };
    worst(Grouped { codes: Codes::Int8, group: 192 }.into(), &|_| most / 253.9);
    worst(Grouped { codes: Codes::Int4, group: 64 }.into(), &|_| 2.0 * most / 15.0 / 1.99);
    worst(Grouped { codes: Codes::E4M3, group: 192 }.into(), &|value| value.abs() / 15.9 + most / 448.0 / 1000.0);
    // Steps of half of the largest's power of two at worst, and what is beyond 6 of 8 steps is cut.
    worst(GgmlType::MXFP4.into(), &|value| value.abs() / 3.9 + most / 16.0);
    worst(GgmlType::F32.into(), &|_| 0.0);
    worst(GgmlType::F16.into(), &|value| value.abs() / 2047.0);
    worst(GgmlType::BF16.into(), &|value| value.abs() / 255.0);
}

#[test]
fn what_a_format_has_is_encoded_as_itself() {
    for exponent in [3, 120, 127, 133, 250] {
        let mut row = vec![exponent];
        // Each code twice, but for the zero below zero; the largest magnitude is 6, which the scale follows from.
        row.extend((0..16).map(|code: u8| if code == 8 { 0 } else { code | code << 4 }));
        let values = decoded(GgmlType::MXFP4, &row, 32);
        assert_eq!(encoded(GgmlType::MXFP4, &values), row, "{exponent}");
    }
    let format = Grouped { codes: Codes::E4M3, group: 256 };
    let mut row = Vec::new();
    format.push_group(&mut row, 0.5, 0, (0..=255).map(|code| if code & 0x7f == 0x7f { 0x7e } else { code }));
    assert_eq!(encoded(format, &decoded(format, &row, 256)), row);
    let format = Grouped { codes: Codes::Int8, group: 256 };
    let mut row = Vec::new();
    format.push_group(&mut row, 0.25, 128, (0..=255).map(|code: u8| code.max(1)));
    assert_eq!(encoded(format, &decoded(format, &row, 256)), row);
}

#[test]
fn zeros_tiny_and_huge_rows_are_encoded_and_what_is_not_a_number_is_not() {
    let formats = [Codes::Int4, Codes::Int8, Codes::E4M3].map(|codes| RowFormat::from(Grouped { codes, group: 32 }));
    for format in formats.into_iter().chain([GgmlType::MXFP4.into()]) {
        for most in [0.0, 1e-45, 1e-38, 1e30, f32::MAX / 300.0] {
            let values: Vec<f32> = (0..64).map(|i| most * (i as f32 / 32.0 - 1.0)).collect();
            for (got, want) in decoded(format, &encoded(format, &values), 64).into_iter().zip(values) {
                assert!((got - want).abs() <= most / 4.0 + 1e-37, "{format}, {most:e}: {want:e} became {got:e}");
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[40] = bad;
            assert!(encode_row(format, &values, &mut Vec::new()).is_err(), "{format}, {bad}");
        }
        assert!(encode_row(format, &[0.0; 0], &mut Vec::new()).is_ok());
    }
    assert!(encode_row(GgmlType::Q4_0.into(), &[0.0; 32], &mut Vec::new()).is_err());
    assert!(encode_row(GgmlType::MXFP4.into(), &[0.0; 31], &mut Vec::new()).is_err());
}
