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
