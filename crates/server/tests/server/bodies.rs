//! Responses that do not stream.

use hyper::Method;
use insta::assert_snapshot;
use plimsoll_core::{Executor, ExecutorError, StepOutput, StepPlan, Ticket};
use plimsoll_sim::{NullConfig, NullExecutor};

use crate::harness::{MAX_MODEL_LEN, Setup, TestServer};
use plimsoll_server::ServerConfig;

#[tokio::test]
async fn a_chat() {
    let server = TestServer::start().await;
    let body = r#"{"model":"also/echo","messages":[{"role":"system","content":"be brief"},
        {"role":"user","content":[{"type":"text","text":"hi"}]}],"max_completion_tokens":2,"request_id":"mine"}"#;
    let reply = server.chat(body).await;
    assert_eq!(reply.json()["id"], "chatcmpl-mine");
    assert_snapshot!(reply.redacted(), @r#"{"id":"[id]","object":"chat.completion","created":0,"model":"echo","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0}}}"#);
}

#[tokio::test]
async fn completions_of_a_list_of_prompts() {
    let server = TestServer::start().await;
    let body = r#"{"prompt":["ab","c"],"n":2,"logprobs":1,"max_tokens":1}"#;
    let reply = server.complete(body).await;
    assert_snapshot!(reply.redacted(), @r#"{"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5}],"text_offset":[0]},"finish_reason":"length"},{"index":1,"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5}],"text_offset":[0]},"finish_reason":"length"},{"index":2,"text":"c","logprobs":{"tokens":["c"],"token_logprobs":[-0.5],"top_logprobs":[{"c":-0.5}],"text_offset":[0]},"finish_reason":"length"},{"index":3,"text":"c","logprobs":{"tokens":["c"],"token_logprobs":[-0.5],"top_logprobs":[{"c":-0.5}],"text_offset":[0]},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0}}}"#);
}

#[tokio::test]
async fn an_echoed_prompt_has_its_log_probabilities() {
    let server = TestServer::start().await;
    let reply = server.complete(r#"{"prompt":"hé!","max_tokens":1,"logprobs":1,"echo":true}"#).await;
    let choice = &reply.json()["choices"][0];
    assert_eq!(choice["text"], "hé!h");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["token_logprobs"], serde_json::json!([null, -1.0, -2.0, -3.0, -0.5]));
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 1, 2, 2, 3]));
    assert_eq!(logprobs["top_logprobs"][0], serde_json::Value::Null);
    assert_eq!(logprobs["top_logprobs"][3], serde_json::json!({"!": -3.0, "\"": -0.5}));

    let scored = server.complete(r#"{"prompt":"ab","max_tokens":0,"logprobs":0,"echo":true}"#).await;
    assert_snapshot!(scored.redacted(), @r#"{"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"ab","logprobs":{"tokens":["a","b"],"token_logprobs":[null,-1.0],"top_logprobs":[null,{"b":-1.0}],"text_offset":[0,1]},"finish_reason":"length"}],"usage":{"prompt_tokens":2,"completion_tokens":0,"total_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}"#);
}

#[tokio::test]
async fn a_stream_begins_with_the_echoed_prompt_and_its_log_probabilities() {
    let server = TestServer::start().await;
    let streamed = server.complete(r#"{"prompt":"ab","max_tokens":1,"logprobs":0,"echo":true,"stream":true}"#).await;
    let body = streamed.redacted();
    let prompt = body.find(r#""text":"ab","logprobs":{"tokens":["a","b"],"token_logprobs":[null,-1.0]"#).expect(&body);
    let next = body.find(r#""text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-0.5]"#).expect(&body);
    assert!(prompt < next && body.contains(r#""text_offset":[2]"#), "{body}");
    let nothing = server.complete(r#"{"prompt":"ab","max_tokens":0,"echo":true,"stream":true}"#).await.redacted();
    let texts: Vec<_> = nothing.matches(r#""text":""#).collect();
    assert_eq!(texts.len(), 2, "the prompt, and the end: {nothing}");
    assert!(nothing.contains(r#""text":"ab""#) && nothing.contains(r#""finish_reason":"length""#), "{nothing}");
}

/// As a GPU is.
struct Unscoring(NullExecutor);

impl Executor for Unscoring {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        assert!(plan.seqs.iter().all(|seq| seq.scores.is_none()), "such a request is refused at the door");
        self.0.submit(plan)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.0.wait(ticket)
    }

    fn scores_prompts(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_device_that_does_not_score_prompts_is_not_asked_to() {
    let null = NullExecutor::new(NullConfig { vocab_size: 64, ..NullConfig::default() });
    let server = TestServer::with(Setup { executor: Some(Box::new(Unscoring(null))), ..Setup::default() }).await;
    for (wish, param) in [(r#""prompt_logprobs":1"#, "prompt_logprobs"), (r#""echo":true,"logprobs":1"#, "echo")] {
        let reply = server.complete(&format!(r#"{{"prompt":"ab",{wish}}}"#)).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status.as_u16(), &error["param"], &error["code"]),
            (400, &param.into(), &"not_served".into())
        );
        assert!(error["message"].as_str().unwrap().contains("on a GPU yet"), "{error}");
    }
    assert_eq!(server.complete(r#"{"prompt":"ab","echo":true}"#).await.status, 200);
}

#[tokio::test]
async fn prompt_logprobs_are_by_token_id() {
    let server = TestServer::start().await;
    let reply = server.complete(r#"{"prompt":["ab","c"],"max_tokens":1,"n":2,"prompt_logprobs":1}"#).await;
    let of = |choice: usize| reply.json()["choices"][choice]["prompt_logprobs"].clone();
    let expected = serde_json::json!([null, {
        "98": {"logprob": -1.0, "rank": 1, "decoded_token": "b"},
        "99": {"logprob": -0.5, "rank": 1, "decoded_token": "c"},
    }]);
    assert_eq!([of(0), of(1), of(2)], [expected.clone(), expected, serde_json::json!([null])]);

    let body = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":1,"prompt_logprobs":0}"#;
    let chat = server.chat(body).await.json();
    assert_eq!(chat["prompt_logprobs"][0], serde_json::Value::Null);
    assert_eq!(chat["prompt_logprobs"][1]["105"]["decoded_token"], "i");
    assert_eq!(chat["choices"][0]["message"]["content"], "h");
}

#[tokio::test]
async fn a_response_holds_so_many_prompt_logprobs_and_a_chats_prompt_counts_once() {
    let server = TestServer::start().await;
    let text = "x".repeat(60);
    let chat =
        format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"n":128,"max_tokens":1,"prompt_logprobs":20}}"#);
    let chat = server.chat(&chat).await;
    assert_eq!(chat.status, 200, "{}", chat.body);
    assert_eq!(chat.json()["prompt_logprobs"].as_array().unwrap().len(), text.len());
    let prompt = vec![text; 128];
    let completion = serde_json::json!({"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 20}).to_string();
    let reply = server.complete(&completion).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (400, &"prompt".into()));
    assert!(reply.body.contains("131072 log probabilities"), "{}", reply.body);
}

#[tokio::test]
async fn every_shape_of_prompt_and_the_echo_of_each() {
    let server = TestServer::start().await;
    for (prompt, texts) in [
        (r#""ab""#, vec!["abab"]),
        (r#"["ab","c"]"#, vec!["abab", "cc"]),
        ("[97,98]", vec!["abab"]),
        ("[[97],[98,258]]", vec!["aa", "b worldb world"]),
    ] {
        let reply = server.complete(&format!(r#"{{"prompt":{prompt},"echo":true}}"#)).await;
        let choices = reply.json()["choices"].as_array().unwrap().clone();
        let got: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(got, texts, "{prompt}");
    }
}

#[tokio::test]
async fn control_tokens_in_a_message_are_only_text() {
    let server = TestServer::start().await;
    let text = "a<|im_end|>b<|im_start|>";
    let reply = server.chat(&format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#)).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], text);
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "stop");
    // Whoever writes a raw prompt frames the conversation.
    let raw = server.complete(r#"{"prompt":"a<|im_end|>b","skip_special_tokens":true}"#).await;
    assert_eq!(raw.json()["choices"][0]["text"], "a");
    let ignoring = r#"{"prompt":"a<|im_start|>b","skip_special_tokens":false,"ignore_eos":true,"max_tokens":4}"#;
    assert_eq!(server.complete(ignoring).await.json()["choices"][0]["text"], "a<|im_start|>ba");
}

#[tokio::test]
async fn a_stop_token_is_shown_only_if_asked_for() {
    let server = TestServer::start().await;
    let body = |more: &str| format!(r#"{{"prompt":"abc","stop_token_ids":[98]{more}}}"#);
    let hidden = server.complete(&body("")).await.json();
    assert_eq!((&hidden["choices"][0]["text"], &hidden["choices"][0]["finish_reason"]), (&"a".into(), &"stop".into()));
    assert_eq!(hidden["usage"]["completion_tokens"], 2);
    let shown = server.complete(&body(r#","include_stop_str_in_output":true"#)).await.json();
    assert_eq!(shown["choices"][0]["text"], "ab");
}

#[tokio::test]
async fn a_final_message_is_continued() {
    let server = TestServer::start().await;
    let body = r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"so far"}],
        "continue_final_message":true,"max_tokens":3}"#;
    let reply = server.chat(body).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "qso", "{}", reply.body);
}

#[tokio::test]
async fn cached_tokens_are_reported() {
    let server = TestServer::start().await;
    let body = r#"{"prompt":"0123456789"}"#;
    assert_eq!(server.complete(body).await.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    server.until_empty().await;
    assert_eq!(server.complete(body).await.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 8);
}

#[tokio::test]
async fn models_and_tokens() {
    let server = TestServer::start().await;
    let list = server.get("/v1/models").await;
    assert_snapshot!(list.body.replace(&list.json()["data"][0]["created"].to_string(), "0"), @r#"{"object":"list","data":[{"id":"echo","object":"model","created":0,"owned_by":"plimsoll","max_model_len":64},{"id":"also/echo","object":"model","created":0,"owned_by":"plimsoll","max_model_len":64}]}"#);
    assert_eq!(server.get("/v1/models/echo").await.json()["id"], "echo");
    assert_eq!(server.get("/v1/models/also/echo").await.json()["max_model_len"], MAX_MODEL_LEN);
    let missing = server.get("/v1/models/gpt-4").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (404, &"model_not_found".into()));

    let text = server.post("/tokenize", r#"{"prompt":"a<|im_end|>","return_token_strs":true}"#).await;
    assert_snapshot!(text.body, @r#"{"count":2,"max_model_len":64,"tokens":[97,257],"token_strs":["a","<|im_end|>"]}"#);
    let chat = server.post("/tokenize", r#"{"messages":[{"role":"user","content":"ab"}]}"#).await;
    assert_snapshot!(chat.body, @r#"{"count":2,"max_model_len":64,"tokens":[97,98],"token_strs":null}"#);
    let back = server.post("/detokenize", r#"{"tokens":[97,258,257]}"#).await;
    assert_snapshot!(back.body, @r#"{"prompt":"a world<|im_end|>"}"#);
}

#[tokio::test]
async fn health_version_load_and_the_front_page() {
    let server = TestServer::start().await;
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(server.get(path).await.body, r#"{"status":"ok"}"#, "{path}");
    }
    assert_eq!(server.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    let load = server.get("/load").await.json();
    assert_eq!((&load["server_load"], &load["limit"]), (&0.into(), &4096.into()));
    assert!(server.get("/").await.body.contains("/v1/chat/completions"));
    assert_eq!(server.send(Method::HEAD, "/health", &[], "").await.status, 200);
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_know() {
    let server = TestServer::start().await;
    server.prove_alive().await;
    server.chat(r#"{"n":0}"#).await;
    let text = server.get("/metrics").await.body;
    for name in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens_total",
        "generation_tokens_total",
        "request_success_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_sum",
        "request_queue_time_seconds_count",
        "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count",
    ] {
        let line = format!("\nvllm:{name}{{");
        assert!(text.contains(&line), "{name} is missing:\n{text}");
    }
    for line in [
        r#"vllm:generation_tokens_total{model_name="echo"} 6"#,
        r#"vllm:prompt_tokens_total{model_name="echo"} 5"#,
        r#"plimsoll:generation_tokens_total{model_name="echo"} 6"#,
        r#"vllm:request_success_total{finished_reason="stop",model_name="echo"} 1"#,
        r#"plimsoll:http_responses_total{path="/v1/chat/completions",status="400",model_name="echo"} 1"#,
        r#"vllm:time_to_first_token_seconds_count{model_name="echo"} 1"#,
        r#"vllm:inter_token_latency_seconds_count{model_name="echo"} 5"#,
    ] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }

    let config = ServerConfig { vllm_metrics: false, ..ServerConfig::default() };
    let plain = TestServer::with(Setup { server: config, ..Setup::default() }).await;
    let text = plain.get("/metrics").await.body;
    assert!(!text.contains("vllm:") && text.contains("plimsoll:num_requests_running"), "{text}");
}
