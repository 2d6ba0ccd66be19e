//! `plimsoll plan`: what a model would do on a GPU that is not there, by the roofline. The real memory plan and the real
//! scheduler, on a device that takes the time that a cost model says, under the search of `plimsoll saturate`.

mod curve;
mod page;
mod report;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use plimsoll_bench::{Foretold, Slo};
use plimsoll_nn::ModelInfo;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan};
use plimsoll_sim::{Efficiency, Gpu, Roofline, gpus};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::curve::Load;
use self::report::Plan;
use self::work::Sizes;

/// Of a GPU's memory, for libraries and captured steps, as the server sets aside.
const OVERHEAD: u64 = 1 << 30;
const BLOCK_SIZE: u32 = 16;

/// What `plan` takes.
#[derive(Args, Debug)]
pub(crate) struct PlanOptions {
    /// The model's config.json, or a folder that has one; see configs/architectures. Only `--gpu list` needs none
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,

    /// The GPU by name, for instance h200; `--gpu list` names them all
    #[arg(long, value_name = "NAME")]
    gpu: String,

    /// Format that the matrices are turned into at load; without it, as the config says
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<Quantize>,

    /// Element type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    kv_cache_dtype: KvType,

    /// Longest prompt plus completion, in tokens [default: the model's context, or what the memory holds]
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<u32>,

    /// Sequences computed together
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_num_seqs: u32,

    /// Tokens computed in one step
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
    max_num_batched_tokens: u32,

    /// Share of the GPU's memory that is used
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    gpu_memory_utilization: f64,

    /// Tokens of a prompt on average: lengths are spread evenly from 1 to twice that
    #[arg(long, value_name = "TOKENS", default_value_t = 32)]
    input_len: u32,

    /// Tokens of output of each request
    #[arg(long, value_name = "TOKENS", default_value_t = 100)]
    output_len: u32,

    /// Highest concurrency to look at
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_concurrency: u32,

    /// Milliseconds to the first token that count as too late
    #[arg(long, value_name = "MS")]
    slo_ttft: Option<f64>,

    /// Milliseconds a token, after the first, that count as too slow
    #[arg(long, value_name = "MS")]
    slo_tpot: Option<f64>,

    #[command(flatten)]
    assumptions: AssumptionOptions,

    /// Print JSON instead of text
    #[arg(long)]
    json: bool,

    /// Write a page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What the datasheet does not say.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Assumptions")]
struct AssumptionOptions {
    /// Share of the published memory bandwidth that is reached
    #[arg(long, value_name = "SHARE", default_value_t = Efficiency::default().bandwidth)]
    bandwidth_efficiency: f64,

    /// Share of the published arithmetic rate that is reached
    #[arg(long, value_name = "SHARE", default_value_t = Efficiency::default().compute)]
    compute_efficiency: f64,

    /// Microseconds of every step in which the GPU neither reads nor computes
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().step_overhead_ns / 1e3)]
    step_overhead_us: f64,

    /// Microseconds of the same in every layer
    #[arg(long, value_name = "US", default_value_t = 20.0)]
    layer_overhead_us: f64,

    /// Microseconds of the host for every step, beside the GPU
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().host_step_ns / 1e3)]
    host_step_us: f64,

    /// Microseconds of the host for every sequence in a step
    #[arg(long, value_name = "US", default_value_t = Efficiency::default().host_seq_ns / 1e3)]
    host_seq_us: f64,
}

