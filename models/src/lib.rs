//! The architectures: one file each, which reads like the paper, and one line each in the registry.
//!
//! A model file knows its config and its forward pass over packed `[tokens, hidden]`. It must never know a device, a
//! quantization, a file format, or the cache's memory; `nn` ends those.

mod decoder;
mod gemma3;
mod gpt_oss;
mod llama;
mod llama4;
mod qwen3;
mod qwen3_moe;
mod registry;
#[cfg(test)]
mod testing;
mod text_part;

pub use registry::{
    Architecture, Load, dummy_bytes, dummy_memory, find, load, load_dummy, memory, quantized_bytes, registry, survey,
};
