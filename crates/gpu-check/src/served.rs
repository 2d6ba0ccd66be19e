//! Which models are served, and what is put on them: the most telling first.

use crate::serving::Load;

/// A model and its loads.
pub struct Served {
    /// What `--only` goes by.
    pub model: &'static str,
    /// In the data folder.
    pub config: &'static str,
    /// `--max-model-len` of the server.
    pub len: u32,
    pub loads: &'static [Load],
}

/// Prompts of 1 to 63 random tokens, 100 out: the reference workload's lengths.
const fn short(concurrency: u32, requests: u32, max_seconds: u64) -> Load {
    Load { concurrency, requests, max_seconds, input_tokens: "1-63", output_tokens: 100 }
}

/// 1024 in, 1024 out.
const LONG: Load = Load { concurrency: 256, requests: 512, max_seconds: 45, input_tokens: "1024", output_tokens: 1024 };

const LEN: u32 = 2304;

macro_rules! architecture {
    ($name:literal) => {
        concat!("configs/architectures/", $name, ".json")
    };
}

pub const FULL: &[Served] = &[
    Served {
        model: "gpt-oss-20b",
        config: architecture!("gpt-oss-20b"),
        len: LEN,
        loads: &[
            short(32, 960, 20),
            short(4096, 12_288, 45),
            short(1, 60, 10),
            LONG,
            short(1024, 4096, 25),
            short(256, 1536, 20),
        ],
    },
    Served {
        model: "llama-4-scout-fp8",
        config: architecture!("llama-4-scout-17b-16e-instruct-fp8"),
        len: LEN,
        loads: &[short(32, 320, 25), short(512, 2048, 35), short(1, 15, 10), short(4096, 4096, 60)],
    },
    Served {
        model: "llama-3.1-8b",
        config: architecture!("llama-3.1-8b"),
        len: LEN,
        loads: &[short(32, 320, 20), short(4096, 8192, 30), short(256, 1536, 20), short(1024, 4096, 25)],
    },
    Served {
        model: "llama-4-scout-int4",
        config: architecture!("llama-4-scout-17b-16e-instruct-int4"),
        len: LEN,
        loads: &[short(32, 320, 25), short(512, 2048, 35), short(1, 20, 10)],
    },
    Served {
        model: "gpt-oss-120b",
        config: architecture!("gpt-oss-120b"),
        len: LEN,
        loads: &[short(32, 480, 20), short(4096, 8192, 45), short(1, 30, 10)],
    },
    Served {
        model: "gemma-3-27b-it",
        config: architecture!("gemma-3-27b-it"),
        len: LEN,
        loads: &[short(32, 256, 25), short(512, 2048, 35), short(1, 10, 10), short(4096, 4096, 60)],
    },
    Served {
        model: "qwen3-30b-a3b",
        config: architecture!("qwen3-30b-a3b"),
        len: LEN,
        loads: &[short(32, 320, 20), short(4096, 8192, 45), short(1, 20, 10)],
    },
    Served {
        model: "llama-3.1-8b-int4",
        config: architecture!("llama-3.1-8b-int4"),
        len: LEN,
        loads: &[short(32, 480, 15), short(1, 30, 10), short(4096, 8192, 30)],
    },
    Served {
        model: "llama-3.1-8b-fp8",
        config: architecture!("llama-3.1-8b-fp8"),
        len: LEN,
        loads: &[short(32, 480, 15), short(1, 30, 10), short(4096, 8192, 30)],
    },
];

/// The same names over tiny models.
pub const REHEARSAL: &[Served] = &[
    tiny("gpt-oss-20b", "tests/golden/gpt-oss-mxfp4/config.json"),
    tiny("llama-4-scout-fp8", "tests/golden/llama4-fp8-channel/config.json"),
    tiny("llama-3.1-8b", "tests/golden/llama/config.json"),
    tiny("llama-4-scout-int4", "tests/golden/llama4-ct-int4/config.json"),
    tiny("gpt-oss-120b", "tests/golden/gpt-oss-mxfp4/config.json"),
    tiny("gemma-3-27b-it", "tests/golden/gemma3/config.json"),
    tiny("qwen3-30b-a3b", "tests/golden/qwen3_moe/config.json"),
    tiny("llama-3.1-8b-int4", "tests/golden/llama-ct-int4/config.json"),
    tiny("llama-3.1-8b-fp8", "tests/golden/llama-fp8-channel/config.json"),
];

const fn tiny(model: &'static str, config: &'static str) -> Served {
    const LOADS: &[Load] =
        &[Load { concurrency: 2, requests: 4, max_seconds: 60, input_tokens: "1-20", output_tokens: 8 }];
    Served { model, config, len: 128, loads: LOADS }
}
