//! Weights spread over several safetensors files, as `model.safetensors.index.json` lists them.
//!
//! The index is untrusted: it names files. A name that is not a plain file name, or that is a link to anything but weights, is
//! refused before anything is opened.

use super::storage::Source;
use super::weights::{HEAD, is_rotary_buffer};
use super::{INDEX, Tensors, WEIGHTS, safetensors};
use crate::error::{Error, Result, quoted};
use crate::files::read_text;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Weights as PyTorch pickles them.
const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Each shard is a file held open.
const MAX_SHARDS: usize = 512;
/// Largest index that is read, in bytes.
const LARGEST_INDEX: u64 = 8 << 20;

/// What an index says.
#[derive(Deserialize)]
pub(in crate::source) struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index whose file names may become paths and requests.
    ///
    /// # Errors
    /// It is no such file, or names too many files, none, or one that is not the plain name of a safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |what: String| Error::input(format!("{} {what}", quoted(&path.display().to_string())));
        let index: Self =
            serde_json::from_str(&read_text(path, LARGEST_INDEX)?).map_err(|error| wrong(format!("is not a valid index: {error}")))?;
        let files = index.files();
        match files.iter().find(|name| !is_plain(name)) {
            _ if files.is_empty() => Err(wrong("names no file".to_owned())),
            _ if files.len() > MAX_SHARDS => Err(wrong(format!("names {} files; at most {MAX_SHARDS} are read", files.len()))),
            Some(name) => Err(wrong(format!("names the file {}, which is not the plain name of a `.safetensors` file", quoted(name)))),
            None => Ok(index),
        }
    }

    /// The files, each once.
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Whether the index beside a file names it as one of several.
pub(super) fn is_shard(path: &Path) -> bool {
    let index = Index::read(&path.with_file_name(INDEX));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    index.is_ok_and(|index| index.files().len() > 1 && index.files().contains(name))
}

/// Whether a name means a safetensors file in the folder it stands in.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.chars().all(plain) && !name.starts_with('.') && name.ends_with(".safetensors") && name.len() <= 255
}

/// The weight files of a folder and the tensors in them: `model.safetensors`, else the shards of the index.
pub(super) fn open_folder(folder: &Path) -> Result<(Vec<Source>, Tensors)> {
    let single = folder.join(WEIGHTS);
    let index = folder.join(INDEX);
    if single.exists() {
        let mut source = Source::open(&single)?;
        let tensors = safetensors::tensors(&mut source, 0)?;
        return Ok((vec![source], tensors));
    }
    if index.exists() {
        return open_shards(folder, &index);
    }
    if let Some(pickled) = PICKLED.iter().find(|name| folder.join(name).exists()) {
        return Err(Error::input(format!(
            "{} has its weights as `{pickled}`, which is a program and is not read; convert them with \
             `transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)`",
            quoted(&folder.display().to_string())
        )));
    }
    Err(Error::input(format!(
        "{} has neither `model.safetensors` nor `{INDEX}`; give a folder in Hugging Face layout, or the path of a `.gguf` or `.safetensors` file",
        quoted(&folder.display().to_string())
    )))
}

/// Whether a GGUF holds what shows pictures to a language model, and no such model.
fn is_projector(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mmproj"))
}

/// The one GGUF file of a folder without safetensors, or the first of the parts of one, which says that they must be joined.
///
/// # Errors
/// There are several: which one is meant?
pub(super) fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    if [WEIGHTS, INDEX].iter().any(|name| folder.join(name).exists()) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| Error::reading(folder, &error))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !is_projector(path));
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, ..] if first.to_string_lossy().contains("-00001-of-") => Ok(Some(first.clone())),
        [first, ..] => Err(Error::input(format!(
            "{} holds {} GGUF files; give the path of one of them as the model, such as {}",
            quoted(&folder.display().to_string()),
            found.len(),
            quoted(&first.display().to_string())
        ))),
    }
}

