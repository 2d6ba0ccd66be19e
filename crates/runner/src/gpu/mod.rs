//! The executor of a GPU. A step is laid out on the host, queued, and not waited for: while it runs, the next one is
//! planned and queued behind it. The token that a sequence sampled last stays in the GPU's memory, so the next step
//! needs no word of it.
//!
//! Steps of pure decoding replay a captured graph ([`captured`]); others run as they come.

mod captured;
mod layout;

use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};
use plimsoll_core::{Executor, ExecutorError, SeqSlot, StepOutput, StepPlan, Ticket};
use plimsoll_nn::{ForwardBatch, KvCache, Model, ModelInfo};
use plimsoll_ops::attention::{GpuPlan, GpuShape};
use plimsoll_ops::gpu::{self, Inbox, Mark, PinnedWords};
use plimsoll_ops::sample::{GpuSampleParams, GpuSampling, SampleResult};

use crate::batch::{self, BatchLimits};
use crate::buckets::buckets;
use crate::runner::{RunnerConfig, StepError};
use crate::slots::{LastToken, Slots};
use crate::split::split;
use captured::CapturedStep;
use layout::{GroupSizes, SharedTensors, StepLayout, StepSizes};

/// Steps that are queued at once: one runs, one waits behind it.
const IN_FLIGHT: usize = 2;

/// Block table entries of all sequences of a captured step together, in one KV group: 16 MiB of them. A step with more
/// is run as it comes.
const MOST_TABLE_ENTRIES: usize = 4 << 20;

/// Runs one model on one GPU.
pub(crate) struct GpuRunner {
    device: Device,
    model: Box<dyn Model>,
    cache: KvCache,
    slots: Slots,
    limits: BatchLimits,
    shared: SharedTensors,
    /// By rising size.
    captured: Vec<CapturedStep>,
    /// Used in turn.
    lanes: [Lane; IN_FLIGHT],
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
}

/// Ways to and from the GPU of one step in flight.
struct Lane {
    /// The inputs of captured steps: it never moves.
    captured: Inbox,
    /// The inputs of other steps.
    inputs: Inbox,
    sampling: Inbox,
    results: PinnedWords,
    done: Mark,
}

impl Lane {
    /// `captured` words for captured steps, and what most other steps of so many tokens and sequences take, which grows
    /// where that is not enough.
    fn new(device: &Device, captured: usize, tokens: usize, seqs: usize) -> Result<Self> {
        Ok(Self {
            captured: Inbox::new(device, captured)?,
            inputs: Inbox::new(device, 16 * tokens)?,
            sampling: Inbox::new(device, 32 * seqs)?,
            results: PinnedWords::new(device, 64 * seqs)?,
            done: Mark::new(device)?,
        })
    }
}

/// A step that was queued.
struct InFlight {
    step: u64,
    lane: usize,
    /// In the plan's order.
    samplers: Vec<SeqSlot>,
    sampling: Option<GpuSampling>,
}

impl GpuRunner {
    /// Takes a model and a cache on one GPU and captures its decode steps; `progress` is told how many are done and how
    /// many there are.
    ///
    /// # Errors
    /// The GPU's memory does not suffice, or the model has layers that no kernel was made for.
    pub(crate) fn new(
        model: Box<dyn Model>,
        cache: KvCache,
        info: &ModelInfo,
        config: RunnerConfig,
        device: &Device,
        progress: impl Fn(usize, usize),
    ) -> Result<Self> {
        let RunnerConfig { max_num_seqs, max_num_batched_tokens, max_model_len, vocab_size, cache: cache_config } =
            config;
        gpu::set_trying(device, true)?;
        let shapes = shapes(info, &cache, cache_config.block_size as usize, device)?;
        let (seqs, tokens) = (max_num_seqs as usize, max_num_batched_tokens as usize);
        let workspace = shapes.iter().map(|shape| shape.workspace_len(tokens, seqs)).max().unwrap_or(0);
        let captured = StepLayout::new(&decode_sizes(&shapes, seqs, max_model_len, cache_config.block_size)).words();
        let lane = || Lane::new(device, captured, tokens, seqs);
        let limits = BatchLimits { cache: cache_config, vocab_size, max_model_len, last_token: LastToken::OnDevice };
        let mut runner = Self {
            device: device.clone(),
            model,
            cache,
            slots: Slots::new(seqs),
            limits,
            shared: SharedTensors {
                last_tokens: Tensor::zeros(seqs, DType::U32, device)?,
                logits: gpu::empty(device, (seqs, vocab_size as usize), DType::F32)?,
                arena: gpu::empty(device, arena_len(device)?, DType::BF16)?,
                workspace: gpu::empty(device, workspace.max(1), DType::F32)?,
                shapes,
            },
            captured: Vec::new(),
            lanes: [lane()?, lane()?],
            in_flight: VecDeque::new(),
        };
        runner.reserve(tokens)?;
        runner.capture(seqs, progress)?;
        gpu::set_trying(device, false)?;
        Ok(runner)
    }

