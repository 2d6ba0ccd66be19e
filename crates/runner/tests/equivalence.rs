//! What a request generates does not depend on how its steps were cut or whom it shared them with. The fake model
//! reads its own cache back, so a wrong slot, block table, position or last token shows as another text or a failed
//! assertion.

mod common;

use common::*;
use plimsoll_core::TokenId;

/// Same as the request alone in big steps with an ample cache, event for event.
fn reference(requests: &[plimsoll_core::Request]) -> Vec<Outcome> {
    Rig::fake(&Setup::default()).run_singly(requests)
}

fn without_cached(outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.into_iter().map(|outcome| Outcome { cached_tokens: 0, ..outcome }).collect()
}

#[test]
fn greedy_text_is_what_the_definition_says() {
    let requests: Vec<_> = (0..30).map(|i| request(i, prompt(i, 1 + 3 * i as usize), 30)).collect();
    let outcomes = Rig::fake(&Setup::default()).run(&requests);
    for (request, outcome) in requests.iter().zip(outcomes) {
        assert_eq!(outcome.tokens, greedy_oracle(&request.prompt, 30));
    }
}

#[test]
fn batched_equals_single() {
    let requests = crowd(50);
    let batched = Rig::fake(&Setup::default()).run(&requests);
    assert_same(&batched, &reference(&requests));
    assert!(batched[0].logprobs.iter().all(|l| l.top.len() == 3 && l.logprob <= 0.0));
}

#[test]
fn chunked_equals_whole() {
    let requests = crowd(50);
    let expected = reference(&requests);
    for max_num_batched_tokens in [4, 7, 33] {
        let setup = Setup { max_num_seqs: 4, max_num_batched_tokens, ..Setup::default() };
        assert_same(&Rig::fake(&setup).run(&requests), &expected);
    }
}

#[test]
fn preempted_equals_uninterrupted() {
    let requests = crowd(50);
    let setup = Setup { max_num_seqs: 8, max_num_batched_tokens: 40, num_blocks: [40, 40], ..Setup::default() };
    let mut rig = Rig::fake(&setup);
    assert_same(&rig.run(&requests), &reference(&requests));
    assert!(rig.stats().preemptions >= 5, "the pool was meant to be tight: {:?}", rig.stats());
}

#[test]
fn cached_prefix_equals_cold() {
    let shared = prompt(1000, 60);
    let mut requests = crowd(40);
    for (cut, request) in requests.iter_mut().enumerate() {
        request.prompt.splice(0..0, shared[..20 + cut].iter().copied());
    }
    let setup = Setup { prefix_caching: true, num_blocks: [300, 120], ..Setup::default() };
    let mut rig = Rig::fake(&setup);
    let expected = reference(&requests);
    assert_same(&without_cached(rig.run(&requests)), &expected);
    // Again, over what the first run left.
    assert_same(&without_cached(rig.run(&requests)), &expected);
    assert!(rig.stats().prefix_hit_tokens > 500, "prefixes were meant to be found: {:?}", rig.stats());
}

#[test]
fn everything_at_once_equals_single() {
    let requests = crowd(80);
    let setup = Setup { max_num_seqs: 6, max_num_batched_tokens: 19, num_blocks: [36, 30], prefix_caching: true };
    let mut rig = Rig::fake(&setup);
    assert_same(&without_cached(rig.run(&requests)), &reference(&requests));
    assert!(rig.stats().preemptions > 0);
}

#[test]
fn a_slot_bound_anew_remembers_nothing() {
    let mut penalised = request(0, prompt(5, 10), 40);
    penalised.sampling.repetition_penalty = 2.0;
    penalised.sampling.frequency_penalty = 1.0;
    let mut rig = Rig::fake(&Setup { max_num_seqs: 1, ..Setup::default() });
    let again = |id| plimsoll_core::Request { id: plimsoll_core::RequestId(id), ..penalised.clone() };
    let outcomes = rig.run_singly(&[again(0), again(1), request(2, prompt(5, 10), 40)]);
    assert_eq!(outcomes[0], outcomes[1]);
    assert_eq!(outcomes[2].tokens, greedy_oracle(&prompt(5, 10), 40));
    assert_ne!(outcomes[0].tokens, outcomes[2].tokens, "the penalties were meant to matter");
}

#[test]
fn no_stop_token_comes_before_min_tokens() {
    let stops: Vec<TokenId> = (0..VOCAB as u32 - 5).collect();
    let mut patient = request(0, prompt(3, 9), 20);
    (patient.stop.stop_token_ids, patient.stop.min_tokens) = (stops.clone(), 6);
    let tokens = Rig::fake(&Setup::default()).run(&[patient]).remove(0).tokens;
    let first_stop = tokens.iter().position(|token| stops.contains(token)).expect("almost every token stops");
    assert!(first_stop >= 6 && first_stop + 1 == tokens.len(), "{tokens:?}");
}

#[test]
fn logits_that_are_not_finite_fail_their_request_alone() {
    let mut requests = crowd(12);
    requests[4].prompt.push(POISON);
    let outcomes = Rig::fake(&Setup::default()).run(&requests);
    assert!(outcomes[4].has_failed && outcomes[4].tokens.is_empty());
    requests.remove(4);
    let others: Vec<_> = outcomes.into_iter().filter(|outcome| !outcome.has_failed).collect();
    assert_same(&others, &reference(&requests));
}
