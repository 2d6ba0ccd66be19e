//! The paged KV cache of one layer, and the op that writes a step's keys and values into it.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use float8::F8E4M3;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::attention::PagedBatch;
use crate::e4m3;
use crate::operand::{Shared, contiguous, contiguous_range};
use crate::par::{num_threads, parallel_for};

/// What the cache's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    F32,
    F16,
    BF16,
    /// e4m3, without a scale: what is beyond 448 becomes 448.
    Fp8,
}

impl KvDtype {
    /// Of the cache's tensors.
    pub fn dtype(self) -> DType {
        match self {
            KvDtype::F32 => DType::F32,
            KvDtype::F16 => DType::F16,
            KvDtype::BF16 => DType::BF16,
            KvDtype::Fp8 => DType::F8E4M3,
        }
    }

    /// Bytes an element.
    pub fn size_in_bytes(self) -> usize {
        self.dtype().size_in_bytes()
    }
}

/// One layer's cache. `k` and `v` are each `[num_blocks, kv_heads, block_size, head_dim]`, contiguous.
#[derive(Clone, Debug)]
pub struct LayerCache {
    pub k: Tensor,
    pub v: Tensor,
}

impl LayerCache {
    /// All zeros.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(
        num_blocks: usize,
        kv_heads: usize,
        block_size: usize,
        head_dim: usize,
        dtype: KvDtype,
        device: &Device,
    ) -> Result<Self> {
        let shape = (num_blocks, kv_heads, block_size, head_dim);
        Ok(Self { k: zeros(shape, dtype, device)?, v: zeros(shape, dtype, device)? })
    }
}

/// Zeros; on a CPU, where they are of 16 bits or more, memory that the system hands out once it is written to, so that a
/// large cache costs a start no time.
fn zeros(shape: (usize, usize, usize, usize), dtype: KvDtype, device: &Device) -> Result<Tensor> {
    let len = shape.0 * shape.1 * shape.2 * shape.3;
    match (dtype, device) {
        (KvDtype::F16, Device::Cpu) => Tensor::from_vec(vec![0u16; len].reinterpret_into::<f16>(), shape, device),
        (KvDtype::BF16, Device::Cpu) => Tensor::from_vec(vec![0u16; len].reinterpret_into::<bf16>(), shape, device),
        _ => Tensor::zeros(shape, dtype.dtype(), device),
    }
}

/// Writes the step's keys and values at the slots that `batch.slot_mapping` names, rounding to the cache's dtype
/// (nearest, ties to even; fp8 saturates). Where two tokens name one slot the later one stays.
///
/// `k`, `v`: f32 `[tokens, kv_heads, head_dim]`.
///
/// # Errors
/// Another rank, dtype or layout; shapes that do not fit the cache; as many slots as tokens are needed, each inside the
/// cache. Nothing has been written then.
pub fn kv_write(k: &Tensor, v: &Tensor, cache: &LayerCache, batch: &PagedBatch) -> Result<()> {
    if k.shape() != v.shape() || cache.k.shape() != cache.v.shape() {
        bail!("kv_write: k {:?} and v {:?}, or their caches, differ in shape", k.shape(), v.shape());
    }
    let (num_blocks, kv_heads, block_size, head_dim) = cache.k.dims4()?;
    let slots = &batch.slot_mapping;
    let Ok((tokens, heads, dim)) = k.dims3() else {
        bail!("kv_write: k is {:?}, expected [tokens, kv_heads, head_dim]", k.shape());
    };
    if let Some((name, t)) =
        [("k", k), ("v", v)].into_iter().find(|(_, t)| t.dtype() != DType::F32 || !t.is_contiguous())
    {
        bail!("kv_write: {name} is {:?}, stride {:?}, expected contiguous F32", t.dtype(), t.stride());
    }
    if (heads, dim) != (kv_heads, head_dim) {
        bail!("kv_write: k is {:?}, the cache has {kv_heads} heads of {head_dim}", k.shape());
    }
    if block_size != batch.block_size || slots.len() != tokens {
        bail!(
            "kv_write: {} slots in blocks of {} for {tokens} tokens and a cache in blocks of {block_size}",
            slots.len(),
            batch.block_size
        );
    }
    if let Some(slot) = slots.iter().find(|s| **s as usize >= num_blocks * block_size) {
        bail!("kv_write: slot {slot} is outside the cache of {num_blocks} blocks of {block_size}");
    }
    cache.k.inplace_op2(k, &Scatter { operand: "k", slots })?;
    cache.v.inplace_op2(v, &Scatter { operand: "v", slots })
}