impl AssumptionOptions {
    fn efficiency(&self, layers: usize) -> Result<Efficiency> {
        for (flag, share) in
            [("--bandwidth-efficiency", self.bandwidth_efficiency), ("--compute-efficiency", self.compute_efficiency)]
        {
            ensure!((0.01..=1.0).contains(&share), "{flag} is {share}; give a share from 0.01 to 1");
        }
        let times = [
            ("--step-overhead-us", self.step_overhead_us),
            ("--layer-overhead-us", self.layer_overhead_us),
            ("--host-step-us", self.host_step_us),
            ("--host-seq-us", self.host_seq_us),
        ];
        for (flag, time) in times {
            ensure!((0.0..=1e6).contains(&time), "{flag} is {time}; give 0 to 1000000 microseconds");
        }
        Ok(Efficiency {
            bandwidth: self.bandwidth_efficiency,
            compute: self.compute_efficiency,
            step_overhead_ns: 1e3 * (self.step_overhead_us + self.layer_overhead_us * layers as f64),
            host_step_ns: 1e3 * self.host_step_us,
            host_seq_ns: 1e3 * self.host_seq_us,
        })
    }
}

/// What matrices are turned into at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Quantize {
    Int8,
    Int4,
    Fp8,
    Mxfp4,
}

impl Quantize {
    fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Fp8 => "fp8",
            Self::Mxfp4 => "mxfp4",
        }
    }

    /// Bits a weight, scales included: int4 in groups of 64 with 6 bytes for a scale and a zero, mxfp4 in blocks of 32
    /// with a scale of 8 bits; what int8 and fp8 have a row is too little to count.
    fn bits(self) -> f64 {
        match self {
            Self::Int8 | Self::Fp8 => 8.0,
            Self::Int4 => 4.75,
            Self::Mxfp4 => 4.25,
        }
    }
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum KvType {
    Bf16,
    Fp8,
}

impl KvType {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    fn dtype(self) -> KvDtype {
        match self {
            Self::Bf16 => KvDtype::BF16,
            Self::Fp8 => KvDtype::Fp8,
        }
    }
}

pub(crate) fn run(options: &PlanOptions) -> Result<()> {
    if options.gpu == "list" {
        for gpu in gpus() {
            println!("{:<10}  {} ({})", gpu.name, gpu.full_name, gpu.source);
        }
        return Ok(());
    }
    let plan = plan(options)?;
    if let Some(path) = &options.html {
        plimsoll_bench::write_file(path, plan.page().to_string().as_bytes())?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        println!("{plan}");
        if let Some(path) = &options.html {
            println!("written to {}", path.display());
        }
    }
    Ok(())
}

/// What `plan --json` printed, read again.
///
/// # Errors
/// The file cannot be read or is no plan.
pub(crate) fn foretold(path: &Path) -> Result<Vec<Foretold>> {
    #[derive(Deserialize)]
    struct Read {
        schema: String,
        rungs: Vec<Rung>,
    }
    #[derive(Deserialize)]
    struct Rung {
        concurrency: u32,
        output_tokens_per_s: f64,
        roofline_tokens_per_s: f64,
    }
    let whole = std::fs::read(path).with_context(|| format!("cannot read --plan {}", path.display()))?;
    let wrong = || format!("--plan {} is no plan; give what `plimsoll plan --json` printed", path.display());
    let read: Read = serde_json::from_slice(&whole).with_context(wrong)?;
    ensure!(read.schema == report::SCHEMA, "{}: it is `{}`", wrong(), read.schema);
    let foretold = |rung: Rung| Foretold {
        concurrency: rung.concurrency,
        predicted: rung.output_tokens_per_s,
        roofline: rung.roofline_tokens_per_s,
    };
    Ok(read.rungs.into_iter().map(foretold).collect())
}

