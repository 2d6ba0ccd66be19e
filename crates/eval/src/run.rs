//! An evaluation from its first question to its report.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use crate::ask::{self, Form, ask};
use crate::client::{Client, Reply};
use crate::error::{EvalError, Result};
use crate::extract;
use crate::grade::{Verdict, defined_name, grade};
use crate::measure::{self, EnergyMeter};
use crate::perplexity::{self, Windows};
use crate::report::{Outcome, Report, Score, Speed, TaskReport, TaskResult};
use crate::sandbox::Sandbox;
use crate::stats::quantile;
use crate::task::{Category, Check, SET_VERSION, Task, tasks};

/// What to evaluate and how.
#[derive(Clone, Debug)]
pub struct EvalConfig {
    /// `http://host:port`, with or without `/v1`.
    pub url: String,
    pub api_key: Option<String>,
    /// `None`: the only model that the server lists.
    pub model: Option<String>,
    /// What the report is called in comparisons; `None`: as the model.
    pub label: Option<String>,
    /// Empty: no tasks.
    pub categories: Vec<Category>,
    /// `None`: chat, unless the model cannot.
    pub form: Option<Form>,
    /// Tokens an answer at most, reasoning included.
    pub max_tokens: u32,
    pub concurrency: usize,
    /// Run the programs that the model writes.
    pub run_code: bool,
    /// A text to measure the perplexity of.
    pub text: Option<PathBuf>,
    pub windows: Windows,
    pub request_timeout: Duration,
    pub own_server: Option<OwnServer>,
}

/// A server that was started for the evaluation.
#[derive(Clone, Debug)]
pub struct OwnServer {
    pub pid: u32,
    pub startup: Duration,
    /// In words, for the report.
    pub options: String,
}

/// News of an evaluation.
#[derive(Debug)]
pub enum Progress {
    /// The model was found, and is asked so.
    Ready { model: String, form: Option<Form>, tasks: usize },
    /// The model is asked for completions, since it has no chat template, as the server says in these words.
    NoChat(String),
    /// A task is done; what was asked and answered is worth a line in a log.
    Answered(Box<Answered>),
    /// So many windows of the text are done, of so many.
    Window(usize, usize),
}

/// What was asked, what came, and how it was graded.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    pub result: TaskResult,
    pub prompt: String,
    pub reply: String,
    /// Not graded.
    pub reasoning: String,
}

/// Evaluates a model.
///
/// # Errors
/// The server cannot be asked, or cannot do what is asked for. A task that fails is no error.
pub async fn run(config: &EvalConfig, mut progress: impl FnMut(Progress)) -> Result<Report> {
    let api_key = config.api_key.as_deref();
    let client = Client::connect(&config.url, api_key, config.model.as_deref(), config.request_timeout).await?;
    let text = match &config.text {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|error| EvalError::File { path: path.clone(), why: error.to_string() })?,
        ),
        None => None,
    };
    let label = config.label.clone().unwrap_or_else(|| client.model.clone());
    let options = config.own_server.as_ref().map(|server| server.options.clone());
    let mut report = Report::new(label, config.url.clone(), client.model.clone(), options);
    let meter = (config.own_server.is_some() || client.is_local()).then(EnergyMeter::start);
    if !config.categories.is_empty() {
        let (tasks, speed) = ask_all(config, &client, &mut progress).await?;
        (report.tasks, report.speed) = (Some(tasks), Some(speed));
    } else {
        progress(Progress::Ready { model: client.model.clone(), form: None, tasks: 0 });
    }
    if let (Some(text), Some(path)) = (&text, &config.text) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let told = |done, all| progress(Progress::Window(done, all));
        report.perplexity = Some(perplexity::measure(&client, &name, text, config.windows, told).await?);
    }
    report.cost.energy = meter.map(EnergyMeter::finish).unwrap_or_default();
    report.cost.startup_seconds = config.own_server.as_ref().map(|server| server.startup.as_secs_f64());
    report.cost.memory = match &config.own_server {
        Some(server) => measure::memory_of_process(server.pid),
        None => measure::memory_in_metrics(&client.metrics().await.unwrap_or_default()),
    };
    Ok(report)
}

