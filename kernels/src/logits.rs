//! What is done to all logits before they are sampled from.

use crate::operands::require;
use crate::{DevicePtr, Launch, LaunchError, Queue};

/// `logits = cap * tanh(logits / cap)`, in place.
#[derive(Clone, Copy, Debug)]
pub struct Softcap {
    /// f32 `[count]`, aligned to 16 bytes.
    pub logits: DevicePtr,
    pub count: u64,
    /// Above 0.
    pub cap: f32,
}

impl Softcap {
    /// # Errors
    /// `cap` is not above 0, or the device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const KERNEL: &str = "softcap_f32";
        const THREADS: u32 = 256;
        require(KERNEL, self.logits.0.is_multiple_of(16), || "the logits are not aligned to 16 bytes".to_owned())?;
        require(KERNEL, self.cap > 0.0, || format!("the cap is {}, expected more than 0", self.cap))?;
        if self.count == 0 {
            return Ok(());
        }
        queue.launch(&Launch {
            kernel: KERNEL,
            grid: [self.count.div_ceil(4 * u64::from(THREADS)) as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            args: &[self.logits.into(), self.count.into(), self.cap.into()],
        })
    }
}
