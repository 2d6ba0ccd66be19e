//! Requests that break servers like this one. Each must end in an error that says what to change, and the server must
//! go on.

use hyper::Method;
use plimsoll_core::{CacheConfig, KvGroup};
use plimsoll_sched::SchedulerConfig;
use plimsoll_server::ServerConfig;

use crate::harness::{Reply, Setup, TestServer};

/// A body, the status it gets, the field that is blamed, and what the message says.
type Case<'a> = (&'a str, u16, Option<&'a str>, &'a str);

const CHAT_CASES: &[Case<'static>] = &[
    // Not JSON, not an object, not a chat.
    ("", 400, None, "not valid JSON"),
    ("{", 400, None, "not valid JSON"),
    ("[]", 400, None, "must be a JSON object"),
    (r#"{"MESSAGES"}"#, 400, None, "not valid JSON"),
    ("{}", 400, Some("messages"), "is missing"),
    (r#"{"messages":null}"#, 400, Some("messages"), "is missing"),
    (r#"{"messages":[]}"#, 400, Some("messages"), "is empty"),
    (r#"{"messages":"hi"}"#, 400, Some("messages"), "expected a sequence"),
    (r#"{"messages":[{"role":"user"}]}"#, 400, Some("messages[0].content"), "is missing"),
    (r#"{"messages":[{"content":"x"}]}"#, 400, Some("messages[0]"), "missing field `role`"),
    (r#"{"messages":[{"role":"robot","content":"x"}]}"#, 400, Some("messages[0].role"), "is `robot`"),
    (
        r#"{"messages":[{"role":"user","content":"x","contnet":"y"}]}"#,
        400,
        Some("messages[0].contnet"),
        "unknown field",
    ),
    (r#"{"messages":[{"role":"user","content":7}]}"#, 400, Some("messages[0].content"), "must be a string"),
    (
        r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
        400,
        Some("messages[0].content[0].text"),
        "missing",
    ),
    (r#"{"messages":[{"role":"user","content":""}]}"#, 400, Some("messages"), "has no tokens"),
    // Fetching what a request names would make this server a proxy into its network.
    (
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}"#,
        400,
        Some("messages[0].content[0]"),
        "`image_url`, which is not served yet",
    ),
    (r#"{"messages":[{"role":"tool","content":"x"}]}"#, 400, Some("messages[0].tool_call_id"), "is missing"),
    (
        r#"{"messages":[{"role":"assistant","content":"x","function_call":{"name":"f"}}]}"#,
        400,
        Some("messages[0].function_call"),
        "not served",
    ),
];

/// As [`CHAT_CASES`], of fields beside a message that is in order.
const FIELD_CASES: &[Case<'static>] = &[
    (r#""max_token":5"#, 400, Some("max_token"), "Did you mean `max_tokens`?"),
    (r#""grammer":"x""#, 400, Some("grammer"), "Unrecognized request argument"),
    (r#""model":"gpt-4""#, 404, Some("model"), "this server serves `echo`"),
    (r#""model":5"#, 400, Some("model"), "expected a string"),
    // Counts.
    (r#""n":0"#, 400, Some("n"), "from 1 to 128"),
    (r#""n":-1"#, 400, Some("n"), "expected u32"),
    (r#""n":129"#, 400, Some("n"), "from 1 to 128"),
    (r#""n":4294967296"#, 400, Some("n"), "expected u32"),
    (r#""n":1e9"#, 400, Some("n"), "expected u32"),
    (r#""n":1,"n":2"#, 400, None, "duplicate field"),
    (r#""max_tokens":0"#, 400, Some("max_tokens"), "at least 1"),
    (r#""max_tokens":-5"#, 400, Some("max_tokens"), "expected u32"),
    (r#""max_tokens":4000000000"#, 400, Some("max_tokens"), "ask for at most 63"),
    (r#""max_tokens":99999999999999999999"#, 400, Some("max_tokens"), "expected u32"),
    (r#""max_completion_tokens":64"#, 400, Some("max_completion_tokens"), "ask for at most 63"),
    (r#""max_tokens":5,"max_completion_tokens":6"#, 400, Some("max_tokens"), "`max_completion_tokens` is 6"),
    (r#""min_tokens":-1"#, 400, Some("min_tokens"), "expected u32"),
    (r#""min_tokens":6,"max_tokens":5"#, 400, Some("min_tokens"), "more than `max_tokens`"),
    (r#""min_tokens":4000000000"#, 400, Some("min_tokens"), "room for 63"),
    (r#""seed":1e30"#, 400, Some("seed"), "expected i64"),
    (r#""seed":9223372036854775808"#, 400, Some("seed"), "expected i64"),
    (r#""priority":99999999999"#, 400, Some("priority"), "expected i32"),
    // Numbers that are none.
    (r#""temperature":NaN"#, 400, None, "not valid JSON"),
    (r#""temperature":Infinity"#, 400, None, "not valid JSON"),
    (r#""temperature":-Infinity"#, 400, None, "not valid JSON"),
    (r#""temperature":1e999"#, 400, Some("temperature"), "out of range"),
    (r#""temperature":1e39"#, 400, Some("temperature"), "`temperature`"),
    (r#""temperature":-0.1"#, 400, Some("temperature"), "from 0 to 2"),
    (r#""temperature":"1""#, 400, Some("temperature"), "expected f32"),
    (r#""top_p":1.01"#, 400, Some("top_p"), "from 0 to 1"),
    (r#""top_p":-1"#, 400, Some("top_p"), "from 0 to 1"),
    (r#""min_p":2"#, 400, Some("min_p"), "from 0 to 1"),
    (r#""top_k":-2"#, 400, Some("top_k"), "from -1"),
    (r#""top_k":1.5"#, 400, Some("top_k"), "expected i64"),
    (r#""frequency_penalty":2.1"#, 400, Some("frequency_penalty"), "from -2 to 2"),
    (r#""presence_penalty":-1e38"#, 400, Some("presence_penalty"), "from -2 to 2"),
    (r#""repetition_penalty":0"#, 400, Some("repetition_penalty"), "from 0.01 to 100"),
    (r#""repetition_penalty":-1"#, 400, Some("repetition_penalty"), "from 0.01 to 100"),
    // Tokens outside the vocabulary would reach into another request's row.
    (r#""logit_bias":{"264":1}"#, 400, Some("logit_bias"), "outside the model's vocabulary of 264"),
    (r#""logit_bias":{"4294967295":1}"#, 400, Some("logit_bias"), "outside the model's vocabulary"),
    (r#""logit_bias":{"-1":1}"#, 400, Some("logit_bias.-1"), "expected u32"),
    (r#""logit_bias":{"x":1}"#, 400, Some("logit_bias"), "expected key to be a number"),
    (r#""logit_bias":{"5":101}"#, 400, Some("logit_bias.5"), "from -100 to 100"),
    (r#""logit_bias":{"5":null}"#, 400, Some("logit_bias.5"), "expected f32"),
    (r#""logit_bias":[5]"#, 400, Some("logit_bias"), "expected a map"),
    (r#""allowed_token_ids":[264]"#, 400, Some("allowed_token_ids"), "outside the model's vocabulary"),
    (r#""allowed_token_ids":[]"#, 400, Some("allowed_token_ids"), "is empty"),
    (r#""allowed_token_ids":[-1]"#, 400, Some("allowed_token_ids[0]"), "expected u32"),
    (r#""stop_token_ids":[99999]"#, 400, Some("stop_token_ids"), "outside the model's vocabulary"),
    // Log probabilities.
    (r#""logprobs":5"#, 400, Some("logprobs"), "expected a boolean"),
    (r#""top_logprobs":5"#, 400, Some("top_logprobs"), "only for requests with `logprobs: true`"),
    (r#""logprobs":true,"top_logprobs":21"#, 400, Some("logprobs"), "at most 20"),
    (r#""logprobs":true,"top_logprobs":4000000000"#, 400, Some("logprobs"), "at most 20"),
    (r#""logprobs":true,"top_logprobs":-1"#, 400, Some("top_logprobs"), "expected u32"),
    (r#""prompt_logprobs":100000"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    // Stops and streams.
    (r#""stop":"""#, 400, Some("stop"), "empty string"),
    (r#""stop":["a",5]"#, 400, Some("stop[1]"), "expected a string"),
    (r#""stop":5"#, 400, Some("stop"), "a string or a list of strings"),
    (r#""stream":"yes""#, 400, Some("stream"), "expected a boolean"),
    (r#""stream_options":{"include_usage":true}"#, 400, Some("stream_options"), "`stream: true`"),
    (r#""stream":true,"stream_options":{"usage":true}"#, 400, Some("stream_options.usage"), "unknown field"),
    (r#""request_id":"a\r\nset-cookie: b""#, 400, Some("request_id"), "letters, digits"),
    (r#""request_id":"""#, 400, Some("request_id"), "letters, digits"),
    // Templates and what is given to them.
    (r#""chat_template":"{{ 1 }}""#, 400, Some("chat_template"), "not served"),
    (r#""chat_template_kwargs":{"tokenize":false}"#, 400, Some("chat_template_kwargs"), "may not set `tokenize`"),
    (r#""chat_template_kwargs":{"chat_template":"x"}"#, 400, Some("chat_template_kwargs"), "may not set"),
    (r#""chat_template_kwargs":{"messages":[]}"#, 400, Some("chat_template_kwargs"), "may not set"),
    (r#""chat_template_kwargs":[]"#, 400, Some("chat_template_kwargs"), "expected a map"),
    (
        r#""continue_final_message":true,"add_generation_prompt":true"#,
        400,
        Some("continue_final_message"),
        "cannot go with `add_generation_prompt`",
    ),
    // Known, and not served.
    (r#""tools":[{"type":"odd"}]"#, 400, Some("tools[0].type"), "no others yet"),
    (r#""tool_choice":"required""#, 400, Some("tool_choice"), "has no `tools`"),
    (r#""functions":[{"name":"f"}]"#, 400, Some("functions"), "not served yet"),
    (r#""response_format":{"type":"json_object"}"#, 400, Some("response_format"), "not served yet"),
    (r#""guided_json":{"type":"object"}"#, 400, Some("guided_json"), "not served yet"),
    (r#""guided_regex":"(a+)+$""#, 400, Some("guided_regex"), "not served yet"),
    (r#""guided_grammar":"root ::= root""#, 400, Some("guided_grammar"), "not served yet"),
    (r#""structured_outputs":{"regex":"x"}"#, 400, Some("structured_outputs"), "not served yet"),
    (r#""best_of":2"#, 400, Some("best_of"), "not served yet"),
    (r#""best_of":4000000000"#, 400, Some("best_of"), "not served yet"),
    (r#""use_beam_search":true"#, 400, Some("use_beam_search"), "not served yet"),
    (r#""bad_words":["x"]"#, 400, Some("bad_words"), "not served yet"),
    (r#""truncate_prompt_tokens":-1"#, 400, Some("truncate_prompt_tokens"), "not served yet"),
    (r#""reasoning_effort":"most""#, 400, Some("reasoning_effort"), "must be one of"),
    (r#""echo":true"#, 400, Some("echo"), "not served yet"),
    (r#""logits_processors":["os.system"]"#, 400, Some("logits_processors"), "not served yet"),
];

const COMPLETION_CASES: &[Case<'static>] = &[
    ("{}", 400, Some("prompt"), "is missing"),
    (r#"{"prompt":""}"#, 400, Some("prompt"), "has no tokens"),
    (r#"{"prompt":[]}"#, 400, Some("prompt"), "empty list"),
    (r#"{"prompt":[[]]}"#, 400, Some("prompt"), "has no tokens"),
    (r#"{"prompt":["a",""]}"#, 400, Some("prompt"), "has no tokens"),
    (r#"{"prompt":["a",5]}"#, 400, Some("prompt"), "not a mixture"),
    (r#"{"prompt":[-1]}"#, 400, Some("prompt[0]"), "a token id"),
    (r#"{"prompt":[264]}"#, 400, Some("prompt"), "outside the model's vocabulary"),
    (r#"{"prompt":[4294967295]}"#, 400, Some("prompt"), "outside the model's vocabulary"),
    (r#"{"prompt":{"a":1}}"#, 400, Some("prompt"), "a string, a list of strings"),
    (r#"{"prompt":"a","logprobs":21}"#, 400, Some("logprobs"), "at most 20"),
    (r#"{"prompt":"a","logprobs":-1}"#, 400, Some("logprobs"), "expected u32"),
    (r#"{"prompt":"a","max_tokens":0}"#, 400, Some("max_tokens"), "unless the prompt itself is wanted back"),
    (r#"{"prompt":"a","prompt_logprobs":-1}"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    (r#"{"prompt":"a","prompt_logprobs":1.5}"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    (r#"{"prompt":"a","prompt_logprobs":"all"}"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    (r#"{"prompt":"a","prompt_logprobs":1e30}"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    (r#"{"prompt":"a","prompt_logprobs":21}"#, 400, Some("prompt_logprobs"), "must be from 0 to 20"),
    (r#"{"prompt":"a","logprobs":21,"echo":true}"#, 400, Some("logprobs"), "must be at most 20"),
    (r#"{"prompt":"a","prompt_logprobs":1,"stream":true}"#, 400, Some("prompt_logprobs"), "cannot go with `stream`"),
    (r#"{"prompt":"a","suffix":"b"}"#, 400, Some("suffix"), "not served yet"),
    (r#"{"prompt":"a","messages":[]}"#, 400, Some("messages"), "Unrecognized request argument"),
];

fn check(reply: &Reply, body: &str, (_, status, param, message): &Case<'_>) {
    let shown: String = body.chars().take(200).collect();
    assert_eq!(reply.status, *status, "{shown}: {}", reply.body);
    let error = &reply.json()["error"];
    assert_eq!(error["param"].as_str(), *param, "{shown}: {}", reply.body);
    assert!(error["message"].as_str().unwrap().contains(message), "{shown}: {}", reply.body);
    assert_eq!(error["type"], "invalid_request_error", "{shown}: {}", reply.body);
    assert!(error.as_object().unwrap().contains_key("code"));
    assert!(reply.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn every_hostile_request_is_refused_with_a_reason() {
    let server = TestServer::start().await;
    for case in CHAT_CASES {
        check(&server.chat(case.0).await, case.0, case);
    }
    for case in FIELD_CASES {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"x"}}],{}}}"#, case.0);
        check(&server.chat(&body).await, &body, case);
    }
    for case in COMPLETION_CASES {
        check(&server.complete(case.0).await, case.0, case);
    }
    assert_eq!(server.engine.stats().steps.generated_tokens, 0, "none of them reached the engine");
    server.until_empty().await;
    server.prove_alive().await;
}

#[tokio::test]
async fn requests_that_are_only_large_are_refused_too() {
    let server = TestServer::start().await;
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let long_name = "k".repeat(100_000);
    let chat = |fields: &str| format!(r#"{{"messages":[{{"role":"user","content":"x"}}],{fields}}}"#);
    let cases = [
        (chat(&format!(r#""stop":[{}]"#, many(r#""s""#, 5000))), "stop", "5000 strings"),
        (chat(&format!(r#""stop":"{}""#, "s".repeat(5000))), "stop", "more than 1024 bytes"),
        (chat(&format!(r#""stop_token_ids":[{}]"#, many("1", 5000))), "stop_token_ids", "5000 entries"),
        (chat(&format!(r#""allowed_token_ids":[{}]"#, many("1", 10_000))), "allowed_token_ids", "10000 entries"),
        (chat(&format!(r#""{long_name}":1"#)), &long_name[..64], "Unrecognized"),
        (chat(&format!(r#""guided_grammar":"{}""#, "(".repeat(100_000))), "guided_grammar", "not served yet"),
        (format!(r#"{{"messages":[{}]}}"#, many(r#"{"role":"user","content":""}"#, 5000)), "messages", "at most 4096"),
        (format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(64)), "messages", "64 tokens"),
        (
            format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(1 << 20)),
            "messages",
            "1048576 tokens",
        ),
    ];
    for (body, param, message) in &cases {
        check(&server.chat(body).await, body, &("", 400, Some(param), message));
    }
    let prompts = format!(r#"{{"prompt":[{}]}}"#, many(r#""p""#, 100_000));
    check(&server.complete(&prompts).await, &prompts, &("", 400, Some("prompt"), "holds 100000 prompts"));
    let nested = chat(&format!(r#""guided_json":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000)));
    let reply = server.chat(&nested).await;
    assert_eq!(reply.status, 400, "{}", reply.body);
    server.prove_alive().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_not_read() {
    let config = ServerConfig { max_body: 1000, ..ServerConfig::default() };
    let server = TestServer::with(Setup { server: config, ..Setup::default() }).await;
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(2000));
    let reply = server.chat(&body).await;
    check(&reply, &body, &("", 413, None, "larger than 1000 bytes"));
    server.prove_alive().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_not_there() {
    let server = TestServer::start().await;
    let json = [("content-type", "application/json")];
    for (method, path, status, code) in [
        (Method::GET, "/v1/nothing", 404, "not_found"),
        (Method::POST, "/v1/responses", 404, "not_served"),
        (Method::POST, "/v1/embeddings", 404, "not_served"),
        (Method::GET, "/v1/chat/completions", 405, "method_not_allowed"),
        (Method::DELETE, "/v1/models", 405, "method_not_allowed"),
        (Method::OPTIONS, "/v1/chat/completions", 405, "method_not_allowed"),
        (Method::GET, "/../../etc/passwd", 404, "not_found"),
        (Method::GET, "/%00%ff", 404, "not_found"),
    ] {
        let reply = server.send(method, path, &json, "{}").await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        assert_eq!(reply.json()["error"]["code"], code, "{path}: {}", reply.body);
    }
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let reply = server.send(Method::POST, "/v1/completions", &[("content-type", kind)], "{}").await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (415, &"unsupported_media_type".into()));
    }
    let untyped = server.send(Method::POST, "/tokenize", &[], r#"{"prompt":"x"}"#).await;
    assert_eq!(untyped.status, 415);
    server.prove_alive().await;
}

#[tokio::test]
async fn a_request_larger_than_the_cache_is_refused_even_when_it_streams() {
    let cache = CacheConfig { block_size: 4, groups: vec![KvGroup { window: None, num_blocks: 4 }] };
    let scheduler = SchedulerConfig { cache, ..Setup::default().scheduler };
    let server = TestServer::with(Setup { scheduler, ..Setup::default() }).await;
    for stream in [false, true] {
        let body = format!(r#"{{"prompt":"0123456789","max_tokens":20,"stream":{stream}}}"#);
        let reply = server.complete(&body).await;
        check(&reply, &body, &("", 400, Some("max_tokens"), "give the KV cache more memory"));
    }
    let fits = server.complete(r#"{"prompt":"0123456789","max_tokens":3}"#).await;
    assert_eq!(fits.json()["choices"][0]["text"], "012", "{}", fits.body);
}

#[tokio::test]
async fn fields_that_change_nothing_are_accepted() {
    let server = TestServer::start().await;
    let body = r#"{"messages":[{"role":"user","content":"ok","name":"me"}],"model":null,"user":"u","metadata":{"a":"b"},
        "store":false,"service_tier":"auto","verbosity":"low","prompt_cache_key":"k","safety_identifier":"s","tools":[],
        "tool_choice":"none","parallel_tool_calls":false,"response_format":{"type":"text"},"n":1,"best_of":1,
        "logit_bias":{},"stop":[],"top_k":-1,"min_p":0,"reasoning_effort":"none","stream_options":null,"seed":-1,
        "chat_template_kwargs":{"enable_thinking":false},"temperature":0,"top_p":0.0,"logprobs":false,"top_logprobs":0}"#;
    let reply = server.chat(body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "ok");
}

#[tokio::test]
async fn a_poisonous_request_fails_alone_and_is_not_to_be_repeated() {
    let server = TestServer::start().await;
    let poison = server.complete(r#"{"prompt":[261]}"#);
    let healthy = server.complete(r#"{"prompt":"fine"}"#);
    let (poison, healthy) = tokio::join!(poison, healthy);
    assert_eq!(poison.status, 500, "{}", poison.body);
    assert_eq!(poison.headers["x-should-retry"], "false");
    assert_eq!(poison.json()["error"]["code"], "engine_fault");
    assert_eq!(healthy.json()["choices"][0]["text"], "fine");
    // One choice of several: the request fails as a whole, and lets the others go.
    let mixed = server.complete(r#"{"prompt":[[104,105],[104,261]],"stream":false}"#).await;
    assert_eq!(mixed.status, 500, "{}", mixed.body);
    server.until_empty().await;
    server.prove_alive().await;
}
