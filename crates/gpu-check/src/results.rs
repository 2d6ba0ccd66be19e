//! What a part found, in a JSON file that is whole at every moment, however the part ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// One line of a part: `name`, `outcome` ("ok", or what was wrong), and what was measured.
pub type Row = Map<String, Value>;

/// A row of a JSON object; of nothing else.
pub fn row(object: Value) -> Row {
    match object {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

/// The rows of one part, on disk after each.
pub struct Results {
    path: PathBuf,
    part: String,
    about: Value,
    rows: Vec<Row>,
}

impl Results {
    /// `about`: what was run, where and when.
    pub fn new(folder: &Path, part: &str, about: Value) -> Self {
        Self { path: file(folder, part), part: part.to_owned(), about, rows: Vec::new() }
    }

    /// Adds a row and writes the file anew.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn push(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        self.save()
    }

    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self) -> Result<()> {
        let whole = json!({"part": self.part, "about": self.about, "rows": self.rows});
        let beside = self.path.with_extension("part");
        fs::write(&beside, format!("{whole:#}\n")).with_context(|| format!("cannot write {}", beside.display()))?;
        fs::rename(&beside, &self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Where the file is.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// The rows that a part has left in `folder`; none if it has not run.
///
/// # Errors
/// The file is there and is not what [`Results`] writes.
pub fn read(folder: &Path, part: &str) -> Result<Vec<Row>> {
    let path = file(folder, part);
    let Some(whole) = whole(&path)? else { return Ok(Vec::new()) };
    let rows = whole["rows"].as_array().with_context(|| format!("{} has no rows", path.display()))?;
    let row = |row: &Value| row.as_object().cloned().with_context(|| format!("{} has a broken row", path.display()));
    rows.iter().map(row).collect()
}

/// What was run, where and when, as a part has it; null if it has not run.
///
/// # Errors
/// As [`read`].
pub fn about(folder: &Path, part: &str) -> Result<Value> {
    Ok(whole(&file(folder, part))?.map_or(Value::Null, |mut whole| whole["about"].take()))
}

fn whole(path: &Path) -> Result<Option<Value>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(None) };
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// A number that a part has measured.
///
/// # Errors
/// As [`read`].
pub fn measured(folder: &Path, part: &str, name: &str, key: &str) -> Result<Option<f64>> {
    let rows = read(folder, part)?;
    let row = rows.iter().find(|row| row.get("name").is_some_and(|found| found == name));
    Ok(row.and_then(|row| row.get(key)).and_then(Value::as_f64))
}

fn file(folder: &Path, part: &str) -> PathBuf {
    folder.join(format!("{part}.json"))
}

/// Whether a row tells of success.
pub fn is_ok(row: &Row) -> bool {
    row.get("outcome").is_some_and(|outcome| outcome == "ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_on_disk() {
        let folder = std::env::temp_dir().join(format!("plimsoll-results-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert!(read(&folder, "ceilings").unwrap().is_empty());
        let mut results = Results::new(&folder, "ceilings", json!({"device": "none"}));
        results.push(row(json!({"name": "copy", "outcome": "ok", "bytes_per_s": 2.5e9}))).unwrap();
        results.push(row(json!({"name": "matrix", "outcome": "no memory"}))).unwrap();
        let found = read(&folder, "ceilings").unwrap();
        assert_eq!(found, results.rows());
        assert!(is_ok(&found[0]) && !is_ok(&found[1]));
        assert_eq!(measured(&folder, "ceilings", "copy", "bytes_per_s").unwrap(), Some(2.5e9));
        assert_eq!(measured(&folder, "ceilings", "matrix", "flops_per_s").unwrap(), None);
        fs::write(folder.join("ceilings.json"), "{").unwrap();
        assert!(read(&folder, "ceilings").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
