//! Linear layers of SmolLM2-135M (Q4_1, head Q8_0) at several batch sizes, and the machine's ceilings beside them.
//!
//! `whole_model` has all 30 layers' weights, so that they come from memory as they do in a step; the single shapes run on
//! one matrix, which stays in a cache. Run with `cargo bench -p plimsoll-ops --bench linear`.

use candle_core::{Device, Tensor};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use plimsoll_ops::linear::{Activations, Linear, RowSource};
use plimsoll_ops::par::{num_threads, parallel_for};
use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat, encode_row};

const BATCHES: [usize; 4] = [1, 8, 32, 128];
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;

fn main() {
    divan::main();
}

fn random_linear(format: impl Into<RowFormat>, rows: usize, cols: usize) -> Linear {
    let format = format.into();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let length = rows * format.row_bytes(cols).expect("whole blocks");
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Without the bits that could make a half infinite.
        (state >> 32) as u8 & 0x3b
    };
    let bytes: Vec<u8> = match format {
        RowFormat::Ggml(_) => std::iter::repeat_with(next).take(length).collect(),
        RowFormat::Grouped(_) => {
            let mut bytes = Vec::with_capacity(length);
            for _ in 0..rows {
                let values: Vec<f32> = std::iter::repeat_with(|| f32::from(next()) - 30.0).take(cols).collect();
                encode_row(format, &values, &mut bytes).expect("numbers");
            }
            bytes
        }
    };
    Linear::pack(&[RowSource::new(format, rows, cols, &bytes)], None, Activations::Int8).expect("packs")
}

fn input(m: usize, cols: usize) -> Tensor {
    let x: Vec<f32> = (0..m * cols).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(x, (m, cols), &Device::Cpu).expect("shape")
}

/// Counts the bytes of the weights, once, and two operations a weight and row of input.
fn bench(bencher: Bencher<'_, '_>, m: usize, linears: &[Linear]) {
    let (narrow, wide) = (input(m, HIDDEN), input(m, INTERMEDIATE));
    let bytes: usize = linears.iter().map(Linear::packed_bytes).sum();
    let weights: usize = linears.iter().map(|l| l.in_features() * l.out_features()).sum();
    bencher.counter(BytesCount::new(bytes)).counter(ItemsCount::new(2 * weights * m)).bench_local(|| {
        for linear in linears {
            let x = if linear.in_features() == HIDDEN { &narrow } else { &wide };
            black_box(linear.forward(x).expect("forward"));
        }
    });
}

fn layer() -> [Linear; 4] {
    [(960, HIDDEN), (HIDDEN, HIDDEN), (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)]
        .map(|(rows, cols)| random_linear(GgmlType::Q4_1, rows, cols))
}

#[divan::bench(args = BATCHES, sample_count = 30)]
fn whole_model(bencher: Bencher<'_, '_>, m: usize) {
    let mut linears: Vec<Linear> = (0..30).flat_map(|_| layer()).collect();
    linears.push(random_linear(GgmlType::Q8_0, 49152, HIDDEN));
    bench(bencher, m, &linears);
}

#[divan::bench(args = BATCHES)]
fn qkv(bencher: Bencher<'_, '_>, m: usize) {
    bench(bencher, m, &layer()[..1]);
}

#[divan::bench(args = BATCHES)]
fn attention_output(bencher: Bencher<'_, '_>, m: usize) {
    bench(bencher, m, &layer()[1..2]);
}

#[divan::bench(args = BATCHES)]
fn gate_up(bencher: Bencher<'_, '_>, m: usize) {
    bench(bencher, m, &layer()[2..3]);
}

#[divan::bench(args = BATCHES)]
fn down(bencher: Bencher<'_, '_>, m: usize) {
    bench(bencher, m, &layer()[3..]);
}

#[divan::bench(args = BATCHES, sample_count = 30)]
fn head(bencher: Bencher<'_, '_>, m: usize) {
    bench(bencher, m, &[random_linear(GgmlType::Q8_0, 49152, HIDDEN)]);
}

fn formats() -> Vec<RowFormat> {
    let grouped = [(Codes::Int4, 128), (Codes::Int8, INTERMEDIATE), (Codes::E4M3, 128), (Codes::E4M3, INTERMEDIATE)]
        .map(|(codes, group)| Grouped { codes, group }.into());
    GgmlType::ALL.into_iter().map(RowFormat::from).chain(grouped).collect()
}

/// Every format, on one matrix of 1.5 M weights.
#[divan::bench(args = formats(), sample_count = 30)]
fn formats_one_row(bencher: Bencher<'_, '_>, format: RowFormat) {
    bench(bencher, 1, &[random_linear(format, 1024, INTERMEDIATE)]);
}

#[divan::bench(args = formats(), sample_count = 30)]
fn formats_32_rows(bencher: Bencher<'_, '_>, format: RowFormat) {
    bench(bencher, 32, &[random_linear(format, 1024, INTERMEDIATE)]);
}

/// The ceiling of one row: what all threads can read.
#[divan::bench(sample_count = 30)]
fn read_memory(bencher: Bencher<'_, '_>) {
    let buffer = vec![1u64; 32 << 20];
    let part = buffer.len() / 64;
    bencher.counter(BytesCount::of_slice(&buffer)).bench_local(|| {
        parallel_for(64, |i| {
            let mut sums = [0u64; 32];
            for line in buffer[i * part..][..part].as_chunks::<32>().0 {
                sums.iter_mut().zip(line).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
            }
            black_box(sums);
        });
    });
}

/// What a fork and join costs around 16 tasks of about a microsecond, once every 20 us, as ops call it.
mod fork_join {
    use super::*;
    use std::time::{Duration, Instant};

    fn spin(time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    fn bench(bencher: Bencher<'_, '_>, run: impl Fn()) {
        bencher.with_inputs(|| spin(Duration::from_micros(20))).bench_local_values(|()| run());
    }

    #[divan::bench(sample_count = 2000, sample_size = 1)]
    fn own_pool(bencher: Bencher<'_, '_>) {
        bench(bencher, || parallel_for(16, |_| spin(Duration::from_micros(1))));
    }

    #[divan::bench(sample_count = 2000, sample_size = 1)]
    fn rayon_pool(bencher: Bencher<'_, '_>) {
        use rayon::prelude::*;
        bench(bencher, || (0..16).into_par_iter().with_max_len(1).for_each(|_| spin(Duration::from_micros(1))));
    }

    /// The least it could be, were the work divided at no cost.
    #[divan::bench(sample_count = 2000, sample_size = 1)]
    fn alone_divided_by_threads(bencher: Bencher<'_, '_>) {
        bench(bencher, || (0..16 / num_threads()).for_each(|_| spin(Duration::from_micros(1))));
    }
}