    /// Runs a step of the largest size, of padding alone, so that the memory it takes is there when it is needed, and a
    /// plan that was too hopeful shows now.
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        let mut batch = ForwardBatch::of_padding(self.shared.shapes.len());
        batch.input_ids = vec![0; tokens];
        batch.positions = vec![0; tokens];
        batch.groups.iter_mut().for_each(|group| group.slot_mapping = vec![layout::NONE; tokens]);
        batch.logit_rows = vec![0; self.shared.logits.dim(0)?];
        let plans = self.plans(&batch)?;
        self.run_whole(&mut batch, &plans, 0, 0)?;
        gpu::synchronize(&self.device)
    }

    /// Captures the decode steps, the largest first: what it allocates then serves the others.
    fn capture(&mut self, most: usize, progress: impl Fn(usize, usize)) -> Result<()> {
        let sizes = buckets(most);
        for (done, &size) in sizes.iter().rev().enumerate() {
            progress(done, sizes.len());
            let step = self.capture_one(size)?;
            self.captured.push(step);
        }
        self.captured.reverse();
        progress(sizes.len(), sizes.len());
        Ok(())
    }

    fn capture_one(&mut self, size: usize) -> Result<CapturedStep> {
        let plans = self.plans(&ForwardBatch::of_padding(self.shared.shapes.len()))?;
        let sizes = decode_sizes(&self.shared.shapes, size, self.limits.max_model_len, self.limits.cache.block_size);
        let inboxes = self.lanes.iter_mut().map(|lane| &mut lane.captured);
        CapturedStep::capture(sizes, &plans, &*self.model, &self.cache, &self.shared, inboxes)
    }

    fn queue(&mut self, plan: &StepPlan) -> std::result::Result<InFlight, StepError> {
        plan.bindings.iter().try_for_each(|binding| self.slots.bind(binding))?;
        let batch = batch::build(plan, &mut self.slots, &self.limits)?;
        if plan.seqs.iter().any(|seq| seq.scores.is_some()) {
            return Err(StepError::NoScoring);
        }
        let lane = (plan.step % IN_FLIGHT as u64) as usize;
        let logits = self.forward(plan, batch, lane)?;
        let samplers: Vec<(SeqSlot, u32)> =
            plan.seqs.iter().filter_map(|seq| seq.sample.map(|index| (seq.slot, index))).collect();
        let sampling = if samplers.is_empty() { None } else { Some(self.sample(&samplers, &logits, lane)?) };
        self.lanes[lane].done.set()?;
        let samplers = samplers.into_iter().map(|(slot, _)| slot).collect();
        Ok(InFlight { step: plan.step, lane, samplers, sampling })
    }

    /// The attention of each KV group.
    fn plans(&self, batch: &ForwardBatch) -> Result<Vec<GpuPlan>> {
        self.shared.shapes.iter().zip(&batch.groups).map(|(shape, group)| GpuPlan::new(group, shape)).collect()
    }

    /// Queues the forward pass; the logits, f32 `[logit_rows, vocab]`, stay valid until the next one.
    fn forward(&mut self, plan: &StepPlan, mut batch: ForwardBatch, lane: usize) -> Result<Tensor> {
        let plans = self.plans(&batch)?;
        let needs = sizes(&batch, &plans);
        let is_decode = plan.seqs.iter().all(|seq| seq.len == 1 && seq.sample.is_some());
        if is_decode && let Some(step) = self.captured.iter().find(|step| step.fits(&needs)) {
            let inbox = &mut self.lanes[lane].captured;
            return step.replay(&batch, &plans, lane, inbox)?.narrow(0, 0, batch.logit_rows.len());
        }
        self.run_planned(&mut batch, &plans, 0, lane)?;
        self.shared.logits.narrow(0, 0, batch.logit_rows.len())
    }

    /// Queues a batch as it is, its logits to row `first_row` on. Where the GPU's memory does not hold its activations,
    /// it is run in two parts.
    fn run(&mut self, mut batch: ForwardBatch, first_row: usize, lane: usize) -> Result<()> {
        let plans = self.plans(&batch)?;
        self.run_planned(&mut batch, &plans, first_row, lane)
    }

    fn run_planned(
        &mut self,
        batch: &mut ForwardBatch,
        plans: &[GpuPlan],
        first_row: usize,
        lane: usize,
    ) -> Result<()> {
        let failed = match self.run_whole(batch, plans, first_row, lane) {
            Err(error) if gpu::is_out_of_memory(&error) => error,
            other => return other,
        };
        let Some((first, last)) = split(batch, batch.input_ids.len() / 2) else { return Err(failed) };
        gpu::give_back_free_memory(&self.device)?;
        let last_row = first_row + first.logit_rows.len();
        self.run(first, first_row, lane)?;
        // The second part's inputs take the place of the first's in the host's memory.
        gpu::synchronize(&self.device)?;
        self.run(last, last_row, lane)
    }

    fn run_whole(&mut self, batch: &mut ForwardBatch, plans: &[GpuPlan], first_row: usize, lane: usize) -> Result<()> {
        let mut needs = sizes(batch, plans);
        needs.tokens = padded(needs.tokens);
        needs.logit_rows = padded(needs.logit_rows).min(self.shared.logits.dim(0)? - first_row);
        let layout = StepLayout::new(&needs);
        let inputs = &mut self.lanes[lane].inputs;
        inputs.grow(&self.device, layout.words())?;
        let written = layout.write(batch, plans, inputs.words())?;
        inputs.send(&written)?;
        layout.attach(batch, inputs.memory(), &self.shared, first_row)?;
        self.model.forward(batch, &self.cache)?;
        Ok(())
    }

    /// As [`GpuRunner::try_sample`], once more where what lies free in pieces would have done.
    fn sample(
        &mut self,
        samplers: &[(SeqSlot, u32)],
        logits: &Tensor,
        lane: usize,
    ) -> std::result::Result<GpuSampling, StepError> {
        match self.try_sample(samplers, logits, lane) {
            Err(StepError::Tensor(error)) if gpu::is_out_of_memory(&error) => {
                gpu::give_back_free_memory(&self.device)?;
                self.try_sample(samplers, logits, lane)
            }
            other => other,
        }
    }

    /// Queues the choice of a token for each sampler, and the way of the results to the host.
    fn try_sample(
        &mut self,
        samplers: &[(SeqSlot, u32)],
        logits: &Tensor,
        lane: usize,
    ) -> std::result::Result<GpuSampling, StepError> {
        let expected = [samplers.len(), self.limits.vocab_size as usize];
        if logits.dims() != expected {
            return Err(StepError::LogitsShape { got: logits.dims().to_vec(), expected });
        }
        let mut rows = Vec::with_capacity(samplers.len());
        for &(slot, index) in samplers {
            let state = self.slots.get(slot)?;
            let params = state.sample_params(index);
            rows.push(GpuSampleParams { params, slot: slot.0, counts_lack_last: state.awaits_token() });
        }
        let sampling = GpuSampling::new(&rows, expected[1]);
        let Lane { sampling: inbox, results, .. } = &mut self.lanes[lane];
        let words = sampling.words().len();
        inbox.grow(&self.device, words)?;
        grow(results, sampling.result_words(), &self.device)?;
        inbox.words()[..words].copy_from_slice(sampling.words());
        inbox.send(std::slice::from_ref(&(0..words)))?;
        let output = sampling.run(logits, inbox.memory(), &self.shared.last_tokens)?;
        results.download(0, &output)?;
        for &(slot, _) in samplers {
            self.slots.get_mut(slot)?.await_token();
        }
        Ok(sampling)
    }

    fn finish(&mut self, step: InFlight) -> std::result::Result<StepOutput, StepError> {
        let lane = &self.lanes[step.lane];
        lane.done.wait()?;
        let results: Vec<Option<SampleResult>> =
            step.sampling.map_or_else(Vec::new, |sampling| sampling.results(lane.results.as_slice()));
        let mut samples = Vec::with_capacity(results.len());
        for (slot, result) in step.samplers.into_iter().zip(results) {
            samples.push(self.slots.keep(slot, result)?);
        }
        Ok(StepOutput { step: step.step, samples, scores: Vec::new() })
    }
}

