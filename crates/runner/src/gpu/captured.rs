//! Decode steps captured as CUDA graphs: one launch replays the whole forward pass, with no word from the host.
//!
//! A captured step reads its inputs from the memory of an inbox and leaves its logits where it left them when it was
//! captured, so a step is replayed by sending new inputs there. Sampling is not part of it: what a step's requests want
//! of it differs too much.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError, sys};
use candle_core::{Device, Result, Tensor};
use plimsoll_nn::{ForwardBatch, KvCache, Model};
use plimsoll_ops::attention::GpuPlan;
use plimsoll_ops::gpu::{Inbox, in_arena, synchronize};

use super::layout::{SharedTensors, StepLayout, StepSizes};

/// A decode step of one size, captured once for each inbox that its inputs may come by.
pub(super) struct CapturedStep {
    sizes: StepSizes,
    layout: StepLayout,
    /// f32 `[sequences, vocab]`, a view of memory that all steps share.
    logits: Tensor,
    graphs: Vec<CudaGraph>,
}

// SAFETY: a graph may be used by any thread, one at a time; it moves with its runner.
unsafe impl Send for CapturedStep {}

impl CapturedStep {
    /// Runs an empty step of this size once, so that everything it needs is loaded and chosen, and captures it for each of
    /// `inboxes`, which must have room and stay where they are. `plans` are those of an empty batch.
    ///
    /// # Errors
    /// The GPU is out of memory, or something in the step cannot be captured.
    pub(super) fn capture<'a>(
        sizes: StepSizes,
        plans: &[GpuPlan],
        model: &dyn Model,
        cache: &KvCache,
        shared: &SharedTensors,
        inboxes: impl Iterator<Item = &'a mut Inbox>,
    ) -> Result<Self> {
        let device = shared.last_tokens.device().clone();
        let layout = StepLayout::new(&sizes);
        let logits = shared.logits.narrow(0, 0, sizes.logit_rows)?;
        let mut graphs = Vec::new();
        for inbox in inboxes {
            let mut batch = ForwardBatch::of_padding(sizes.groups.len());
            let written = layout.write(&batch, plans, inbox.words())?;
            inbox.send(&written)?;
            layout.attach(&mut batch, inbox.memory(), shared, 0)?;
            model.forward(&batch, cache)?;
            synchronize(&device)?;
            let graph = record(&device, || in_arena(&device, &shared.arena, || model.forward(&batch, cache)))?;
            graph.upload().map_err(driver_error)?;
            graphs.push(graph);
        }
        Ok(Self { sizes, layout, logits, graphs })
    }

    /// Whether a step of pure decoding has a place in it.
    pub(super) fn fits(&self, needs: &StepSizes) -> bool {
        let groups = self.sizes.groups.iter().zip(&needs.groups);
        self.sizes.tokens >= needs.tokens
            && groups.into_iter().all(|(room, need)| room.blocks >= need.blocks && room.plan.holds(&need.plan))
    }

    /// Queues the step, its inputs by inbox number `which`. Its logits, `[sequences, vocab]`, stay valid until the next
    /// step.
    ///
    /// # Errors
    /// The driver fails.
    pub(super) fn replay(
        &self,
        batch: &ForwardBatch,
        plans: &[GpuPlan],
        which: usize,
        inbox: &mut Inbox,
    ) -> Result<&Tensor> {
        let written = self.layout.write(batch, plans, inbox.words())?;
        inbox.send(&written)?;
        self.graphs[which].launch().map_err(driver_error)?;
        Ok(&self.logits)
    }
}

/// Records what `work` queues, instead of running it.
fn record<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<CudaGraph> {
    let stream: Arc<CudaStream> = device.as_cuda_device()?.cuda_stream();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(driver_error)?;
    let worked = work();
    // Ended in any case: a stream that is left capturing takes no more work.
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags);
    worked?;
    match graph.map_err(driver_error)? {
        Some(graph) => Ok(graph),
        None => candle_core::bail!("nothing was captured"),
    }
}

fn driver_error(error: DriverError) -> candle_core::Error {
    candle_core::Error::Msg(format!("the CUDA driver failed while a step was captured or replayed: {error}"))
}
