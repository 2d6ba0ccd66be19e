//! Folders that are not what they seem: each is refused with a message that names the file or the tensor at fault.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use plimsoll_nn::Checkpoint;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder of a test's own.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    /// With a config.json, and nothing else.
    fn new(name: &str) -> Self {
        let process = std::process::id();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("folders-{name}-{process}"));
        let _ = fs::remove_dir_all(&path); // of an earlier process of this number
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        folder.write("config.json", b"{}");
        folder
    }

    /// With two shards, `1` of the tensors `a` and `b` and `2` of `c`, and an index of this `weight_map`.
    fn sharded(name: &str, weight_map: Value) -> Self {
        let folder = Self::new(name);
        folder.write("1", &shard(&["a", "b"]));
        folder.write("2", &shard(&["c"]));
        folder.write(INDEX, json!({ "weight_map": weight_map }).to_string().as_bytes());
        folder
    }

    fn write(&self, file: &str, bytes: &[u8]) -> &Self {
        fs::write(self.0.join(file), bytes).unwrap();
        self
    }

    #[track_caller]
    fn check(&self, expected: &[&str]) {
        check(&self.0, expected);
    }
}

fn shard(names: &[&str]) -> Vec<u8> {
    let data = [0; 8];
    let views = names.iter().map(|name| (*name, TensorView::new(Dtype::F32, vec![2], &data).unwrap()));
    serialize(views, None).unwrap()
}

#[track_caller]
fn check(path: &Path, expected: &[&str]) {
    let problem = Checkpoint::open(path).map(|_| ()).expect_err("must be refused").to_string();
    for part in expected {
        assert!(problem.contains(part), "{part:?} is not in {problem:?}");
    }
}

#[test]
fn whole_folders_open() {
    let single = Folder::new("single");
    single.write(SINGLE, &shard(&["a"]));
    assert_eq!(Checkpoint::open(&single.0).unwrap().weight_bytes(), 8);
    let sharded = Folder::sharded("sharded", json!({"a": "1", "b": "1", "c": "2"}));
    assert_eq!(Checkpoint::open(&sharded.0).unwrap().weight_bytes(), 24);
    // As Hugging Face's cache lays it out.
    let linked = Folder::new("linked");
    symlink(single.0.join(SINGLE), linked.0.join(SINGLE)).unwrap();
    assert_eq!(Checkpoint::open(&linked.0).unwrap().weight_bytes(), 8);
}

#[test]
fn what_is_no_file_is_refused() {
    check(Path::new("/no/such/folder"), &["/no/such/folder"]);
    let folder = Folder::new("no-file");
    folder.check(&["holds neither", SINGLE, INDEX]);
    fs::create_dir(folder.0.join(SINGLE)).unwrap();
    folder.check(&[SINGLE, "not a regular file"]);
    fs::remove_dir(folder.0.join(SINGLE)).unwrap();
    symlink(folder.0.join(SINGLE), folder.0.join(SINGLE)).unwrap();
    folder.check(&["cannot read", SINGLE]);
    fs::remove_file(folder.0.join(SINGLE)).unwrap();
    symlink("/dev/zero", folder.0.join(SINGLE)).unwrap();
    folder.check(&[SINGLE, "not a regular file"]);
    check(&folder.0.join(SINGLE), &[SINGLE, "not a regular file"]);
    fs::remove_file(folder.0.join(SINGLE)).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(folder.0.join(SINGLE)).status().unwrap();
    assert!(pipe.success());
    folder.check(&[SINGLE, "not a regular file"]);
}

#[test]
fn empty_and_foreign_files_are_refused() {
    let folder = Folder::new("empty");
    folder.write(SINGLE, b"").check(&[SINGLE, "empty"]);
    folder.write(SINGLE, b"PK\x03\x04 and so on and on").check(&[SINGLE, "not a safetensors file"]);
    folder.write("empty.gguf", b"");
    check(&folder.0.join("empty.gguf"), &["empty.gguf", "truncated"]);
    check(&folder.0.join(SINGLE), &[SINGLE, "not a GGUF file"]);
}

#[test]
fn configs_that_cannot_be_read_are_refused() {
    let folder = Folder::new("config");
    folder.write(SINGLE, &shard(&["a"]));
    for text in ["", "{", "[".repeat(10_000).as_str(), "{\"a\": 1e999}", "\u{0}"] {
        folder.write("config.json", text.as_bytes()).check(&["config.json", "JSON"]);
    }
    fs::remove_file(folder.0.join("config.json")).unwrap();
    folder.check(&["config.json"]);
    fs::create_dir(folder.0.join("config.json")).unwrap();
    folder.check(&["config.json", "not a regular file"]);
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let lists = |name: &str, weight_map| Folder::sharded(name, weight_map);
    lists("lacks", json!({"a": "1", "b": "1", "c": "1"})).check(&["1: lacks tensor c", INDEX]);
    lists("moved", json!({"a": "1", "b": "2", "c": "2"})).check(&["2: lacks tensor b", INDEX]);
    lists("missing", json!({"a": "1", "b": "1", "c": "3"})).check(&["cannot read", "/3"]);
    lists("number", json!({"a": "1", "b": 7})).check(&[INDEX, "b is not a file name"]);
    lists("list", json!(["a"])).check(&[INDEX, "weight_map"]);
    let folder = lists("cut", json!({"a": "1", "b": "1", "c": "2"}));
    folder.write("2", &shard(&["c"])[..20]).check(&["2: claims a header"]);
    fs::remove_file(folder.0.join("2")).unwrap();
    fs::create_dir(folder.0.join("2")).unwrap();
    folder.check(&["/2: is not a regular file"]);
    fs::remove_dir(folder.0.join("2")).unwrap();
    symlink("2", folder.0.join("2")).unwrap();
    folder.check(&["cannot read", "/2"]);
    folder.write(INDEX, b"{\"weight_map\"").check(&[INDEX, "JSON"]);
}

#[test]
fn tensors_that_an_index_does_not_list_are_there_once() {
    let names = |folder: &Folder| {
        let checkpoint = Checkpoint::open(&folder.0).unwrap();
        checkpoint.tensors().iter().map(|tensor| (tensor.name.to_owned(), tensor.shape.to_vec())).collect::<Vec<_>>()
    };
    let folder = Folder::sharded("unlisted", json!({"a": "1", "c": "2"}));
    let all = ["a", "b", "c"].map(|name| (name.to_owned(), vec![2]));
    assert_eq!(names(&folder), all);
    // Of two, that which the index means.
    let other = [0; 4];
    let views = ["a", "c"].map(|name| (name, TensorView::new(Dtype::F32, vec![1], &other).unwrap()));
    folder.write("2", &serialize(views, None).unwrap());
    assert_eq!(names(&folder), [("a".to_owned(), vec![2]), ("b".to_owned(), vec![2]), ("c".to_owned(), vec![1])]);
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let outside = Folder::new("outside");
    outside.write("secret", &shard(&["c"]));
    let absolute = outside.0.join("secret").to_string_lossy().into_owned();
    for file in ["../folders-outside/secret", &absolute, "./2", "..", "", "2/", "2\u{0}"] {
        let folder = Folder::sharded("traversal", json!({"a": "1", "b": "1", "c": file}));
        folder.check(&[INDEX, "tensor c", "plain file name"]);
    }
}
