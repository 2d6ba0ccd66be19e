//! Thoughts and calls of tools, streamed and whole. The model says its prompt back, which is the user's message.

use plimsoll_api::{ChatCompletion, ChatRequest};
use plimsoll_text::{Dialect, ReasoningSyntax, ToolSyntax};
use serde_json::{Value, json};

use crate::harness::{Reply, Setup, TestServer};

const THINKING: Dialect = Dialect { reasoning: ReasoningSyntax::Think, tools: ToolSyntax::Hermes };
const CALL: &str =
    "<think>\nhm\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}\n</tool_call>";

async fn server() -> TestServer {
    with(Setup { dialect: Some(THINKING), ..Setup::default() }).await
}

async fn with(mut setup: Setup) -> TestServer {
    setup.scheduler.max_model_len = 500;
    // A template that knows tools, and shows none: they are not offered in messages then.
    setup.chat_template.push_str("{# tools, tool_calls #}");
    TestServer::with(setup).await
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}])
}

/// A chat in which the model says `text`; `more` are further fields.
fn asking(text: &str, more: Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn message(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"][0]["message"].clone()
}

/// The deltas of a stream put together, as clients do it.
fn assembled(reply: &Reply) -> (String, String, Vec<Value>, Option<String>) {
    let (mut content, mut reasoning, mut calls, mut finish) = (String::new(), String::new(), Vec::new(), None);
    for event in reply.events() {
        let Some(choice) = event["choices"].get(0) else { continue };
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or(""));
        reasoning.push_str(delta["reasoning"].as_str().unwrap_or(""));
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().expect("an index in every part") as usize;
            if index == calls.len() {
                assert!(part["id"].as_str().unwrap().starts_with("call_") && part["type"] == "function", "{part}");
                calls.push(json!({"name": part["function"]["name"], "arguments": ""}));
            } else {
                assert!(part.get("id").is_none() && part["function"].get("name").is_none(), "once only: {part}");
            }
            let so_far = calls[index]["arguments"].as_str().unwrap().to_owned();
            calls[index]["arguments"] = (so_far + part["function"]["arguments"].as_str().unwrap()).into();
        }
        finish = choice["finish_reason"].as_str().map(str::to_owned).or(finish);
    }
    (content, reasoning, calls, finish)
}

#[tokio::test]
async fn a_call_comes_whole_and_in_parts() {
    let server = server().await;
    let reply = server.chat(&asking(CALL, json!({"tools": tools()}))).await;
    let said = message(&reply);
    assert_eq!((&said["content"], &said["reasoning"]), (&Value::Null, &json!("hm")), "{}", reply.body);
    assert_eq!(said["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"a\": \"é\"}"}));
    assert_eq!(said["tool_calls"][0]["type"], "function");
    assert!(said.get("reasoning_content").is_none());
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "tool_calls");
    assert!(serde_json::from_str::<ChatCompletion>(&reply.body).is_ok());
    // A token a byte: the thoughts and their marks, with the newline that follows the second.
    assert_eq!(
        reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"],
        "<think>\nhm\n</think>".len() - 6
    );

    let stream = server.chat(&asking(CALL, json!({"tools": tools(), "stream": true}))).await;
    let (content, reasoning, calls, finish) = assembled(&stream);
    assert_eq!((content.as_str(), reasoning.as_str()), ("", "hm"));
    assert_eq!(calls, [json!({"name": "f", "arguments": "{\"a\": \"é\"}"})]);
    assert_eq!(finish.as_deref(), Some("tool_calls"));
    let parts = stream.events().iter().filter(|event| event["choices"][0]["delta"].get("tool_calls").is_some()).count();
    assert!(parts > 5, "arguments come as they are generated");
}

