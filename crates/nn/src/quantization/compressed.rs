//! `compressed-tensors`: groups of modules, each with its own arguments.

use std::fmt;

use plimsoll_ops::quant::Codes;
use serde_json::{Value, json};

use super::modules::Modules;
use super::{block_size, group_size};
use crate::{CheckpointError, Fields};

const FORMATS: [&str; 4] = ["float-quantized", "int-quantized", "naive-quantized", "pack-quantized"];

/// What the groups say of the weights.
#[derive(Clone, Debug)]
pub(crate) struct Compressed {
    groups: Vec<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    /// `None` is all matrices.
    targets: Option<Modules>,
    codes: Codes,
    /// Columns that share a scale, where not all do.
    group: Option<usize>,
    block: Option<[usize; 2]>,
    /// Whether activations are E4M3, too, where the checkpoint comes from.
    rounds_activations: bool,
}

impl Compressed {
    pub(super) fn parse(fields: Fields<'_>) -> Result<Self, CheckpointError> {
        check_format(fields, "format", true)?;
        if fields.get("transform_config").is_some_and(|transform| transform != &json!({})) {
            return Err(fields.wrong("transform_config", "is not implemented"));
        }
        if let Some(sparsity) = fields.nested("sparsity_config")? {
            sparsity.only("format", "dense")?;
        }
        let Some(listed) = fields.get("config_groups").and_then(Value::as_object) else {
            return Err(fields.wrong("config_groups", "must be an object"));
        };
        let group =
            |group| Group::parse(Fields::new(group).map_err(|_| fields.wrong("config_groups", "is malformed"))?);
        Ok(Self { groups: listed.values().map(group).collect::<Result<_, _>>()? })
    }

    fn group(&self, module: &str) -> Option<&Group> {
        let named = |group: &&Group| group.targets.as_ref().is_some_and(|targets| targets.hold(module));
        self.groups.iter().find(named).or_else(|| self.groups.iter().find(|group| group.targets.is_none()))
    }

    pub(super) fn block(&self, module: &str) -> Option<[usize; 2]> {
        self.group(module)?.block
    }

    pub(super) fn rounds_activations(&self, module: &str) -> bool {
        self.group(module).is_some_and(|group| group.rounds_activations)
    }

    /// What `module`'s elements are, and the columns that share a scale.
    pub(super) fn codes(&self, module: &str) -> Option<(Codes, Option<usize>)> {
        self.group(module).map(|group| (group.codes, group.group.or(group.block.map(|[_, cols]| cols))))
    }
}

fn check_format(fields: Fields<'_>, name: &str, mixed: bool) -> Result<(), CheckpointError> {
    match fields.text(name)? {
        None => Ok(()),
        Some("mixed-precision") if mixed => Ok(()),
        Some(format) if FORMATS.contains(&format) => Ok(()),
        Some(other) => Err(fields.wrong(name, format!("{other:?} is not implemented; {} are", FORMATS.join(", ")))),
    }
}

impl Group {
    fn parse(fields: Fields<'_>) -> Result<Self, CheckpointError> {
        check_format(fields, "format", false)?;
        let targets = fields.list("targets")?.unwrap_or_default();
        let all = targets.iter().any(|target| target == "Linear");
        let targets = if all { None } else { Some(Modules::parse(fields, &["targets"])?) };
        let Some(weights) = fields.nested("weights")? else {
            return Err(fields.wrong("weights", "is missing: quantized activations alone are not implemented"));
        };
        let codes = match (weights.text("type")?.unwrap_or("int"), weights.size("num_bits")?) {
            ("float", 8) => Codes::E4M3,
            ("int", 8) => Codes::Int8,
            ("int", 4) => Codes::Int4,
            (kind, bits) => {
                let problem = format!("{bits} of type {kind:?} is not implemented; int 4, int 8 and float 8 are");
                return Err(weights.wrong("num_bits", problem));
            }
        };
        if weights.flag("dynamic", false)? {
            return Err(weights.wrong("dynamic", "true is not implemented for weights"));
        }
        let (mut group, mut block) = (None, None);
        match weights.text("strategy")?.unwrap_or("tensor") {
            "tensor" | "channel" => {}
            "group" => group = group_size(weights, "group_size")?,
            "block" => block = block_size(weights, "block_structure")?,
            other => {
                let problem = format!("{other:?} is not implemented; tensor, channel, group and block are");
                return Err(weights.wrong("strategy", problem));
            }
        }
        let rounds_activations = match fields.nested("input_activations")? {
            Some(activations) => activations.text("type")? == Some("float") && activations.size("num_bits")? == 8,
            None => false,
        };
        Ok(Self { targets, codes, group, block, rounds_activations })
    }
}

impl fmt::Display for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.groups.iter().map(|group| {
            let codes = match group.codes {
                Codes::E4M3 => "fp8",
                Codes::Int8 => "int8",
                Codes::Int4 => "int4",
            };
            match (group.group, group.block) {
                (Some(group), _) => format!("{codes}, groups of {group}"),
                (None, Some([rows, cols])) => format!("{codes}, blocks of {rows} x {cols}"),
                (None, None) => codes.to_owned(),
            }
        });
        write!(f, "{}", names.collect::<Vec<_>>().join("; "))
    }
}
