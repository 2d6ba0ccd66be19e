//! GPUs by their makers' published numbers.

/// What a datasheet says of one GPU. Rates are dense: without the doubling that structured sparsity is advertised with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// As `--gpu` takes it.
    pub name: &'static str,
    pub full_name: &'static str,
    /// Memory, a gigabyte counted as 10^9 bytes. Drivers report up to 7% more on some boards.
    pub memory_bytes: u64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Floating-point operations a second of bf16 matrix products with f32 sums.
    pub bf16_flops: f64,
    /// The document that says so.
    pub source: &'static str,
}

const fn gpu(
    name: &'static str,
    full_name: &'static str,
    (memory_gb, bandwidth_gb): (u64, f64),
    bf16_tflops: f64,
    source: &'static str,
) -> Gpu {
    Gpu {
        name,
        full_name,
        memory_bytes: memory_gb * 1_000_000_000,
        bandwidth: bandwidth_gb * 1e9,
        bf16_flops: bf16_tflops * 1e12,
        source,
    }
}

const GPUS: [Gpu; 12] = [
    gpu("b200", "NVIDIA B200", (180, 8000.0), 2250.0, "NVIDIA DGX B200 datasheet, an eighth of it"),
    gpu("h200", "NVIDIA H200 SXM", (141, 4800.0), 989.5, "NVIDIA H200 Tensor Core GPU datasheet"),
    gpu("h100", "NVIDIA H100 SXM", (80, 3350.0), 989.5, "NVIDIA H100 Tensor Core GPU datasheet"),
    gpu("h100-nvl", "NVIDIA H100 NVL", (94, 3900.0), 835.5, "NVIDIA H100 Tensor Core GPU datasheet"),
    gpu("h100-pcie", "NVIDIA H100 PCIe", (80, 2000.0), 756.5, "NVIDIA H100 PCIe product brief"),
    gpu("a100", "NVIDIA A100 80GB SXM", (80, 2039.0), 312.0, "NVIDIA A100 Tensor Core GPU datasheet"),
    gpu("a100-pcie", "NVIDIA A100 80GB PCIe", (80, 1935.0), 312.0, "NVIDIA A100 Tensor Core GPU datasheet"),
    gpu("a100-40gb", "NVIDIA A100 40GB", (40, 1555.0), 312.0, "NVIDIA A100 Tensor Core GPU architecture"),
    gpu("l40s", "NVIDIA L40S", (48, 864.0), 362.05, "NVIDIA L40S datasheet"),
    gpu("l4", "NVIDIA L4", (24, 300.0), 121.0, "NVIDIA L4 Tensor Core GPU datasheet"),
    gpu("a10", "NVIDIA A10", (24, 600.0), 125.0, "NVIDIA A10 Tensor Core GPU datasheet"),
    gpu(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090",
        (24, 1008.0),
        165.2,
        "NVIDIA Ada GPU architecture whitepaper, appendix A",
    ),
];

/// All GPUs that there are numbers of.
pub fn gpus() -> &'static [Gpu] {
    &GPUS
}

impl Gpu {
    /// The GPU of that name, whatever its case and whether its parts are joined by `-`, `_`, a space or nothing.
    pub fn find(name: &str) -> Option<&'static Self> {
        let plain = |name: &str| -> String {
            name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        GPUS.iter().find(|gpu| plain(gpu.name) == plain(name) || plain(gpu.full_name) == plain(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_found_by_either_name() {
        for gpu in gpus() {
            assert_eq!(Gpu::find(gpu.name), Some(gpu));
            assert_eq!(Gpu::find(&gpu.full_name.to_lowercase()), Some(gpu));
        }
        assert_eq!(Gpu::find("RTX 4090").map(|gpu| gpu.name), Some("rtx-4090"));
        assert_eq!(Gpu::find("tpu"), None);
    }

    /// A slipped digit would show: every GPU of the table has between 40 and 500 operations for each byte it reads.
    #[test]
    fn the_numbers_hang_together() {
        for gpu in gpus() {
            let intensity = gpu.bf16_flops / gpu.bandwidth;
            assert!((40.0..500.0).contains(&intensity), "{}: {intensity}", gpu.name);
            assert!((20..=200).contains(&(gpu.memory_bytes / 1_000_000_000)), "{}", gpu.name);
        }
    }
}
