//! What untrusted bytes are read as: shared by the fuzz targets and by the test that replays their corpora. Every input must be read or
//! refused with an error; a panic is a fault.
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::path::Path;

use dlmi::invert::folder::Folder;
use dlmi::model::{Checkpoint, WeightSource};
use dlmi::problem::targets::parse_targets;
use dlmi::settings::{Layers, Sources};
use dlmi::source::{ChatTemplate, Message, Tokenizer};

const TINY: &str = "tests/golden/tiny/gqa3-tied";
const SHARDED: &str = "tests/golden/tiny/sharded";

/// Opens the model in `source` with one of its files as given, and reads its first tensor.
fn model(source: &str, name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(source).expect("run from the project's root").flatten() {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    std::fs::write(folder.path().join(name), bytes).expect("a file");
    read(folder.path());
}

fn read(path: &Path) {
    if let Ok(mut checkpoint) = Checkpoint::open(path) {
        let shape = [checkpoint.config.vocab_size, checkpoint.config.hidden_size];
        let _ = checkpoint.read("model.embed_tokens.weight", &shape);
        checkpoint.tokenizer.encode("he is");
    }
}

pub fn safetensors(bytes: &[u8]) {
    model(TINY, "model.safetensors", bytes);
}

pub fn config(bytes: &[u8]) {
    model(TINY, "config.json", bytes);
}

pub fn shard_index(bytes: &[u8]) {
    model(SHARDED, "model.safetensors.index.json", bytes);
}

pub fn gguf(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a file");
    read(&path);
}

pub fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json_bytes(bytes, "tokenizer.json") {
        let ids = tokenizer.encode("Hello, the king\n aaaa 12");
        tokenizer.decode_behind(&ids, &ids);
    }
}

pub fn chat_template(bytes: &[u8]) {
    let turns = [Message { role: "system", content: "Be brief." }, Message { role: "user", content: "Hello" }];
    let template = ChatTemplate::new(&String::from_utf8_lossy(bytes), serde_json::Map::new(), "here");
    let _ = template.and_then(|template| template.render(&turns));
}

pub fn targets(bytes: &[u8]) {
    let tokenizer = Tokenizer::from_file(&Path::new(TINY).join("tokenizer.json")).expect("a tokenizer");
    let _ = parse_targets(&String::from_utf8_lossy(bytes), Path::new("targets.jsonl"), &tokenizer, 288);
}

pub fn checkpoint(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("checkpoint.safetensors"), bytes).expect("a file");
    let _ = Folder::open(folder.path(), serde_json::json!({}), true);
}

pub fn record(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("records.jsonl");
    std::fs::write(&path, bytes).expect("a file");
    let _ = dlmi::report::report(&[path], &folder.path().join("report"));
}

pub fn settings(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, bytes).expect("a file");
    let _ = Layers::read(Sources { files: vec![path], ..Sources::default() }).and_then(|layers| layers.preview());
}
