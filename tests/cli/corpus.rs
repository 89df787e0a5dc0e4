//! The corpora of the fuzz targets, replayed: what is read from untrusted bytes never panics.

use std::panic::catch_unwind;
use std::path::Path;

#[path = "../../fuzz/inputs.rs"]
mod inputs;

type Reader = fn(&[u8]);

#[test]
fn every_input_of_the_corpora_is_read_or_refused() {
    let readers: [(&str, Reader); 10] = [
        ("safetensors", inputs::safetensors),
        ("gguf", inputs::gguf),
        ("shard_index", inputs::shard_index),
        ("config", inputs::config),
        ("tokenizer", inputs::tokenizer),
        ("chat_template", inputs::chat_template),
        ("targets", inputs::targets),
        ("checkpoint", inputs::checkpoint),
        ("record", inputs::record),
        ("settings", inputs::settings),
    ];
    assert_eq!(std::fs::read_dir("fuzz/targets").unwrap().count(), readers.len(), "a target without its line here");
    for (name, read) in readers {
        let corpus = Path::new("fuzz/corpus").join(name);
        let inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 4, "{name}");
        for path in inputs {
            let bytes = std::fs::read(&path).unwrap();
            assert!(catch_unwind(|| read(&bytes)).is_ok(), "{} panics", path.display());
        }
    }
}
