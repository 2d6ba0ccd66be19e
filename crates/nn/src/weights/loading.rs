//! What is asked of loading, beside the model: where the weights go, and whether they are made smaller on the way; and what
//! they take then.

use plimsoll_ops::linear::{Activations, Linear, Placement, RowSource, cpu_bytes, gpu_bytes, gpu_bytes_alike};
use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat};

/// Where a model's weights are computed with, and in what form.
#[derive(Clone, Debug)]
pub struct Loading {
    pub placement: Placement,
    /// What matrices become that a checkpoint has in full, or that are made up; but for embeddings, the output layer and
    /// what chooses experts.
    pub quantize: Option<Quantize>,
    /// Whether activations may be rounded to FP8 where that is faster ([`plimsoll_ops::linear::Linear::with_fp8_activations`]);
    /// `None` is where the checkpoint's publisher rounds them.
    pub fp8_activations: Option<bool>,
}

impl From<Placement> for Loading {
    fn from(placement: Placement) -> Self {
        Self { placement, quantize: None, fp8_activations: None }
    }
}

impl From<Activations> for Loading {
    fn from(activations: Activations) -> Self {
        Placement::from(activations).into()
    }
}

/// Which bytes a survey or a dry run counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Footprint {
    /// As they are stored, or would be.
    #[default]
    Stored,
    /// Of a CPU's memory, once they are packed.
    Cpu,
    /// Of a GPU's memory.
    Gpu,
}

impl Footprint {
    /// Of matrices of these formats and rows, merged to one of `cols` columns.
    pub(super) fn of_matrices(self, parts: &[(RowFormat, usize)], cols: usize, form: Form) -> u64 {
        let stored = |&(format, rows): &(RowFormat, usize)| {
            let row = format.row_bytes(cols).unwrap_or_default() as u64;
            row.saturating_mul(rows as u64)
        };
        match self {
            Self::Stored => parts.iter().map(stored).fold(0, u64::saturating_add),
            Self::Cpu => parts.iter().map(|&(format, rows)| cpu_bytes(format, rows, cols)).fold(0, u64::saturating_add),
            Self::Gpu => match form {
                Form::Parts => gpu_bytes(parts, cols),
                Form::Alike => gpu_bytes_alike(parts, cols),
                Form::Widened => {
                    let rows = parts.iter().map(|&(_, rows)| rows).fold(0, usize::saturating_add);
                    gpu_bytes_alike(&[(GgmlType::BF16.into(), rows)], cols)
                }
            },
        }
    }

    /// Of a small tensor that is stored in so many bytes: it is kept as f32.
    pub(super) fn of_numbers(self, stored: u64, shape: &[usize]) -> u64 {
        let in_memory = || shape.iter().fold(4, |bytes: u64, &size| bytes.saturating_mul(size as u64));
        if self == Self::Stored { stored } else { in_memory() }
    }
}

/// How matrices that are merged lie on a GPU; on a CPU they are as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Each as it is stored.
    Parts,
    /// As one, which kernels for experts take.
    Alike,
    /// In bf16.
    Widened,
}

impl Form {
    pub(super) fn load(
        self,
        sources: &[RowSource<'_>],
        bias: Option<Vec<f32>>,
        placement: &Placement,
    ) -> candle_core::Result<Linear> {
        let load = match self {
            Self::Parts => Linear::load,
            Self::Alike => Linear::load_alike,
            Self::Widened => Linear::load_widened,
        };
        load(sources, bias, placement)
    }
}

/// A form that matrices are brought to while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    /// 8 bits, and a scale a row.
    Int8,
    /// 4 bits; a scale and a zero for each 64 columns.
    Int4,
    /// E4M3, and a scale a row.
    Fp8,
    /// E2M1, and a power of two for each 32 columns.
    Mxfp4,
}

impl Quantize {
    /// The form of a matrix of so many columns; `None` if it has no such.
    pub(super) fn format(self, cols: usize) -> Option<RowFormat> {
        let grouped = |codes, group| RowFormat::from(Grouped { codes, group });
        let format = match self {
            Self::Int8 => grouped(Codes::Int8, cols),
            Self::Int4 => grouped(Codes::Int4, 64),
            Self::Fp8 => grouped(Codes::E4M3, cols),
            Self::Mxfp4 => GgmlType::MXFP4.into(),
        };
        format.row_bytes(cols).map(|_| format)
    }
}
