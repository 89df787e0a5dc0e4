//! The self-test as the program runs it: itself, again, on one device.

use std::process::Command;

/// What the child says about `device`.
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
    assert_eq!(deviation("flex cpu 0"), 0.0);
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_agrees() {
    assert!(deviation("ndarray cpu 0") < 1e-5);
}

#[cfg(feature = "wgpu")]
#[test]
fn vulkan_agrees() {
    use dlmi::backend::{BackendName, DeviceKind, Inventory};
    let inventory = Inventory::probe();
    let software = |device: &&dlmi::backend::DeviceInfo| device.backend == BackendName::Wgpu && device.kind == DeviceKind::Software;
    if inventory.devices.iter().find(software).is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI needs a software Vulkan driver");
        return eprintln!("SKIPPED: there is no software Vulkan driver");
    }
    assert!(deviation("wgpu software 0") < 1e-5);
}

/// Burn panics on a thread of its own here; the child turns it into a line.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_a_reason() {
    for (device, compiled) in [("wgpu discrete 99", cfg!(feature = "wgpu")), ("cuda discrete 99", cfg!(feature = "cuda"))] {
        if compiled {
            let line = verdict(device);
            assert!(!line.starts_with("sound"), "{device}: {line}");
        }
    }
}
