//! Reads what `ptxas -v` reports of each kernel, and holds it against the list of excused spills.
//!
//! It knows text only: no compiler is run here.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// What one function costs on one architecture. Bytes are per thread, shared memory per block and static.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) registers: u32,
    pub(crate) shared: u32,
    pub(crate) stack: u32,
    pub(crate) spill_stores: u32,
    pub(crate) spill_loads: u32,
}

impl Usage {
    fn touches_memory(&self) -> bool {
        self.stack + self.spill_stores + self.spill_loads > 0
    }

    pub(crate) fn complaint(&self) -> String {
        format!("stack frame {}, spill stores {}, spill loads {}", self.stack, self.spill_stores, self.spill_loads)
    }
}

/// By function and architecture ("sm_90a").
pub(crate) type Report = BTreeMap<(String, String), Usage>;

/// What ptxas wrote for one file, all its architectures, plus its warnings.
///
/// # Errors
/// Where a line that holds a number is not as known, so that nothing is overlooked with another ptxas.
pub(crate) fn parse(output: &str) -> Result<(Report, Vec<String>)> {
    let (mut report, mut warnings) = (Report::new(), Vec::new());
    let (mut arch, mut function) = (String::new(), String::new());
    for line in output.lines() {
        if line.contains("warning") {
            warnings.push(line.to_owned());
        } else if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            function = quoted.next().context("an entry function has a name")?.to_owned();
            arch = quoted.nth(1).with_context(|| format!("no architecture: {line}"))?.to_owned();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            name.trim().clone_into(&mut function);
        } else if line.contains("bytes stack frame") {
            let usage = report.entry((function.clone(), arch.clone())).or_default();
            usage.stack = number_before(line, " bytes stack frame")?;
            usage.spill_stores = number_before(line, " bytes spill stores")?;
            usage.spill_loads = number_before(line, " bytes spill loads")?;
        } else if line.contains(" registers") {
            let usage = report.entry((function.clone(), arch.clone())).or_default();
            usage.registers = number_before(line, " registers")?;
            usage.shared = if line.contains(" bytes smem") { number_before(line, " bytes smem")? } else { 0 };
        }
    }
    Ok((report, warnings))
}

fn number_before(line: &str, unit: &str) -> Result<u32> {
    let before = line.split_once(unit).and_then(|(before, _)| before.split_whitespace().last());
    let number = before.and_then(|word| word.parse().ok());
    number.with_context(|| format!("ptxas speaks otherwise than known: no number before '{unit}' in: {line}"))
}

/// One `[[allowed]]` of `kernels/spills.toml`: this kernel may use local memory on this architecture, because.
#[derive(Debug, PartialEq)]
pub(crate) struct Excuse {
    pub(crate) kernel: String,
    pub(crate) arch: String,
}

pub(crate) fn parse_excuses(text: &str) -> Result<Vec<Excuse>> {
    let table: toml::Table = text.parse()?;
    let mut excuses = Vec::new();
    for (key, value) in table {
        ensure!(key == "allowed", "knows [[allowed]] alone, not {key}");
        for entry in value.as_array().context("[[allowed]] is a list")? {
            let field = |name: &str| {
                let text = entry.get(name).and_then(toml::Value::as_str).filter(|text| !text.trim().is_empty());
                text.map(str::to_owned).with_context(|| format!("an entry has no {name}: {entry}"))
            };
            field("reason")?;
            excuses.push(Excuse { kernel: field("kernel")?, arch: field("arch")? });
        }
    }
    Ok(excuses)
}

/// Every kernel that uses local memory without an excuse, and every excuse that nothing needs.
pub(crate) fn complaints(report: &Report, excuses: &[Excuse]) -> Vec<String> {
    let excused = |(kernel, arch): &(String, String)| excuses.iter().any(|e| e.kernel == *kernel && e.arch == *arch);
    let mut found = Vec::new();
    for (key, usage) in report.iter().filter(|(key, usage)| usage.touches_memory() && !excused(key)) {
        found.push(format!("{} on {}: {}", key.0, key.1, usage.complaint()));
    }
    for Excuse { kernel, arch } in excuses {
        let usage = report.get(&(kernel.clone(), arch.clone()));
        if !usage.is_some_and(Usage::touches_memory) {
            found.push(format!(
                "kernels/spills.toml excuses {kernel} on {arch}, which has nothing to excuse: remove it"
            ));
        }
    }
    found
}

/// Adds one file's report to all files'. A kernel is looked up by its name, so each name stands once; functions that
/// were not inlined (their names are mangled) may come from a header into several files.
pub(crate) fn merge(all: &mut Report, file: &str, one: Report) -> Result<()> {
    for (key, usage) in one {
        if all.contains_key(&key) && !key.0.starts_with("_Z") {
            bail!("{file} defines {}, which another file defines too", key.0);
        }
        all.insert(key, usage);
    }
    Ok(())
}

