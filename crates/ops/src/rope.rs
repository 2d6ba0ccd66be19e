//! Rotary position embedding (arXiv:2104.09864), rotate-half (NeoX) pairing: column `i` turns with column
//! `i + rotary / 2`. Checkpoints that pair neighbouring columns are permuted when they are loaded, not here.

use std::f64::consts::TAU;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::operand::{contiguous, for_rows_mut};
use crate::simd::{Level, Simd, dispatch, fma};

/// Positions whose sines are computed together, when the first of them is asked for.
const PAGE: usize = 256;

/// Cosines and sines of every position, computed as positions come up. Cloning shares them.
#[derive(Clone)]
pub struct RopeTable(Arc<Table>);

struct Table {
    inv_freq: Vec<f32>,
    attention_scale: f32,
    max_positions: usize,
    /// Page `n` holds positions `n * PAGE ..`, each as `rotary / 2` cosines and as many sines.
    pages: Vec<OnceLock<Vec<f32>>>,
    /// The frequencies in the memory of the GPU that the model runs on.
    #[cfg(feature = "cuda")]
    uploaded: OnceLock<Tensor>,
}

impl RopeTable {
    /// `inv_freq`: radians a position for each pair, `rotary / 2` long, after any scaling for longer contexts.
    /// `attention_scale` multiplies the rotated columns (YaRN, arXiv:2309.00071; else 1). Positions are below
    /// `max_positions`; memory is taken only for those seen.
    pub fn new(inv_freq: &[f32], attention_scale: f32, max_positions: usize) -> Self {
        let pages = (0..max_positions.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self(Arc::new(Table {
            inv_freq: inv_freq.to_vec(),
            attention_scale,
            max_positions,
            pages,
            #[cfg(feature = "cuda")]
            uploaded: OnceLock::new(),
        }))
    }

    /// Columns of a head that turn; those after them pass through.
    pub fn rotary_dim(&self) -> usize {
        2 * self.0.inv_freq.len()
    }

    /// Multiplies the rotated columns.
    #[cfg(feature = "cuda")]
    pub(crate) fn attention_scale(&self) -> f32 {
        self.0.attention_scale
    }

    /// Radians a position, f32 `[rotary / 2]`, in a GPU's memory: uploaded once.
    ///
    /// # Errors
    /// The GPU is out of memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn inv_freq_on(&self, device: &candle_core::Device) -> Result<Tensor> {
        if let Some(uploaded) = self.0.uploaded.get() {
            return Ok(uploaded.clone());
        }
        // A driver has no allocations of nothing.
        let frequencies = if self.0.inv_freq.is_empty() { &[0.0] } else { &self.0.inv_freq[..] };
        let uploaded = Tensor::new(frequencies, device)?;
        Ok(self.0.uploaded.get_or_init(|| uploaded).clone())
    }

    /// Cosines and sines of a position below `max_positions`.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let rotary = self.rotary_dim();
        let page = self.0.pages[position / PAGE].get_or_init(|| self.compute_page(position / PAGE));
        page[position % PAGE * rotary..][..rotary].split_at(rotary / 2)
    }

    fn compute_page(&self, page: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(PAGE * self.rotary_dim());
        for position in page * PAGE..(page + 1) * PAGE {
            // The angle is an f32 product, as in the reference implementations that checkpoints were trained with.
            let angles = || self.0.inv_freq.iter().map(|f| f64::from(position as f32 * f) % TAU);
            out.extend(angles().map(|a| a.cos() as f32 * self.0.attention_scale));
            out.extend(angles().map(|a| a.sin() as f32 * self.0.attention_scale));
        }
        out
    }
}

/// Turns the first `table.rotary_dim()` columns of every head by its token's position.
///
/// `x`: f32 `[tokens, heads, head_dim]`; `positions`: one a token, in any order. Returns the same shape.
///
/// # Errors
/// Another rank, dtype or layout; a table wider than `head_dim`; as many positions as tokens are needed, each below the
/// table's `max_positions`.
pub fn rope(x: &Tensor, positions: &[u32], table: &RopeTable) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Rope { positions, table, level: Level::detect() })
}

struct Rope<'a> {
    positions: &'a [u32],
    table: &'a RopeTable,
    level: Level,
}