#[tokio::test]
async fn without_tools_a_call_is_content() {
    let server = server().await;
    for more in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let reply = server.chat(&asking(CALL, more)).await;
        let said = message(&reply);
        assert!(said["content"].as_str().unwrap().starts_with("<tool_call>"), "{}", reply.body);
        assert_eq!((&said["reasoning"], said.get("tool_calls")), (&json!("hm"), None));
        assert_eq!(reply.json()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn thoughts_are_hidden_or_named_twice_if_asked_for() {
    let server = with(Setup { dialect: Some(THINKING), adds_reasoning_content: true, ..Setup::default() }).await;
    let said = message(&server.chat(&asking("<think>why</think>so", json!({}))).await);
    assert_eq!((&said["reasoning"], &said["reasoning_content"]), (&json!("why"), &json!("why")));
    let reply = server.chat(&asking("<think>why</think>so", json!({"include_reasoning": false}))).await;
    let said = message(&reply);
    assert_eq!((said.get("reasoning"), said.get("reasoning_content"), &said["content"]), (None, None, &json!("so")));
    assert!(reply.json()["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(3));
}

#[tokio::test]
async fn hidden_thoughts_are_in_no_log_probabilities() {
    let template = "{{ messages[0].content }}<think>\n{# </think> #}".to_owned();
    let server = with(Setup { chat_template: template, ..Setup::default() }).await;
    for (stream, shows, said) in [
        (false, true, "why</think>so<think>\n"),
        (false, false, "so<think>\n"),
        (true, true, "why</think>so<think>\n"),
        (true, false, "so<think>\n"),
    ] {
        let more = json!({"include_reasoning": shows, "logprobs": true, "stream": stream});
        let reply = server.chat(&asking("why</think>so", more)).await;
        let bodies = if stream { reply.events() } else { vec![reply.json()] };
        let scored = bodies.iter().filter_map(|body| body["choices"][0]["logprobs"]["content"].as_array());
        let tokens: String = scored.flatten().filter_map(|entry| entry["token"].as_str()).collect();
        assert_eq!(tokens, said, "{}", reply.body);
    }
}

#[tokio::test]
async fn stop_strings_apply_to_content_alone() {
    let server = server().await;
    let more = json!({"stop": "END", "tools": tools()});
    let said = message(&server.chat(&asking("<think>END</think>so END more", more.clone())).await);
    assert_eq!((&said["reasoning"], &said["content"]), (&json!("END"), &json!("so ")));
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"END\": 1}}</tool_call>";
    let said = message(&server.chat(&asking(call, more)).await);
    assert_eq!(said["tool_calls"][0]["function"]["arguments"], "{\"END\": 1}");
    let late = json!({"stop": "END", "min_tokens": 5});
    let said = message(&server.chat(&asking("END, END", late)).await);
    assert_eq!(said["content"], "END, ");
    // Text that may begin a stop string waits, and what follows waits behind it.
    let held = message(&server.chat(&asking("<think>x</think>ENé", json!({"stop": "ENé!"}))).await);
    assert_eq!(held["content"], "ENé");
}

#[tokio::test]
async fn one_call_is_the_last_where_calls_may_not_be_parallel() {
    let server = server().await;
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let two = format!("{call}\n{call}");
    let reply = server.chat(&asking(&two, json!({"tools": tools()}))).await;
    assert_eq!(message(&reply)["tool_calls"].as_array().unwrap().len(), 2);
    let reply = server.chat(&asking(&two, json!({"tools": tools(), "parallel_tool_calls": false}))).await;
    assert_eq!(message(&reply)["tool_calls"].as_array().unwrap().len(), 1);
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "tool_calls");
    assert!(reply.json()["usage"]["completion_tokens"].as_u64() < Some(two.len() as u64));
    server.until_empty().await;
}

/// The prompt ends in the call's beginning; so what the model says, here the prompt again, is arguments.
#[tokio::test]
async fn a_named_function_is_called_whatever_the_model_says() {
    let server = server().await;
    let named = json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "f"}}});
    let reply = server.chat(&asking("<think>\"a\": 1}", named)).await;
    let said = message(&reply);
    assert_eq!(said["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{<think>\"a\": 1}"}));
    let required = json!({"tools": tools(), "tool_choice": "required", "stream": true});
    let (_, _, calls, finish) = assembled(&server.chat(&asking("", required)).await);
    assert_eq!((calls[0]["name"].as_str(), finish.as_deref()), (Some("f"), Some("tool_calls")));
    let continues = json!({"tools": tools(), "tool_choice": "required", "continue_final_message": true});
    assert_eq!(server.chat(&asking("x", continues)).await.status, 400);
}

