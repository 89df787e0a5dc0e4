//! The self-test of a backend, as the program runs it: itself, again, on one device.

use std::process::Command;

/// What the child says about a device and a type.
pub fn verdict(device: &str) -> String {
    let child = Command::new(env!("CARGO_BIN_EXE_dlmi")).env("DLMI_SELF_TEST", device).output().unwrap();
    let said = String::from_utf8(child.stderr).unwrap();
    let line = said.lines().find_map(|line| line.strip_prefix("self-test: "));
    let line = line.unwrap_or_else(|| panic!("{device}: {said}")).to_owned();
    assert_eq!(child.status.success(), line.starts_with("sound"), "{device}: {said}");
    line
}

/// The deviation from flex of a device that must be sound.
pub fn deviation(device: &str) -> f32 {
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
fn half_precision_deviates_as_it_must() {
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
