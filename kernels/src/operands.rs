//! What the host sides ask of their operands' sizes before they launch.

use crate::LaunchError;

/// Refuses operands that a kernel was not made for.
pub(crate) fn require(kernel: &'static str, holds: bool, problem: impl FnOnce() -> String) -> Result<(), LaunchError> {
    if holds { Ok(()) } else { Err(LaunchError::Unsupported { kernel, problem: problem() }) }
}

/// Rows are read 16 bytes at a time: 8 bf16.
pub(crate) fn require_vectors(kernel: &'static str, name: &str, elements: u64) -> Result<(), LaunchError> {
    require(kernel, elements > 0 && elements.is_multiple_of(8), || {
        format!("{name} is {elements}, expected a multiple of 8; pad the tensor")
    })
}

/// Threads of a block for `work` items, one each where they suffice: whole warps, at most `most`.
pub(crate) fn threads_for(work: u32, most: u32) -> u32 {
    work.next_multiple_of(32).clamp(32, most)
}
