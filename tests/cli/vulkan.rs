//! The program on Vulkan, be it a software renderer.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dlmi::backend::{BackendName, DeviceInfo, DeviceKind, Inventory};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backends::{deviation, verdict};
use crate::methods::TABLE_1;
use crate::support::{TINY, answer, dlmi, edit, inversion, record, refuses, run, tiny, tiny_copy};

/// Whether there is a Vulkan driver, be it a software renderer. Its absence is said loudly, and under `CI=true` a failure.
fn has_vulkan(test: &str) -> bool {
    let found = Inventory::probe().devices.iter().any(|device| device.backend == BackendName::Wgpu);
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} needs a Vulkan driver");
        eprintln!("SKIPPED (there is no Vulkan driver): {test}");
    }
    found
}

#[test]
fn agrees() {
    if !has_vulkan("vulkan::agrees") {
        return;
    }
    let software = |device: &DeviceInfo| device.backend == BackendName::Wgpu && device.kind == DeviceKind::Software;
    if Inventory::probe().devices.iter().any(software) {
        assert!(deviation("wgpu software 0 f32") < 1e-5);
        let half = deviation("wgpu software 0 f16");
        assert!(1e-5 < half && half < 2e-3, "{half}");
        assert!(verdict("wgpu software 0 bf16").starts_with("it cannot compute in bf16, only in f32"));
    }
}

/// Has the program compute on Vulkan in a type, once there is a driver. A software renderer takes seconds for each kernel: what one child
/// compiled serves the next, which waits for it.
fn on_vulkan<T>(test: &str, model: &str, dtype: &str, ask: impl FnOnce(&mut assert_cmd::Command) -> T) -> Option<T> {
    static WHOLE: Mutex<()> = Mutex::new(());
    static HALF: Mutex<()> = Mutex::new(());
    if !has_vulkan(test) {
        return None;
    }
    let kernels = format!("{}/kernels-{dtype}", env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&kernels).unwrap();
    let keep = "[compilation]\ncache = \"local\"\n[autotune]\ncache = \"local\"\n";
    std::fs::write(format!("{kernels}/cubecl.toml"), keep).unwrap();
    let _guard = if dtype == "f32" { &WHOLE } else { &HALF }.lock().unwrap_or_else(PoisonError::into_inner);
    let model = std::path::absolute(model).unwrap();
    let mut command = dlmi(["-q", "--json", "--backend", "wgpu", "--dtype", dtype, "--model"]);
    // Compiling hundreds of kernels is what takes long here.
    Some(ask(command.arg(model).current_dir(kernels).timeout(Duration::from_secs(900))))
}

/// What `bench parity` says of a model, and how far the first step of a method is off in objective and gradient.
struct Parity(Value);

impl Parity {
    fn of(test: &str, model: &str, dtype: &str) -> Option<Self> {
        let bench = ["bench", "parity", "--prompt-tokens", "4", "--target-tokens", "6", "--rounds", "2", "--set", "all_tokens=true"];
        on_vulkan(test, model, dtype, |command| Self(answer(command.args(bench))))
    }

    fn figure(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or_else(|| panic!("{name} in {}", self.0))
    }

    fn first_step(&self, method: &str) -> [f64; 2] {
        let step = &self.0["first_steps"][method];
        ["objective", "gradient_norm"].map(|name| step[name].as_f64().unwrap_or_else(|| panic!("{method} in {}", self.0)))
    }
}

/// Logits, greedy tokens and the first steps of the paper's five methods are those of flex, which are transformers': grouped queries, layers
/// with and without RoPE. Only near ties may be lost.
#[test]
fn computes_what_flex_computes() {
    let Some(found) = Parity::of("vulkan::computes_what_flex_computes", "tests/golden/tiny/smollm3-interval", "f32") else { return };
    assert!(found.figure("largest_difference") < 1e-4 && found.figure("widest_lost_margin") < 1e-4, "{}", found.0);
    assert_eq!((found.figure("same_argmax"), found.figure("greedy_agreement")), (1.0, 1.0), "{}", found.0);
    for method in TABLE_1 {
        let [objective, gradient] = found.first_step(method);
        assert!(objective < 1e-4 && gradient < 1e-3, "{method}: {}", found.0);
    }
}

/// The same in f16, within what rounding makes of such a model; a model that is fed its own output may choose another token.
#[test]
fn computes_in_half_precision() {
    let Some(found) = Parity::of("vulkan::computes_in_half_precision", TINY, "f16") else { return };
    assert!((1e-6..1e-2).contains(&found.figure("relative_difference")), "{}", found.0);
    for method in TABLE_1 {
        let [objective, gradient] = found.first_step(method);
        let bounds = if method == "dlmi" { (1e-2, 5e-2) } else { (1e-1, 5e-1) };
        assert!(objective < bounds.0 && gradient < bounds.1, "{method}: {}", found.0);
    }
}

