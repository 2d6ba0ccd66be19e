//! The `plimsoll` binary: parses options and hands over to one room a command. The only place where engine, models,
//! server and load generator meet.

mod bench;
mod byte_vocab;
mod bytes;
mod catalogue;
mod child;
mod compare;
mod config;
mod device;
mod devices;
mod eval;
mod inspect;
mod load;
mod load_line;
mod logging;
mod machine;
mod means;
mod model;
mod name;
mod options;
mod paced;
mod plan;
mod progress;
mod pull;
mod report;
mod saturate;
mod serve;
mod source;
mod start_times;
mod vocab;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::options::{LoadLineUse, ServeOptions, SharedOptions};

/// A self-hosted LLM inference server that measures its own load line.
///
/// `plimsoll serve` fetches a small model and serves it over the OpenAI API on http://127.0.0.1:8000. `plimsoll
/// saturate` finds out how many requests at once that server (or any other with the same API) can carry.
#[derive(Parser)]
#[command(name = "plimsoll", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    shared: SharedOptions,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over the OpenAI API
    ///
    /// Without a MODEL the catalogue's first is fetched and served. Every option can also be given as its PLIMSOLL_*
    /// variable or in the --config file; flags win over variables, and those over the file.
    Serve(Box<ServeOptions>),
    /// Fetch a model of the catalogue, and print where it lies
    Pull(pull::PullOptions),
    /// Say what a checkpoint is, what it takes, and what of it would not load
    ///
    /// Its architecture, the formats of its tensors, its parameters, its tokenizer; the memory that
    /// it takes at a length and a number of requests, by the plan that `serve` makes; and every
    /// reason why it would not load. Headers are read, no weights. Ends with an error where it would
    /// not load.
    ///
    ///   plimsoll inspect model.gguf
    ///   plimsoll inspect ./llama-3.1-8b --max-model-len 8192 --max-num-seqs 32
    ///   plimsoll inspect --config configs/architectures/gpt-oss-20b.json --json
    #[command(verbatim_doc_comment)]
    Inspect(Box<inspect::InspectOptions>),
    /// Drive a server at one load and print its rates and latencies
    ///
    /// By default a closed loop: N clients, each with one request in flight, until M requests were sent. --arrivals poisson
    /// --rate 20 sends 20 requests a second whatever the server does, and counts latency from when each was due. Works
    /// against any OpenAI-compatible server.
    Bench(Box<bench::BenchOptions>),
    /// Find the concurrencies at which a server's throughput saturates and at which service breaks
    ///
    /// Walks up N = 1, 2, 4 ... until two doublings in a row gain less than 5%, narrows down the smallest N with 95% of the
    /// highest throughput, and goes on until requests fail or come later than --slo-ttft and --slo-tpot allow. --quick gives
    /// a first answer within two minutes, --budget bounds the whole. What was found is then held against Poisson arrivals,
    /// and the server against what it was at the beginning. Without --url it starts a server of its own and takes the options of `serve`.
    Saturate(Box<saturate::SaturateOptions>),
    /// Grade a served model: a small fixed set of tasks, and the perplexity of a text
    ///
    /// Asks 62 tasks of code, reasoning and writing at temperature 0, from easy ones to hard ones, and grades the answers by
    /// exact or executable checks; no model judges another. Beside the scores, with their 95% intervals, stand speed,
    /// memory, start-up time and energy, as far as they can be read. Works against any OpenAI-compatible server; without --url it starts
    /// one of its own and takes the options of `serve`. Keep a report with --out, and lay reports side by side with
    /// --compare A.json B.json.
    ///
    ///   plimsoll eval smollm2-135m-instruct --run-code --out f32.json --activations f32
    ///   plimsoll eval --url http://127.0.0.1:8000 --tasks none --perplexity book.txt
    #[command(verbatim_doc_comment)]
    Eval(Box<eval::EvalOptions>),
    /// Show a saturation report again: as text, or as a page with charts (--html), or as rows (--csv)
    Report(report::ReportOptions),
    /// Put saturation reports side by side: which serves more, faster, cheaper, and how sure that is
    ///
    /// The published result is shown beside reports of the same model under the same load.
    Compare(compare::ComparisonOptions),
    /// Predict, without a GPU, what a model would do on one
    ///
    /// The memory it takes, how many requests fit, throughput against concurrency, where it saturates and what binds
    /// there: by the roofline of the GPU's published numbers, with the server's own memory plan and scheduler. What no
    /// datasheet says is assumed, and printed.
    Plan(Box<plan::PlanOptions>),
    /// Answer with canned tokens as fast as can be: what the load generator measures itself against
    #[command(hide = true)]
    NullServer,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::tell(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { command, shared }: Cli) -> Result<()> {
    match command {
        Command::Pull(options) => pull::run(&options),
        Command::Report(options) => report::run(&options),
        Command::Compare(options) => compare::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Inspect(options) => inspect::run(shared, &options),
        Command::NullServer => child::serve_null(),
        Command::Serve(options) => {
            let config = Config::resolve(shared.clone(), (*options).clone())?;
            logging::init(config.shared.log_format);
            block_on(async {
                if config.admission.load_line == LoadLineUse::Calibrate {
                    saturate::calibrate(shared, *options).await?;
                }
                serve::run(config).await
            })
        }
        Command::Bench(options) => {
            let config = Config::resolve(shared, ServeOptions::default())?;
            logging::init(config.shared.log_format);
            block_on(bench::run(&config.shared, *options))
        }
        Command::Eval(options) => {
            let config = Config::resolve(shared.clone(), options.serve.clone())?;
            logging::init(config.shared.log_format);
            block_on(eval::run(shared, *options))
        }
        Command::Saturate(options) => {
            let config = Config::resolve(shared.clone(), options.serve.clone())?;
            logging::init(config.shared.log_format);
            block_on(saturate::run(shared, *options))
        }
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A model that is still being fetched or loaded must not keep a process that was told to end.
    runtime.shutdown_background();
    outcome
}
