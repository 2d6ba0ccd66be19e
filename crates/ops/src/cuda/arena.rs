//! Memory for the activations of a captured step. An allocation in a captured step is a node of its graph, and so is its
//! end: more nodes than kernels. Steps that are small enough, which are those that run shortest, do without.

use candle_core::{DType, Result, Shape, Tensor};

/// Elements that a tensor begins at a multiple of: 256 bytes.
const ALIGNMENT: usize = 128;

/// Hands out one memory from its beginning, and takes nothing back.
pub(super) struct Arena {
    /// bf16 `[n]`.
    memory: Tensor,
    used: usize,
}

impl Arena {
    pub(super) fn new(memory: Tensor) -> Self {
        Self { memory, used: 0 }
    }

    /// A tensor that no other overlaps; `None` where there is no room, or it is not one of activations.
    pub(super) fn take(&mut self, shape: &Shape, dtype: DType) -> Result<Option<Tensor>> {
        let elements = shape.elem_count();
        let room = self.memory.elem_count() - self.used;
        if dtype != DType::BF16 || elements.next_multiple_of(ALIGNMENT) > room {
            return Ok(None);
        }
        let tensor = self.memory.narrow(0, self.used, elements)?.reshape(shape)?;
        self.used += elements.next_multiple_of(ALIGNMENT);
        Ok(Some(tensor))
    }
}