impl CustomOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let &[tokens, heads, head_dim] = layout.dims() else {
            bail!("rope: x is {:?}, expected [tokens, heads, head_dim]", layout.shape());
        };
        let x = contiguous::<f32>("rope", "x", storage, layout)?;
        let rotary = self.table.rotary_dim();
        if rotary > head_dim {
            bail!("rope: the table turns {rotary} columns, x has {head_dim} a head");
        }
        if self.positions.len() != tokens {
            bail!("rope: {} positions for {tokens} tokens", self.positions.len());
        }
        let max_positions = self.table.0.max_positions;
        if let Some(position) = self.positions.iter().find(|p| **p as usize >= max_positions) {
            bail!("rope: position {position} is beyond the model's {max_positions}, lower the context length");
        }
        let mut out = vec![0.0; x.len()];
        for_rows_mut(&mut out, heads * head_dim, |first, rows| {
            for (i, out) in rows.chunks_exact_mut(heads * head_dim).enumerate() {
                let token = first + i;
                let (cos, sin) = self.table.at(self.positions[token] as usize);
                let x = &x[token * heads * head_dim..][..heads * head_dim];
                for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                    let (turned, rest) = out.split_at_mut(rotary);
                    rotate_head(self.level, &x[..rotary], cos, sin, turned);
                    rest.copy_from_slice(&x[rotary..]);
                }
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

dispatch!(fn rotate_head(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) = rotate_body);

#[inline(always)]
fn rotate_body<S: Simd>(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = cos.len();
    let (x0, x1) = x.split_at(half);
    let (out0, out1) = out.split_at_mut(half);
    let (x1, sin, out0, out1) = (&x1[..half], &sin[..half], &mut out0[..half], &mut out1[..half]);
    for i in 0..half {
        out0[i] = fma::<S>(x0[i], cos[i], -(x1[i] * sin[i]));
        out1[i] = fma::<S>(x1[i], cos[i], x0[i] * sin[i]);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::Random;

    fn inv_freq(half: usize) -> Vec<f32> {
        (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect()
    }

    fn naive(head: &[f32], position: u32, inv_freq: &[f32], scale: f32) -> Vec<f64> {
        let half = inv_freq.len();
        let mut out: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
        for i in 0..half {
            let (sin, cos) = f64::from(position as f32 * inv_freq[i]).sin_cos();
            let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
            out[i] = (a * cos - b * sin) * f64::from(scale);
            out[i + half] = (b * cos + a * sin) * f64::from(scale);
        }
        out
    }

    #[test]
    fn matches_naive_at_any_position_order_and_partial_rotary() {
        let mut random = Random::new(21);
        for (tokens, heads, dim, rotary) in
            [(1, 9, 64, 64), (7, 3, 80, 32), (5, 4, 256, 256), (2, 1, 6, 6), (90, 9, 64, 64)]
        {
            let freqs = inv_freq(rotary / 2);
            let scale = if rotary == dim { 1.0 } else { 1.25 };
            let table = RopeTable::new(&freqs, scale, 40_000);
            assert_eq!(table.rotary_dim(), rotary);
            let positions: Vec<u32> = (0..tokens).map(|_| random.below(40_000) as u32).collect();
            let data = random.normals(tokens * heads * dim, 1.0);
            let x = Tensor::from_slice(&data, (tokens, heads, dim), &Device::Cpu).unwrap();
            let y = rope(&x, &positions, &table).unwrap();
            assert_eq!(y.dims(), x.dims());
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, (head, got)) in data.chunks(dim).zip(y.chunks(dim)).enumerate() {
                let want = naive(head, positions[i / heads], &freqs, scale);
                for (want, got) in want.iter().zip(got) {
                    assert!((want - f64::from(*got)).abs() < 2e-6, "{got}, expected {want}");
                }
            }
        }
    }

    #[test]
    fn position_zero_leaves_x_as_it_is() {
        let x = Tensor::arange(0f32, 128.0, &Device::Cpu).unwrap().reshape((1, 2, 64)).unwrap();
        let y = rope(&x, &[0], &RopeTable::new(&inv_freq(32), 1.0, 10)).unwrap();
        assert_eq!(y.to_vec3::<f32>().unwrap(), x.to_vec3::<f32>().unwrap());
    }

    #[test]
    fn every_level_agrees() {
        let mut random = Random::new(22);
        let (x, cos, sin) = (random.normals(74, 1.0), random.normals(37, 1.0), random.normals(37, 1.0));
        let run = |level| {
            let mut out = vec![0.0; 74];
            rotate_head(level, &x, &cos, &sin, &mut out);
            out
        };
        let portable = run(Level::Portable);
        for level in Level::available() {
            for (a, b) in run(level).iter().zip(&portable) {
                assert!((a - b).abs() < 2e-6, "{level:?}: {a}, portable {b}");
            }
        }
    }

    #[test]
    fn wrong_operands_are_refused_by_name() {
        let table = RopeTable::new(&inv_freq(4), 1.0, 100);
        let x = Tensor::zeros((2, 3, 8), DType::F32, &Device::Cpu).unwrap();
        let message = |x: &Tensor, positions: &[u32]| rope(x, positions, &table).unwrap_err().to_string();
        assert!(message(&x, &[1]).contains("rope: 1 positions for 2 tokens"));
        assert!(message(&x, &[1, 100]).contains("position 100 is beyond"));
        assert!(message(&x.narrow(2, 0, 6).unwrap().contiguous().unwrap(), &[1, 2]).contains("turns 8 columns"));
        assert!(message(&x.transpose(0, 1).unwrap(), &[1, 2, 3]).contains("not contiguous"));
        assert!(message(&x.to_dtype(DType::F64).unwrap(), &[1, 2]).contains("x is F64"));
    }
}
