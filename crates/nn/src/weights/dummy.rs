//! Tensors that nobody trained: seeded random numbers at the shapes that a model asks for, so that its speed and its
//! memory can be seen without its weights.
//!
//! An element is a function of the seed, the tensor's name and the element's index alone, and of integers up to its
//! last two steps, so that the CUDA kernel `fill` makes the same bits. With `mix` the finalizer of SplitMix64
//! (doi:10.1145/2660193.2660195), `g` its constant `0x9e3779b97f4a7c15`, and all sums modulo 2^64:
//!
//! 1. the tensor's own seed is `mix(seed + mix(fnv1a(name)))`, and its hashes are `h[n] = mix(mix(own + g) + (n + 1) g)`;
//! 2. element `i` is the sum of the eight 16-bit quarters of `h[2 i]` and `h[2 i + 1]`, doubled, less its mean: nearly
//!    normal (Irwin-Hall), and exact in f32;
//! 3. multiplied in f32 by the wanted deviation over the sum's own, and rounded to nearest even.
//!
//! It must never know what a tensor is for.

use std::sync::{Mutex, PoisonError};

use candle_core::Result;
use half::{bf16, f16};
use plimsoll_ops::par::parallel_for;
use plimsoll_ops::quant::{GgmlType, RowFormat, encode_row};
use serde_json::Value;

use super::packed::make_rows;
use super::source::{self, Role};
use crate::quantization::Quantization;
use crate::{CheckpointError, Fields};

/// Elements that a thread makes at a time.
const CHUNK: usize = 1 << 16;
/// SplitMix64's.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the elements of a dummy tensor are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Nearly normal, around 0, with this standard deviation.
    Normal(f32),
    Constant(f32),
}

/// Makes tensors of one element type from one seed.
#[derive(Clone, Debug)]
pub(super) struct Dummy {
    ty: GgmlType,
    seed: u64,
    quantization: Quantization,
    /// The model is a mixture of experts, and its head a matrix of its own. (Were it the embedding, each token would
    /// foretell itself.)
    has_experts: bool,
}

impl Dummy {
    /// In the element type that `config` publishes the model in (`dtype`, formerly `torch_dtype`), or else bf16.
    pub(super) fn new(config: &Value, seed: u64) -> std::result::Result<Self, CheckpointError> {
        let fields = Fields::new(config)?;
        let name = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        let ty = match fields.text(name)?.unwrap_or("bfloat16") {
            "bfloat16" => GgmlType::BF16,
            "float16" => GgmlType::F16,
            "float32" => GgmlType::F32,
            other => {
                let problem = format!("{other:?} is not implemented; bfloat16, float16 and float32 are");
                return Err(fields.wrong(name, problem));
            }
        };
        let text = fields.nested("text_config")?.unwrap_or(fields);
        let has_experts = text.get("num_experts").or(text.get("num_local_experts")).is_some();
        let has_experts = has_experts && !text.flag("tie_word_embeddings", false)?;
        Ok(Self { ty, seed, quantization: Quantization::parse(config)?, has_experts })
    }

    pub(super) fn has_experts(&self) -> bool {
        self.has_experts
    }

    pub(super) fn ty(&self) -> GgmlType {
        self.ty
    }

    pub(super) fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// The rows of the matrix `name` in a format: of the numbers that are its elements in f32, each row's to the nearest
    /// that the format has.
    pub(super) fn matrix(&self, name: &str, [rows, cols]: [usize; 2], format: RowFormat) -> Result<Vec<u8>> {
        let fill = source::fill(name, Role::Matrix, &[rows, cols], self.has_experts);
        let Fill::Normal(deviation) = fill else { unreachable!("matrices are random") };
        if format == self.ty.into() {
            return Ok(self.make(name, &[rows, cols], fill));
        }
        let row_bytes = format.row_bytes(cols).expect("a format of these columns");
        let (stream, step) = (mix(self.seed_of(name).wrapping_add(GAMMA)), step(deviation));
        make_rows(rows, row_bytes, |row, out| {
            let first = (row * cols) as u64;
            let values: Vec<f32> = (first..).take(cols).map(|index| sum(stream, index) as f32 * step).collect();
            encode_row(format, &values, out)
        })
    }

    /// Bytes of a tensor of this shape.
    pub(super) fn bytes(&self, shape: &[usize]) -> u64 {
        shape.iter().fold(self.ty.block_bytes() as u64, |bytes, &size| bytes.saturating_mul(size as u64))
    }

    /// The bytes of the tensor `name`, little-endian, made on all of the CPU's threads.
    pub(super) fn make(&self, name: &str, shape: &[usize], fill: Fill) -> Vec<u8> {
        let element = self.ty.block_bytes();
        let mut bytes = vec![0; self.bytes(shape) as usize];
        let chunks: Vec<Mutex<&mut [u8]>> = bytes.chunks_mut(CHUNK * element).map(Mutex::new).collect();
        let own = self.seed_of(name);
        parallel_for(chunks.len(), |index| {
            let mut chunk = chunks[index].lock().unwrap_or_else(PoisonError::into_inner);
            self.fill(&mut chunk, own, (index * CHUNK) as u64, fill);
        });
        drop(chunks);
        bytes
    }

