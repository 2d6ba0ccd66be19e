//! `quantization_config`: how a checkpoint's matrices are stored, read once and checked. What is in the tensors is
//! decided by the tensors (`weights`); the config is believed where they cannot tell, and decides what dummy weights
//! are made of.
//!
//! It must never know an architecture: modules are names here.

mod compressed;
mod modules;

use std::fmt;

use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat};
use serde_json::Value;

use self::compressed::Compressed;
use self::modules::Modules;
use crate::{CheckpointError, Fields};

const SERVED: &str = "fp8, fbgemm_fp8, compressed-tensors, gptq, awq and mxfp4 are";

/// Matrices that are never made in a packed form, by the last part of their names, unless a checkpoint has them so: the
/// output layer, and what chooses experts.
const KEPT: [&str; 5] = ["lm_head", "embed_tokens", "router", "gate", "shared_expert_gate"];

/// How a checkpoint's matrices are stored.
#[derive(Clone, Debug)]
pub struct Quantization {
    method: Method,
    /// Modules that are stored as they were.
    kept: Modules,
}

#[derive(Clone, Debug)]
pub(crate) enum Method {
    /// As they were, all of them.
    Plain,
    Fp8(Fp8),
    Compressed(Compressed),
    Gptq(Gptq),
    Awq {
        group: Option<usize>,
    },
    /// Of experts alone.
    Mxfp4,
}

/// E4M3 under scales of whole matrices or rows, or of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fp8 {
    /// Rows and columns of a block.
    pub(crate) block: Option<[usize; 2]>,
    /// Whether activations are E4M3, too, where the checkpoint comes from.
    pub(crate) rounds_activations: bool,
}

/// arXiv:2210.17323, as AutoGPTQ and GPTQModel store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gptq {
    pub(crate) bits: usize,
    /// Columns that share a scale; `None` is all.
    pub(crate) group: Option<usize>,
    /// Whether zeros are stored less one, as in the format's first version.
    pub(crate) zeros_less_one: bool,
}

impl Quantization {
    /// Of a config.json: its `quantization_config`, or what older compressed-tensors wrote, `compression_config`.
    ///
    /// # Errors
    /// A method, or a field of one, that is not implemented and would change the result.
    pub fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let whole = Fields::new(config)?;
        let older = match whole.get("quantization_config") {
            None => whole.nested("compression_config")?,
            Some(_) => None,
        };
        let Some(fields) = older.or(whole.nested("quantization_config")?) else {
            return Ok(Self { method: Method::Plain, kept: Modules::default() });
        };
        let method = fields.text("quant_method")?.or(older.map(|_| "compressed-tensors"));
        let (method, kept) = match method {
            Some("fp8") => (Method::Fp8(Fp8::parse(fields)?), &["modules_to_not_convert", "ignored_layers"][..]),
            Some("fbgemm_fp8") => (Method::Fp8(Fp8::OF_ROWS), &["modules_to_not_convert"][..]),
            Some("compressed-tensors") => (Method::Compressed(Compressed::parse(fields)?), &["ignore"][..]),
            Some("gptq") => (Method::Gptq(Gptq::parse(fields)?), &["modules_to_not_convert"][..]),
            Some("awq") => (parse_awq(fields)?, &["modules_to_not_convert"][..]),
            Some("mxfp4") => (Method::Mxfp4, &["modules_to_not_convert"][..]),
            Some(other) => return Err(fields.wrong("quant_method", format!("{other:?} is not implemented; {SERVED}"))),
            None => return Err(fields.wrong("quant_method", format!("is missing; {SERVED} implemented"))),
        };
        Ok(Self { method, kept: Modules::parse(fields, kept)? })
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// Rows and columns of `module`'s blocks, where it has scales of blocks.
    pub(crate) fn block(&self, module: &str) -> Option<[usize; 2]> {
        match &self.method {
            Method::Fp8(fp8) => fp8.block,
            Method::Compressed(compressed) => compressed.block(module),
            _ => None,
        }
    }

    /// Whether the publisher multiplies `module`'s FP8 weights with activations in FP8, for which the weights may have been
    /// chosen. Scales of activations that a checkpoint has are set aside: each row's own is closer.
    pub(crate) fn rounds_activations(&self, module: &str) -> bool {
        !self.kept.hold(module)
            && match &self.method {
                Method::Fp8(fp8) => fp8.rounds_activations,
                Method::Compressed(compressed) => compressed.rounds_activations(module),
                _ => false,
            }
    }

    /// What dummy weights of a module's matrix are made of; `None` is as they were.
    pub(crate) fn dummy_format(&self, module: &str, cols: usize) -> Option<RowFormat> {
        if is_kept(module) || self.kept.hold(module) {
            return None;
        }
        let (codes, group) = match &self.method {
            Method::Plain => return None,
            Method::Mxfp4 => {
                let format = RowFormat::from(GgmlType::MXFP4);
                return format.row_bytes(cols).filter(|_| module.contains(".experts.")).map(|_| format);
            }
            Method::Fp8(fp8) => (Codes::E4M3, fp8.block.map(|[_, cols]| cols)),
            Method::Compressed(compressed) => compressed.codes(module)?,
            Method::Gptq(gptq) => (if gptq.bits == 8 { Codes::Int8 } else { Codes::Int4 }, gptq.group),
            Method::Awq { group } => (Codes::Int4, *group),
        };
        let format = RowFormat::from(Grouped { codes, group: group.unwrap_or(cols) });
        format.row_bytes(cols).map(|_| format)
    }
}

