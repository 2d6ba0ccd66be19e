//! Rows as text, for a terminal.

use std::fmt::Write;

use serde_json::Value;

use crate::results::{Row, is_ok};

/// The rows under one line of their keys, in the order of their first appearance; what failed comes last, in words.
pub fn render(title: &str, rows: &[Row]) -> String {
    let (good, bad): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| is_ok(row));
    let mut out = format!("{title}: {} ok, {} failed\n", good.len(), bad.len());
    out += &columns(&good);
    for row in bad {
        let _ = writeln!(out, "  FAILED {}: {}", text(row.get("name")), text(row.get("outcome")));
    }
    out
}

/// As [`render`], with one line for each group of rows whose names agree up to the first `/`.
pub fn render_grouped(title: &str, rows: &[Row]) -> String {
    let mut groups: Vec<(String, usize, usize)> = Vec::new();
    for row in rows {
        let name = text(row.get("name"));
        let group = name.split('/').next().unwrap_or_default().to_owned();
        let at = groups.iter().position(|(known, ..)| *known == group).unwrap_or_else(|| {
            groups.push((group, 0, 0));
            groups.len() - 1
        });
        match is_ok(row) {
            true => groups[at].1 += 1,
            false => groups[at].2 += 1,
        }
    }
    let (good, bad) = groups.iter().fold((0, 0), |(good, bad), (_, g, b)| (good + g, bad + b));
    let mut out = format!("{title}: {good} ok, {bad} failed\n");
    for (group, good, bad) in groups {
        let _ = writeln!(out, "  {group:<32} {good:>5} ok {bad:>5} failed");
    }
    for row in rows.iter().filter(|row| !is_ok(row)) {
        let seed = row.get("seed").map(|seed| format!(" (seed {})", text(Some(seed)))).unwrap_or_default();
        let _ = writeln!(out, "  FAILED {}{seed}: {}", text(row.get("name")), text(row.get("outcome")));
    }
    out
}

fn columns(rows: &[&Row]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if key != "outcome" && !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let cell = |row: &Row, key: &str| row.get(key).map(|value| text(Some(value))).unwrap_or_default();
    let width =
        |key: &&str| rows.iter().map(|row| cell(row, key).chars().count()).chain([key.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = keys.iter().map(width).collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(index, (cell, width))| match index {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("  {}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = String::new();
    if !rows.is_empty() {
        out += &line(keys.iter().map(|key| (*key).to_owned()).collect());
    }
    for row in rows {
        out += &line(keys.iter().map(|key| cell(row, key)).collect());
    }
    out
}

/// Numbers with four digits that count, everything else as it is.
fn text(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(real)) => digits(real),
            _ => number.to_string(),
        },
        Some(other) => other.to_string(),
    }
}

/// Four digits that count.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1000.0 => format!("{value:.0}"),
        _ if size >= 100.0 => format!("{value:.1}"),
        _ if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(value: Value) -> Vec<Row> {
        value.as_array().unwrap().iter().map(|row| row.as_object().cloned().unwrap()).collect()
    }

    #[test]
    fn a_table_aligns_and_tells_what_failed() {
        let rows = rows(json!([
            {"name": "rms_norm/1x4096", "outcome": "ok", "us": 2.71439, "GB/s": 1234.56},
            {"name": "copy", "outcome": "ok", "us": 12, "share": 0.5},
            {"name": "gone", "outcome": "hung for 20 s"},
        ]));
        let expected = "timings: 2 ok, 1 failed\n\
                        \x20 name                us  GB/s  share\n\
                        \x20 rms_norm/1x4096  2.714  1235\n\
                        \x20 copy                12        0.500\n\
                        \x20 FAILED gone: hung for 20 s\n";
        assert_eq!(render("timings", &rows), expected);
    }

    #[test]
    fn checks_are_counted_by_kernel() {
        let rows = rows(json!([
            {"name": "embedding/a", "outcome": "ok", "seed": 1},
            {"name": "embedding/b", "outcome": "row 3 differs", "seed": 7},
            {"name": "softcap/a", "outcome": "ok", "seed": 1},
        ]));
        let text = render_grouped("checks", &rows);
        assert!(text.starts_with("checks: 2 ok, 1 failed\n"), "{text}");
        assert!(text.contains("  embedding                            1 ok     1 failed\n"), "{text}");
        assert!(text.contains("  FAILED embedding/b (seed 7): row 3 differs\n"), "{text}");
    }
}
