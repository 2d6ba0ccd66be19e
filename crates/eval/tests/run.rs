//! A whole evaluation against a server that knows the answers to some questions, over real connections.

use axum::Router;
use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use plimsoll_endpoint::EndpointError;
use plimsoll_eval::{Category, EvalConfig, EvalError, Form, Outcome, Progress, Report, Windows};
use serde_json::{Value, json};

/// What the server can do.
#[derive(Clone, Copy)]
struct Skills {
    /// With which words it refuses chats, where it does.
    no_chat: Option<&'static str>,
    scores: bool,
}

async fn serve(skills: Skills) -> String {
    let routes = Router::new()
        .route("/v1/models", get(async || Json(json!({"data": [{"id": "stub"}]}))))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .route("/metrics", get(async || "process_resident_memory_bytes 1048576\n"))
        .with_state(skills);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, routes).await });
    url
}

fn refused(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": {"message": message}}))).into_response()
}

fn streamed(name: &str, answer: &str) -> Response {
    let piece = |text: &str, finish: Value| match name {
        "delta" => json!({"choices": [{"delta": {"content": text}, "finish_reason": finish}]}),
        _ => json!({"choices": [{"text": text, "finish_reason": finish}]}),
    };
    let usage = json!({"choices": [], "usage": {"completion_tokens": 7}});
    let (half, rest) = answer.split_at(answer.len() / 2);
    let events = [piece(half, Value::Null), piece(rest, json!("stop")), usage];
    let events: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    // Some servers close without a blank line behind the last event.
    let end = if name == "delta" { "\n\n" } else { "\n" };
    (events + "data: [DONE]" + end).into_response()
}

/// Knows how many days a week has, and how to add.
async fn chat(State(skills): State<Skills>, Json(body): Json<Value>) -> Response {
    let question = body["messages"][0]["content"].as_str().unwrap();
    if let Some(why) = skills.no_chat {
        return refused(why);
    }
    let answer = match question {
        _ if question.contains("days are there") => "<think>6? 8?</think>There are seven.\nAnswer: 7",
        _ if question.contains("def add(") => "```python\ndef add(a, b):\n    return a + b\n```",
        _ => "I do not know.",
    };
    streamed("delta", answer)
}

/// Goes on with one word; scores every word of a prompt with a quarter of a bit a byte.
async fn complete(State(skills): State<Skills>, Json(body): Json<Value>) -> Response {
    let prompt = body["prompt"].as_str().unwrap();
    if body["echo"] != true {
        return streamed("text", if prompt.contains("days are there") { " 7" } else { " x" });
    }
    if !skills.scores {
        return refused("`echo` is not served");
    }
    let mut starts: Vec<usize> = prompt.match_indices(' ').map(|(at, _)| at).collect();
    starts.insert(0, 0);
    let ends = starts.iter().skip(1).copied().chain([prompt.len()]);
    let bits = |(start, end): (&usize, usize)| -0.25 * std::f64::consts::LN_2 * (end - start) as f64;
    let mut logprobs: Vec<Value> = starts.iter().zip(ends).map(|span| json!(bits(span))).collect();
    logprobs[0] = Value::Null;
    let tokens: Vec<&str> = starts.iter().map(|_| "?").collect();
    let logprobs = json!({"tokens": tokens, "token_logprobs": logprobs, "text_offset": starts});
    Json(json!({"choices": [{"text": prompt, "logprobs": logprobs}]})).into_response()
}

fn config(url: String) -> EvalConfig {
    EvalConfig {
        url,
        api_key: None,
        model: None,
        label: None,
        categories: Category::ALL.to_vec(),
        form: None,
        max_tokens: 64,
        concurrency: 4,
        run_code: false,
        text: None,
        windows: Windows { window: 200, stride: 100 },
        request_timeout: std::time::Duration::from_secs(60),
        own_server: None,
    }
}

fn outcome(report: &Report, id: &str) -> Outcome {
    let results = &report.tasks.as_ref().unwrap().results;
    results.iter().find(|result| result.id == id).unwrap().outcome
}

