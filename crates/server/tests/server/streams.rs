//! What a stream says, to the byte.

use insta::assert_snapshot;
use plimsoll_sim::{NullConfig, NullExecutor};

use crate::harness::{Setup, TestServer, VOCAB_SIZE, next_frame, redacted};

#[tokio::test]
async fn a_chat_stream_has_role_content_finish_usage_and_end() {
    let server = TestServer::start().await;
    let reply = server
        .chat(
            r#"{"model":"echo","messages":[{"role":"user","content":"hé"}],"stream":true,
                "stream_options":{"include_usage":true}}"#,
        )
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    assert_snapshot!(reply.redacted(), @r#"
    data: {"id":"[id]","object":"chat.completion.chunk","created":0,"model":"echo","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

    data: {"id":"[id]","object":"chat.completion.chunk","created":0,"model":"echo","choices":[{"index":0,"delta":{"content":"h"},"logprobs":null,"finish_reason":null}]}

    data: {"id":"[id]","object":"chat.completion.chunk","created":0,"model":"echo","choices":[{"index":0,"delta":{"content":"é"},"logprobs":null,"finish_reason":null}]}

    data: {"id":"[id]","object":"chat.completion.chunk","created":0,"model":"echo","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}

    data: {"id":"[id]","object":"chat.completion.chunk","created":0,"model":"echo","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0}}}

    data: [DONE]
    "#);
    let ids: Vec<String> = reply.events().iter().map(|event| event["id"].to_string()).collect();
    assert!(ids.iter().all(|id| *id == ids[0] && id.starts_with("\"chatcmpl-")), "{ids:?}");
}

#[tokio::test]
async fn a_completion_stream_echoes_its_prompt_first() {
    let server = TestServer::start().await;
    let reply = server.complete(r#"{"prompt":"ab","max_tokens":1,"echo":true,"stream":true}"#).await;
    assert_snapshot!(reply.redacted(), @r#"
    data: {"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"ab","logprobs":null,"finish_reason":null}]}

    data: {"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}

    data: {"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}

    data: [DONE]
    "#);
}

#[tokio::test]
async fn log_probabilities_stream_with_their_bytes() {
    let server = TestServer::start().await;
    let body = r#"{"messages":[{"role":"user","content":"é"}],"logprobs":true,"top_logprobs":1,"stream":true}"#;
    let reply = server.chat(body).await;
    // Neither of the two tokens is a character by itself: they come in one chunk.
    assert_snapshot!(serde_json::to_string_pretty(&reply.events()[1]["choices"]).unwrap(), @r#"
    [
      {
        "index": 0,
        "delta": {
          "content": "é"
        },
        "logprobs": {
          "content": [
            {
              "token": "�",
              "logprob": -0.5,
              "bytes": [
                195
              ],
              "top_logprobs": [
                {
                  "token": "�",
                  "logprob": -0.5,
                  "bytes": [
                    195
                  ]
                }
              ]
            },
            {
              "token": "�",
              "logprob": -0.5,
              "bytes": [
                169
              ],
              "top_logprobs": [
                {
                  "token": "�",
                  "logprob": -0.5,
                  "bytes": [
                    169
                  ]
                }
              ]
            }
          ]
        },
        "finish_reason": null
      }
    ]
    "#);
}

#[tokio::test]
async fn the_usage_so_far_is_in_every_chunk_if_asked_for() {
    let server = TestServer::start().await;
    let body = r#"{"prompt":"abc","max_tokens":3,"stream":true,
        "stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#;
    let reply = server.complete(body).await;
    let counts: Vec<_> = reply.events().iter().map(|event| event["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts, [Some(1), Some(2), Some(3), Some(3), Some(3)], "{}", reply.body);
}

#[tokio::test]
async fn a_stop_string_ends_the_text_across_tokens() {
    let server = TestServer::start().await;
    let chat = |stop: &str, more: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"ab STOP cd"}}],"stream":true,"stop":{stop}{more}}}"#)
    };
    let reply = server.chat(&chat(r#""STOP""#, "")).await;
    assert_eq!(reply.streamed_text(0), "ab ");
    assert_eq!(reply.events().last().unwrap()["choices"][0]["finish_reason"], "stop");
    let included = server.chat(&chat(r#"["xyz","STOP"]"#, r#","include_stop_str_in_output":true"#)).await;
    assert_eq!(included.streamed_text(0), "ab STOP");
    let held = server.chat(&chat(r#"["cd!"]"#, "")).await;
    assert_eq!(held.streamed_text(0), "ab STOP cd", "what was held back comes at the end");
    let late = server.chat(&chat(r#"[" "]"#, r#","min_tokens":3"#)).await;
    assert_eq!(late.streamed_text(0), "ab STOP", "a stop string before min_tokens is only text");
    server.until_empty().await;
}

#[tokio::test]
async fn no_chunk_splits_a_character() {
    let server = TestServer::start().await;
    let text = "naïve 🦀 日本";
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"stream":true}}"#);
    let reply = server.chat(&body).await;
    assert_eq!(reply.streamed_text(0), text);
    let contents = reply.events().iter().filter(|event| event["choices"][0]["delta"]["content"].is_string()).count();
    // The first has the role and nothing else, then one a character.
    assert_eq!(contents, 1 + text.chars().count());
}

#[tokio::test]
async fn choices_stream_side_by_side() {
    let server = TestServer::start().await;
    let body = r#"{"messages":[{"role":"user","content":"pair"}],"n":3,"stream":true,"stream_options":{"include_usage":true}}"#;
    let reply = server.chat(body).await;
    for choice in 0..3 {
        assert_eq!(reply.streamed_text(choice), "pair");
        let own = |event: &&serde_json::Value| event["choices"][0]["index"] == choice;
        let roles = reply.events().iter().filter(own).filter(|e| e["choices"][0]["delta"]["role"].is_string()).count();
        assert_eq!(roles, 1);
    }
    assert_eq!(reply.events().last().unwrap()["usage"]["completion_tokens"], 15);
    assert_eq!(reply.events().last().unwrap()["usage"]["prompt_tokens"], 4);
}

#[tokio::test]
async fn each_token_is_sent_when_it_comes() {
    let server = TestServer::start().await;
    server.gate.close();
    server.gate.allow(1);
    let mut response = server.open_chat(r#"{"messages":[{"role":"user","content":"xyz"}],"stream":true}"#).await;
    let first = next_frame(&mut response).await.unwrap();
    assert!(first.contains(r#""role":"assistant""#) && first.contains(r#""content":"x""#), "{first}");
    server.gate.allow(1);
    let second = next_frame(&mut response).await.unwrap();
    assert!(second.contains(r#""content":"y""#) && !second.contains("role"), "{second}");
    server.gate.open();
    let mut rest = String::new();
    while let Some(frame) = next_frame(&mut response).await {
        rest.push_str(&frame);
    }
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn a_fault_after_the_first_token_is_an_event_and_concerns_nobody_else() {
    let server = TestServer::start().await;
    server.gate.close();
    server.gate.allow(1);
    let json = [("content-type", "application/json")];
    let body = r#"{"prompt":[104,261],"stream":true,"max_tokens":9}"#;
    let mut response = server.open(hyper::Method::POST, "/v1/completions", &json, body).await;
    assert_eq!(response.status(), 200);
    let mut text = next_frame(&mut response).await.unwrap();
    server.gate.open();
    while let Some(frame) = next_frame(&mut response).await {
        text.push_str(&frame);
    }
    assert_snapshot!(redacted(&text), @r#"
    data: {"id":"[id]","object":"text_completion","created":0,"model":"echo","choices":[{"index":0,"text":"h","logprobs":null,"finish_reason":null}]}

    data: {"error":{"message":"the server failed: the model computed values that are not numbers","type":"internal_error","param":null,"code":"engine_fault"}}

    data: [DONE]
    "#);
    server.prove_alive().await;
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_whatever_else_runs() {
    let config = NullConfig { vocab_size: VOCAB_SIZE - 10, ..NullConfig::default() };
    let executor = Box::new(NullExecutor::new(config));
    let server = TestServer::with(Setup { executor: Some(executor), ..Setup::default() }).await;
    let body = |seed: &str| format!(r#"{{"prompt":"p","max_tokens":20,"n":2{seed}}}"#);
    let texts = |reply: crate::harness::Reply| {
        let choices = reply.json()["choices"].as_array().unwrap().clone();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let alone = texts(server.complete(&body(r#","seed":7"#)).await);
    let (other, beside) = (body(r#","seed":8"#), body(r#","seed":7"#));
    let (other, beside) = tokio::join!(server.complete(&other), server.complete(&beside));
    assert_eq!(alone, texts(beside));
    assert_ne!(alone[0], alone[1], "choices differ from one another");
    assert_ne!(alone, texts(other));
    assert_ne!(
        texts(server.complete(&body("")).await),
        texts(server.complete(&body("")).await),
        "no seed, no repetition"
    );
}