fn open_shards(folder: &Path, path: &Path) -> Result<(Vec<Source>, Tensors)> {
    let origin = path.display().to_string();
    let wrong = |what: String| Error::input(format!("{} {what}", quoted(&origin)));
    let index = Index::read(path)?;
    let names = index.files();
    let paths = names.iter().map(|name| inside(folder, name, &origin)).collect::<Result<Vec<_>>>()?;

    let (mut sources, mut tensors) = (Vec::new(), Tensors::new());
    for (number, (name, path)) in names.iter().zip(paths).enumerate() {
        let mut source = Source::open(&path)?;
        for (tensor, entry) in safetensors::tensors(&mut source, number)? {
            if index.weight_map.get(&tensor).map(String::as_str) != Some(name) && !is_optional(&tensor) {
                return Err(wrong(format!("does not place {} in {}, where it lies", quoted(&tensor), quoted(name))));
            }
            tensors.insert(tensor, entry);
        }
        sources.push(source);
    }
    let lacking = |tensor: &String| !tensors.contains_key(tensor) && !is_optional(tensor);
    if let Some((tensor, shard)) = index.weight_map.iter().find(|(tensor, _)| lacking(tensor)) {
        return Err(wrong(format!("places {} in {}, which lacks it", quoted(tensor), quoted(shard))));
    }
    Ok((sources, tensors))
}

/// Whether an index may be wrong about a tensor: one that models can do without, and that old tools list or write carelessly.
fn is_optional(tensor: &str) -> bool {
    tensor == HEAD || is_rotary_buffer(tensor)
}