/// What a batch takes of everything.
fn sizes(batch: &ForwardBatch, plans: &[GpuPlan]) -> StepSizes {
    let group = |(group, plan): (&plimsoll_ops::attention::PagedBatch, &GpuPlan)| GroupSizes {
        blocks: group.blocks.len(),
        plan: plan.size(),
    };
    StepSizes {
        tokens: batch.input_ids.len(),
        logit_rows: batch.logit_rows.len(),
        groups: batch.groups.iter().zip(plans).map(group).collect(),
    }
}

/// What decode steps of up to `size` sequences have.
fn decode_sizes(shapes: &[GpuShape], size: usize, max_model_len: u32, block_size: u32) -> StepSizes {
    let longest = max_model_len.div_ceil(block_size) as usize;
    let group = |shape: &GpuShape| GroupSizes {
        blocks: (size * longest).min(MOST_TABLE_ENTRIES),
        plan: shape.decode_size(size),
    };
    StepSizes { tokens: size, logit_rows: size, groups: shapes.iter().map(group).collect() }
}

/// Elements of the memory that small captured steps have for their activations: 512 MiB, or less of a small GPU.
fn arena_len(device: &Device) -> Result<usize> {
    const MOST_BYTES: u64 = 512 << 20;
    Ok((gpu::info(device)?.total_memory / 32).min(MOST_BYTES) as usize / 2)
}