/// One line a kernel: registers and static shared memory by architecture, and what of local memory it uses.
pub(crate) fn table(report: &Report, archs: &[&str]) -> String {
    let mut kernels: BTreeMap<&str, BTreeMap<&str, &Usage>> = BTreeMap::new();
    for ((kernel, arch), usage) in report {
        kernels.entry(kernel).or_default().insert(arch, usage);
    }
    let width = kernels.keys().map(|name| name.len()).max().unwrap_or(0).max("kernel".len());
    let mut out = format!("{:width$}", "kernel");
    for arch in archs {
        out += &format!(" {:>16}", format!("{arch} reg/smem"));
    }
    for (kernel, of_archs) in kernels {
        out += &format!("\n{kernel:width$}");
        for arch in archs {
            let cell = of_archs.get(arch).map(|usage| format!("{}/{}", usage.registers, usage.shared));
            out += &format!(" {:>16}", cell.unwrap_or_else(|| "-".to_owned()));
        }
        for (arch, usage) in of_archs.iter().filter(|(_, usage)| usage.touches_memory()) {
            out += &format!("  [{arch}: {}]", usage.complaint());
        }
    }
    out
}

/// The same for machines: a list of objects.
pub(crate) fn to_json(report: &Report) -> Value {
    let row = |((kernel, arch), usage): (&(String, String), &Usage)| {
        serde_json::json!({
            "kernel": kernel, "arch": arch, "registers": usage.registers, "shared_bytes": usage.shared,
            "stack_bytes": usage.stack, "spill_store_bytes": usage.spill_stores, "spill_load_bytes": usage.spill_loads,
        })
    };
    report.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: &str = include_str!("../testdata/ptxas-13.0.txt");

    fn captured() -> Report {
        parse(CAPTURED).unwrap().0
    }

    fn key(kernel: &str, arch: &str) -> (String, String) {
        (kernel.to_owned(), arch.to_owned())
    }

    fn excuse(kernel: &str, arch: &str) -> Excuse {
        Excuse { kernel: kernel.to_owned(), arch: arch.to_owned() }
    }

    #[test]
    fn each_function_is_read_on_each_architecture() {
        let report = captured();
        assert_eq!(report.len(), 5 * 3, "{report:?}");
        let spills = Usage { registers: 32, shared: 0, stack: 528, spill_stores: 1036, spill_loads: 1044 };
        assert_eq!(report[&key("spills", "sm_90a")], spills);
        assert_eq!(report[&key("spills", "sm_89")], Usage { registers: 64, ..Usage::default() });
        assert_eq!(report[&key("shared_f32", "sm_80")], Usage { registers: 10, shared: 1024, ..Usage::default() });
        assert_eq!(report[&key("indexed", "sm_80")].stack, 64);
        assert!(report.contains_key(&key("_Z5twicef", "sm_90a")));
    }

    #[test]
    fn warnings_are_kept() {
        let (_, warnings) = parse(CAPTURED).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("minnctapersm"));
    }

    #[test]
    fn a_report_in_other_words_is_an_error() {
        let other = CAPTURED.replace("spill stores", "stores spilled");
        assert!(parse(&other).unwrap_err().to_string().contains("spill stores"));
    }

    #[test]
    fn local_memory_needs_an_excuse_and_an_excuse_needs_local_memory() {
        let report = captured();
        assert_eq!(complaints(&report, &[]).len(), 5, "spills on two architectures, indexed on three");
        let mut excuses = vec![excuse("spills", "sm_80"), excuse("spills", "sm_90a")];
        excuses.extend(["sm_80", "sm_89", "sm_90a"].map(|arch| excuse("indexed", arch)));
        assert!(complaints(&report, &excuses).is_empty());
        excuses.push(excuse("spills", "sm_89"));
        excuses.push(excuse("gone", "sm_80"));
        let found = complaints(&report, &excuses);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|complaint| complaint.contains("remove it")));
    }

    #[test]
    fn an_excuse_states_its_reason() {
        let text = "[[allowed]]\nkernel = \"a\"\narch = \"sm_80\"\nreason = \"cold path\"\n";
        assert_eq!(parse_excuses(text).unwrap(), [excuse("a", "sm_80")]);
        assert!(parse_excuses(&text.replace("cold path", " ")).unwrap_err().to_string().contains("reason"));
        assert!(parse_excuses(&text.replace("allowed", "alowed")).is_err());
        assert!(parse_excuses("").unwrap().is_empty());
    }

    #[test]
    fn a_name_stands_in_one_file() {
        let mut all = captured();
        let error = merge(&mut all, "b.cu", captured()).unwrap_err().to_string();
        assert!(error.starts_with("b.cu defines"), "{error}");
        let helper = |report: Report| report.into_iter().filter(|(key, _)| key.0 == "_Z5twicef").collect();
        merge(&mut all, "b.cu", helper(captured())).unwrap();
    }

    #[test]
    fn the_table_has_a_line_a_kernel() {
        let table = table(&captured(), &["sm_80", "sm_89", "sm_90a"]);
        assert_eq!(table.lines().count(), 1 + 5);
        let shared = table.lines().find(|line| line.starts_with("shared_f32")).unwrap();
        assert_eq!(shared.split_whitespace().collect::<Vec<_>>(), ["shared_f32", "10/1024", "10/1024", "10/1024"]);
        assert!(table.contains("[sm_80: stack frame 512, spill stores 1020, spill loads 1028]"));
    }
}
