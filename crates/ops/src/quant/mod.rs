//! The formats of a matrix's rows: how many bytes a row takes and what numbers they stand for. GGML's, of GGUF files,
//! stand here; those of other checkpoints in `grouped`.
//!
//! This is the readable, scalar, exact meaning of the bytes, which the packed kernels of [`crate::linear`] are tested
//! against. It must never know how a matrix product is computed.
//!
//! Every quantized format of GGML's is one formula with different parameters ([`BlockFormat`]): a weight is
//! `d * scale[g] * (code - offset) + m * min[g]`, where `code` is a small unsigned integer, `g` is the group of 16 or 32
//! neighbours that share a scale, and `d` and `m` are halves shared by the block. (MXFP4 fits it by a table: see
//! [`BlockFormat::fp4`].)
//!
//! Specification: `ggml-common.h` and `gguf-py/gguf/quants.py` of the GGML project; of MXFP4, the OCP Microscaling
//! Formats, v1.0.

mod encode;
mod finite;
mod grouped;
mod legacy;
mod superblock;

use candle_core::{Result, bail};
use half::{bf16, f16};

pub use self::encode::encode_row;
pub(crate) use self::finite::check_row;
pub use self::grouped::{Codes, Grouped, LARGEST_SCALE};
pub(crate) use self::grouped::{E4M3_UNIT, e4m3_as_half};

/// How the elements of a row are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    Ggml(GgmlType),
    Grouped(Grouped),
}

impl From<GgmlType> for RowFormat {
    fn from(ty: GgmlType) -> Self {
        Self::Ggml(ty)
    }
}

impl From<Grouped> for RowFormat {
    fn from(format: Grouped) -> Self {
        Self::Grouped(format)
    }
}

impl std::fmt::Display for RowFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ggml(ty) => write!(f, "{ty:?}"),
            Self::Grouped(Grouped { codes, group }) => write!(f, "{codes:?} (groups of {group})"),
        }
    }
}

impl RowFormat {
    /// Bytes of a row of `cols` elements; `None` if the format has no such rows, or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        match self {
            Self::Ggml(ty) => ty.row_bytes(cols),
            Self::Grouped(format) => format.row_bytes(cols),
        }
    }
}

/// A GGML tensor type that this crate can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    MXFP4,
}

impl GgmlType {
    pub const ALL: [GgmlType; 14] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
        GgmlType::MXFP4,
    ];

    /// The type with this id in a GGUF file's tensor table; `None` for one that is not supported.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// The id in a GGUF file's tensor table (`enum ggml_type`).
    pub const fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2K => 10,
            GgmlType::Q3K => 11,
            GgmlType::Q4K => 12,
            GgmlType::Q5K => 13,
            GgmlType::Q6K => 14,
            GgmlType::BF16 => 30,
            GgmlType::MXFP4 => 39,
        }
    }

    /// Elements in a block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self.block_format() {
            None => 1,
            Some(format) => format.block_len,
        }
    }

    /// Bytes of a block as stored.
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::BF16 => 2,
            GgmlType::Q4_0 => 2 + 16,
            GgmlType::Q4_1 => 4 + 16,
            GgmlType::Q5_0 => 2 + 4 + 16,
            GgmlType::Q5_1 => 4 + 4 + 16,
            GgmlType::Q8_0 => 2 + 32,
            GgmlType::Q2K => 16 + 64 + 4,
            GgmlType::Q3K => 32 + 64 + 12 + 2,
            GgmlType::Q4K => 4 + 12 + 128,
            GgmlType::Q5K => 4 + 12 + 32 + 128,
            GgmlType::Q6K => 128 + 64 + 16 + 2,
            GgmlType::MXFP4 => 1 + 16,
        }
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is not a whole number of blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The parameters of a quantized format; `None` for the dense ones.
    pub(crate) const fn block_format(self) -> Option<BlockFormat> {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => None,
            GgmlType::Q4_0 => Some(BlockFormat::new(32, 32, 4, 8, false)),
            GgmlType::Q4_1 => Some(BlockFormat::new(32, 32, 4, 0, true)),
            GgmlType::Q5_0 => Some(BlockFormat::new(32, 32, 8, 16, false)),
            GgmlType::Q5_1 => Some(BlockFormat::new(32, 32, 8, 0, true)),
            GgmlType::Q8_0 => Some(BlockFormat::new(32, 32, 8, 128, false)),
            GgmlType::Q2K => Some(BlockFormat::new(256, 16, 4, 0, true)),
            GgmlType::Q3K => Some(BlockFormat::new(256, 16, 4, 4, false)),
            GgmlType::Q4K => Some(BlockFormat::new(256, 32, 4, 0, true)),
            GgmlType::Q5K => Some(BlockFormat::new(256, 32, 8, 0, true)),
            GgmlType::Q6K => Some(BlockFormat::new(256, 16, 8, 32, false)),
            GgmlType::MXFP4 => Some(BlockFormat { fp4: true, ..BlockFormat::new(32, 32, 4, 12, false) }),
        }
    }
}

/// The parameters of a quantized format: see the module's formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockFormat {
    /// Elements in a block: 32, or 256 for the formats with nested scales ("K-quants").
    pub(crate) block_len: usize,
    /// Elements that share a scale: 16 or 32.
    pub(crate) group: usize,
    /// Bits that hold any code of the format, rounded up to 4 or 8.
    pub(crate) bits: usize,
    /// What a code is less, to be a signed number.
    pub(crate) offset: i32,
    /// Whether groups have a minimum that is added.
    pub(crate) has_min: bool,
    /// Whether groups have their own integer scale under the block's.
    pub(crate) nested: bool,
    /// Codes are floats of 4 bits, which stand for the codes in [`E2M1`]; and `d`, a power of two that may be beyond
    /// the range of halves, is a bf16.
    pub(crate) fp4: bool,
    /// Every so many blocks (the rows' format says how many) share an f32 scale and their own offset.
    pub(crate) grouped: bool,
}

