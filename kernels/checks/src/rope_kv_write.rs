//! Norm, rotation and cache writes against the CPU ops on the same bf16 values.

use candle_core::{Device, Tensor};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::attention::KvDtype;
use plimsoll_kernels::rope_kv_write::RopeKvWrite;
use plimsoll_ops::norm::rms_norm;
use plimsoll_ops::rope::{RopeTable, rope};

use crate::arrays::{
    Output, bf16_bytes, expect_close, expect_same, f32_bytes, normals_on, rounded, to_bf16, u32_bytes,
};
use crate::attention::e4m3;
use crate::{Case, Random, TestDevice, Timing};

const EPS: f32 = 1e-6;
/// Sines and cosines are this close, and the kernel's norm and rotation a little closer.
const ANGLE_ERROR: f32 = 4e-6;
/// bf16 rounding, and a little.
const ROUNDING: f32 = 1.01 / 256.0;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "rope_kv_write/bf16".into(), run: Box::new(|d, r| shapes(d, r, KvDtype::Bf16)) },
        Case { name: "rope_kv_write/fp8".into(), run: Box::new(|d, r| shapes(d, r, KvDtype::Fp8)) },
        Case { name: "rope_kv_write/long angles".into(), run: Box::new(long_angles) },
        Case { name: "rope_kv_write/sizes refused".into(), run: Box::new(refused) },
    ]
}

/// Heads and what is done to them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    rotary: usize,
    block_size: usize,
    normed: bool,
    dtype: KvDtype,
    attention_scale: f32,
}

fn shapes(device: &dyn TestDevice, random: &mut Random, dtype: KvDtype) -> Result<(), String> {
    let dims: &[usize] = if dtype == KvDtype::Bf16 { &[16, 32, 64, 128, 256] } else { &[64, 128, 256] };
    for (&dim, normed) in dims.iter().zip([true, false].iter().cycle()) {
        let kv_heads = random.between(1, 4);
        let shape = Shape {
            tokens: random.between(1, 9),
            heads: kv_heads * random.between(1, 9),
            kv_heads,
            dim,
            rotary: if random.below(2) == 0 { dim } else { 16 * random.between(0, dim / 16) },
            block_size: 16 * random.between(1, 5),
            normed: *normed != (random.below(4) == 0),
            dtype,
            attention_scale: if random.below(2) == 0 { 1.0 } else { 1.2 },
        };
        check(device, random, shape).map_err(|e| format!("{shape:?}: {e}"))?;
    }
    Ok(())
}

/// What a launch gets.
struct Inputs {
    qkv: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    inv_freq: Vec<f32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    num_blocks: usize,
    k_scale: f32,
    v_scale: f32,
}

fn draw(random: &mut Random, shape: Shape) -> Inputs {
    let Shape { tokens, heads, kv_heads, dim, rotary, block_size, .. } = shape;
    let num_blocks = tokens / block_size + 3;
    let mut slots: Vec<u32> = (0..(num_blocks * block_size) as u32).collect();
    random.shuffle(&mut slots);
    slots.truncate(tokens);
    if tokens > 2 {
        slots[random.below(tokens)] = u32::MAX;
    }
    let position = |random: &mut Random| {
        let most = 1 << random.between(1, 23);
        random.below(most) as u32
    };
    Inputs {
        qkv: rounded(random.normals(tokens * (heads + 2 * kv_heads) * dim, 2.0)),
        q_norm: random.normals(dim, 1.0),
        k_norm: random.normals(dim, 1.0),
        inv_freq: (0..rotary / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary as f32)).collect(),
        positions: (0..tokens).map(|_| position(random)).collect(),
        slots,
        num_blocks,
        k_scale: 0.02,
        v_scale: 0.005,
    }
}

/// What a launch wrote: q, and the two caches' bytes.
struct Written {
    q: Vec<f32>,
    k: Vec<u8>,
    v: Vec<u8>,
}

