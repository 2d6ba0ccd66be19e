//! Prompt tokens are scored as they would have been when generated, whatever cuts, interrupts or accompanies them.

mod common;

use common::*;
use plimsoll_core::{PromptLogprobs, Request};

fn scoring(mut request: Request) -> Request {
    request.sampling.prompt_logprobs = Some(3);
    request
}

/// Every other one wants its prompt scored.
fn mixed_crowd(size: u64) -> Vec<Request> {
    let wants = |(at, request)| if at % 2 == 0 { scoring(request) } else { request };
    crowd(size).into_iter().enumerate().map(wants).collect()
}

/// By the definition alone: no cache, no batch.
fn oracle(prompt: &[u32]) -> Vec<f32> {
    let score = |at: usize| {
        let logits = fake_logits(&prompt[..at], &prompt[at.saturating_sub(WINDOW as usize)..at]);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        (f64::from(logits[prompt[at] as usize]) - total.ln()) as f32
    };
    (1..prompt.len()).map(score).collect()
}

fn reference(requests: &[Request]) -> Vec<Outcome> {
    Rig::fake(&Setup::default()).run_singly(requests)
}

fn without_cached(outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.into_iter().map(|outcome| Outcome { cached_tokens: 0, ..outcome }).collect()
}

#[test]
fn scores_are_what_the_definition_says() {
    for len in [1, 2, 7, 100, 200] {
        let request = scoring(request(0, prompt(len, len as usize), 2));
        let outcome = Rig::fake(&Setup::default()).run(std::slice::from_ref(&request)).remove(0);
        let expected = oracle(&request.prompt);
        assert_eq!(outcome.prompt.len(), expected.len());
        for (scored, expected) in outcome.prompt.iter().zip(expected) {
            assert!((scored.logprob - expected).abs() < 1e-5, "{scored:?}, not {expected}");
            let likelier = scored.top.iter().filter(|(_, logprob)| *logprob > scored.logprob).count() as u32;
            assert!(scored.top.len() == 3 && scored.rank > likelier.min(2));
        }
    }
}

/// What was generated is scored the same to the bit when it is part of a prompt.
#[test]
fn a_continuation_scores_as_it_was_generated() {
    let mut generating = request(0, prompt(3, 40), 60);
    (generating.sampling.temperature, generating.sampling.logprobs) = (0.8, Some(3));
    let generated = Rig::fake(&Setup::default()).run(std::slice::from_ref(&generating)).remove(0);
    let whole = [&generating.prompt[..], &generated.tokens].concat();
    let scored = Rig::fake(&Setup::default()).run(&[scoring(request(1, whole, 1))]).remove(0);
    assert_eq!(scored.prompt.len(), 99);
    for (PromptLogprobs { logprob, top, .. }, generated) in scored.prompt[39..].iter().zip(&generated.logprobs) {
        assert_eq!((logprob, top), (&generated.logprob, &generated.top));
    }
}

#[test]
fn chunks_companions_and_preemptions_change_nothing() {
    let requests = mixed_crowd(50);
    let expected = reference(&requests);
    for (seqs, tokens, blocks) in [(4, 4, 2000), (4, 7, 2000), (16, 33, 2000), (40, 4096, 2000), (8, 40, 40)] {
        let (max_num_seqs, max_num_batched_tokens) = (seqs, tokens);
        let setup = Setup { max_num_seqs, max_num_batched_tokens, num_blocks: [blocks; 2], ..Setup::default() };
        let mut rig = Rig::fake(&setup);
        assert_same(&rig.run(&requests), &expected);
        assert!(blocks > 40 || rig.stats().preemptions >= 5, "the pool was meant to be tight: {:?}", rig.stats());
    }
}

#[test]
fn a_cached_prefix_is_computed_again_where_it_is_to_be_scored() {
    let shared = prompt(1000, 60);
    let mut requests = mixed_crowd(40);
    for (cut, request) in requests.iter_mut().enumerate() {
        request.prompt.splice(0..0, shared[..20 + cut].iter().copied());
    }
    let expected = reference(&requests);
    for num_blocks in [[300, 120], [60, 40]] {
        let setup = Setup { max_num_seqs: 6, max_num_batched_tokens: 50, prefix_caching: true, num_blocks };
        let mut rig = Rig::fake(&setup);
        for _ in 0..2 {
            let outcomes = rig.run(&requests);
            let is_cold = |(request, outcome): (&Request, &Outcome)| {
                request.sampling.prompt_logprobs.is_none() || outcome.cached_tokens == 0
            };
            assert!(requests.iter().zip(&outcomes).all(is_cold));
            assert_same(&without_cached(outcomes), &expected);
        }
        assert!(rig.stats().prefix_hit_tokens > 0, "the others were meant to find it: {:?}", rig.stats());
    }
}

#[test]
fn a_prompt_without_finite_scores_fails_alone() {
    let mut requests = mixed_crowd(12);
    requests[4].prompt.push(POISON);
    requests[4].prompt.push(1);
    let outcomes = Rig::fake(&Setup { max_num_batched_tokens: 30, ..Setup::default() }).run(&requests);
    assert!(outcomes[4].has_failed && outcomes[4].tokens.is_empty());
    requests.remove(4);
    let others: Vec<_> = outcomes.into_iter().filter(|outcome| !outcome.has_failed).collect();
    assert_same(&others, &reference(&requests));
}
