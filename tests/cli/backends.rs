//! The backends: the self-test as the program runs it (itself, again, on one device), and whole runs on Vulkan.

use std::process::Command;

#[cfg(feature = "wgpu")]
use serde_json::Value;

#[cfg(feature = "wgpu")]
use crate::methods::TABLE_1;
#[cfg(feature = "wgpu")]
use crate::support::{Ran, TINY, answer, dlmi, events, folder, refuses, run};

/// What the child says about a device and a type.
fn verdict(device: &str) -> String {
    let child = Command::new(env!("CARGO_BIN_EXE_dlmi")).env("DLMI_SELF_TEST", device).output().unwrap();
    let said = String::from_utf8(child.stderr).unwrap();
    let line = said.lines().find_map(|line| line.strip_prefix("self-test: "));
    let line = line.unwrap_or_else(|| panic!("{device}: {said}")).to_owned();
    assert_eq!(child.status.success(), line.starts_with("sound"), "{device}: {said}");
    line
}

/// The deviation from flex of a device that must be sound.
fn deviation(device: &str) -> f32 {
    let line = verdict(device);
    let number = line.strip_prefix("sound, deviation ").unwrap_or_else(|| panic!("{device}: {line}"));
    number.parse().unwrap()
}

#[test]
fn flex_agrees_with_itself() {
    assert_eq!(deviation("flex cpu 0 f32"), 0.0);
}

/// The products are really computed in the type that is asked for: it shows. (The program offers these types on GPUs alone.)
#[test]
fn half_wide_types_deviate_as_they_must() {
    for (device, least, most) in [("flex cpu 0 f16", 1e-5, 2e-3), ("flex cpu 0 bf16", 1e-4, 1e-2)] {
        let deviation = deviation(device);
        assert!(least < deviation && deviation < most, "{device}: {deviation}");
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_agrees() {
    assert!(deviation("ndarray cpu 0 f32") < 1e-5);
    assert_eq!(verdict("ndarray cpu 0 f16"), "it cannot compute in f16, only in f32");
}

/// Whether there is a Vulkan driver, be it a software renderer. Its absence is said loudly, and under `CI=true` a failure.
#[cfg(feature = "wgpu")]
fn has_vulkan(test: &str) -> bool {
    use dlmi::backend::{BackendName, Inventory};
    let found = Inventory::probe().devices.iter().any(|device| device.backend == BackendName::Wgpu);
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} needs a Vulkan driver");
        eprintln!("SKIPPED (there is no Vulkan driver): {test}");
    }
    found
}

#[cfg(feature = "wgpu")]
#[test]
fn vulkan_agrees() {
    use dlmi::backend::{BackendName, DeviceKind, Inventory};
    if !has_vulkan("vulkan_agrees") {
        return;
    }
    let software = |device: &dlmi::backend::DeviceInfo| device.backend == BackendName::Wgpu && device.kind == DeviceKind::Software;
    if Inventory::probe().devices.iter().any(software) {
        assert!(deviation("wgpu software 0 f32") < 1e-5);
        let half = deviation("wgpu software 0 f16");
        assert!(1e-5 < half && half < 2e-3, "{half}");
        assert!(verdict("wgpu software 0 bf16").starts_with("it cannot compute in bf16, only in f32"));
    }
}

/// The whole program on Vulkan: the tokens of flex, and some steps of the paper's five methods with all four scores.
#[cfg(feature = "wgpu")]
#[test]
fn vulkan_completes_and_inverts() {
    if !has_vulkan("vulkan_completes_and_inverts") {
        return;
    }
    let on = |backend: &str, arguments: &[&str]| {
        let mut command = dlmi(["-q", "--model", TINY, "--backend", backend, "--json"]);
        run(command.args(arguments))
    };
    let ids = |ran: &Ran| serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"))["completion_ids"].clone();
    let complete = ["complete", "he is on the", "--tokens", "8"];
    assert_eq!(ids(&on("wgpu", &complete)), ids(&on("flex", &complete)));

    for method in TABLE_1 {
        let samples = if method == "soda" { &[][..] } else { &["--samples", "2"] };
        let invert = [&["invert", "he is", "--method", method, "--prompt-tokens", "3", "--steps", "4"], samples].concat();
        let records = ["wgpu", "flex"].map(|backend| serde_json::from_str::<Value>(&on(backend, &invert).out).unwrap());
        assert_eq!(records[0]["backend"], "wgpu");
        for score in ["relaxed_forced", "relaxed_free", "hard_forced", "hard_free"] {
            let [vulkan, flex] = [0, 1].map(|i| records[i]["lcs"][score].as_f64());
            assert_eq!(vulkan.is_none(), method == "reinforce" && score.starts_with("relaxed"), "{method} {score}");
            let inside = |score: Option<f64>| score.is_none_or(|score| (0.0..=1.0).contains(&score));
            assert!(inside(vulkan) && inside(flex), "{method} {score}: {vulkan:?} {flex:?}");
        }
        // SODA starts from zeros: which of its nearly equal logits leads is a matter of rounding.
        if method != "soda" {
            assert_eq!(records[0]["lcs"]["prompt_ids"], records[1]["lcs"]["prompt_ids"], "{method}: argmax Z after the same noise");
        }
    }
}

