//! Whole models with random weights at their true shapes: decode steps against the bytes they must read, prefill
//! against the products it must compute, and how long the GPU waits for the host.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;
use plimsoll_gpu_check::drive::{Ask, Driver, Observer, Run, Unobserved, median};
use plimsoll_gpu_check::model::{Opened, Source, open};
use plimsoll_gpu_check::results::{Row, row};
use plimsoll_gpu_check::traffic::Traffic;
use plimsoll_kernel_checks::Random;
use serde_json::json;

use crate::ceilings::Ceilings;
use crate::gpu::Gpu;
use crate::worker::{Item, Measure};
use plimsoll_gpu_check::scale::Scale;

/// The model that is loaded, so that the items after one another of the same model share it.
type Loaded = Rc<RefCell<Option<Model>>>;

struct Model {
    name: &'static str,
    driver: Driver,
    traffic: Traffic,
    /// Bytes of keys and values that one sequence of the short and of the long kind reads halfway.
    short_kv: u64,
    long_kv: u64,
    vocab: usize,
}

pub(crate) fn items(data: &Path, out: &Path, scale: &Scale) -> Vec<Item> {
    let loaded: Loaded = Rc::default();
    let ceilings = Ceilings::read(out);
    let mut items = Vec::new();
    for &(name, config) in scale.models {
        let config = data.join(config);
        for &seqs in scale.batches {
            let run = with_model(&loaded, name, &config, move |gpu, model| decode(gpu, model, seqs, ceilings));
            items.push(Item { name: format!("{name}/decode {seqs}"), run });
        }
        let run = with_model(&loaded, name, &config, move |gpu, model| long(gpu, model, ceilings));
        items.push(Item { name: format!("{name}/prefill {} and decode there", scale.long.0), run });
    }
    items
}

fn with_model(
    loaded: &Loaded,
    name: &'static str,
    config: &Path,
    measure: impl Fn(&Gpu, &mut Model) -> Result<Row> + 'static,
) -> Measure {
    let (loaded, config): (Loaded, PathBuf) = (loaded.clone(), config.to_owned());
    Box::new(move |gpu| {
        let mut slot = loaded.borrow_mut();
        if slot.as_ref().is_none_or(|model| model.name != name) {
            *slot = None; // its memory is needed first
            *slot = Some(Model::load(gpu, name, &config)?);
        }
        measure(gpu, slot.as_mut().context("a model is loaded")?)
    })
}

impl Model {
    fn load(gpu: &Gpu, name: &'static str, config: &Path) -> Result<Self> {
        let opened: Opened = open(Source::Dummy(config), gpu.scale.sizes, &gpu.device)?;
        let halfway = |(prompt, tokens): (usize, u32)| opened.kv_bytes(prompt as u64 + u64::from(tokens / 2));
        Ok(Self {
            name,
            traffic: opened.traffic,
            short_kv: halfway(gpu.scale.short),
            long_kv: halfway(gpu.scale.long),
            vocab: opened.info.vocab_size,
            driver: Driver::new(opened)?,
        })
    }

    /// Random prompts.
    fn asks(&self, seqs: u32, (prompt, tokens): (usize, u32)) -> Vec<Ask> {
        let mut random = Random::new(u64::from(seqs));
        let mut ids = || (0..prompt).map(|_| random.below(self.vocab) as u32).collect();
        (0..seqs).map(|_| Ask { prompt: ids(), tokens, logprobs: None }).collect()
    }
}

fn decode(gpu: &Gpu, model: &mut Model, seqs: u32, ceilings: Ceilings) -> Result<Row> {
    let asks = model.asks(seqs, gpu.scale.short);
    model.driver.run(&asks, &mut Unobserved)?; // warm up
    let plain = model.driver.run(&asks, &mut Unobserved)?;
    let seconds = plain.decode_interval(seqs as usize).context("no steady decode step was seen")?;
    let bytes = model.traffic.step_bytes(seqs) + u64::from(seqs) * model.short_kv;
    let mut found = ceilings.rates(bytes, 0, seconds);
    found.insert("tok/s".to_owned(), json!(f64::from(seqs) / seconds));
    let mut events = Events { gpu, pairs: Vec::new() };
    let timed = model.driver.run(&asks, &mut events)?;
    found.extend(events.gap(&timed, seqs as usize)?);
    Ok(found)
}

fn long(gpu: &Gpu, model: &mut Model, ceilings: Ceilings) -> Result<Row> {
    let asks = model.asks(1, gpu.scale.long);
    model.driver.run(&asks, &mut Unobserved)?; // warm up
    let run = model.driver.run(&asks, &mut Unobserved)?;
    let (tokens, seconds) = run.prefill();
    // The attention's own come on top.
    let prefill = ceilings.rates(0, model.traffic.flops(tokens as u64, 1), seconds);
    let step = run.decode_interval(1).context("no steady decode step was seen")?;
    let mut found = ceilings.rates(model.traffic.step_bytes(1) + model.long_kv, 0, step);
    found.insert("tok/s".to_owned(), json!(1.0 / step));
    let mut events = Events { gpu, pairs: Vec::new() };
    let timed = model.driver.run(&asks, &mut events)?;
    found.extend(events.gap(&timed, 1)?);
    found.insert("prefill tok/s".to_owned(), json!(tokens as f64 / seconds));
    for key in ["TFLOP/s", "of matrix"] {
        found.extend(prefill.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    Ok(found)
}

/// Marks on the GPU's stream before and after each step is queued. From a step's second mark to the next one's first
/// the GPU had nothing to do.
struct Events<'a> {
    gpu: &'a Gpu,
    pairs: Vec<(CudaEvent, Option<CudaEvent>)>,
}

impl Observer for Events<'_> {
    fn before_submit(&mut self) -> Result<()> {
        let event = self.gpu.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        self.pairs.push((event, None));
        Ok(())
    }

    fn after_submit(&mut self) -> Result<()> {
        let event = self.gpu.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        if let Some((_, end)) = self.pairs.last_mut() {
            *end = Some(event);
        }
        Ok(())
    }
}

impl Events<'_> {
    /// The medians over steady decode steps: the GPU's pause before a step, and its share of pause and step together.
    fn gap(&self, run: &Run, seqs: usize) -> Result<Row> {
        let (mut pauses, mut shares) = (Vec::new(), Vec::new());
        for at in run.steady_decodes(seqs) {
            let (Some((_, Some(before))), Some((begin, Some(end)))) = (self.pairs.get(at - 1), self.pairs.get(at))
            else {
                continue;
            };
            let pause = f64::from(before.elapsed_ms(begin)?);
            pauses.push(pause * 1e3);
            shares.push(pause / (pause + f64::from(begin.elapsed_ms(end)?)));
        }
        let found = json!({"gap us": median(pauses), "gap share": median(shares)});
        Ok(row(found))
    }
}
