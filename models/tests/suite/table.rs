//! The table of docs/models.md: which architecture is served in which format, as these tests have seen it.
//!
//! A test fails when the document says otherwise; `PLIMSOLL_UPDATE_DOCS=1 cargo test -p plimsoll-models table` writes it.

use std::fmt::Write;
use std::path::Path;

use plimsoll_models::{Load, dummy_bytes, find, load_dummy, registry};
use plimsoll_nn::Checkpoint;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use serde_json::Value;

use crate::driver::{Case, Driver};

const BEGIN: &str = "<!-- begin: written by models/tests/suite/table.rs -->\n";
const END: &str = "<!-- end -->";

/// The rows, in their order.
const FORMATS: &[&str] = &[
    "bf16, f16, f32",
    "GGUF",
    "MXFP4",
    "FP8, a scale a tensor",
    "FP8, a scale a channel",
    "FP8, scales of blocks",
    "INT8, compressed-tensors",
    "INT4, compressed-tensors",
    "INT4, GPTQ",
    "INT4, AWQ",
];

/// What a cell says.
const GOLDEN: &str = "golden";
const LOADED: &str = "loaded";
const NOT_SERVED: &str = "-";

/// A golden case as the table sees it.
struct Tested {
    config: Value,
    family: String,
    format: &'static str,
}

#[test]
fn the_document_says_what_the_tests_saw() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = found.split_once(BEGIN).expect("docs/models.md has a place for the table");
    let (_, after) = rest.split_once(END).expect("the table ends");
    let expected = format!("{before}{BEGIN}{}{END}{after}", tables());
    if std::env::var_os("PLIMSOLL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            found == expected,
            "docs/models.md is out of date: PLIMSOLL_UPDATE_DOCS=1 cargo test -p plimsoll-models table"
        );
    }
}

/// README.md's row is a summary of the tables, in words of its own.
#[test]
fn the_readme_names_each_architecture_and_format() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, after) = readme.split_once("| architectures | formats |\n|---|---|\n").expect("README.md has the row");
    let row = after.lines().next().unwrap();
    let architectures = families().into_iter().map(|family| {
        let said = match &*family {
            "Llama, Mistral" => "Llama 3 to 3.3 (SmolLM2, Mistral)",
            "Llama4" => "Llama 4 (text)",
            "Gemma3" => "Gemma 3 (text)",
            "Qwen3" => "Qwen3 and its",
            "Qwen3Moe" => "mixtures of experts",
            "GptOss" => "gpt-oss",
            _ => "not said yet: name it here, too",
        };
        (family, said)
    });
    let formats = FORMATS.iter().map(|&format| {
        let said = match format.split_once(", ") {
            Some(("FP8", _)) => "FP8 by tensor, channel or block",
            Some((_, "compressed-tensors")) => "INT8 and INT4 of compressed-tensors",
            Some(("INT4", method)) => method,
            _ => format,
        };
        (format.to_owned(), said)
    });
    for (what, said) in architectures.chain(formats) {
        assert!(row.contains(said), "{what}: {said:?} is not in README.md's row, {row}");
    }
}

fn tables() -> String {
    let tested: Vec<Tested> = Case::all().iter().map(Tested::of).collect();
    let families = families();
    let cpu = table("on a CPU", &families, |family, format| on_cpu(&tested, family, format));
    // The CUDA build runs the same cases, and nothing else.
    let gpu =
        table("by the CUDA build, emulated", &families, |family, format| match has_case(&tested, family, format) {
            true => GOLDEN,
            false => NOT_SERVED,
        });
    format!("\n{cpu}\n{gpu}\n")
}

fn has_case(tested: &[Tested], family: &str, format: &str) -> bool {
    tested.iter().any(|case| case.family == family && case.format == format)
}

