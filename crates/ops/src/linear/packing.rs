//! What a panel can be made of: what the kernels are compiled for, one by one.

use crate::quant::{BlockFormat, Codes, GgmlType, Grouped, RowFormat};

/// What a panel is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Dense, or blocks.
    Ggml(GgmlType),
    /// Blocks under scales of groups; of 4 bits.
    Int4,
    /// The same of 8 bits.
    Int8,
    /// Floats under scales of groups.
    E4M3,
}

impl Packing {
    pub(super) const fn of(format: RowFormat) -> Packing {
        match format {
            RowFormat::Ggml(ty) => Packing::Ggml(ty),
            RowFormat::Grouped(Grouped { codes: Codes::Int4, .. }) => Packing::Int4,
            RowFormat::Grouped(Grouped { codes: Codes::Int8, .. }) => Packing::Int8,
            RowFormat::Grouped(Grouped { codes: Codes::E4M3, .. }) => Packing::E4M3,
        }
    }

    /// A number for each, which kernels can be generic over.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn index(self) -> usize {
        let others = GgmlType::ALL.len();
        match self {
            Packing::Ggml(ty) => ty as usize,
            Packing::Int4 => others,
            Packing::Int8 => others + 1,
            Packing::E4M3 => others + 2,
        }
    }

    /// # Panics
    /// If it is no packing's index; at compile time where it is used in a constant.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn at(index: usize) -> Packing {
        const OTHERS: [Packing; 3] = [Packing::Int4, Packing::Int8, Packing::E4M3];
        let others = GgmlType::ALL.len();
        if index < others { Packing::Ggml(GgmlType::ALL[index]) } else { OTHERS[index - others] }
    }

    /// The parameters of a packing of blocks of integers; `None` for those of floats.
    pub(super) const fn block_format(self) -> Option<BlockFormat> {
        match self {
            Packing::Ggml(ty) => ty.block_format(),
            Packing::Int4 => Some(BlockFormat::grouped(4)),
            Packing::Int8 => Some(BlockFormat::grouped(8)),
            Packing::E4M3 => None,
        }
    }

    /// Bytes of an element of a packing of floats.
    pub(super) const fn element_bytes(self) -> usize {
        match self {
            Packing::Ggml(ty) => ty.block_bytes(),
            _ => 1,
        }
    }
}
