//! The same requests, served in different ways, give the same tokens and the same log probabilities to the last bit:
//! batched == single, chunked == whole, preempted == uninterrupted, cached prefix == cold. On both real models.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use serde_json::{Value, json};

use support::Server;

const PROMPTS: [&str; 8] = [
    "The first thing to know about the sea is",
    "Once upon a time, in a small village by the mountains, there lived an old clockmaker who",
    "2 + 2 = 4, 3 + 3 = 6, 4 + 4 =",
    "def fibonacci(n):\n    ",
    "The capital of France is",
    "Die Katze sitzt auf dem Dach und",
    "Ingredients: flour, eggs, milk, a pinch of salt. Method: first, mix the flour with the eggs until smooth. Then",
    "Dear Sir or Madam,\n\nI am writing to you about the invoice of last month, which",
];

/// What a prompt's completion came to: its text, and its log probabilities.
type Outcome = (String, Value);

fn request(model: &str, index: usize) -> Value {
    // Half greedy, half drawn with a seed.
    let temperature = if index.is_multiple_of(2) { 0.0 } else { 0.9 };
    json!({"model": model, "prompt": PROMPTS[index], "max_tokens": 40, "temperature": temperature, "seed": index,
           "top_p": 0.95, "logprobs": 2, "ignore_eos": true})
}

fn complete(server: &Server, model: &str, index: usize) -> Outcome {
    let body = server.ask("/v1/completions", &request(model, index));
    let choice = &body["choices"][0];
    (choice["text"].as_str().expect("a text").to_owned(), choice["logprobs"].clone())
}

fn one_by_one(server: &Server, model: &str) -> Vec<Outcome> {
    (0..PROMPTS.len()).map(|index| complete(server, model, index)).collect()
}

fn all_at_once(server: &Server, model: &str) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..PROMPTS.len()).map(|index| scope.spawn(move || complete(server, model, index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a completion")).collect()
    })
}

fn check(model: &str, tiny_cache: &str) {
    let server = Server::start(&[model, "--max-model-len", "256", "--prefix-caching", "false"]);
    let single = one_by_one(&server, model);
    assert!(single.iter().all(|(text, _)| !text.is_empty()));
    assert_eq!(all_at_once(&server, model), single, "batched == single");
    drop(server);

    let server =
        Server::start(&[model, "--max-model-len", "256", "--max-num-batched-tokens", "8", "--max-num-seqs", "8"]);
    assert_eq!(all_at_once(&server, model), single, "chunked == whole");
    let hits = server.metric("vllm:prefix_cache_hits");
    assert_eq!(one_by_one(&server, model), single, "cached prefix == cold");
    assert!(server.metric("vllm:prefix_cache_hits") > hits, "the second round meets the first one's blocks");
    drop(server);

    let server = Server::start(&[model, "--max-model-len", "128", "--kv-cache-memory", tiny_cache]);
    assert_eq!(all_at_once(&server, model), single, "preempted == uninterrupted");
    assert!(server.metric("plimsoll:num_preemptions_total") > 0.0, "the cache was small enough to preempt");
}

#[test]
fn smollm2() {
    // 8 sequences of about 60 tokens want 10.5 MiB of f16 keys and values; 128 tokens are 2.8 MiB.
    check("smollm2-135m-instruct", "6MiB");
}

#[test]
fn gemma() {
    check("gemma-3-270m", "5MiB");
}