/// The path of a shard, with links followed: to the hub's cache, as older clients leave them in a folder of one's own, or to another
/// safetensors file.
fn inside(folder: &Path, name: &str, index: &str) -> Result<PathBuf> {
    let resolve = |path: &Path| path.canonicalize().map_err(|error| Error::reading(path, &error));
    let (home, path) = (resolve(folder)?, resolve(&folder.join(name))?);
    let is_blob = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "blobs");
    let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
    if path.starts_with(&home) || is_blob || is_safetensors {
        return Ok(path);
    }
    Err(Error::input(format!(
        "{} names the file {}, which is a link out of its folder to something else than safetensors",
        quoted(index),
        quoted(name)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Checkpoint, WeightSource};
    use crate::testing::{Written, golden, safetensors};
    use serde_json::{Value, json};
    use std::fs;

    /// A folder with two shards of one tensor each, and an index.
    fn folder(weight_map: Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let tensor: Written = (name.to_owned(), "F32", vec![1], vec![0; 4]);
            fs::write(folder.path().join(format!("{name}.safetensors")), safetensors(&[tensor])).unwrap();
        }
        fs::write(folder.path().join(INDEX), json!({ "weight_map": weight_map }).to_string()).unwrap();
        folder
    }

    fn refused(weight_map: Value) -> String {
        open_folder(folder(weight_map).path()).err().expect("the index should be refused").to_string()
    }

    #[test]
    fn the_tensors_of_all_shards_are_one_table() {
        let folder = folder(json!({"a": "a.safetensors", "b": "b.safetensors"}));
        let (sources, tensors) = open_folder(folder.path()).unwrap();
        assert_eq!((sources.len(), tensors["a"].source, tensors["b"].source), (2, 0, 1));
    }

    #[test]
    fn a_sharded_model_and_one_file_of_its_tensors_are_equal() {
        let mut sharded = Checkpoint::open(&golden("tiny/sharded")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer.json"] {
            fs::copy(golden("tiny/sharded").join(name), folder.path().join(name)).unwrap();
        }
        let needed = sharded.config.tensors();
        let mut written = |(name, shape): &(String, Vec<usize>)| -> Written {
            let values = sharded.read(name, shape).unwrap();
            (name.clone(), "F32", shape.clone(), values.into_iter().flat_map(f32::to_le_bytes).collect())
        };
        let tensors: Vec<Written> = needed.iter().map(&mut written).collect();
        fs::write(folder.path().join("model.safetensors"), safetensors(&tensors)).unwrap();
        let mut single = Checkpoint::open(folder.path()).unwrap();
        for (name, shape) in &needed {
            assert_eq!(single.read(name, shape).unwrap(), sharded.read(name, shape).unwrap(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_before_anything_is_opened() {
        // None of these exists: an attempt to open one would be another sentence.
        for name in [
            "../a.safetensors",
            "sub/a.safetensors",
            "/etc/a.safetensors",
            "C:\\a.safetensors",
            "..\\a.safetensors",
            "c:a.safetensors",
            "..",
            "",
            ".a.safetensors",
            "a.safetensors\0",
            "a.bin",
            "a.safetensors/..",
            "\u{1b}[31m.safetensors",
        ] {
            let text = refused(json!({ "a": "a.safetensors", "b": name }));
            assert!(text.contains("not the plain name of a `.safetensors` file"), "{name}: {text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_folder_are_refused_except_to_safetensors_and_blobs() {
        use std::os::unix::fs::symlink;
        let real = folder(json!({}));
        let linked = folder(json!({"a": "link.safetensors"}));
        let link = linked.path().join("link.safetensors");
        fs::write(real.path().join("secret"), "x").unwrap();
        symlink(real.path().join("secret"), &link).unwrap();
        let text = open_folder(linked.path()).err().unwrap().to_string();
        assert!(text.contains("a link out of its folder"), "{text}");
        fs::remove_file(&link).unwrap();
        symlink(real.path().join("a.safetensors"), &link).unwrap();
        assert_eq!(open_folder(linked.path()).unwrap().1.len(), 1);

        let repository = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (repository.path().join("blobs"), repository.path().join("snapshots/main"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::copy(real.path().join("a.safetensors"), blobs.join("0123")).unwrap();
        symlink("../../blobs/0123", snapshot.join("link.safetensors")).unwrap();
        fs::copy(linked.path().join(INDEX), snapshot.join(INDEX)).unwrap();
        assert_eq!(open_folder(&snapshot).unwrap().1.len(), 1);
        // A folder of one's own with links into the cache, and a folder of the repository that has a folder of its own.
        fs::remove_file(&link).unwrap();
        symlink(blobs.join("0123"), &link).unwrap();
        assert_eq!(open_folder(linked.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn an_index_may_be_wrong_about_tensors_that_models_do_without() {
        let absent = folder(json!({"a": "a.safetensors", "b": "b.safetensors", "lm_head.weight": "b.safetensors"}));
        assert_eq!(open_folder(absent.path()).unwrap().1.len(), 2);
        let unlisted = folder(json!({"a": "a.safetensors", "b": "b.safetensors"}));
        let tensor = |name: &str| -> Written { (name.to_owned(), "F32", vec![1], vec![0; 4]) };
        let more = safetensors(&[tensor("a"), tensor("model.layers.0.self_attn.rotary_emb.inv_freq")]);
        fs::write(unlisted.path().join("a.safetensors"), more).unwrap();
        assert_eq!(open_folder(unlisted.path()).unwrap().1.len(), 3);
    }

    #[test]
    fn the_only_gguf_of_a_folder_is_the_model() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(only_gguf(folder.path()).unwrap(), None);
        let file = |name: &str| folder.path().join(name);
        fs::write(file("config.json"), "{}").unwrap();
        fs::write(file("a.gguf"), "").unwrap();
        assert_eq!(only_gguf(folder.path()).unwrap(), Some(file("a.gguf")));
        fs::write(file("b.gguf"), "").unwrap();
        let text = only_gguf(folder.path()).unwrap_err().to_string();
        assert!(text.contains("2 GGUF files") && text.contains("a.gguf"), "{text}");
        fs::write(file("model.safetensors"), "").unwrap();
        assert_eq!(only_gguf(folder.path()).unwrap(), None);
    }

    #[test]
    fn an_index_that_disagrees_with_its_shards_is_refused() {
        let text = refused(json!({"a": "a.safetensors", "b": "a.safetensors"}));
        assert!(text.contains("places `b` in `a.safetensors`, which lacks it"), "{text}");
        let text = refused(json!({"a": "b.safetensors", "b": "b.safetensors"}));
        assert!(text.contains("places `a` in `b.safetensors`, which lacks it"), "{text}");
        let text = refused(json!({"x": "a.safetensors"}));
        assert!(text.contains("does not place `a` in `a.safetensors`, where it lies"), "{text}");
        let text = refused(json!({"a": "absent.safetensors"}));
        assert!(text.contains("absent.safetensors"), "{text}");
        let many: Value = (0..=MAX_SHARDS).map(|i| (format!("t{i}"), Value::from(format!("{i}.safetensors")))).collect();
        assert!(refused(many).contains("names 513 files; at most 512"));
        for weight_map in [json!(null), json!([]), json!({"a": 1})] {
            assert!(refused(weight_map).contains("is not a valid index"));
        }
    }

    #[test]
    fn a_folder_without_weights_says_what_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let text = open_folder(folder.path()).err().unwrap().to_string();
        assert!(text.contains("`model.safetensors`") && text.contains(INDEX), "{text}");
        for name in PICKLED {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "").unwrap();
            let text = open_folder(folder.path()).err().unwrap().to_string();
            assert!(text.contains(&format!("`{name}`")) && text.contains("safe_serialization=True"), "{text}");
        }
    }
}
