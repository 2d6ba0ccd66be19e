//! Decode steps captured as CUDA graphs: one launch replays the whole forward pass, with no word from the host.
//!
//! A captured step reads its inputs from buffers of its own and leaves its logits where it left them when it was
//! captured, so a step is replayed by copying new inputs there. Sampling is not part of it: what a step's requests want
//! of it differs too much.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError, sys};
use candle_core::{Device, Result, Tensor};
use plimsoll_nn::{ForwardBatch, KvCache, Model};
use plimsoll_ops::attention::GpuPlan;
use plimsoll_ops::gpu::{PinnedWords, in_arena, synchronize};

use super::layout::{SharedTensors, StepLayout, StepSizes};

/// A decode step of one size.
pub(super) struct CapturedStep {
    sizes: StepSizes,
    layout: StepLayout,
    /// u32: where the step reads its inputs, the same place for all steps.
    inputs: Tensor,
    /// f32 `[sequences, vocab]`, a view of memory that all steps share.
    logits: Tensor,
    graph: CudaGraph,
}

// SAFETY: a graph may be used by any thread, one at a time; it moves with its runner.
unsafe impl Send for CapturedStep {}

impl CapturedStep {
    /// Runs an empty step of this size once, so that everything it needs is loaded and chosen, and captures it.
    /// `plans` are those of an empty batch.
    ///
    /// # Errors
    /// The GPU is out of memory, or something in the step cannot be captured.
    pub(super) fn capture(
        sizes: StepSizes,
        plans: &[GpuPlan],
        model: &dyn Model,
        cache: &KvCache,
        shared: &SharedTensors,
    ) -> Result<Self> {
        let device = shared.last_tokens.device().clone();
        let layout = StepLayout::new(&sizes);
        let inputs = shared.inputs.clone();
        let mut batch = ForwardBatch::of_padding(sizes.groups.len());
        let mut words = PinnedWords::new(&device, layout.words())?;
        layout.write(&batch, plans, words.as_mut_slice())?;
        words.upload(0..layout.words(), &inputs)?;
        layout.attach(&mut batch, &inputs, shared, 0)?;
        model.forward(&batch, cache)?;
        synchronize(&device)?;
        let forward = || in_arena(&device, &shared.arena, || model.forward(&batch, cache));
        let (graph, logits) = record(&device, forward)?;
        graph.upload().map_err(driver_error)?;
        Ok(Self { sizes, layout, inputs, logits, graph })
    }

    /// Whether a step of pure decoding has a place in it.
    pub(super) fn fits(&self, needs: &StepSizes) -> bool {
        let groups = self.sizes.groups.iter().zip(&needs.groups);
        self.sizes.tokens >= needs.tokens
            && groups.into_iter().all(|(room, need)| room.blocks >= need.blocks && room.plan.holds(&need.plan))
    }

    /// Words of the host's memory that its inputs take.
    pub(super) fn words(&self) -> usize {
        self.layout.words()
    }

    /// Queues the step. Its logits, `[sequences, vocab]`, stay valid until it is replayed again.
    ///
    /// # Errors
    /// The driver fails.
    pub(super) fn replay(&self, batch: &ForwardBatch, plans: &[GpuPlan], words: &mut PinnedWords) -> Result<&Tensor> {
        for range in self.layout.write(batch, plans, words.as_mut_slice())? {
            words.upload(range, &self.inputs)?;
        }
        self.graph.launch().map_err(driver_error)?;
        Ok(&self.logits)
    }
}

/// Records what `work` queues, instead of running it.
fn record<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<(CudaGraph, T)> {
    let stream: Arc<CudaStream> = device.as_cuda_device()?.cuda_stream();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(driver_error)?;
    let worked = work();
    // Ended in any case: a stream that is left capturing takes no more work.
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags);
    let result = worked?;
    match graph.map_err(driver_error)? {
        Some(graph) => Ok((graph, result)),
        None => candle_core::bail!("nothing was captured"),
    }
}

fn driver_error(error: DriverError) -> candle_core::Error {
    candle_core::Error::Msg(format!("the CUDA driver failed while a step was captured or replayed: {error}"))
}
