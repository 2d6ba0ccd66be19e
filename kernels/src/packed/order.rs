//! Columns in the order in which a matrix's are stored: `packed_order.cu`.

use crate::operands::{require_vectors, threads_for};
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// `out[p, i] = x[p, order[i]]`.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// bf16 `[positions, columns]`.
    pub out: DevicePtr,
    /// bf16 `[positions, columns]`.
    pub x: DevicePtr,
    /// u32 `[columns]`, each below `columns`.
    pub order: DevicePtr,
    pub positions: u32,
    /// A multiple of 8.
    pub columns: u32,
}

impl Order {
    /// # Errors
    /// `columns` is no multiple of 8, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "packed_order_bf16";
        require_vectors(KERNEL, "columns", self.columns.into())?;
        if self.positions == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.positions, 1, 1],
            threads: threads_for(self.columns / 8, 256),
            shared_bytes: 0,
            args: &[self.out.into(), self.x.into(), self.order.into(), self.columns.into()],
        })
    }
}