/// See [`KEPT`].
pub(crate) fn is_kept(module: &str) -> bool {
    KEPT.contains(&module.rsplit('.').next().unwrap_or(module))
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |group: &Option<usize>| group.map_or("rows".to_owned(), |group| format!("groups of {group}"));
        match &self.method {
            Method::Plain => write!(f, "dense"),
            Method::Fp8(Fp8 { block: Some([rows, cols]), .. }) => write!(f, "fp8 (blocks of {rows} x {cols})"),
            Method::Fp8(Fp8 { block: None, .. }) => write!(f, "fp8"),
            Method::Compressed(compressed) => write!(f, "compressed-tensors ({compressed})"),
            Method::Gptq(gptq) => write!(f, "gptq (int{}, {})", gptq.bits, group(&gptq.group)),
            Method::Awq { group: of } => write!(f, "awq (int4, {})", group(of)),
            Method::Mxfp4 => write!(f, "mxfp4"),
        }
    }
}

impl Fp8 {
    /// FBGEMM's, as Meta publishes Llama 3.1 405B: a scale a row, activations rounded as they come.
    const OF_ROWS: Self = Self { block: None, rounds_activations: true };

    fn parse(fields: Fields<'_>) -> Result<Self, CheckpointError> {
        fields.only("fmt", "e4m3")?;
        fields.only("weight_format", "e4m3")?;
        let rounds_activations = fields.text("activation_scheme")?.is_some();
        Ok(Self { block: block_size(fields, "weight_block_size")?, rounds_activations })
    }
}

/// `[rows, columns]`; absent, there are no blocks.
fn block_size(fields: Fields<'_>, name: &str) -> Result<Option<[usize; 2]>, CheckpointError> {
    let Some(list) = fields.list(name)? else { return Ok(None) };
    let sizes: Vec<usize> = list.iter().filter_map(Value::as_u64).map(|size| size as usize).collect();
    match sizes[..] {
        [rows @ 1..=LARGEST_GROUP, cols @ 1..=LARGEST_GROUP] if list.len() == 2 => Ok(Some([rows, cols])),
        _ => Err(fields.wrong(name, format!("must be two sizes from 1 to {LARGEST_GROUP}"))),
    }
}

/// No matrix has more columns.
const LARGEST_GROUP: usize = 1 << 21;

/// The columns that share a scale; -1 is all.
fn group_size(fields: Fields<'_>, name: &str) -> Result<Option<usize>, CheckpointError> {
    match fields.get(name).and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if (1..=LARGEST_GROUP as i64).contains(&size) && size % 32 == 0 => Ok(Some(size as usize)),
        _ => Err(fields.wrong(name, format!("must be -1 or a multiple of 32 up to {LARGEST_GROUP}"))),
    }
}

impl Gptq {
    fn parse(fields: Fields<'_>) -> Result<Self, CheckpointError> {
        let bits = match fields.size("bits")? {
            bits @ (4 | 8) => bits,
            other => return Err(fields.wrong("bits", format!("{other} is not implemented; 4 and 8 are"))),
        };
        let zeros_less_one = match fields.text("checkpoint_format")?.unwrap_or("gptq") {
            "gptq" => true,
            "gptq_v2" => false,
            other => {
                let problem = format!("{other:?} is not implemented; \"gptq\" and \"gptq_v2\" are");
                return Err(fields.wrong("checkpoint_format", problem));
            }
        };
        fields.only("pack_dtype", "int32")?;
        fields.refuse(&["is_marlin_format", "rotation", "adapter"])?;
        // Whether columns are in an order of their own is told by the tensors.
        fields.flag("desc_act", false)?;
        Ok(Self { bits, group: group_size(fields, "group_size")?, zeros_less_one })
    }
}

/// arXiv:2306.00978, as AutoAWQ stores it.
fn parse_awq(fields: Fields<'_>) -> Result<Method, CheckpointError> {
    let names = ["bits", "group_size", "version"];
    // The keys that AutoAWQ itself writes, and those that transformers does.
    let [bits, group, version] =
        if fields.get("w_bit").is_some() { ["w_bit", "q_group_size", "version"] } else { names };
    let found = fields.size(bits)?;
    if found != 4 {
        return Err(fields.wrong(bits, format!("{found} is not implemented; 4 is")));
    }
    let layout = fields.text(version)?.unwrap_or("gemm");
    if !layout.eq_ignore_ascii_case("gemm") {
        return Err(fields.wrong(version, format!("{layout:?} is not implemented; \"gemm\" is")));
    }
    if !fields.flag("zero_point", true)? {
        return Err(fields.wrong("zero_point", "false is not implemented"));
    }
    Ok(Method::Awq { group: group_size(fields, group)? })
}

#[cfg(test)]
mod tests;