impl BlockFormat {
    /// Of [`Grouped`] integers of so many bits.
    pub(crate) const fn grouped(bits: usize) -> BlockFormat {
        BlockFormat { grouped: true, ..BlockFormat::new(32, 32, bits, 0, false) }
    }

    const fn new(block_len: usize, group: usize, bits: usize, offset: i32, has_min: bool) -> BlockFormat {
        BlockFormat { block_len, group, bits, offset, has_min, nested: block_len == 256, fp4: false, grouped: false }
    }

    /// The small integer that a code stands for: itself, but for floats.
    #[inline(always)]
    pub(crate) fn integer(&self, code: u8) -> u8 {
        if self.fp4 { E2M1[usize::from(code & 15)] } else { code }
    }

    /// What the bytes of `d` stand for.
    #[inline(always)]
    pub(crate) fn factor(&self, d: [u8; 2]) -> f32 {
        if self.fp4 { bf16::from_le_bytes(d).to_f32() } else { f16::from_le_bytes(d).to_f32() }
    }
}

/// What E2M1 (a sign, two bits of exponent, one of mantissa) stands for: twice its value, plus 12.
pub(crate) const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// A quantized block taken apart. Of the arrays only the block's own length is meaningful.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Little-endian; for [`BlockFormat::factor`].
    pub(crate) d: [u8; 2],
    /// What the minimums are multiplied with; negative where the format subtracts them.
    pub(crate) m: f16,
    /// Scale of each group; 1 where the format has none.
    pub(crate) scales: [i8; 16],
    /// Minimum of each group; 1 where the format has none.
    pub(crate) mins: [i8; 16],
    pub(crate) codes: [u8; 256],
}

impl Block {
    pub(crate) fn new() -> Block {
        Block { d: [0; 2], m: f16::ZERO, scales: [1; 16], mins: [1; 16], codes: [0; 256] }
    }

    /// Reads one block of a quantized type.
    ///
    /// # Panics
    /// If `ty` is dense or `bytes` is not exactly one block.
    pub(crate) fn read(&mut self, ty: GgmlType, bytes: &[u8]) {
        assert_eq!(bytes.len(), ty.block_bytes(), "one block of {ty:?}");
        match ty {
            GgmlType::Q4_0 => legacy::q4_0(bytes, self),
            GgmlType::Q4_1 => legacy::q4_1(bytes, self),
            GgmlType::Q5_0 => legacy::q5_0(bytes, self),
            GgmlType::Q5_1 => legacy::q5_1(bytes, self),
            GgmlType::Q8_0 => legacy::q8_0(bytes, self),
            GgmlType::Q2K => superblock::q2_k(bytes, self),
            GgmlType::Q3K => superblock::q3_k(bytes, self),
            GgmlType::Q4K => superblock::q4_k(bytes, self),
            GgmlType::Q5K => superblock::q5_k(bytes, self),
            GgmlType::Q6K => superblock::q6_k(bytes, self),
            GgmlType::MXFP4 => legacy::mxfp4(bytes, self),
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => panic!("{ty:?} has no blocks"),
        }
    }
}

/// The value of one code, in the order of operations that defines it (each product and the sum rounded to f32).
/// `offset` is what the code is less, the format's own or the group's.
#[inline(always)]
pub(crate) fn weight(format: &BlockFormat, code: u8, offset: i32, scale: f32, min: f32) -> f32 {
    let product = scale * (i32::from(format.integer(code)) - offset) as f32;
    if format.has_min { product + min } else { product }
}

fn pair_at(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes(pair_at(bytes, at))
}

/// The numbers a row's bytes stand for: `out.len()` elements.
///
/// # Errors
/// If `bytes` is not exactly the bytes of a row of `out.len()` elements.
pub fn dequantize_row(format: impl Into<RowFormat>, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let format = format.into();
    if format.row_bytes(out.len()) != Some(bytes.len()) {
        bail!(
            "{} bytes are not a row of {} {format} elements: the tensor is cut short or mislabelled",
            bytes.len(),
            out.len()
        );
    }
    match format {
        RowFormat::Ggml(ty) => dequantize_ggml(ty, bytes, out),
        RowFormat::Grouped(format) => format.dequantize(bytes, out),
    }
    Ok(())
}

fn dequantize_ggml(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        GgmlType::F16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*b).to_f32();
            }
        }
        GgmlType::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => dequantize_blocks(ty, bytes, out),
    }
}

fn dequantize_blocks(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let format = ty.block_format().expect("a quantized type");
    let mut block = Block::new();
    for (bytes, out) in bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(format.block_len)) {
        block.read(ty, bytes);
        for (g, out) in out.chunks_exact_mut(format.group).enumerate() {
            let scale = format.factor(block.d) * f32::from(block.scales[g]);
            let min = block.m.to_f32() * f32::from(block.mins[g]);
            for (value, &code) in out.iter_mut().zip(&block.codes[g * format.group..]) {
                *value = weight(&format, code, format.offset, scale, min);
            }
        }
    }
}

#[cfg(test)]
mod tests;
