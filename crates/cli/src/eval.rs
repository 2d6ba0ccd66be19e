//! `plimsoll eval`: how good a model is as it is served. Without a URL it evaluates a server of its own: this same binary,
//! as a child process.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_bench::Stop;
use plimsoll_eval::{Category, Comparison, EvalConfig, Form, Outcome, OwnServer, Progress, Report, Windows};

use crate::child::Listening;
use crate::config::Config;
use crate::options::{LoadLineUse, ServeOptions, SharedOptions};

/// What `eval` takes.
#[derive(Args, Debug)]
pub(crate) struct EvalOptions {
    /// Server to ask, whoever made it; without it a server of its own is started with the options of `serve`
    #[arg(long)]
    url: Option<String>,

    /// Which tasks to ask
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST", default_value = "code,reasoning,writing")]
    tasks: Vec<Tasks>,

    /// Run the programs that the model writes, in a child process with limits of time, memory and output, and without
    /// network where the kernel allows that; else they are logged and not graded. They run as you, and can read, change
    /// and delete whatever you can: use an account or a machine that has nothing to lose
    #[arg(long)]
    run_code: bool,

    /// Text file to measure the perplexity and the bits per byte of. The server must serve `echo` with `logprobs`
    #[arg(long, value_name = "FILE")]
    perplexity: Option<PathBuf>,

    /// Bytes of the text that are sent at once
    #[arg(long, value_name = "BYTES", default_value_t = Windows::default().window)]
    window: usize,

    /// Bytes of each window, but the first, that are scored; the others are context
    #[arg(long, value_name = "BYTES", default_value_t = Windows::default().stride)]
    stride: usize,

    /// How tasks are asked: `chat`, or `completions` with examples, for base models; `auto` tries the former
    #[arg(long, value_enum, default_value_t = Endpoint::Auto)]
    endpoint: Endpoint,

    /// Tokens of an answer at most, reasoning included; a model that reasons wants thousands
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_tokens: u32,

    /// Requests in flight at once
    #[arg(long, short, value_name = "N", default_value_t = 8)]
    concurrency: usize,

    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,

    /// What this run is called in comparisons [default: the model's name]
    #[arg(long, value_name = "NAME")]
    label: Option<String>,

    /// File to write the report to, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// File to write every question, answer and verdict to, one JSON object a line, for reading
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Reports of earlier runs to show side by side, instead of a new run; the others are compared with the first
    #[arg(long, value_name = "FILE", num_args = 2.., conflicts_with_all = ["url", "perplexity", "run_code", "out", "log"])]
    compare: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) serve: ServeOptions,
}

/// A category of tasks, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tasks {
    Code,
    Reasoning,
    Writing,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Endpoint {
    Auto,
    Chat,
    Completions,
}

impl EvalOptions {
    /// Whether a server of one's own is to be started.
    fn starts_server(&self) -> bool {
        self.url.is_none() && self.compare.is_empty()
    }

    fn config(&self, url: String, api_key: Option<String>, own_server: Option<OwnServer>) -> EvalConfig {
        let category = |tasks: &Tasks| match tasks {
            Tasks::Code => Some(Category::Code),
            Tasks::Reasoning => Some(Category::Reasoning),
            Tasks::Writing => Some(Category::Writing),
            Tasks::None => None,
        };
        EvalConfig {
            url,
            api_key,
            model: self.serve.served_model_name.clone(),
            label: self.label.clone(),
            categories: self.tasks.iter().filter_map(category).collect(),
            form: match self.endpoint {
                Endpoint::Auto => None,
                Endpoint::Chat => Some(Form::Chat),
                Endpoint::Completions => Some(Form::Completions),
            },
            max_tokens: self.max_tokens,
            concurrency: self.concurrency,
            run_code: self.run_code,
            text: self.perplexity.clone(),
            windows: Windows { window: self.window, stride: self.stride },
            request_timeout: Duration::from_secs(self.timeout),
            own_server,
        }
    }
}

pub(crate) async fn run(shared: SharedOptions, options: EvalOptions) -> Result<()> {
    if !options.compare.is_empty() {
        return compare(&options.compare);
    }
    check(&options)?;
    // Both before a server is started: a file that cannot be written should not cost an evaluation.
    let mut log = options.log.as_ref().map(created).transpose()?;
    options.out.as_ref().map(created).transpose()?;
    let api_key = Config::resolve(shared.clone(), options.serve.clone())?.admission.api_keys.first().cloned();
    let began = Instant::now();
    let own = match options.starts_server() {
        true => {
            // Nothing listens to signals here: they end the process, and the server with it.
            Some(Listening::server(&shared, &without_line(options.serve.clone()), &Stop::default()).await?)
        }
        false => None,
    };
    let url = options.url.clone().or_else(|| own.as_ref().map(|server| server.url.clone())).unwrap_or_default();
    let own_server = own.as_ref().map(|server| OwnServer {
        pid: server.id(),
        startup: began.elapsed(),
        options: in_words(&shared, &options.serve),
    });
    let config = options.config(url, api_key, own_server);
    let style = ProgressStyle::with_template("  {wide_bar} {pos}/{len} {elapsed} {msg}")?;
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut passed = 0;
    let report = plimsoll_eval::run(&config, |news| show(news, &bar, &mut log, &mut passed)).await;
    bar.finish_and_clear();
    let report = report?;
    println!("{report}");
    if let Some(path) = &options.out {
        report.write(path)?;
        println!("report written to {}", path.display());
    }
    if let Some(path) = &options.log {
        println!("answers written to {}", path.display());
    }
    Ok(())
}