/// The whole program on Vulkan: the tokens of flex, some steps of DLMI with all four scores, and the prompt that flex holds after the same
/// noise.
#[test]
fn completes_and_inverts() {
    let test = "vulkan::completes_and_inverts";
    let complete = ["complete", "he is on the", "--tokens", "8"];
    let Some(written) = on_vulkan(test, TINY, "f32", |command| answer(command.args(complete))) else { return };
    assert_eq!(written["completion_ids"], answer(tiny(["-q", "--json"]).args(complete))["completion_ids"]);
    let invert = ["invert", "he is", "--method", "dlmi", "--prompt-tokens", "3", "--steps", "4", "--samples", "2"];
    let Some(vulkan) = on_vulkan(test, TINY, "f32", |command| record(run(command.args(invert)))) else { return };
    let flex = inversion(tiny(["-q"]).args(invert));
    assert_eq!((&vulkan["backend"], &vulkan["dtype"]), (&"wgpu".into(), &"f32".into()));
    for score in ["relaxed_forced", "relaxed_free", "hard_forced", "hard_free"] {
        for record in [&vulkan, &flex] {
            let score = record["lcs"][score].as_f64().unwrap_or_else(|| panic!("{score} in {record}"));
            assert!((0.0..=1.0).contains(&score), "{record}");
        }
    }
    assert_eq!(vulkan["lcs"]["prompt_ids"], flex["lcs"]["prompt_ids"]);
}

/// A search in f16, and the record says so. bf16 is refused: CubeCL stores it on Vulkan but does not compute in it.
#[test]
fn searches_in_half_precision() {
    let test = "vulkan::searches_in_half_precision";
    let invert = ["invert", "he is", "--prompt-tokens", "3", "--steps", "2"];
    let Some(found) = on_vulkan(test, TINY, "f16", |command| record(run(command.args(invert)))) else { return };
    assert_eq!((&found["dtype"], &found["settings"]["dtype"], &found["steps"]), (&"f16".into(), &"f16".into(), &2.into()));
    on_vulkan(test, TINY, "bf16", |command| refuses(command.args(["complete", "x"]), 3, &["bf16", "f32"]));
}

/// The tiny model with so many embeddings, all but the file's own 0.
fn widened(rows: usize) -> TempDir {
    let (model, name) = (tiny_copy(), "model.embed_tokens.weight");
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let (header, data) = bytes[8..].split_at(u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let (width, own) = (header[name]["shape"][1].as_u64().unwrap() as usize, header[name]["data_offsets"][1].as_u64().unwrap() as usize);
    assert_eq!(header[name]["data_offsets"][0], 0, "it is the first");
    // It goes to the end, where a file may be sparse.
    let rest = data.len() - own;
    for (_, tensor) in header.as_object_mut().unwrap().iter_mut().filter(|(key, _)| *key != name && *key != "__metadata__") {
        tensor["data_offsets"] = json!([0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() - own as u64));
    }
    header[name] = json!({ "dtype": "F16", "shape": [rows, width], "data_offsets": [rest, rest + 2 * rows * width] });
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data[own..], &data[..own]].concat();
    fs::write(&path, &file).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len((file.len() - own + 2 * rows * width) as u64).unwrap();
    edit(model.path().join("config.json"), |config| config["vocab_size"] = rows.into());
    model
}

/// What a GPU's own thread says of a buffer that it cannot have ends the run, where Burn would go on with what was in memory.
#[test]
fn a_buffer_that_cannot_be_had_is_one_sentence() {
    if !has_vulkan("vulkan::a_buffer_that_cannot_be_had_is_one_sentence") {
        return;
    }
    // 150 MiB of embeddings: a desktop GPU takes them.
    let limit = Inventory::probe().devices.iter().find_map(|device| device.max_tensor_bytes);
    if limit.is_none_or(|bytes| bytes > 128 << 20) {
        return eprintln!("SKIPPED (this device takes more than 128 MiB): vulkan::a_buffer_that_cannot_be_had_is_one_sentence");
    }
    let model = widened(800_000);
    let mut command = dlmi(["-q", "--backend", "wgpu", "--model"]);
    command.arg(model.path()).args(["complete", "x", "--tokens", "1"]);
    refuses(&mut command, 3, &["the GPU has no room for a buffer of", "--backend flex"]);
}
