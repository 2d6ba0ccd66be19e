//! Fills memory with dummy weights.

use crate::{Arg, DevicePtr, Launch, LaunchError, Queue};

/// Close to normal values of mean 0, a function of seed and index: [`normal`], rounded to bf16.
#[derive(Clone, Copy, Debug)]
pub struct FillNormal {
    /// bf16 `[count]`, aligned to 16 bytes.
    pub out: DevicePtr,
    pub count: u64,
    pub seed: u64,
    /// The standard deviation.
    pub deviation: f32,
}

impl FillNormal {
    /// # Errors
    /// The device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        const THREADS: u32 = 256;
        if self.count == 0 {
            return Ok(());
        }
        let blocks = self.count.div_ceil(8 * u64::from(THREADS)).min(16 * u64::from(queue.multiprocessors()));
        queue.launch(&Launch {
            kernel: "fill_normal_bf16",
            grid: [blocks as u32, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            args: &[self.out.into(), self.count.into(), self.seed.into(), step(self.deviation).into()],
        })
    }
}

/// Random bits, a function of seed and place: [`bits`], of which some stay.
#[derive(Clone, Copy, Debug)]
pub struct FillBits {
    /// u32 `[words]`.
    pub out: DevicePtr,
    pub words: u64,
    pub seed: u64,
    /// The bits of each word that stay; the others are 0.
    pub keep: u32,
}

impl FillBits {
    /// # Errors
    /// The device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        let args = [self.out.into(), self.words.into(), self.seed.into(), self.keep.into()];
        fill_words(queue, "fill_bits", self.words, &args)
    }
}

/// One word over and over.
#[derive(Clone, Copy, Debug)]
pub struct FillWord {
    /// u32 `[words]`.
    pub out: DevicePtr,
    pub words: u64,
    pub value: u32,
}

impl FillWord {
    /// # Errors
    /// The device refuses.
    pub fn run(&self, queue: &dyn Queue) -> Result<(), LaunchError> {
        fill_words(queue, "fill_word", self.words, &[self.out.into(), self.words.into(), self.value.into()])
    }
}

fn fill_words(queue: &dyn Queue, kernel: &'static str, words: u64, args: &[Arg]) -> Result<(), LaunchError> {
    const THREADS: u32 = 256;
    if words == 0 {
        return Ok(());
    }
    let blocks = words.div_ceil(THREADS.into()).min(16 * u64::from(queue.multiprocessors()));
    queue.launch(&Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared_bytes: 0, args })
}

/// Word `index` of [`FillBits`], with all its bits.
pub fn bits(seed: u64, index: u64) -> u32 {
    let stream = mix(seed.wrapping_add(GOLDEN));
    (mix(stream.wrapping_add((index + 1).wrapping_mul(GOLDEN))) >> 32) as u32
}

/// Value `index`, as the device makes it, before it is rounded to bf16.
pub fn normal(seed: u64, index: u64, deviation: f32) -> f32 {
    let stream = mix(seed.wrapping_add(GOLDEN));
    let quarters = |bits: u64| (0..4).map(|i| (bits >> (16 * i) & 0xFFFF) as i32).sum::<i32>();
    let hash = |at: u64| mix(stream.wrapping_add((at + 1).wrapping_mul(GOLDEN)));
    let sum = quarters(hash(2 * index)) + quarters(hash(2 * index + 1));
    (2 * sum - 8 * 65535) as f32 * step(deviation)
}

/// What one of the doubled sum's units is worth: eight uniform numbers below n have a variance of 8 (n^2 - 1) / 12.
fn step(deviation: f32) -> f32 {
    let n = 65536.0f64;
    (f64::from(deviation) / (2.0 * (8.0 * (n * n - 1.0) / 12.0).sqrt())) as f32
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
