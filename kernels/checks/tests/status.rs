//! `kernels/STATUS.md` tells of every kernel there is, and of no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn status_has_a_line_for_each_source() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above");
    let names = fs::read_dir(kernels.join("src")).expect("sources").map(|entry| entry.expect("an entry").file_name());
    let sources: BTreeSet<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".cu")).collect();
    let status = fs::read_to_string(kernels.join("STATUS.md")).expect("STATUS.md");
    let told: Vec<&str> = status.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(told.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), sources);
    assert_eq!(told.len(), sources.len(), "one line each");
}
