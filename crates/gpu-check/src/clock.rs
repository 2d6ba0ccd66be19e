//! Times of GPU work by events on its stream: medians over many repetitions, after a warm-up.

use anyhow::{Context, Result};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use plimsoll_kernel_checks::Run;

use crate::gpu::Gpu;

/// Launches in one graph at most.
const MOST_LAUNCHES: usize = 256;

/// The median of how long `work` keeps the GPU busy, in seconds, after `warm_up` runs of it.
pub(crate) fn median(gpu: &Gpu, warm_up: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..warm_up {
        work()?;
    }
    gpu.stream.synchronize()?;
    let mut seconds = Vec::with_capacity(gpu.scale.repetitions);
    for _ in 0..gpu.scale.repetitions {
        let begin = gpu.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        work()?;
        let end = gpu.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        seconds.push(f64::from(begin.elapsed_ms(&end)?) * 1e-3);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// How long one launch takes, in seconds, going round the prepared sets of inputs.
pub(crate) fn per_launch(gpu: &Gpu, sets: &[Run]) -> Result<f64> {
    let round = || sets.iter().try_for_each(|run| run(&gpu.queue).map_err(anyhow::Error::from));
    Ok(replayed(gpu, sets.len(), round)? / sets.len() as f64)
}

/// How long one `round` of so many launches takes, in seconds, as part of a graph: without what launching costs.
pub(crate) fn replayed(gpu: &Gpu, launches: usize, round: impl Fn() -> Result<()>) -> Result<f64> {
    let eager = median(gpu, 2, &round)?;
    let wanted = (gpu.scale.long_enough_s / eager.max(1e-9)).ceil() as usize;
    let rounds = wanted.min(MOST_LAUNCHES / launches).max(1);
    let graph = capture(gpu, || (0..rounds).try_for_each(|_| round()))?;
    let replayed = median(gpu, 2, || Ok(graph.launch()?))?;
    Ok(replayed / rounds as f64)
}

fn capture(gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    gpu.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let queued = work();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags);
    queued?;
    graph?.context("the capture was empty")
}
