//! The matrix products of one layer of real models: as the model computes them, against what cuBLASLt alone takes for
//! the same.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Result;
use candle_core::Tensor;
use cudarc::cublaslt::CudaBlasLT;
use cudarc::driver::CudaSlice;
use half::bf16;
use plimsoll_gpu_check::results::Row;
use plimsoll_ops::linear::Linear;
use serde_json::json;

use crate::ceilings::{Ceilings, multiply, noise, noise_on_host};
use crate::clock;
use crate::gpu::Gpu;
use crate::worker::Item;
use plimsoll_gpu_check::scale::Scale;

/// Out and in features of a layer's four matrices: queries, keys and values; attention's output; gate and up; down.
type Layer = [(usize, usize); 4];

const LAYERS: [(&str, Layer); 2] = [
    ("llama-3.1-8b", [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]),
    ("gemma-3-27b", [(8192, 5376), (5376, 4096), (43008, 5376), (5376, 21504)]),
];

pub(crate) fn items(out: &Path, scale: &Scale) -> Vec<Item> {
    let ceilings = Ceilings::read(out);
    let mut items = Vec::new();
    for (name, layer) in LAYERS {
        let layer = layer.map(|(out, into)| (out / scale.layer_divisor, into / scale.layer_divisor));
        for &tokens in scale.layer_tokens {
            let run = Box::new(move |gpu: &Gpu| time(gpu, layer, tokens, ceilings));
            items.push(Item { name: format!("dense/{name} tokens={tokens}"), run });
        }
    }
    items
}

fn time(gpu: &Gpu, layer: Layer, tokens: usize, ceilings: Ceilings) -> Result<Row> {
    let ours = ours(gpu, layer, tokens)?;
    let theirs = alone(gpu, layer, tokens)?;
    let weights: usize = layer.iter().map(|(out_features, in_features)| out_features * in_features).sum();
    let activations: usize =
        layer.iter().map(|(out_features, in_features)| (out_features + in_features) * tokens).sum();
    let mut row = ceilings.rates(2 * (weights + activations) as u64, 2 * (weights * tokens) as u64, ours);
    row.insert("cuBLASLt us".to_owned(), json!(theirs * 1e6));
    row.insert("of cuBLASLt".to_owned(), json!(theirs / ours));
    Ok(row)
}

/// Seconds for the four products, by the op that models use.
fn ours(gpu: &Gpu, layer: Layer, tokens: usize) -> Result<f64> {
    let mut products = Vec::new();
    for (out_features, in_features) in layer {
        let linear = Linear::dummy(&[(out_features, 1)], in_features, 0.02, &gpu.device)?;
        let x = Tensor::from_vec(noise_on_host(tokens * in_features), (tokens, in_features), &gpu.device)?;
        products.push((linear, x));
    }
    let round = || products.iter().try_for_each(|(linear, x)| linear.forward(x).map(drop).map_err(anyhow::Error::from));
    clock::replayed(gpu, products.len(), round)
}

/// Seconds for the four products, by cuBLASLt with the algorithm that it thinks best.
fn alone(gpu: &Gpu, layer: Layer, tokens: usize) -> Result<f64> {
    let blas = CudaBlasLT::new(gpu.stream.clone())?;
    let mut products = Vec::new();
    for (out_features, in_features) in layer {
        // SAFETY: written by the product, and never read.
        let y: CudaSlice<bf16> = unsafe { gpu.stream.alloc(tokens * out_features) }?;
        products.push((noise(gpu, out_features * in_features)?, noise(gpu, tokens * in_features)?, RefCell::new(y)));
    }
    let round = || {
        layer.iter().zip(&products).try_for_each(|(&(out_features, in_features), (weight, x, y))| {
            multiply(&blas, weight, x, &mut y.borrow_mut(), [tokens, out_features, in_features])
        })
    };
    clock::replayed(gpu, products.len(), round)
}
