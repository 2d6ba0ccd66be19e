//! Hostile files: each must be refused with a message that names the culprit, without a panic or a large allocation.

use super::*;

/// Writes GGUF files, right or wrong.
#[derive(Clone)]
struct Builder {
    version: u32,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    /// What the header claims beyond what is there.
    extra_pairs: u64,
    extra_tensors: u64,
    data: usize,
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(key.as_bytes()), &kind.to_le_bytes()[..], value].concat()
}

fn tensor(name: &str, dimensions: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut entry = string(name.as_bytes());
    entry.extend((dimensions.len() as u32).to_le_bytes());
    dimensions.iter().for_each(|d| entry.extend(d.to_le_bytes()));
    entry.extend(ty.to_le_bytes());
    entry.extend(offset.to_le_bytes());
    entry
}

impl Builder {
    /// One pair, and two tensors that fill the data: `a`, F32 `[2, 8]`, and `b`, Q8_0 `[1, 32]`.
    fn valid() -> Self {
        Self {
            version: 3,
            pairs: vec![pair("general.architecture", 8, &string(b"llama"))],
            tensors: vec![tensor("a", &[8, 2], 0, 0), tensor("b", &[32, 1], 8, 64)],
            extra_pairs: 0,
            extra_tensors: 0,
            data: 64 + 34,
        }
    }

    fn with_pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.push(pair(key, kind, value));
        self
    }

    fn with_second_tensor(mut self, entry: Vec<u8>) -> Self {
        self.tensors[1] = entry;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64 + self.extra_tensors).to_le_bytes());
        file.extend((self.pairs.len() as u64 + self.extra_pairs).to_le_bytes());
        self.pairs.iter().chain(&self.tensors).for_each(|part| file.extend(part));
        file.resize(file.len().next_multiple_of(32) + self.data, 0);
        file
    }

    fn problem(&self) -> String {
        parse(&self.bytes()).map(|_| ()).expect_err("must be refused")
    }
}

#[track_caller]
fn check(file: Builder, expected: &[&str]) {
    let problem = file.problem();
    for part in expected {
        assert!(problem.contains(part), "{part:?} is not in {problem:?}");
    }
}

#[test]
fn a_valid_file_is_read() {
    let file = Builder::valid()
        .with_pair("x.array", 9, &[&6u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1.5f32.to_le_bytes()].concat())
        .with_pair("x.skipped", 9, &[&12u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 8]].concat())
        .with_pair("x.negative", 5, &(-3i32).to_le_bytes());
    for version in [2, 3] {
        let bytes = Builder { version, ..file.clone() }.bytes();
        let (metadata, tensors) = parse(&bytes).unwrap();
        assert_eq!(metadata.get("general.architecture").unwrap().as_str(), Some("llama"));
        assert_eq!(metadata.get("x.array").unwrap().as_f32s(), Some(&[1.5][..]));
        assert_eq!(metadata.get("x.skipped"), Some(&GgufValue::Array(GgufArray::Other)));
        assert_eq!(metadata.get("x.negative").unwrap().as_f64(), Some(-3.0));
        assert_eq!(metadata.get("x.negative").unwrap().as_u64(), None);
        assert_eq!((&tensors["a"].shape[..], tensors["a"].bytes.len()), (&[2, 8][..], 64));
        assert_eq!(tensors["b"].bytes, bytes.len() - 34..bytes.len());
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = Builder::valid().with_pair("x", 4, &7u32.to_le_bytes()).bytes();
    for length in 0..bytes.len() {
        assert!(parse(&bytes[..length]).is_err(), "cut to {length} of {} bytes", bytes.len());
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes = Builder::valid()
        .with_pair("x.y", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &string(b"z")].concat())
        .bytes();
    let header = bytes.len() - 98;
    for at in 0..header {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            if let Ok((_, tensors)) = parse(&damaged) {
                assert!(tensors.values().all(|t| t.bytes.end <= damaged.len()), "byte {at} set to {value}");
            }
        }
    }
}

#[test]
fn headers_that_lie_are_refused() {
    check(Builder { version: 1, ..Builder::valid() }, &["version 1"]);
    check(Builder { version: 3u32.swap_bytes(), ..Builder::valid() }, &["big-endian"]);
    check(Builder { extra_pairs: 1 << 60, ..Builder::valid() }, &["metadata", "room"]);
    check(Builder { extra_tensors: u64::MAX - 2, ..Builder::valid() }, &["tensor table", "room"]);
    assert!(parse(b"PK\x03\x04").unwrap_err().contains("not a GGUF file"));
}

