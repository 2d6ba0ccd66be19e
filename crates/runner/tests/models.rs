//! Batched == single, chunked == whole, preempted == uninterrupted and cached prefix == cold on real layers: tokens and
//! log probabilities to the bit, on the tiny checkpoints in `tests/golden`.

mod common;

use std::path::Path;

use common::*;
use plimsoll_core::Request;
use plimsoll_nn::Checkpoint;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;

/// A checkpoint under test, and how it is computed.
struct Subject {
    path: &'static str,
    activations: Activations,
    kv_dtype: KvDtype,
}

impl Subject {
    fn rig(&self, setup: &Setup) -> Rig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(self.path);
        let checkpoint = Checkpoint::open(&path).expect("a golden checkpoint");
        let config = checkpoint.config();
        let info = (plimsoll_models::find(config).expect("a known architecture").info)(config).expect("a good config");
        let model = plimsoll_models::load(&checkpoint, self.activations, |_, _| {}).expect("good weights");
        Rig::over(&info, model, setup, &setup.num_blocks[..info.groups.len()], self.kv_dtype)
    }

    fn check(&self) {
        let requests = scored_crowd();
        let mut ample = self.rig(&Setup { max_num_seqs: 24, ..Setup::default() });
        let single = ample.run_singly(&requests);
        assert!(single.iter().all(|outcome| !outcome.has_failed && !outcome.tokens.is_empty()));
        assert!(single[0].logprobs.iter().all(|logprobs| logprobs.logprob.is_finite()));
        println!("{}: scored", self.path);
        check_scores(&mut ample, &requests[0], &single[0]);
        println!("{}: batched", self.path);
        assert_same(&ample.run(&requests), &single);
        println!("{}: chunked and preempted", self.path);
        self.check_cut_and_crowded(&requests, &single);
        println!("{}: cached", self.path);
        self.check_cached(&mut ample);
    }

    fn check_cut_and_crowded(&self, requests: &[Request], expected: &[Outcome]) {
        let chunked = Setup { max_num_seqs: 5, max_num_batched_tokens: 13, ..Setup::default() };
        assert_same(&self.rig(&chunked).run(requests), expected);
        let tight = Setup { max_num_batched_tokens: 40, num_blocks: [44, 44], ..Setup::default() };
        let mut rig = self.rig(&tight);
        assert_same(&rig.run(requests), expected);
        assert!(rig.stats().preemptions > 0, "the pool was meant to be tight: {:?}", rig.stats());
    }

    fn check_cached(&self, cold: &mut Rig) {
        let shared = prompt(1000, 48);
        let mut requests = crowd(16);
        for (cut, request) in requests.iter_mut().enumerate() {
            request.prompt.truncate(20);
            request.prompt.splice(0..0, shared[..33 + cut].iter().copied());
        }
        let expected = cold.run_singly(&requests);
        let mut warm = self.rig(&Setup { prefix_caching: true, ..Setup::default() });
        for _ in 0..2 {
            let outcomes = warm.run(&requests).into_iter();
            assert_same(&outcomes.map(|o| Outcome { cached_tokens: 0, ..o }).collect::<Vec<_>>(), &expected);
        }
        assert!(warm.stats().prefix_hit_tokens > 300, "prefixes were meant to be found: {:?}", warm.stats());
    }
}

/// Some want their prompts scored, too.
fn scored_crowd() -> Vec<Request> {
    let mut requests = crowd(24);
    requests.iter_mut().step_by(3).for_each(|request| request.sampling.prompt_logprobs = Some(2));
    requests
}

/// What a request generated is scored the same to the bit when it is part of a prompt. The request is greedy, without
/// penalties, and asks for log probabilities.
fn check_scores(rig: &mut Rig, request: &Request, generated: &Outcome) {
    let mut whole = request.clone();
    whole.prompt.extend(&generated.tokens);
    (whole.sampling.prompt_logprobs, whole.stop.max_tokens) = (Some(3), 1);
    let scored = rig.run(&[whole]).remove(0).prompt.split_off(request.prompt.len() - 1);
    assert_eq!(scored.len(), generated.logprobs.len());
    for (scored, generated) in scored.iter().zip(&generated.logprobs) {
        assert_eq!((scored.logprob, &scored.top), (generated.logprob, &generated.top));
        assert_eq!(scored.rank, 1, "it was chosen greedily");
    }
}

#[test]
fn llama_in_f32() {
    Subject { path: "llama", activations: Activations::F32, kv_dtype: KvDtype::F32 }.check();
}

#[test]
fn llama_quantized() {
    Subject { path: "llama/q4_0.gguf", activations: Activations::Int8, kv_dtype: KvDtype::F16 }.check();
}

#[test]
fn gemma3_in_f32() {
    Subject { path: "gemma3", activations: Activations::F32, kv_dtype: KvDtype::F32 }.check();
}

#[test]
fn gemma3_quantized() {
    Subject { path: "gemma3/q8_0.gguf", activations: Activations::Int8, kv_dtype: KvDtype::BF16 }.check();
}

#[test]
fn llama_quantized_with_an_fp8_cache() {
    Subject { path: "llama/q8_0.gguf", activations: Activations::Int8, kv_dtype: KvDtype::Fp8 }.check();
}

#[test]
fn gemma3_in_f32_with_an_fp8_cache() {
    Subject { path: "gemma3", activations: Activations::F32, kv_dtype: KvDtype::Fp8 }.check();
}
