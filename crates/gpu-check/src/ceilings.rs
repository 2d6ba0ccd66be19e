//! What the chip can do at most, measured once: the rate of a large copy, and that of a large matrix product. Every
//! other time is told as a share of these.

use std::path::Path;

use anyhow::Result;
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::CudaSlice;
use half::bf16;
use plimsoll_gpu_check::results::{Row, measured, row};
use plimsoll_kernel_checks::Random;
use serde_json::json;

use crate::clock;
use crate::gpu::Gpu;
use crate::worker::Item;

pub(crate) fn items() -> Vec<Item> {
    vec![
        Item { name: "device".to_owned(), run: Box::new(device) },
        Item { name: "copy".to_owned(), run: Box::new(copy) },
        Item { name: "matrix".to_owned(), run: Box::new(matrix) },
    ]
}

/// Both, as far as they were measured.
#[derive(Clone, Copy)]
pub(crate) struct Ceilings {
    copy_bytes_per_s: Option<f64>,
    matrix_flops_per_s: Option<f64>,
}

impl Ceilings {
    pub(crate) fn read(folder: &Path) -> Self {
        let number = |name, key| measured(folder, "ceilings", name, key).ok().flatten();
        Self {
            copy_bytes_per_s: number("copy", "GB/s").map(|rate| rate * 1e9),
            matrix_flops_per_s: number("matrix", "TFLOP/s").map(|rate| rate * 1e12),
        }
    }

    /// Rates of work that took `seconds`, and their shares of the ceilings.
    pub(crate) fn rates(self, bytes: u64, flops: u64, seconds: f64) -> Row {
        let (bytes, flops) = (bytes as f64 / seconds, flops as f64 / seconds);
        let share = |rate: f64, ceiling: Option<f64>| ceiling.map(|ceiling| json!(rate / ceiling));
        let mut row = row(json!({"us": seconds * 1e6}));
        if bytes > 0.0 {
            row.insert("GB/s".to_owned(), json!(bytes * 1e-9));
            row.extend(share(bytes, self.copy_bytes_per_s).map(|share| ("of copy".to_owned(), share)));
        }
        if flops > 0.0 {
            row.insert("TFLOP/s".to_owned(), json!(flops * 1e-12));
            row.extend(share(flops, self.matrix_flops_per_s).map(|share| ("of matrix".to_owned(), share)));
        }
        row
    }
}

fn device(gpu: &Gpu) -> Result<Row> {
    let info = plimsoll_ops::gpu::info(&gpu.device)?;
    let (major, minor) = info.compute_capability;
    Ok(row(json!({
        "gpu": info.name, "compute": format!("{major}.{minor}"), "multiprocessors": info.multiprocessors,
        "GiB": info.total_memory as f64 / f64::from(1 << 30), "free GiB": info.free_memory as f64 / f64::from(1 << 30),
        "L2 MB": gpu.cache_bytes()? as f64 * 1e-6,
    })))
}

/// Counts bytes read and bytes written.
fn copy(gpu: &Gpu) -> Result<Row> {
    let bytes = gpu.scale.copy_bytes;
    let from = noise(gpu, bytes / 2)?;
    // SAFETY: written by the copy, and never read.
    let mut to: CudaSlice<bf16> = unsafe { gpu.stream.alloc(bytes / 2) }?;
    let seconds = clock::median(gpu, 3, || Ok(gpu.stream.memcpy_dtod(&from, &mut to)?))?;
    Ok(row(json!({"GB/s": 2.0 * bytes as f64 / seconds * 1e-9})))
}

fn matrix(gpu: &Gpu) -> Result<Row> {
    let side = gpu.scale.side;
    let (a, b) = (noise(gpu, side * side)?, noise(gpu, side * side)?);
    // SAFETY: written by the product, and never read.
    let mut c: CudaSlice<bf16> = unsafe { gpu.stream.alloc(side * side) }?;
    let blas = CudaBlasLT::new(gpu.stream.clone())?;
    let product = || multiply(&blas, &a, &b, &mut c, [side; 3]);
    let seconds = clock::median(gpu, 3, product)?;
    Ok(row(json!({"TFLOP/s": 2.0 * (side as f64).powi(3) / seconds * 1e-12})))
}

/// `c [m, n] = b [m, k] a [n, k]^T`, all of them row-major, as a linear layer computes it.
pub(crate) fn multiply(
    blas: &CudaBlasLT,
    a: &CudaSlice<bf16>,
    b: &CudaSlice<bf16>,
    c: &mut CudaSlice<bf16>,
    [m, n, k]: [usize; 3],
) -> Result<()> {
    assert!(a.len() >= n * k && b.len() >= m * k && c.len() >= m * n, "operands of {m} x {n} x {k}");
    // cuBLASLt counts in columns, so its m is the n here.
    let config = MatmulConfig {
        transa: true,
        transb: false,
        transc: false,
        m: n as u64,
        n: m as u64,
        k: k as u64,
        alpha: 1.0,
        lda: k as i64,
        ldb: k as i64,
        beta: 0.0,
        ldc: n as i64,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    };
    // SAFETY: the operands have room for what the layouts say.
    Ok(unsafe { blas.matmul(config, a, b, c, None, None) }?)
}

/// Random numbers on the GPU: on zeros a chip is faster than it will be on real data.
pub(crate) fn noise(gpu: &Gpu, count: usize) -> Result<CudaSlice<bf16>> {
    Ok(gpu.stream.clone_htod(&noise_on_host(count))?)
}

/// A million random numbers, again and again.
pub(crate) fn noise_on_host(count: usize) -> Vec<bf16> {
    const PATTERN: usize = 1 << 20;
    let mut random = Random::new(count as u64);
    let mut out: Vec<bf16> = (0..PATTERN.min(count)).map(|_| bf16::from_f32(random.normal())).collect();
    while out.len() < count {
        let more = out.len().min(count - out.len());
        out.extend_from_within(..more);
    }
    out
}
