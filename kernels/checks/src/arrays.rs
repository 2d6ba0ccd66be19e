//! Arrays of numbers as bytes on a device and back, and comparisons that say where and by how much two of them differ.

use half::bf16;
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fill::FillNormal;

use crate::{TestDevice, poisoned};

/// Each value rounded to bf16.
pub(crate) fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

pub(crate) fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect()
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(crate) fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(crate) fn to_bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect()
}

pub(crate) fn to_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()
}

pub(crate) fn to_u32(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b)).collect()
}

/// Memory that a kernel writes, between two strips that it must leave alone.
pub(crate) struct Output {
    pub(crate) at: DevicePtr,
    len: usize,
    strips: DevicePtr,
}

const STRIP: usize = 256;

impl Output {
    /// `len` poisoned bytes.
    pub(crate) fn new(device: &dyn TestDevice, len: usize) -> Self {
        Self::holding(device, &poisoned(len))
    }

    /// A copy of `bytes`, for kernels that work in place.
    pub(crate) fn holding(device: &dyn TestDevice, bytes: &[u8]) -> Self {
        let strips = device.upload(&[&poisoned(STRIP), bytes, &poisoned(STRIP)].concat());
        Self { at: strips.byte_add(STRIP), len: bytes.len(), strips }
    }

    /// # Errors
    /// Something was written before or after the output.
    pub(crate) fn read(&self, device: &dyn TestDevice) -> Result<Vec<u8>, String> {
        let all = device.download(self.strips, self.len + 2 * STRIP);
        let (before, rest) = all.split_at(STRIP);
        let (output, after) = rest.split_at(self.len);
        if before != poisoned(STRIP) || after != poisoned(STRIP) {
            return Err(format!("wrote outside its output of {} bytes", self.len));
        }
        Ok(output.to_vec())
    }
}

/// Memory with `count` bf16 that are close to normal, for timings: made on the device.
pub(crate) fn normals_on(device: &dyn TestDevice, count: u64) -> DevicePtr {
    let out = device.upload(&vec![0; 2 * count as usize]);
    let fill = FillNormal { out, count, seed: count, deviation: 1.0 };
    fill.run(device.queue()).unwrap_or_else(|error| panic!("{error}"));
    out
}

/// # Errors
/// Lengths differ, or some `got` is off its `want` by more than `relative * |want| + absolute`.
pub(crate) fn expect_close(what: &str, got: &[f32], want: &[f32], relative: f32, absolute: f32) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values, expected {}", got.len(), want.len()));
    }
    let close = |got: f32, want: f32| {
        (got - want).abs() <= relative * want.abs() + absolute || got == want || (got.is_nan() && want.is_nan())
    };
    match got.iter().zip(want).position(|(got, want)| !close(*got, *want)) {
        Some(i) => Err(format!("{what}, element {i} of {}: {}, expected {}", got.len(), got[i], want[i])),
        None => Ok(()),
    }
}

/// As [`expect_close`] for values computed in f32 and rounded to bf16 once: half a unit in the last place, and a little.
///
/// # Errors
/// As [`expect_close`].
pub(crate) fn expect_rounded(what: &str, got: &[f32], want: &[f32]) -> Result<(), String> {
    expect_close(what, got, want, 1.01 / 256.0, 1e-30)
}

/// # Errors
/// Some element differs.
pub(crate) fn expect_same<T: PartialEq + std::fmt::Debug>(what: &str, got: &[T], want: &[T]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values, expected {}", got.len(), want.len()));
    }
    match got.iter().zip(want).position(|(got, want)| got != want) {
        Some(i) => Err(format!("{what}, element {i} of {}: {:?}, expected {:?}", got.len(), got[i], want[i])),
        None => Ok(()),
    }
}