fn launch(device: &dyn TestDevice, shape: Shape, inputs: &Inputs) -> Result<Written, String> {
    let Shape { tokens, heads, kv_heads, dim, .. } = shape;
    let element = shape.dtype.size_in_bytes() as usize;
    let cache_bytes = inputs.num_blocks * kv_heads * shape.block_size * dim * element;
    let (q, k, v) = (
        Output::new(device, tokens * heads * dim * 2),
        Output::new(device, cache_bytes),
        Output::new(device, cache_bytes),
    );
    let norm = |weight: &[f32]| if shape.normed { device.upload(&f32_bytes(weight)) } else { DevicePtr::NULL };
    let op = RopeKvWrite {
        q: q.at,
        k_cache: k.at,
        v_cache: v.at,
        qkv: device.upload(&bf16_bytes(&inputs.qkv)),
        q_norm: norm(&inputs.q_norm),
        k_norm: norm(&inputs.k_norm),
        inv_freq: device.upload(&f32_bytes(&inputs.inv_freq)),
        positions: device.upload(&u32_bytes(&inputs.positions)),
        slot_mapping: device.upload(&u32_bytes(&inputs.slots)),
        tokens: tokens as u32,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: dim as u32,
        rotary_dim: shape.rotary as u32,
        num_blocks: inputs.num_blocks as u32,
        block_size: shape.block_size as u32,
        kv_dtype: shape.dtype,
        eps: EPS,
        attention_scale: shape.attention_scale,
        k_scale: inputs.k_scale,
        v_scale: inputs.v_scale,
    };
    op.run(device.queue()).map_err(|e| e.to_string())?;
    Ok(Written { q: to_bf16(&q.read(device)?), k: k.read(device)?, v: v.read(device)? })
}

fn check(device: &dyn TestDevice, random: &mut Random, shape: Shape) -> Result<(), String> {
    let inputs = draw(random, shape);
    let got = launch(device, shape, &inputs)?;
    let part = |first: usize, count: usize| -> Vec<f32> {
        let row = (shape.heads + 2 * shape.kv_heads) * shape.dim;
        let part = |token: &[f32]| token[first * shape.dim..(first + count) * shape.dim].to_vec();
        inputs.qkv.chunks(row).flat_map(part).collect()
    };
    let want_q = turned(part(0, shape.heads), shape.heads, &inputs.q_norm, shape, &inputs);
    let largest = want_q.iter().fold(0f32, |most, x| most.max(x.abs()));
    expect_close("q", &got.q, &want_q, ROUNDING, ANGLE_ERROR * largest)?;
    let keys = turned(part(shape.heads, shape.kv_heads), shape.kv_heads, &inputs.k_norm, shape, &inputs);
    let largest = keys.iter().fold(0f32, |most, x| most.max(x.abs()));
    check_cache("k", &got.k, &keys, inputs.k_scale, ANGLE_ERROR * largest, shape, &inputs)?;
    let values = part(shape.heads + shape.kv_heads, shape.kv_heads);
    check_cache("v", &got.v, &values, inputs.v_scale, 0.0, shape, &inputs)
}

/// Heads of all tokens, normalised and turned by the CPU ops.
fn turned(x: Vec<f32>, heads: usize, norm: &[f32], shape: Shape, inputs: &Inputs) -> Vec<f32> {
    let rows = shape.tokens * heads;
    let x = Tensor::from_vec(x, (rows, shape.dim), &Device::Cpu).expect("of this shape");
    let norm = Tensor::from_slice(norm, shape.dim, &Device::Cpu).expect("of this shape");
    let x = if shape.normed { rms_norm(&x, &norm, EPS).expect("rms_norm") } else { x };
    let x = x.reshape((shape.tokens, heads, shape.dim)).expect("as many");
    let table = RopeTable::new(&inputs.inv_freq, shape.attention_scale, 1 << 23);
    let x = if shape.rotary > 0 { rope(&x, &inputs.positions, &table).expect("rope") } else { x };
    x.flatten_all().and_then(|x| x.to_vec1()).expect("f32")
}

/// Every slot holds its token's heads, and all other bytes are as they were.
fn check_cache(
    name: &str,
    got: &[u8],
    want: &[f32],
    scale: f32,
    error: f32,
    shape: Shape,
    inputs: &Inputs,
) -> Result<(), String> {
    let Shape { kv_heads, dim, block_size, .. } = shape;
    let row_bytes = dim * shape.dtype.size_in_bytes() as usize;
    for (i, got) in got.chunks(row_bytes).enumerate() {
        let (block, head, offset) = (i / (kv_heads * block_size), i / block_size % kv_heads, i % block_size);
        let slot = (block * block_size + offset) as u32;
        let what = format!("{name}, slot {slot}, head {head}");
        let Some(token) = inputs.slots.iter().position(|s| *s == slot) else {
            expect_same(&what, got, &vec![0xFF; row_bytes])?;
            continue;
        };
        let want = &want[(token * kv_heads + head) * dim..][..dim];
        match shape.dtype {
            KvDtype::Bf16 => expect_close(&what, &to_bf16(got), want, ROUNDING, error)?,
            KvDtype::Fp8 => {
                // Half a unit of three bits of mantissa, or of the smallest value.
                let got: Vec<f32> = got.iter().map(|code| e4m3::decode(*code)).collect();
                let want: Vec<f32> = want.iter().map(|x| (x / scale).clamp(-448.0, 448.0)).collect();
                expect_close(&what, &got, &want, 1.001 / 16.0, 1.001 / 1024.0 + error / scale)?;
            }
        }
    }
    Ok(())
}

