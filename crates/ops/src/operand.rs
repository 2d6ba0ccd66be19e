//! What every CPU body does with its operands: check them, and split packed rows over tasks.

use std::marker::PhantomData;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, WithDType, bail};

use crate::par::{num_threads, parallel_for};

/// Below this many elements an element-wise op is done before other threads would have woken up.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

/// The elements of a contiguous operand.
///
/// # Errors
/// Another dtype, or strides: the message names `op` and `operand`.
pub(crate) fn contiguous<'a, T: WithDType>(
    op: &str,
    operand: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let range = contiguous_range::<T>(op, operand, storage, layout)?;
    Ok(&storage.as_slice::<T>()?[range])
}

/// Where a contiguous operand of dtype `T` lies in its storage; errors as [`contiguous`].
pub(crate) fn contiguous_range<T: WithDType>(
    op: &str,
    operand: &str,
    storage: &CpuStorage,
    layout: &Layout,
) -> Result<Range<usize>> {
    if storage.dtype() != T::DTYPE {
        bail!("{op}: {operand} is {:?}, convert it to {:?}", storage.dtype(), T::DTYPE);
    }
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(from..to),
        None => bail!("{op}: {operand} {:?} is not contiguous, call contiguous() first", layout.shape()),
    }
}

/// A mutable slice whose parts are written by several tasks at once.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, which may be sent and split over threads; `part` leaves disjointness to callers.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// # Safety
    /// No two parts alive at the same time may overlap.
    ///
    /// # Panics
    /// If `range` is not inside the slice.
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice by the assertion; unaliased by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Calls `f` on ranges that together are `0..rows`, in parallel if there is enough to do.
pub(crate) fn for_row_ranges(rows: usize, row_len: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    let elements = rows.saturating_mul(row_len);
    let tasks = (elements / MIN_TASK_ELEMENTS).min(num_threads() * 4).min(rows);
    if tasks <= 1 {
        return f(0..rows);
    }
    parallel_for(tasks, |i| f(i * rows / tasks..(i + 1) * rows / tasks));
}

/// Calls `f(first_row, rows)` on chunks of whole rows of `out`, in parallel if there is enough to do.
pub(crate) fn for_rows_mut(out: &mut [f32], row_len: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    if row_len == 0 {
        return;
    }
    let rows = out.len() / row_len;
    let out = Shared::new(out);
    for_row_ranges(rows, row_len, |range| {
        // SAFETY: the ranges are disjoint.
        let part = unsafe { out.part(range.start * row_len..range.end * row_len) };
        f(range.start, part);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_ranges_cover_every_row_once() {
        for (rows, row_len) in [(0, 8), (1, 8), (7, 100_000), (1000, 64), (3, 0), (100_000, 3)] {
            let mut seen = vec![0.0f32; rows];
            let marks = Shared::new(&mut seen);
            for_row_ranges(rows, row_len, |range| {
                // SAFETY: were two ranges to overlap, the counts below would say so.
                unsafe { marks.part(range) }.iter_mut().for_each(|n| *n += 1.0);
            });
            assert!(seen.iter().all(|n| *n == 1.0), "{rows} rows of {row_len}");
        }
    }

    #[test]
    #[should_panic(expected = "part 2..5 of 4")]
    fn a_part_outside_the_slice_is_refused() {
        let mut data = [0u8; 4];
        let shared = Shared::new(&mut data);
        // SAFETY: it is the only part.
        let _ = unsafe { shared.part(2..5) };
    }
}