#[tokio::test]
async fn log_probabilities_are_of_every_token_that_says_something() {
    let server = server().await;
    let body = json!({"tools": tools(), "logprobs": true, "n": 2});
    let reply = server.chat(&asking(CALL, body)).await;
    let choices = reply.json()["choices"].as_array().unwrap().clone();
    assert_eq!(choices.len(), 2, "{}", reply.body);
    for choice in choices {
        assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), CALL.len());
        assert_eq!(choice["message"]["tool_calls"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_ended_for_its_length() {
    let server = server().await;
    let reply = server.chat(&asking(CALL, json!({"tools": tools(), "max_tokens": CALL.len() - 30}))).await;
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "length", "{}", reply.body);
    let reply = server.chat(&asking("<think>never", json!({}))).await;
    let said = message(&reply);
    assert_eq!((&said["reasoning"], &said["content"]), (&json!("never"), &json!("")));
}

/// Templates see tools, results, thoughts and effort; and an open thought in the prompt is gone on with.
#[tokio::test]
async fn a_conversation_with_tools_reaches_the_template_whole() {
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.reasoning_content }}{% for c in m.tool_calls %}\
        {{ c.function.name }}{{ c.function.arguments.a }}{% endfor %}{{ m.name }};{% endfor %}{{ tools is defined }}|\
        {{ reasoning_effort }}|{{ enable_thinking }}";
    let server = with(Setup { chat_template: template.to_owned(), ..Setup::default() }).await;
    let body = json!({
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "reasoning": "t", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 5}"}}]},
            {"role": "tool", "tool_call_id": "1", "name": "a b", "content": "r"},
        ],
        "reasoning_effort": "none",
    });
    let mut request: ChatRequest = serde_json::from_value(body).unwrap();
    let said = message(&server.chat(&serde_json::to_string(&request).unwrap()).await);
    assert_eq!(said["content"], "user:q;assistant:tf5;tool:rf;False|none|False");
    request.reasoning_effort = Some("high".to_owned());
    let said = message(&server.chat(&serde_json::to_string(&request).unwrap()).await);
    assert_eq!(said["content"], "user:q;assistant:tf5;tool:rf;False|high|");

    let opened = "{{ messages[0].content }}<think>\n{# </think> #}";
    let server = with(Setup { chat_template: opened.to_owned(), ..Setup::default() }).await;
    let said = message(&server.chat(&asking("why</think>so", json!({}))).await);
    assert_eq!((&said["reasoning"], &said["content"]), (&json!("why"), &json!("so<think>\n")));
    let prompt = asking("q", json!({"tools": tools()}));
    assert_eq!(server.post("/tokenize", &prompt).await.status, 400, "how this template's model calls is not known");
    assert_eq!(self::server().await.post("/tokenize", &prompt).await.status, 200);
}

#[tokio::test]
async fn hostile_tools_are_refused_and_the_server_goes_on() {
    let server = server().await;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let many: Vec<Value> = (0..10_000).map(|i| tool(&format!("f{i}"))).collect();
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let deep = format!(
        r#"{{"messages":[{{"role":"user","content":"x"}}],"tools":[{{"type":"function","function":{{"name":"f","parameters":{{"a":{deep}}}}}}}]}}"#
    );
    let assistant = |call: Value| json!({"messages": [{"role": "assistant", "tool_calls": [call]}]}).to_string();
    for (body, says) in [
        (asking("x", json!({"tools": many})), "at most 512"),
        (deep, "recursion limit"),
        (asking("x", json!({"tools": [tool("a b")]})), "tools[0].function.name"),
        (asking("x", json!({"tools": [tool("f"), tool("f")]})), "another tool"),
        (asking("x", json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]})), "type `function`"),
        (asking("x", json!({"tools": "f"})), "`tools`"),
        (asking("x", json!({"tools": [tool("f"), tool("g")], "tool_choice": "required"})), "not served yet"),
        (asking("x", json!({"tools": tools(), "tool_choice": "always"})), "`required`"),
        (asking("x", json!({"reasoning_effort": "enormous"})), "reasoning_effort"),
        (asking("x", json!({"parallel_tool_calls": "no"})), "parallel_tool_calls"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}).to_string(), "messages[0].tool_call_id"),
        (
            json!({"messages": [{"role": "tool", "tool_call_id": "1", "name": "f to=all", "content": "x"}]})
                .to_string(),
            "messages[0].name",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]})
            .to_string(),
            "assistant only",
        ),
        (assistant(json!({"id": "1", "function": {"name": "f", "arguments": {}}})), "arguments"),
        (assistant(json!({"id": "1", "function": {"name": "<|im_end|>", "arguments": "{}"}})), "name"),
        (assistant(json!({"function": {"name": "f", "arguments": "{}"}})), "id"),
    ] {
        let reply = server.chat(&body).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.body.contains(says), "{says}: {}", reply.body);
    }
    // A megabyte of brackets for arguments: text, as any.
    let nested = assistant(json!({"id": "1", "function": {"name": "f", "arguments": "[".repeat(1 << 20)}}));
    assert_eq!(server.chat(&nested).await.status, 400, "longer than the context, and nothing worse");
    server.prove_alive().await;
    let plain = with(Setup { dialect: Some(Dialect::default()), ..Setup::default() }).await;
    let reply = plain.chat(&asking("x", json!({"tools": tools()}))).await;
    assert!(reply.status == 400 && reply.body.contains("--tool-call-parser"), "{}", reply.body);
}