/// Positions next to multiples of pi, where a sine is all error of the reduction.
fn long_angles(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let positions = vec![355, 710, 103_993, 208_341, 312_689, 833_719, 1_146_408, 4_272_943, 5_419_351, 16_777_215];
    let shape = Shape {
        tokens: positions.len(),
        heads: 1,
        kv_heads: 1,
        dim: 16,
        rotary: 16,
        block_size: 16,
        normed: false,
        dtype: KvDtype::Bf16,
        attention_scale: 1.0,
    };
    let inv_freq = vec![1.0, 0.5, 0.25, 0.1, 0.03, 1e-3, 1e-5, 2.0];
    let mut head = vec![1.0; 8];
    head.extend([0.0; 8]);
    let inputs = Inputs {
        qkv: head.repeat(3 * positions.len()),
        q_norm: vec![],
        k_norm: vec![],
        slots: (0..positions.len() as u32).collect(),
        num_blocks: 1,
        positions,
        inv_freq,
        k_scale: 1.0,
        v_scale: 1.0,
    };
    let got = launch(device, shape, &inputs)?;
    for (position, q) in inputs.positions.iter().zip(got.q.chunks(16)) {
        let angles: Vec<f64> = inputs.inv_freq.iter().map(|f| f64::from(*position as f32 * f)).collect();
        let want: Vec<f32> =
            angles.iter().map(|a| a.cos() as f32).chain(angles.iter().map(|a| a.sin() as f32)).collect();
        expect_close(&format!("position {position}"), q, &want, ROUNDING, 2e-6)?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let good = Shape {
        tokens: 1,
        heads: 2,
        kv_heads: 1,
        dim: 64,
        rotary: 64,
        block_size: 16,
        normed: false,
        dtype: KvDtype::Bf16,
        attention_scale: 1.0,
    };
    let inputs = draw(random, good);
    launch(device, good, &inputs)?;
    for bad in [
        Shape { rotary: 24, ..good },
        Shape { rotary: 80, ..good },
        Shape { dim: 80, rotary: 16, ..good },
        Shape { dim: 32, rotary: 16, dtype: KvDtype::Fp8, ..good },
    ] {
        if launch(device, bad, &inputs).is_ok() {
            return Err(format!("{bad:?} was not refused"));
        }
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let models = [("llama-3.1-8b", 32, 8, 128, false), ("gemma-3-27b", 32, 16, 128, true)];
    let timing = |(model, heads, kv_heads, dim, normed), tokens: u32| Timing {
        name: format!("rope_kv_write/{model} tokens={tokens}"),
        bytes: 4 * u64::from(tokens * (heads + 2 * kv_heads) * dim),
        flops: 0,
        prepare: Box::new(move |device| {
            let num_blocks = tokens.div_ceil(16);
            let count = |heads: u32| u64::from(tokens.next_multiple_of(16) * heads * dim);
            let ids: Vec<u32> = (0..tokens).collect();
            let weight = device.upload(&f32_bytes(&vec![1.0; dim as usize]));
            let norm = if normed { weight } else { DevicePtr::NULL };
            let inv_freq: Vec<f32> = (0..dim / 2).map(|i| 5e5f32.powf(-2.0 * i as f32 / dim as f32)).collect();
            let op = RopeKvWrite {
                q: normals_on(device, count(heads)),
                k_cache: normals_on(device, count(kv_heads)),
                v_cache: normals_on(device, count(kv_heads)),
                qkv: normals_on(device, count(heads + 2 * kv_heads)),
                q_norm: norm,
                k_norm: norm,
                inv_freq: device.upload(&f32_bytes(&inv_freq)),
                positions: device.upload(&u32_bytes(&ids)),
                slot_mapping: device.upload(&u32_bytes(&ids)),
                tokens,
                heads,
                kv_heads,
                head_dim: dim,
                rotary_dim: dim,
                num_blocks,
                block_size: 16,
                kv_dtype: KvDtype::Bf16,
                eps: EPS,
                attention_scale: 1.0,
                k_scale: 1.0,
                v_scale: 1.0,
            };
            Box::new(move |queue| op.run(queue))
        }),
    };
    models.into_iter().flat_map(|model| [1, 256, 8192].map(|tokens| timing(model, tokens))).collect()
}