/// Writes rows of the second operand to slots of the first. Shapes and slots have been checked.
struct Scatter<'a> {
    operand: &'static str,
    slots: &'a [u32],
}

impl InplaceOp2 for Scatter<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, cl: &Layout, rows: &CpuStorage, rl: &Layout) -> Result<()> {
        let rows = contiguous::<f32>("kv_write", self.operand, rows, rl)?;
        let &[_, kv_heads, block_size, head_dim] = cl.dims() else {
            bail!("kv_write: the cache is {:?}, expected [num_blocks, kv_heads, block_size, head_dim]", cl.shape());
        };
        let shape = BlockShape { kv_heads, block_size, head_dim };
        match cache {
            CpuStorage::F32(_) => self.scatter::<f32>(cache, cl, rows, shape),
            CpuStorage::F16(_) => self.scatter::<f16>(cache, cl, rows, shape),
            CpuStorage::BF16(_) => self.scatter::<bf16>(cache, cl, rows, shape),
            CpuStorage::F8E4M3(_) => self.scatter::<F8E4M3>(cache, cl, rows, shape),
            _ => bail!("kv_write: the cache must be F32, F16, BF16 or F8E4M3"),
        }
    }
}

#[derive(Clone, Copy)]
struct BlockShape {
    kv_heads: usize,
    block_size: usize,
    head_dim: usize,
}

impl Scatter<'_> {
    fn scatter<T: Narrow>(&self, cache: &mut CpuStorage, cl: &Layout, rows: &[f32], shape: BlockShape) -> Result<()> {
        /// Fewer elements are written before other threads would have woken up.
        const MIN_TASK_ELEMENTS: usize = 32 * 1024;
        let range = contiguous_range::<T>("kv_write", "the cache", cache, cl)?;
        let cache = Shared::new(&mut T::slice_mut(cache)[range]);
        let BlockShape { kv_heads, block_size, head_dim } = shape;
        // A block belongs to one task, so that no two tasks write the same place whatever the slots are.
        let tasks = (rows.len() / MIN_TASK_ELEMENTS).clamp(1, num_threads());
        let write = |task: usize| {
            for (slot, row) in self.slots.iter().zip(rows.chunks_exact((kv_heads * head_dim).max(1))) {
                let (block, offset) = (*slot as usize / block_size, *slot as usize % block_size);
                if block % tasks != task {
                    continue;
                }
                for (head, row) in row.chunks_exact(head_dim).enumerate() {
                    let at = ((block * kv_heads + head) * block_size + offset) * head_dim;
                    // SAFETY: inside `block`, which is this task's; each part is dropped before the next is taken.
                    T::narrow(row, unsafe { cache.part(at..at + head_dim) });
                }
            }
        };
        if tasks == 1 {
            write(0)
        } else {
            parallel_for(tasks, write)
        }
        Ok(())
    }
}

/// What f32 is rounded to.
trait Narrow: WithDType {
    fn narrow(from: &[f32], to: &mut [Self]);
    /// # Panics
    /// If the storage is of another dtype.
    fn slice_mut(storage: &mut CpuStorage) -> &mut [Self];
}

impl Narrow for f32 {
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
    fn slice_mut(storage: &mut CpuStorage) -> &mut [f32] {
        let CpuStorage::F32(data) = storage else { panic!("not F32") };
        data
    }
}

impl Narrow for f16 {
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
    fn slice_mut(storage: &mut CpuStorage) -> &mut [f16] {
        let CpuStorage::F16(data) = storage else { panic!("not F16") };
        data
    }
}

impl Narrow for bf16 {
    fn narrow(from: &[f32], to: &mut [bf16]) {
        to.convert_from_f32_slice(from);
    }
    fn slice_mut(storage: &mut CpuStorage) -> &mut [bf16] {
        let CpuStorage::BF16(data) = storage else { panic!("not BF16") };
        data
    }
}

