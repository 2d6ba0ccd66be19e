//! What to call something that was given as a path. Never looks into files.

use std::path::Path;

/// Names that every such file has, so that they tell nothing.
const USUAL: [&str; 2] = ["config.json", "saturation.json"];

/// A folder's name, a file's without its ending; of a file called as all of its kind are, its folder's.
pub(crate) fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = match whole.file_name() {
        Some(name) if USUAL.iter().any(|usual| name == *usual) => whole.parent().and_then(Path::file_name),
        name if whole.is_dir() => name,
        _ => whole.file_stem(),
    };
    name.map_or_else(|| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_by_their_name_or_their_folder() {
        assert_eq!(name_of(Path::new("/runs/h200.json")), "h200");
        assert_eq!(name_of(Path::new("/runs/h200/saturation.json")), "h200");
        assert_eq!(name_of(Path::new("/models/llama-3.1-8b/config.json")), "llama-3.1-8b");
        assert_eq!(name_of(Path::new("/models/smollm2-Q4_1.gguf")), "smollm2-Q4_1");
    }

    #[test]
    fn a_folder_is_called_by_its_whole_name() {
        let folder = std::env::temp_dir().join(format!("plimsoll-llama-3.1-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("created");
        let name = name_of(&folder);
        std::fs::remove_dir(&folder).expect("removed");
        assert!(name.starts_with("plimsoll-llama-3.1-"), "{name}");
    }
}
