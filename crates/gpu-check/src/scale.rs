//! How large everything is: as it is measured on a GPU, or as small as a rehearsal on a stand-in for one can bear, whose
//! figures mean nothing.

use crate::model::Sizes;
use crate::served::{self, Served};

pub struct Scale {
    /// Timed repetitions, of which the median is told.
    pub repetitions: usize,
    /// Work that one measurement should take at least, so that events' resolution does not matter.
    pub long_enough_s: f64,
    /// Bytes of the copy; many times any cache.
    pub copy_bytes: usize,
    /// Rows, columns and depth of the large product.
    pub side: usize,
    /// Kernels that move more are not timed.
    pub most_bytes: u64,
    /// Features of a layer's products are divided by this.
    pub layer_divisor: usize,
    /// Rows of a layer's products.
    pub layer_tokens: &'static [usize],
    /// Names of models and their config.json in the data folder; the most telling first.
    pub models: &'static [(&'static str, &'static str)],
    pub sizes: Sizes,
    /// Sequences that are decoded together.
    pub batches: &'static [u32],
    /// Prompt tokens of each before decoding, and tokens decoded.
    pub short: (usize, u32),
    /// A long prompt: one chunk of prefill, then decoding at that context.
    pub long: (usize, u32),
    pub served: &'static [Served],
}

const LLAMA_8B: &str = "configs/architectures/llama-3.1-8b.json";
const GPT_OSS_20B: &str = "configs/architectures/gpt-oss-20b.json";
const GEMMA_27B: &str = "configs/architectures/gemma-3-27b-it.json";

pub const FULL: Scale = Scale {
    repetitions: 21,
    long_enough_s: 1e-3,
    copy_bytes: 2 << 30,
    side: 8192,
    most_bytes: u64::MAX,
    layer_divisor: 1,
    layer_tokens: &[1, 8, 32, 128, 512, 8192],
    models: &[
        ("llama-3.1-8b", LLAMA_8B),
        ("gpt-oss-20b", GPT_OSS_20B),
        ("gemma-3-27b-it", GEMMA_27B),
        ("qwen3-30b-a3b", "configs/architectures/qwen3-30b-a3b.json"),
        ("qwen3-8b", "configs/architectures/qwen3-8b.json"),
        ("llama-3.2-1b", "configs/architectures/llama-3.2-1b.json"),
    ],
    sizes: Sizes {
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        max_model_len: 8448,
        cached_tokens: 256 * 128 + 8448,
    },
    batches: &[1, 32, 256],
    short: (32, 64),
    long: (8192, 32),
    served: served::FULL,
};

pub const REHEARSAL: Scale = Scale {
    repetitions: 1,
    long_enough_s: 0.0,
    copy_bytes: 1 << 20,
    side: 64,
    most_bytes: 1 << 18,
    layer_divisor: 64,
    layer_tokens: &[1, 32],
    models: &[
        ("llama-3.1-8b", "tests/golden/llama/config.json"),
        ("gpt-oss-20b", "tests/golden/gpt-oss-mxfp4/config.json"),
        ("gemma-3-27b-it", "tests/golden/gemma3/config.json"),
        ("qwen3-30b-a3b", "tests/golden/qwen3_moe/config.json"),
    ],
    sizes: Sizes { max_num_seqs: 2, max_num_batched_tokens: 64, max_model_len: 128, cached_tokens: 256 },
    batches: &[1, 2],
    short: (4, 6),
    long: (48, 6),
    served: served::REHEARSAL,
};