fn plan(options: &PlanOptions) -> Result<Plan> {
    options.check()?;
    let names: Vec<&str> = gpus().iter().map(|gpu| gpu.name).collect();
    let Some(gpu) = Gpu::find(&options.gpu) else {
        bail!("there are no numbers of a GPU called '{}'; give one of {}", options.gpu, names.join(", "));
    };
    let config = read_config(options.model()?)?;
    let info = (plimsoll_models::find(&config)?.info)(&config)?;
    let sizes = Sizes::new(&config)?;
    let weights = sizes.weight_bytes(options.quantize);
    let memory = options.memory(&info, weights, gpu)?;
    let longest = 2 * options.input_len - 1 + options.output_len;
    ensure!(
        longest <= memory.max_model_len,
        "the longest request has {longest} tokens, and the limit is {}: lower --input-len or --output-len, or raise \
         --max-model-len",
        memory.max_model_len
    );
    let model = sizes.work(&info, options.quantize, options.kv_cache_dtype.dtype().size_in_bytes());
    let efficiency = options.assumptions.efficiency(info.layers.len())?;
    let roofline = Roofline { model, bandwidth: gpu.bandwidth, flops: gpu.bf16_flops, efficiency };
    let curve = Load { options, memory: &memory, roofline: &roofline }.curve()?;
    Ok(Plan::new(options, gpu, &sizes, &memory, curve))
}

impl PlanOptions {
    fn model(&self) -> Result<&Path> {
        self.model.as_deref().context("which model? Give --model a config.json, or a folder that has one")
    }

    fn check(&self) -> Result<()> {
        let share = self.gpu_memory_utilization;
        ensure!((0.05..=1.0).contains(&share), "--gpu-memory-utilization is {share}; give 0.05 to 1");
        let counts = [
            ("--input-len", self.input_len, 1 << 20),
            ("--output-len", self.output_len, 1 << 20),
            ("--max-num-seqs", self.max_num_seqs, 65_536),
            ("--max-num-batched-tokens", self.max_num_batched_tokens, 1 << 20),
            ("--max-concurrency", self.max_concurrency, 65_536),
        ];
        for (flag, value, most) in counts {
            ensure!((1..=most).contains(&value), "{flag} is {value}; give 1 to {most}");
        }
        ensure!(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "--max-num-batched-tokens is {}, fewer than the {} of --max-num-seqs; raise the one or lower the other",
            self.max_num_batched_tokens,
            self.max_num_seqs
        );
        for (flag, limit) in [("--slo-ttft", self.slo_ttft), ("--slo-tpot", self.slo_tpot)] {
            ensure!(limit.is_none_or(|ms| ms.is_finite() && ms > 0.0), "{flag} must be more than 0 ms");
        }
        Ok(())
    }

    fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft, tpot_ms: self.slo_tpot, ..Slo::default() }
    }

    /// The server's own plan of the memory; the context is cut to what fits, unless one was asked for.
    fn memory(&self, info: &ModelInfo, weights: u64, gpu: &Gpu) -> Result<MemoryPlan> {
        let context = info.max_position_embeddings as u32;
        let limits = |max_model_len| MemoryLimits {
            budget: MemoryBudget::Total((gpu.memory_bytes as f64 * self.gpu_memory_utilization) as u64),
            max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            block_size: BLOCK_SIZE,
            steps_in_flight: 2,
            kv_dtype: self.kv_cache_dtype.dtype(),
            activation_bytes: 2,
            captured_tokens: self.max_num_seqs,
            overhead: OVERHEAD,
        };
        if let Some(len) = self.max_model_len {
            ensure!((2..=context).contains(&len), "--max-model-len is {len}; give 2 to {context}, the model's context");
            return Ok(MemoryPlan::new(info, weights, &limits(len))?);
        }
        match MemoryPlan::new(info, weights, &limits(context)) {
            Err(MemoryError::KvCacheTooSmall { fitting_len, .. }) if fitting_len >= 2 => {
                Ok(MemoryPlan::new(info, weights, &limits(fitting_len))?)
            }
            other => other.with_context(|| format!("it does not fit on one {}", gpu.full_name)),
        }
    }
}

fn read_config(path: &Path) -> Result<Value> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let whole = std::fs::read(&file).with_context(|| format!("cannot read --model {}", file.display()))?;
    serde_json::from_slice(&whole).with_context(|| format!("--model {} is not a config.json", file.display()))
}

#[cfg(test)]
mod tests;
