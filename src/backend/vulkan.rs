//! Asks the Vulkan loader what there is, through the same wgpu that burn-wgpu uses, so that the rows carry the
//! numbers by which Burn will find the adapters again.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use burn::backend::wgpu::{MemoryConfiguration, RuntimeOptions, WgpuDevice, graphics, init_setup};
use wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};

use super::{Absent, BackendName, DeviceInfo, DeviceKind};

const LOADER: &str = if cfg!(windows) { "vulkan-1.dll" } else { "libvulkan.so.1" };

/// The Vulkan adapters in the loader's order, or why there is none.
pub(super) fn probe() -> Result<Vec<DeviceInfo>, Vec<Absent>> {
    // SAFETY: only loads the library; its initialisers are trusted as they will run anyway.
    if let Err(error) = unsafe { libloading::Library::new(LOADER) } {
        tracing::debug!("{error}");
        return Err(vec![Absent::new(
            BackendName::Wgpu,
            format!("the Vulkan loader `{LOADER}` cannot be loaded"),
            "install it and the GPU's Vulkan driver (Debian: libvulkan1 mesa-vulkan-drivers)",
        )]);
    }
    // Where memory is short the loader panics.
    let devices = number(std::panic::catch_unwind(adapters).unwrap_or_default());
    if devices.is_empty() { Err(vec![no_adapter()]) } else { Ok(devices) }
}

/// Gives each adapter its number among those of its kind, which is how cubecl addresses it. Of the software
/// renderers it can only address the first, and adapters of unknown type not at all.
fn number(adapters: Vec<(DeviceType, DeviceInfo)>) -> Vec<DeviceInfo> {
    let mut seen: HashMap<DeviceKind, usize> = HashMap::new();
    let mut devices = Vec::new();
    for (kind, info) in adapters {
        let kind = match kind {
            DeviceType::DiscreteGpu => DeviceKind::Discrete,
            DeviceType::IntegratedGpu => DeviceKind::Integrated,
            DeviceType::VirtualGpu => DeviceKind::Virtual,
            DeviceType::Cpu => DeviceKind::Software,
            DeviceType::Other => continue,
        };
        let next = seen.entry(kind).or_default();
        if kind != DeviceKind::Software || *next == 0 {
            devices.push(DeviceInfo { kind, index: *next, ..info });
        }
        *next += 1;
    }
    devices
}

fn adapters() -> Vec<(DeviceType, DeviceInfo)> {
    let instance = Instance::new(InstanceDescriptor { backends: Backends::VULKAN, ..InstanceDescriptor::new_without_display_handle() });
    let listing = pin!(instance.enumerate_adapters(Backends::VULKAN));
    // Outside a browser the list is there at once.
    let Poll::Ready(adapters) = listing.poll(&mut Context::from_waker(Waker::noop())) else {
        return Vec::new();
    };
    adapters
        .iter()
        .map(|adapter| {
            let info = adapter.get_info();
            let mut device = DeviceInfo::new(BackendName::Wgpu, DeviceKind::Virtual, 0, info.name);
            let driver = format!("{} {}", info.driver, info.driver_info);
            device.driver = Some(driver.trim().to_owned()).filter(|driver| !driver.is_empty());
            device.max_tensor_bytes = Some(adapter.limits().max_storage_buffer_binding_size);
            (info.device_type, device)
        })
        .collect()
}

fn no_adapter() -> Absent {
    let restricted: Vec<String> = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"]
        .iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var_os(name)?.display())))
        .collect();
    match restricted.first() {
        Some(variable) => Absent::new(
            BackendName::Wgpu,
            format!("no Vulkan driver answers, and {variable} restricts the search"),
            "correct or unset that variable",
        ),
        None => Absent::new(
            BackendName::Wgpu,
            "no Vulkan driver answers",
            "install the GPU's Vulkan driver (Debian: mesa-vulkan-drivers for AMD and Intel, nvidia-vulkan-icd for NVIDIA)",
        ),
    }
}

/// Burn's address of a row, with its runtime started on first use.
///
/// Memory comes in exclusive pages: the default cuts tensors out of pages up to the largest binding (2 GiB on a
/// desktop GPU), of which a few vocabulary-wide tensors would reserve several.
pub(super) fn device(device: &DeviceInfo) -> WgpuDevice {
    static STARTED: Mutex<Option<HashSet<WgpuDevice>>> = Mutex::new(None);
    let address = match device.kind {
        DeviceKind::Discrete => WgpuDevice::DiscreteGpu(device.index),
        DeviceKind::Integrated => WgpuDevice::IntegratedGpu(device.index),
        DeviceKind::Virtual => WgpuDevice::VirtualGpu(device.index),
        DeviceKind::Software | DeviceKind::Cpu => WgpuDevice::Cpu,
    };
    let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if started.get_or_insert_default().insert(address.clone()) {
        let options = RuntimeOptions { memory_config: MemoryConfiguration::ExclusivePages, ..RuntimeOptions::default() };
        init_setup::<graphics::Vulkan>(&address, options);
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_numbered_within_their_kind() {
        let adapter = |kind, name: &str| (kind, DeviceInfo::new(BackendName::Wgpu, DeviceKind::Virtual, 0, name));
        let devices = number(vec![
            adapter(DeviceType::IntegratedGpu, "i0"),
            adapter(DeviceType::Cpu, "s0"),
            adapter(DeviceType::DiscreteGpu, "d0"),
            adapter(DeviceType::Other, "?"),
            adapter(DeviceType::DiscreteGpu, "d1"),
            adapter(DeviceType::Cpu, "s1"),
        ]);
        let got: Vec<_> = devices.iter().map(|device| (device.name.as_str(), device.kind, device.index)).collect();
        assert_eq!(
            got,
            [
                ("i0", DeviceKind::Integrated, 0),
                ("s0", DeviceKind::Software, 0),
                ("d0", DeviceKind::Discrete, 0),
                ("d1", DeviceKind::Discrete, 1),
            ]
        );
    }
}