#[test]
fn hostile_metadata_is_refused() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let valid = Builder::valid;
    check(valid().with_pair("x", 13, &[]), &["metadata key x", "unknown type 13"]);
    check(valid().with_pair("x", 8, &u64::MAX.to_le_bytes()), &["metadata key x", "room"]);
    check(valid().with_pair("x", 8, &string(b"\xff")), &["metadata key x", "UTF-8"]);
    check(valid().with_pair("x", 7, &[2]), &["metadata key x", "boolean"]);
    check(valid().with_pair("x", 9, &array(6, 1 << 62)), &["metadata key x", "room"]);
    check(valid().with_pair("x", 9, &array(11, u64::MAX)), &["metadata key x", "room"]);
    check(valid().with_pair("x", 9, &array(8, 1 << 40)), &["metadata key x", "room"]);
    check(valid().with_pair("x", 9, &array(9, 1)), &["metadata key x", "array of arrays"]);
    check(valid().with_pair("x", 9, &array(99, 0)), &["metadata key x", "unknown type 99"]);
    check(valid().with_pair("x", 4, &[0; 4]).with_pair("x", 4, &[0; 4]), &["key x twice"]);
    for alignment in [0u32, 1, 48, 1 << 20] {
        check(valid().with_pair("general.alignment", 4, &alignment.to_le_bytes()), &["general.alignment"]);
    }
    check(valid().with_pair("general.alignment", 8, &string(b"32")), &["general.alignment is not an integer"]);
}

#[test]
fn hostile_tensors_are_refused() {
    let with = |entry| Builder::valid().with_second_tensor(entry);
    check(with(tensor("a", &[32], 0, 64)), &["tensor a", "twice"]);
    check(with(tensor("b", &[32, 1], 8, 32)), &["tensors a and b overlap"]);
    check(with(tensor("b", &[32, 2], 8, 64)), &["tensor b", "beyond the file's end"]);
    check(with(tensor("b", &[32, 1], 8, 1 << 62)), &["tensor b", "beyond the file's end"]);
    check(with(tensor("b", &[32, 1], 8, u64::MAX - 31)), &["tensor b", "larger than memory"]);
    check(with(tensor("b", &[32, 1], 8, 65)), &["tensor b", "multiple of the alignment"]);
    check(with(tensor("b", &[33, 1], 8, 64)), &["tensor b", "rows of 33"]);
    check(with(tensor("b", &[32, 0], 8, 64)), &["tensor b", "dimension of 0"]);
    check(with(tensor("b", &[], 8, 64)), &["tensor b", "0 dimensions"]);
    check(with(tensor("b", &[1; 5], 0, 64)), &["tensor b", "5 dimensions"]);
    check(with(tensor("b", &[1 << 32, 1 << 32, 1 << 32], 0, 64)), &["tensor b", "larger than memory"]);
    check(with(tensor("b", &[32, 1], 40, 64)), &["tensor b", "ggml type 40"]);
    check(with(tensor(&"n".repeat(1000), &[32, 1], 40, 64)), &["tensor nnn", "..."]);
}

#[test]
fn metadata_that_would_change_the_result_is_refused() {
    let uint = |file: Builder, key: &str, value: u32| file.with_pair(key, 4, &value.to_le_bytes());
    let mut llama = Builder::valid();
    llama.tensors[0] = tensor("token_embd.weight", &[8, 2], 0, 0);
    for (key, value) in [("embedding_length", 8), ("attention.head_count", 2), ("block_count", 1)] {
        llama = uint(llama, &format!("llama.{key}"), value);
    }
    for key in ["feed_forward_length", "context_length"] {
        llama = uint(llama, &format!("llama.{key}"), 16);
    }
    let lacking = llama.clone();
    llama = llama.with_pair("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes());
    let synthesized = |file: &Builder| {
        let bytes = file.bytes();
        let (metadata, tensors) = parse(&bytes).unwrap();
        config::synthesize(&metadata, &tensors, &bytes)
    };
    let config = synthesized(&llama).unwrap();
    assert_eq!((&config["vocab_size"], &config["head_dim"]), (&2.into(), &4.into()));
    assert_eq!(config["tie_word_embeddings"], true);

    let cases = [
        (lacking, "llama.attention.layer_norm_rms_epsilon"),
        (uint(llama.clone(), "llama.attention.sliding_window", 8), "llama.attention.sliding_window"),
        (uint(llama.clone(), "llama.expert_count", 8), "llama.expert_count"),
        (uint(llama.clone(), "llama.rope.dimension_count", 2), "llama.rope.dimension_count"),
        (llama.clone().with_pair("llama.rope.scaling.type", 8, &string(b"longrope")), "longrope"),
        (llama.clone().with_pair("llama.rope.scaling.type", 8, &string(b"yarn")), "llama.rope.scaling.factor"),
        (
            llama.clone().with_pair("llama.rope.scaling.type", 8, &string(b"yarn")).with_pair(
                "llama.rope.scaling.factor",
                6,
                &4f32.to_le_bytes(),
            ),
            "llama.rope.scaling.original_context_length",
        ),
        (llama.clone().with_pair("llama.rope.freq_base", 6, &f32::NAN.to_le_bytes()), "llama.rope.freq_base"),
        (llama.clone().with_pair("general.type", 8, &string(b"adapter")), "general.type"),
    ];
    for (file, named) in cases {
        let problem = synthesized(&file).unwrap_err();
        assert!(problem.contains(named), "{named:?} is not in {problem:?}");
    }
}
