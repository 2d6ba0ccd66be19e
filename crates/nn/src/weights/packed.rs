//! Matrices in the forms that quantized checkpoints store them in, brought to rows that ops takes, without loss: FP8 and
//! INT8 codes under scales, integers packed into words along rows (compressed-tensors) or along columns (GPTQ, AWQ).
//!
//! What a module's tensors are called and how they are laid out is known here; what the module is for is not.

mod codes;
mod gptq;
mod rows;
mod scales;

use std::borrow::Cow;
use std::cell::Cell;

use plimsoll_ops::linear::RowSource;
use plimsoll_ops::quant::{GgmlType, RowFormat, dequantize_row, encode_row};
use safetensors::Dtype;

pub(super) use self::rows::make_rows;
use super::source::Stored;
use crate::CheckpointError;
use crate::checkpoint::RawTensor;
use crate::error::quote;
use crate::quantization::Method;

/// A matrix, as rows that ops takes.
pub(super) struct Matrix<'a> {
    pub(super) format: RowFormat,
    /// `rows` rows of `format`.
    pub(super) bytes: Cow<'a, [u8]>,
    /// The input feature of each stored column, where they are not in order.
    pub(super) order: Option<Vec<u32>>,
    /// Bytes that it took in the checkpoint.
    pub(super) stored_bytes: u64,
}

/// A matrix that was found, whose tensors' types and shapes are those of the config and whose scales are numbers. What it
/// is made of is not read yet: whether it loads is decided up to here, whoever asks.
pub(super) struct Found<'a> {
    pub(super) format: RowFormat,
    /// As [`Matrix::order`].
    pub(super) order: Option<Vec<u32>>,
    pub(super) stored_bytes: u64,
    read: Read<'a>,
}

/// Makes [`Matrix::bytes`].
type Read<'a> = Box<dyn FnOnce() -> Result<Cow<'a, [u8]>, CheckpointError> + 'a>;

impl<'a> Found<'a> {
    pub(super) fn read(self) -> Result<Matrix<'a>, CheckpointError> {
        let Self { format, order, stored_bytes, read } = self;
        Ok(Matrix { format, bytes: read()?, order, stored_bytes })
    }
}

impl Matrix<'_> {
    /// The same numbers brought to `format`, if one is wanted and they are stored in full.
    ///
    /// # Errors
    /// A row of the tensor `name` with a number that the format does not have.
    pub(super) fn brought_to(
        self,
        format: Option<RowFormat>,
        [rows, cols]: [usize; 2],
        name: &str,
    ) -> Result<Self, CheckpointError> {
        let format = brought_format(self.format, format);
        if format == self.format {
            return Ok(self);
        }
        let row_bytes = |format: RowFormat| format.row_bytes(cols).expect("a format of these columns");
        let stored = row_bytes(self.format);
        let made = make_rows(rows, row_bytes(format), |row, out| {
            let mut values = vec![0.0; cols];
            dequantize_row(self.format, &self.bytes[row * stored..][..stored], &mut values)?;
            encode_row(format, &values, out)
        });
        let bytes = made.map_err(|error| blame([(name, self.rows(rows, cols))], error))?;
        Ok(Matrix { format, bytes: bytes.into(), ..self })
    }

    /// As a source of `rows` rows of `cols` columns.
    pub(super) fn rows(&self, rows: usize, cols: usize) -> RowSource<'_> {
        RowSource::new(self.format, rows, cols, &self.bytes).in_order(self.order.as_deref())
    }
}

/// Why the layer of these tensors was not to be: of the tensors, the one that is no matrix or has a row that holds what is
/// not a number is named; else it is as `error` says.
pub(super) fn blame<'n, 's>(
    parts: impl IntoIterator<Item = (&'n str, RowSource<'s>)>,
    error: candle_core::Error,
) -> CheckpointError {
    let mut first = None;
    for (name, source) in parts {
        if let Err(problem) = source.check() {
            return CheckpointError::tensor(name, problem);
        }
        if let Some((row, problem)) = source.faulty_row() {
            return CheckpointError::Row { name: quote(name), row, problem };
        }
        first = first.or(Some(name));
    }
    CheckpointError::tensor(first.unwrap_or("(none)"), error)
}

/// What a matrix of this format becomes where another is wanted: one that is packed stays as it is.
pub(super) fn brought_format(stored: RowFormat, wanted: Option<RowFormat>) -> RowFormat {
    let in_full = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].map(RowFormat::from).contains(&stored);
    wanted.filter(|_| in_full).unwrap_or(stored)
}

/// The tensors of one module that is a matrix of `rows` by `cols`.
struct Module<'s, 'a> {
    stored: &'s Stored<'a>,
    name: &'s str,
    rows: usize,
    cols: usize,
    /// Bytes of the tensors that were asked for.
    bytes: Cell<u64>,
    /// Scales are not looked at: [`Found::read`] is not for this.
    headers_alone: bool,
}