async fn ask_all(
    config: &EvalConfig,
    client: &Client,
    progress: &mut impl FnMut(Progress),
) -> Result<(TaskReport, Speed)> {
    let form = match config.form {
        Some(form) => form,
        None => find_form(client, progress).await?,
    };
    let sandbox = match config.run_code && config.categories.contains(&Category::Code) {
        true => Some(Sandbox::find().await.map_err(EvalError::Option)?),
        false => None,
    };
    let all = tasks(&config.categories);
    progress(Progress::Ready { model: client.model.clone(), form: Some(form), tasks: all.len() });
    let began = Instant::now();
    let one = |task| ask_one(client, task, form, config.max_tokens, sandbox);
    let mut answers = stream::iter(all.iter()).map(one).buffer_unordered(config.concurrency.max(1));
    let mut results = Vec::with_capacity(all.len());
    while let Some(answered) = answers.next().await {
        results.push(answered.result.clone());
        progress(Progress::Answered(Box::new(answered)));
    }
    let speed = speed(&results, began.elapsed(), config.concurrency);
    let place =
        |result: &TaskResult| all.iter().position(|task| (task.category, &task.id) == (result.category, &result.id));
    results.sort_by_key(place);
    let scores = Score::of_results(&results);
    let max_tokens = config.max_tokens;
    Ok((TaskReport { set_version: SET_VERSION, form, max_tokens, sandbox, scores, results }, speed))
}

/// Chat, unless the server says that the model has no template for it. Any other refusal is an error: a server that is
/// misconfigured, or busy, must not be taken for a base model, whose score is another.
async fn find_form(client: &Client, progress: &mut impl FnMut(Progress)) -> Result<Form> {
    let body = serde_json::json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1});
    match client.generate(Form::Chat.path(), body).await {
        Ok(_) => Ok(Form::Chat),
        Err(EvalError::Refused { message, .. }) if lacks_template(&message) => {
            progress(Progress::NoChat(message));
            Ok(Form::Completions)
        }
        Err(EvalError::Refused { url, status, message }) => Err(EvalError::ChatRefused { url, status, message }),
        Err(error) => Err(error),
    }
}

/// Whether a refusal says that there is no chat template; servers have no code for it in common. That a template refused
/// the chat, or failed, is another matter.
fn lacks_template(message: &str) -> bool {
    let message = message.to_lowercase();
    let says = |words: &str| message.contains(words);
    ["no", "not have a", "must provide a", "missing"].iter().any(|absent| says(&format!("{absent} chat template")))
        || ["found", "set", "defined"].iter().any(|present| says(&format!("template is not {present}")))
        || says("template not found")
}

async fn ask_one(client: &Client, task: &Task, form: Form, max_tokens: u32, sandbox: Option<Sandbox>) -> Answered {
    let asked = ask(task, form, max_tokens);
    let began = Instant::now();
    let (reply, (outcome, detail)) = match client.generate(form.path(), asked.body(form)).await {
        Ok(reply) => {
            let graded = grade_reply(task, form, &reply, sandbox).await;
            (reply, graded)
        }
        Err(error) => {
            let reply = Reply { took: began.elapsed(), ..Reply::default() };
            (reply, (Outcome::Error, Some(error.to_string())))
        }
    };
    let result = TaskResult {
        category: task.category,
        id: task.id.clone(),
        level: task.level,
        outcome,
        detail,
        finish_reason: reply.finish,
        output_tokens: reply.output_tokens,
        ttft_ms: reply.first_after.map(|after| after.as_secs_f64() * 1e3),
        seconds: reply.took.as_secs_f64(),
    };
    Answered { result, prompt: asked.prompt, reply: reply.text, reasoning: reply.reasoning }
}

async fn grade_reply(task: &Task, form: Form, reply: &Reply, sandbox: Option<Sandbox>) -> (Outcome, Option<String>) {
    let answer = ask::answer(task, form, &reply.text);
    if let Verdict::Fail(why) = grade(&task.check, &answer) {
        return (Outcome::Fail, Some(why));
    }
    let Check::Python { stub, tests } = &task.check else { return (Outcome::Pass, None) };
    let Some(sandbox) = sandbox else {
        return (Outcome::NotGraded, Some("programs are run with --run-code alone".to_owned()));
    };
    let program = extract::python(extract::without_thoughts(&answer), defined_name(stub)).unwrap_or_default();
    match sandbox.run(&program, tests).await {
        Ok(()) => (Outcome::Pass, None),
        Err(why) => (Outcome::Fail, Some(why)),
    }
}

fn speed(results: &[TaskResult], took: Duration, concurrency: usize) -> Speed {
    let mut ttft: Vec<f64> = results.iter().filter_map(|result| result.ttft_ms).collect();
    let counts: Vec<u64> = results.iter().filter_map(|result| result.output_tokens).collect();
    let output_tokens = (!counts.is_empty()).then(|| counts.iter().sum::<u64>());
    Speed {
        concurrency,
        seconds: took.as_secs_f64(),
        output_tokens_per_s: output_tokens.map(|tokens| tokens as f64 / took.as_secs_f64().max(1e-9)),
        output_tokens,
        ttft_ms_median: quantile(&mut ttft, 0.5),
        ttft_ms_p90: quantile(&mut ttft, 0.9),
    }
}