fn check(options: &EvalOptions) -> Result<()> {
    ensure!(options.concurrency > 0, "--concurrency is 0; give at least 1");
    ensure!(options.max_tokens > 0, "--max-tokens is 0; give at least 1");
    ensure!(options.timeout > 0, "--timeout is 0; give at least 1 second");
    let has_tasks = options.tasks.iter().any(|tasks| *tasks != Tasks::None);
    ensure!(has_tasks || options.perplexity.is_some(), "--tasks none leaves nothing to do; give --perplexity FILE");
    if let Some(path) = &options.perplexity {
        File::open(path).with_context(|| format!("--perplexity: cannot read {}", path.display()))?;
    }
    Ok(())
}

fn created(path: &PathBuf) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn compare(paths: &[PathBuf]) -> Result<()> {
    let reports = paths.iter().map(|path| Report::read(path)).collect::<Result<Vec<_>, _>>()?;
    print!("{}", Comparison::new(reports)?);
    Ok(())
}

/// An evaluation is no load: a limit on requests would only be in its way.
fn without_line(options: ServeOptions) -> ServeOptions {
    ServeOptions { load_line: Some(LoadLineUse::Off), ..options }
}

/// The options that a server of one's own was started with, as a TOML file would have them; no keys.
fn in_words(shared: &SharedOptions, serve: &ServeOptions) -> String {
    let serve = ServeOptions { api_key: Vec::new(), ..serve.clone() };
    let tables = [toml::Table::try_from(shared), toml::Table::try_from(serve)];
    let entries = tables.into_iter().flatten().flatten().map(|(key, value)| format!("{key} = {value}"));
    let entries: Vec<String> = entries.collect();
    if entries.is_empty() { "defaults".to_owned() } else { entries.join(", ") }
}

/// Shows news on `bar`, and writes answers to `log`.
fn show(news: Progress, bar: &ProgressBar, log: &mut Option<File>, passed: &mut u64) {
    match news {
        Progress::Ready { model, form, tasks } => {
            let form = match form {
                Some(Form::Chat) => ", asked as a chat",
                Some(Form::Completions) => ", asked for completions, with examples",
                None => "",
            };
            bar.println(format!("model {model}{form}"));
            bar.set_length(tasks as u64);
        }
        Progress::NoChat(why) => bar.println(format!("the model cannot chat, as the server says: {why}")),
        Progress::Answered(answered) => {
            *passed += u64::from(answered.result.outcome == Outcome::Pass);
            bar.inc(1);
            bar.set_message(format!("{passed} passed"));
            if let Some(log) = log {
                let line = serde_json::to_string(&answered).expect("an answer is JSON");
                if let Err(error) = writeln!(log, "{line}") {
                    bar.println(format!("an answer could not be logged: {error}"));
                }
            }
        }
        Progress::Window(done, all) => {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            bar.set_message("windows of text");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Parsed {
        #[command(flatten)]
        options: EvalOptions,
    }

    fn parse(arguments: &[&str]) -> Result<EvalOptions, clap::Error> {
        Parsed::try_parse_from([&["eval"], arguments].concat()).map(|parsed| parsed.options)
    }

    #[test]
    fn options_become_what_is_evaluated() {
        let options = parse(&["smollm2", "--tasks", "code,writing", "--endpoint", "completions"]).unwrap();
        let config = options.config("http://h".into(), None, None);
        assert_eq!(config.categories, [Category::Code, Category::Writing]);
        assert_eq!((config.form, options.starts_server()), (Some(Form::Completions), true));
        assert!(!config.run_code, "programs run only where that is asked for");
        assert!(in_words(&SharedOptions::default(), &options.serve).contains("model = \"smollm2\""));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(check(&parse(&["--tasks", "none"]).unwrap()).is_err());
        assert!(check(&parse(&["--concurrency", "0"]).unwrap()).is_err());
        assert!(check(&parse(&["--perplexity", "/no/such/file"]).unwrap()).is_err());
        assert!(parse(&["--compare", "a.json"]).is_err());
        assert!(parse(&["--compare", "a.json", "b.json", "--url", "http://h"]).is_err());
        assert!(!parse(&["--compare", "a.json", "b.json"]).unwrap().starts_server());
    }

    #[test]
    fn keys_are_in_no_report() {
        let serve = ServeOptions { api_key: vec!["secret".into()], ..ServeOptions::default() };
        assert_eq!(in_words(&SharedOptions::default(), &serve), "defaults");
    }
}