impl<'a> Stored<'a> {
    /// Looks for the matrix of `module`, in whichever form it is stored.
    pub(super) fn find(&self, module: &str, rows: usize, cols: usize) -> Result<Found<'a>, CheckpointError> {
        self.find_in(module, [rows, cols], self.headers_alone())
    }

    /// The format that the matrix of `module` is stored in, and whether its columns are in order; `None` if it would not load.
    pub(super) fn format(&self, module: &str, rows: usize, cols: usize) -> Option<(RowFormat, bool)> {
        let found = self.find_in(module, [rows, cols], true).ok()?;
        Some((found.format, found.order.is_none()))
    }

    fn find_in(
        &self,
        module: &str,
        [rows, cols]: [usize; 2],
        headers_alone: bool,
    ) -> Result<Found<'a>, CheckpointError> {
        let tensors = Module { stored: self, name: module, rows, cols, bytes: Cell::new(0), headers_alone };
        let packed = match self.quantization().method() {
            Method::Plain | Method::Mxfp4 => None,
            Method::Fp8(_) | Method::Compressed(_) => codes::find(&tensors, self.quantization().block(module))?,
            Method::Gptq(gptq) => gptq::find_gptq(&tensors, gptq)?,
            Method::Awq { .. } => gptq::find_awq(&tensors)?,
        };
        match packed {
            Some(found) => Ok(Found { stored_bytes: tensors.bytes.get(), ..found }),
            None => self.find_plain(&format!("{module}.weight"), [rows, cols]),
        }
    }

    /// A matrix that is one tensor.
    fn find_plain(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<Found<'a>, CheckpointError> {
        let ty = self.check(name, &[rows, cols])?;
        let stored_bytes = ty.row_bytes(cols).unwrap_or_default() as u64 * rows as u64;
        let (checkpoint, name) = (self.checkpoint(), name.to_owned());
        let read: Read<'a> = Box::new(move || match checkpoint.tensor(&name)? {
            Some(tensor) => Ok(tensor.bytes),
            None => Err(CheckpointError::MissingTensor { name: checkpoint.stored_name(&name) }),
        });
        Ok(Found { format: ty.into(), order: None, stored_bytes, read })
    }
}

impl<'a> Module<'_, 'a> {
    fn full_name(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.name)
    }

    fn error(&self, tensor: &str, problem: impl ToString) -> CheckpointError {
        CheckpointError::tensor(&self.full_name(tensor), problem)
    }

    /// A tensor that may be absent; it is not yet noted as used.
    fn look(&self, tensor: &str) -> Result<Option<RawTensor<'a>>, CheckpointError> {
        self.stored.raw(&self.full_name(tensor))
    }

    /// A tensor that may be absent.
    fn find(&self, tensor: &str) -> Result<Option<RawTensor<'a>>, CheckpointError> {
        let found = self.look(tensor)?;
        if let Some(found) = &found {
            self.stored.note(&self.full_name(tensor));
            self.bytes.set(self.bytes.get() + found.bytes.len() as u64);
        }
        Ok(found)
    }

    fn get(&self, tensor: &str) -> Result<RawTensor<'a>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { name: self.full_name(tensor) };
        self.find(tensor)?.ok_or_else(missing)
    }

    /// The bytes of a tensor of exactly this type and shape.
    fn exactly(&self, tensor: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8], CheckpointError> {
        let found = self.get(tensor)?;
        if found.dtype != dtype {
            return Err(self.error(tensor, format!("has dtype {:?}; it must be {dtype:?}", found.dtype)));
        }
        self.check_shape(tensor, found.shape, shape)?;
        Ok(found.bytes)
    }

    fn check_shape(&self, tensor: &str, found: &[usize], expected: &[usize]) -> Result<(), CheckpointError> {
        if found == expected {
            return Ok(());
        }
        let (expected, found) = (expected.to_vec(), found.to_vec());
        Err(CheckpointError::Shape { name: self.full_name(tensor), expected, found })
    }

    /// 32-bit words of exactly this shape.
    fn words(&self, tensor: &str, shape: &[usize]) -> Result<Words<'a>, CheckpointError> {
        Ok(Words(self.exactly(tensor, Dtype::I32, shape)?))
    }
}

/// 32-bit words, little-endian.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn at(self, index: usize) -> u32 {
        let (words, _) = self.0.as_chunks::<4>();
        u32::from_le_bytes(words[index])
    }

    /// The code of so many bits that lies `nth` in a word.
    fn code(self, index: usize, nth: usize, bits: usize) -> u8 {
        (self.at(index) >> (bits * nth)) as u8 & ((1u16 << bits) - 1) as u8
    }
}