#[tokio::test]
async fn tasks_are_asked_graded_and_told() {
    let url = serve(Skills { no_chat: None, scores: true }).await;
    let mut answered = 0;
    let all = config(url.clone());
    let told = |news| answered += usize::from(matches!(news, Progress::Answered(_)));
    let report = plimsoll_eval::run(&all, told).await.unwrap();
    let tasks = report.tasks.as_ref().unwrap();
    assert_eq!((tasks.form, tasks.results.len()), (Form::Chat, answered));
    assert_eq!(outcome(&report, "week"), Outcome::Pass);
    assert_eq!(outcome(&report, "sum"), Outcome::Fail);
    assert_eq!(outcome(&report, "add"), Outcome::NotGraded, "programs are not run unless that is asked for");
    assert_eq!(report.speed.unwrap().output_tokens, Some(7 * answered as u64));
    assert_eq!(report.cost.memory.resident, Some(1 << 20));
    assert!(report.to_string().contains("1 of 22"), "{report}");

    let run_code = EvalConfig { run_code: true, categories: vec![Category::Code], ..config(url) };
    let report = plimsoll_eval::run(&run_code, |_| {}).await.unwrap();
    assert_eq!((outcome(&report, "add"), outcome(&report, "greet")), (Outcome::Pass, Outcome::Fail));
}

#[tokio::test]
async fn a_base_model_is_given_examples() {
    let url = serve(Skills { no_chat: Some("this model has no chat template"), scores: true }).await;
    let mut told = Vec::new();
    let hear = |news| told.extend(if let Progress::NoChat(why) = news { Some(why) } else { None });
    let report = plimsoll_eval::run(&config(url), hear).await.unwrap();
    assert_eq!(report.tasks.as_ref().unwrap().form, Form::Completions);
    assert_eq!((outcome(&report, "week"), outcome(&report, "sum")), (Outcome::Pass, Outcome::Fail));
    assert_eq!(told, ["this model has no chat template"]);
}

#[tokio::test]
async fn a_chat_refused_for_another_reason_makes_no_base_model() {
    for why in ["`max_tokens` is not served", "the chat template failed: line 3", "no model `stub`"] {
        let url = serve(Skills { no_chat: Some(why), scores: true }).await;
        let error = plimsoll_eval::run(&config(url), |_| {}).await.unwrap_err();
        assert!(matches!(error, EvalError::ChatRefused { status: 400, .. }), "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains("--endpoint completions"), "{error}");
    }
}

#[tokio::test]
async fn perplexity_counts_every_word_once() {
    let text = "seven words stand in this one line. ".repeat(60);
    let path = std::env::temp_dir().join(format!("plimsoll-eval-text-{}.txt", std::process::id()));
    std::fs::write(&path, &text).unwrap();
    let url = serve(Skills { no_chat: None, scores: true }).await;
    let of_text = EvalConfig { categories: Vec::new(), text: Some(path.clone()), ..config(url) };
    let measured = plimsoll_eval::run(&of_text, |_| {}).await.unwrap().perplexity.unwrap();
    assert!(measured.windows.len() > 10);
    // All but the first word, which nothing stands before.
    assert_eq!(measured.bytes, text.len() - "seven".len());
    assert!((measured.bits_per_byte - 0.25).abs() < 1e-9, "{}", measured.bits_per_byte);

    let url = serve(Skills { no_chat: None, scores: false }).await;
    let refused = plimsoll_eval::run(&EvalConfig { url, ..of_text }, |_| {}).await.unwrap_err();
    assert!(matches!(&refused, EvalError::NoPromptLogprobs { .. }), "{refused}");
    assert!(refused.to_string().contains("`echo` is not served"), "{refused}");
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told() {
    let mut away = config("http://127.0.0.1:1".to_owned());
    let error = plimsoll_eval::run(&away, |_| {}).await.unwrap_err();
    assert!(matches!(error, EvalError::Endpoint(EndpointError::Unreachable { .. })), "{error}");
    away.url = "nowhere".to_owned();
    assert!(matches!(plimsoll_eval::run(&away, |_| {}).await, Err(EvalError::Endpoint(EndpointError::Url { .. }))));
}