impl Narrow for F8E4M3 {
    fn narrow(from: &[f32], to: &mut [F8E4M3]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = F8E4M3::from_bits(e4m3::encode(*from)));
    }
    fn slice_mut(storage: &mut CpuStorage) -> &mut [F8E4M3] {
        let CpuStorage::F8E4M3(data) = storage else { panic!("not F8E4M3") };
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const DTYPES: [KvDtype; 4] = [KvDtype::F32, KvDtype::F16, KvDtype::BF16, KvDtype::Fp8];

    fn batch(block_size: usize, slots: &[u32]) -> PagedBatch {
        PagedBatch { block_size, slot_mapping: slots.to_vec(), ..PagedBatch::default() }
    }

    fn rounded(x: f32, dtype: KvDtype) -> f32 {
        match dtype {
            KvDtype::F32 => x,
            KvDtype::F16 => f16::from_f32(x).to_f32(),
            KvDtype::BF16 => bf16::from_f32(x).to_f32(),
            KvDtype::Fp8 => e4m3::decode(e4m3::encode(x)),
        }
    }

    #[test]
    fn what_is_written_reads_back_and_the_rest_stays() {
        let mut random = Random::new(31);
        let (blocks, heads, size, dim) = (40, 3, 16, 64);
        for dtype in DTYPES {
            for tokens in [0, 1, 37, 500] {
                let cache = LayerCache::new(blocks, heads, size, dim, dtype, &Device::Cpu).unwrap();
                let mut slots: Vec<u32> = (0..(blocks * size) as u32).collect();
                for i in (1..slots.len()).rev() {
                    slots.swap(i, random.below(i + 1));
                }
                slots.truncate(tokens);
                let (k, v) = (random.normals(tokens * heads * dim, 1.0), random.normals(tokens * heads * dim, 1.0));
                let tensor = |data: &[f32]| Tensor::from_slice(data, (tokens, heads, dim), &Device::Cpu).unwrap();
                kv_write(&tensor(&k), &tensor(&v), &cache, &batch(size, &slots)).unwrap();
                for (cache, data) in [(&cache.k, &k), (&cache.v, &v)] {
                    let mut expected = vec![0.0; blocks * heads * size * dim];
                    for (slot, row) in slots.iter().zip(data.chunks(heads * dim)) {
                        for (i, x) in row.iter().enumerate() {
                            let (block, offset) = (*slot as usize / size, *slot as usize % size);
                            expected[((block * heads + i / dim) * size + offset) * dim + i % dim] = rounded(*x, dtype);
                        }
                    }
                    let got = cache.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert!(got == expected, "{dtype:?}, {tokens} tokens");
                }
            }
        }
    }

    #[test]
    fn the_later_of_two_tokens_for_a_slot_stays() {
        let cache = LayerCache::new(2, 1, 4, 2, KvDtype::F32, &Device::Cpu).unwrap();
        let k = Tensor::from_slice(&[1f32, 1.0, 2.0, 2.0, 3.0, 3.0], (3, 1, 2), &Device::Cpu).unwrap();
        kv_write(&k, &k, &cache, &batch(4, &[5, 0, 5])).unwrap();
        let row = |slot: usize| cache.k.flatten(0, 2).unwrap().get(slot).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((row(5), row(0), row(1)), (vec![3.0, 3.0], vec![2.0, 2.0], vec![0.0, 0.0]));
    }

    #[test]
    fn wrong_operands_are_refused_and_write_nothing() {
        let cache = LayerCache::new(2, 1, 4, 8, KvDtype::F16, &Device::Cpu).unwrap();
        let k = Tensor::ones((2, 1, 8), DType::F32, &Device::Cpu).unwrap();
        let message = |k: &Tensor, batch: &PagedBatch| kv_write(k, k, &cache, batch).unwrap_err().to_string();
        assert!(message(&k, &batch(4, &[0, 8])).contains("kv_write: slot 8 is outside the cache of 2 blocks of 4"));
        assert!(message(&k, &batch(4, &[0, u32::MAX])).contains("outside"));
        assert!(message(&k, &batch(4, &[0])).contains("1 slots"));
        assert!(message(&k, &batch(8, &[0, 1])).contains("blocks of 8"));
        assert!(message(&k.narrow(2, 0, 4).unwrap(), &batch(4, &[0, 1])).contains("stride"));
        let narrow = k.narrow(2, 0, 4).unwrap().contiguous().unwrap();
        assert!(message(&narrow, &batch(4, &[0, 1])).contains("1 heads of 8"));
        assert!(message(&k.to_dtype(DType::F16).unwrap(), &batch(4, &[0, 1])).contains("k is F16"));
        assert!(message(&k.flatten_all().unwrap(), &batch(4, &[0, 1])).contains("expected [tokens"));
        let sum = cache.k.to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(sum, 0.0);
    }
}