/// Tokens that a step is padded to: cuBLASLt chooses an algorithm for each number of rows it meets.
fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(if tokens < 256 { 16 } else { 64 })
}

/// Makes room for `words` words. What was there is lost.
fn grow(pinned: &mut PinnedWords, words: usize, device: &Device) -> Result<()> {
    if pinned.len() < words {
        *pinned = PinnedWords::new(device, words.next_power_of_two())?;
    }
    Ok(())
}

/// The attention of each KV group, whose layers must be alike.
fn shapes(info: &ModelInfo, cache: &KvCache, block_size: usize, device: &Device) -> Result<Vec<GpuShape>> {
    let of_group = |(group, &window): (usize, &Option<u32>)| {
        let mut layers = info.layers.iter().filter(|layer| layer.group == group);
        let Some(first) = layers.next() else { candle_core::bail!("KV group {group} has no layers") };
        if layers.any(|layer| (layer.kv_heads, layer.head_dim) != (first.kv_heads, first.head_dim)) {
            candle_core::bail!("layers of one KV group with different heads are not served on a GPU yet");
        }
        let heads = (info.num_attention_heads, first.kv_heads, first.head_dim);
        GpuShape::new(heads, window, block_size, cache.dtype(), device)
    };
    info.groups.iter().enumerate().map(of_group).collect()
}

impl Drop for GpuRunner {
    fn drop(&mut self) {
        // Nothing that is being used may go; whether the work succeeded does not matter any more.
        let _ = gpu::synchronize(&self.device);
    }
}

impl Executor for GpuRunner {
    fn submit(&mut self, plan: &StepPlan) -> std::result::Result<Ticket, ExecutorError> {
        if self.in_flight.len() >= IN_FLIGHT {
            return Err(ExecutorError(format!("step {} was submitted with {IN_FLIGHT} in flight", plan.step)));
        }
        let queued = self.queue(plan).map_err(|error| ExecutorError(format!("step {}: {error}", plan.step)))?;
        self.in_flight.push_back(queued);
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> std::result::Result<StepOutput, ExecutorError> {
        let oldest = self.in_flight.pop_front().filter(|step| step.step == ticket.0);
        let Some(step) = oldest else {
            return Err(ExecutorError(format!("step {} was waited for, but is not the oldest in flight", ticket.0)));
        };
        self.finish(step).map_err(|error| ExecutorError(format!("step {}: {error}", ticket.0)))
    }

    fn max_in_flight(&self) -> usize {
        IN_FLIGHT
    }

    fn scores_prompts(&self) -> bool {
        false
    }
}
