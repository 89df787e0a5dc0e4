//! The program on Vulkan, be it a software renderer.

use std::sync::{Mutex, PoisonError};

use dlmi::backend::{BackendName, DeviceInfo, DeviceKind, Inventory};

use crate::backends::{deviation, verdict};
use crate::methods::TABLE_1;
use crate::support::{TINY, answer, dlmi, inversion, record, refuses, run, tiny};

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

/// Has the program compute on Vulkan, once there is a driver; another child waits meanwhile. The kernels that one child compiled serve
/// the next: a software renderer takes seconds for each.
fn on_vulkan<T>(test: &str, model: &str, dtype: &str, ask: impl FnOnce(&mut assert_cmd::Command) -> T) -> Option<T> {
    static ONE: Mutex<()> = Mutex::new(());
    if !has_vulkan(test) {
        return None;
    }
    let kernels = concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels");
    std::fs::create_dir_all(kernels).unwrap();
    let keep = "[compilation]\ncache = \"local\"\n[autotune]\ncache = \"local\"\n";
    std::fs::write(format!("{kernels}/cubecl.toml"), keep).unwrap();
    let _guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let model = std::path::absolute(model).unwrap();
    let mut command = dlmi(["-q", "--json", "--backend", "wgpu", "--dtype", dtype, "--model"]);
    Some(ask(command.arg(model).current_dir(kernels)))
}

/// Logits, greedy tokens and the first steps of the paper's five methods beside those of flex, which are transformers': layers with and
/// without RoPE, and grouped queries; in f16 too, within what rounding makes of such models.
#[test]
fn computes_what_flex_computes() {
    let parity = ["bench", "parity", "--prompt-tokens", "4", "--target-tokens", "6", "--rounds", "2", "--set", "all_tokens=true"];
    for (name, dtype) in [("smollm3-interval", "f32"), ("gqa3-tied", "f16")] {
        let model = format!("tests/golden/tiny/{name}");
        let found = on_vulkan("vulkan::computes_what_flex_computes", &model, dtype, |command| answer(command.args(parity)));
        let Some(found) = found else { return };
        let figure = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("{name} in {found}"));
        let first = |method: &str, name: &str| found["first_steps"][method][name].as_f64().unwrap_or_else(|| panic!("{method} in {found}"));
        if dtype == "f32" {
            // Only near ties may be lost.
            assert!(figure("largest_difference") < 1e-2 && figure("widest_lost_margin") < 2e-2, "{found}");
            assert!(TABLE_1.iter().all(|method| first(method, "objective") < 1e-3 && first(method, "gradient_norm") < 1e-2), "{found}");
        } else {
            assert!((1e-6..1e-2).contains(&figure("relative_difference")), "{found}");
            assert!(first("dlmi", "objective") < 1e-2 && first("dlmi", "gradient_norm") < 5e-2, "{found}");
        }
    }
}

/// The whole program on Vulkan: some steps of DLMI with all four scores, and the prompt that flex holds after the same noise.
#[test]
fn inverts() {
    let invert = ["invert", "he is", "--method", "dlmi", "--prompt-tokens", "3", "--steps", "4", "--samples", "2"];
    let Some(vulkan) = on_vulkan("vulkan::inverts", TINY, "f32", |command| record(run(command.args(invert)))) else { return };
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
