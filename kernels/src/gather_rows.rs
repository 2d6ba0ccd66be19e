//! Picks rows of a matrix.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// In `rows`: leave this row of `out` as it is.
pub const NO_ROW: u32 = u32::MAX;

/// `out[r] = x[rows[r]]`.
#[derive(Clone, Copy, Debug)]
pub struct GatherRows {
    /// bf16 `[count, hidden]`.
    pub out: DevicePtr,
    /// bf16 `[x_rows, hidden]`.
    pub x: DevicePtr,
    /// u32 `[count]`; [`NO_ROW`] passes over a row.
    pub rows: DevicePtr,
    pub count: u32,
    pub x_rows: u32,
    /// A multiple of 8.
    pub hidden: u32,
}

impl GatherRows {
    /// # Errors
    /// `hidden` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "gather_rows_bf16";
        require_vectors(KERNEL, "hidden", self.hidden.into())?;
        if self.count == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.count, 1, 1],
            threads: threads_for(self.hidden / 8, 256),
            shared_bytes: 0,
            args: &[self.out.into(), self.x.into(), self.rows.into(), self.x_rows.into(), self.hidden.into()],
        })
    }
}