/// A search in f16, and the record says so. bf16 is refused: CubeCL stores it on Vulkan but does not compute in it.
#[cfg(feature = "wgpu")]
#[test]
fn vulkan_computes_in_half_width() {
    if !has_vulkan("vulkan_computes_in_half_width") {
        return;
    }
    let on = |dtype| dlmi(["-q", "--model", TINY, "--backend", "wgpu", "--dtype", dtype]);
    let ran = run(on("f16").args(["--json", "invert", "he is", "--prompt-tokens", "3", "--steps", "2"]));
    let record: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{ran:?}"));
    assert_eq!((&record["dtype"], &record["settings"]["dtype"], &record["steps"]), (&"f16".into(), &"f16".into(), &2.into()));
    refuses(on("bf16").args(["complete", "x"]), 3, &["bf16", "f32"]);
}

/// Burn panics on a thread of its own here; the child turns it into a line.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_a_reason() {
    for (device, compiled) in [("wgpu discrete 99 f32", cfg!(feature = "wgpu")), ("cuda discrete 99 f32", cfg!(feature = "cuda"))] {
        if compiled {
            let line = verdict(device);
            assert!(!line.starts_with("sound"), "{device}: {line}");
        }
    }
}

/// Logits and greedy tokens of tiny models on Vulkan beside those of flex, which are transformers': grouped queries, biases, wide heads,
/// layers without RoPE; in f16 too, within what rounding makes of such models.
#[cfg(feature = "wgpu")]
#[test]
fn vulkan_computes_the_logits_of_flex() {
    if !has_vulkan("vulkan_computes_the_logits_of_flex") {
        return;
    }
    let bounds =
        [("gqa4-untied-llama3", "f32"), ("biases", "f32"), ("head-dim-llama3", "f32"), ("smollm3-interval", "f32"), ("gqa3-tied", "f16")];
    for (name, dtype) in bounds {
        let model = format!("{}/tests/golden/tiny/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut command = dlmi(["-q", "--json", "--backend", "wgpu", "--dtype", dtype, "--model", &model]);
        let found = answer(command.args(["bench", "parity", "--prompt-tokens", "12", "--target-tokens", "12", "--rounds", "1"]));
        let figure = |name: &str| found[name].as_f64().unwrap_or_else(|| panic!("{name} in {found}"));
        match dtype {
            // Only near ties may be lost.
            "f32" => assert!(figure("largest_difference") < 1e-2 && figure("widest_lost_margin") < 2e-2, "{name}: {found}"),
            _ => assert!((1e-6..1e-2).contains(&figure("relative_difference")), "{name}: {found}"),
        }
    }
}

/// A step of DLMI in f16 on Vulkan: its loss and the length of its gradient are those of flex in f32, up to f16's rounding.
#[cfg(feature = "wgpu")]
#[test]
fn a_step_in_half_precision_on_vulkan_is_near() {
    if !has_vulkan("a_step_in_half_precision_on_vulkan_is_near") {
        return;
    }
    let step = |flags: &[&str]| {
        let folder = folder();
        let mut command = dlmi(["-q", "--json", "--model", TINY]);
        let invert = ["invert", "he is", "--method", "dlmi", "--prompt-tokens", "3", "--steps", "1", "--out"];
        assert_eq!(run(command.args(flags).args(invert).arg(folder.path())).code, Some(1));
        let event = events(folder.path()).remove(0);
        ["objective", "gradient_norm"].map(|name| event[name].as_f64().unwrap())
    };
    let (half, whole) = (step(&["--backend", "wgpu", "--dtype", "f16"]), step(&["--backend", "flex"]));
    let off = |i: usize| (half[i] / whole[i] - 1.0).abs();
    assert!(off(0) < 1e-2 && off(1) < 5e-2, "{half:?} {whole:?}");
}