    /// The seed of the tensor `name` alone.
    pub(super) fn seed_of(&self, name: &str) -> u64 {
        let fnv1a = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv1a);
        mix(self.seed.wrapping_add(mix(hash)))
    }

    /// Fills `out` with the elements from index `first` on.
    fn fill(&self, out: &mut [u8], seed: u64, first: u64, fill: Fill) {
        match self.ty {
            GgmlType::F32 => write(out, seed, first, fill, f32::to_le_bytes),
            GgmlType::F16 => write(out, seed, first, fill, |x| f16::from_f32(x).to_le_bytes()),
            _ => write(out, seed, first, fill, |x| bf16::from_f32(x).to_le_bytes()),
        }
    }
}

fn write<const N: usize>(out: &mut [u8], seed: u64, first: u64, fill: Fill, encode: impl Fn(f32) -> [u8; N]) {
    let elements = out.as_chunks_mut::<N>().0;
    match fill {
        Fill::Constant(value) => elements.fill(encode(value)),
        Fill::Normal(deviation) => {
            let (stream, step) = (mix(seed.wrapping_add(GAMMA)), step(deviation));
            for (index, element) in (first..).zip(elements) {
                *element = encode(sum(stream, index) as f32 * step);
            }
        }
    }
}

/// Twice the sum of eight uniform 16-bit numbers, less its mean.
fn sum(stream: u64, index: u64) -> i32 {
    let hash = |n: u64| mix(stream.wrapping_add((n + 1).wrapping_mul(GAMMA)));
    let quarters = |bits: u64| (0..4).map(|n| i32::from((bits >> (16 * n)) as u16)).sum::<i32>();
    2 * (quarters(hash(2 * index)) + quarters(hash(2 * index + 1))) - 8 * 65535
}

/// What one of the doubled sum's units is worth: eight uniform numbers below `n` have a variance of
/// `8 (n^2 - 1) / 12`.
fn step(deviation: f32) -> f32 {
    let variance: f64 = 8.0 * ((1u64 << 32) - 1) as f64 / 12.0;
    (f64::from(deviation) / (2.0 * variance.sqrt())) as f32
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dummy(dtype: &str, seed: u64) -> Dummy {
        Dummy::new(&json!({"dtype": dtype}), seed).unwrap()
    }

    fn floats(dummy: &Dummy, name: &str, len: usize, fill: Fill) -> Vec<f32> {
        let bytes = dummy.make(name, &[len], fill);
        let mut out = vec![0.0; len];
        plimsoll_ops::quant::dequantize_row(dummy.ty(), &bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn numbers_are_nearly_normal_with_the_deviation_asked_for() {
        let x = floats(&dummy("float32", 1), "w", 1 << 20, Fill::Normal(0.02));
        let moment = |power: i32| x.iter().map(|&x| (f64::from(x) / 0.02).powi(power)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.005, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.01, "variance {}", moment(2));
        // 3 of the normal distribution, less 6/5 over the number of uniform terms.
        assert!((moment(4) - 2.85).abs() < 0.05, "fourth moment {}", moment(4));
        let neighbours: f64 = x.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / (0.0004 * x.len() as f64);
        assert!(neighbours.abs() < 0.005, "correlation {neighbours}");
    }

    #[test]
    fn seed_name_and_index_decide_and_nothing_else() {
        let make = |seed, name| floats(&dummy("bfloat16", seed), name, 3 * CHUNK + 5, Fill::Normal(1.0));
        let first = make(7, "model.norm.weight");
        assert_eq!(first, make(7, "model.norm.weight"));
        let alike = |other: Vec<f32>| first.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(alike(make(8, "model.norm.weight")) < first.len() / 100);
        assert!(alike(make(7, "model.norm.weighu")) < first.len() / 100);
        // A longer tensor begins alike; so chunks and threads do not show.
        assert_eq!(floats(&dummy("bfloat16", 7), "model.norm.weight", 100, Fill::Normal(1.0)), first[..100]);
        // Known answers, from another program.
        let own = dummy("float32", 0).seed_of("lm_head.weight");
        assert_eq!(own, 0x58a0_c320_d019_262c);
        let stream = mix(own.wrapping_add(GAMMA));
        assert_eq!([0, 1, 1 << 40].map(|index| sum(stream, index)), [2252, -53868, 235920]);
        assert_eq!(floats(&dummy("float32", 0), "lm_head.weight", 1, Fill::Normal(1.0)), [2252.0 * step(1.0)]);
    }

    #[test]
    fn types_round_the_same_numbers() {
        let exact = floats(&dummy("float32", 3), "w", 1000, Fill::Normal(0.02));
        for (dtype, relative) in [("float16", 1.0 / 2048.0), ("bfloat16", 1.0 / 256.0)] {
            for (rounded, exact) in floats(&dummy(dtype, 3), "w", 1000, Fill::Normal(0.02)).iter().zip(&exact) {
                assert!((rounded - exact).abs() <= exact.abs() * relative + 1e-7, "{dtype}: {rounded}, {exact}");
            }
        }
        assert_eq!(floats(&dummy("float16", 3), "w", 3, Fill::Constant(1.0)), [1.0; 3]);
    }

    #[test]
    fn the_type_is_the_config_s() {
        assert_eq!(Dummy::new(&json!({"torch_dtype": "float16"}), 0).unwrap().ty(), GgmlType::F16);
        assert_eq!(Dummy::new(&json!({}), 0).unwrap().ty(), GgmlType::BF16);
        let error = Dummy::new(&json!({"dtype": "float8_e4m3fn"}), 0).unwrap_err().to_string();
        assert!(error.contains("`dtype`") && error.contains("float8_e4m3fn"), "{error}");
        assert_eq!(dummy("float32", 0).bytes(&[3, 5]), 60);
    }
}