fn table(title: &str, families: &[String], cell: impl Fn(&str, &str) -> &'static str) -> String {
    let mut text = format!("| {title} | {} |\n|---|{}\n", families.join(" | "), "---|".repeat(families.len()));
    for format in FORMATS {
        let cells: Vec<&str> = families.iter().map(|family| cell(family, format)).collect();
        writeln!(text, "| {format} | {} |", cells.join(" | ")).unwrap();
    }
    text
}

/// Without golden data of its own, an architecture is tried with made-up weights, in its plain case's shapes and in the
/// format as another architecture's case has it.
fn on_cpu(tested: &[Tested], family: &str, format: &str) -> &'static str {
    if has_case(tested, family, format) {
        return GOLDEN;
    }
    let plain = tested.iter().find(|case| case.family == family && case.config.get("quantization_config").is_none());
    let other = tested.iter().find(|case| case.format == format && case.config.get("quantization_config").is_some());
    let (Some(plain), Some(other)) = (plain, other) else { return NOT_SERVED };
    let mut config = plain.config.clone();
    config["quantization_config"] = other.config["quantization_config"].clone();
    let is_smaller = || Some(dummy_bytes(&config).ok()? < dummy_bytes(&plain.config).ok()?);
    if is_smaller() == Some(true) && computes(&config) { LOADED } else { NOT_SERVED }
}

/// Whether a model of made-up weights gives logits.
fn computes(config: &Value) -> bool {
    let Ok(model) = load_dummy(config, 0, Activations::F32, |_| {}) else { return false };
    let info = (find(config).unwrap().info)(config).unwrap();
    let logits = Driver::over(info, model, KvDtype::F32, |_| 64).whole(&[1, 2, 3]);
    logits.iter().flatten().all(|x| x.is_finite())
}

/// The columns, in the registry's order: its architectures by their first names, those of one model file together.
fn families() -> Vec<String> {
    let mut columns: Vec<(Load, Vec<String>)> = Vec::new();
    for architecture in registry() {
        let name = first_name(architecture.name);
        match columns.iter_mut().find(|(load, _)| std::ptr::fn_addr_eq(*load, architecture.load)) {
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => columns.push((architecture.load, vec![name])),
        }
    }
    columns.into_iter().map(|(_, names)| names.join(", ")).collect()
}

fn first_name(architecture: &str) -> String {
    architecture.split_once("For").map_or(architecture, |(name, _)| name).into()
}

impl Tested {
    fn of(case: &Case) -> Self {
        let checkpoint = Checkpoint::open(&case.path).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let config = checkpoint.config().clone();
        let name = first_name(config["architectures"][0].as_str().unwrap());
        let family = families().into_iter().find(|column| column.split(", ").any(|of| of == name)).unwrap();
        let format = if checkpoint.gguf().is_some() { "GGUF" } else { format_of(&config) };
        assert!(FORMATS.contains(&format), "{}: a format without a row: {format}", case.name);
        Self { config, family, format }
    }
}

/// The row of a folder of safetensors.
fn format_of(config: &Value) -> &'static str {
    let scheme = &config["quantization_config"];
    match scheme["quant_method"].as_str() {
        None => "bf16, f16, f32",
        Some("mxfp4") => "MXFP4",
        Some("fp8") if scheme["weight_block_size"].is_array() => "FP8, scales of blocks",
        Some("fp8") => "FP8, a scale a tensor",
        Some("gptq") => "INT4, GPTQ",
        Some("awq") => "INT4, AWQ",
        Some("compressed-tensors") => {
            let weights = &scheme["config_groups"].as_object().unwrap().values().next().unwrap()["weights"];
            match (weights["type"].as_str().unwrap(), weights["num_bits"].as_u64().unwrap()) {
                ("int", 8) => "INT8, compressed-tensors",
                ("int", 4) => "INT4, compressed-tensors",
                _ => match weights["strategy"].as_str().unwrap() {
                    "tensor" => "FP8, a scale a tensor",
                    "channel" => "FP8, a scale a channel",
                    _ => "FP8, scales of blocks",
                },
            }
        }
        Some(other) => panic!("{other}: a method without a row"),
    }
}
