//! From a backend's name to a device that works, and from the device to concrete types.
//!
//! Burn panics, often on a thread of its own, when a driver is missing or a GPU is broken. So the machine is
//! asked first ([`Inventory::probe`]), a row is chosen without touching Burn ([`Inventory::choose`]), and a GPU
//! must compute some samples rightly in a child process ([`self_test`]) before this process relies on it.
//! [`dispatch`] is the only place that names concrete backends.

#[cfg(feature = "cuda")]
mod cuda;
pub mod doctor;
mod inventory;
pub mod memory;
mod self_test;
#[cfg(feature = "wgpu")]
mod vulkan;

use std::fmt;
use std::process::ExitCode;

use burn::backend::flex::FlexDevice;
use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use crate::ops::TrackedBackend;
use crate::{Error, Result, gpu_memory, setting};

pub use inventory::{Absent, Choice, DeviceInfo, DeviceKind, Health, Inventory};
pub use self_test::self_test;

/// The backends by the names users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// CUDA if present, then a discrete or integrated Vulkan GPU, then flex
    Auto,
    /// CPU, always there
    Flex,
    /// CPU, a second opinion
    Ndarray,
    /// Any GPU with a Vulkan driver
    Wgpu,
    /// NVIDIA GPUs
    Cuda,
}

impl BackendName {
    /// The concrete backends, in the order of the rows of [`Inventory::devices`].
    pub const CONCRETE: [Self; 4] = [Self::Flex, Self::Ndarray, Self::Cuda, Self::Wgpu];

    /// The name as typed.
    pub fn as_str(self) -> &'static str {
        setting::name(&self)
    }

    /// Whether this build contains the backend (`auto` always works).
    pub fn compiled(self) -> bool {
        match self {
            Self::Auto | Self::Flex => true,
            Self::Ndarray => cfg!(feature = "ndarray"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// Whether it computes on the CPU.
    pub fn on_cpu(self) -> bool {
        matches!(self, Self::Flex | Self::Ndarray)
    }
}

impl setting::Choice for BackendName {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Auto, "auto", "CUDA if present, then a discrete or integrated Vulkan GPU, then flex"),
        (Self::Flex, "flex", "CPU, always there"),
        (Self::Ndarray, "ndarray", "CPU, a second opinion"),
        (Self::Wgpu, "wgpu", "Any GPU with a Vulkan driver"),
        (Self::Cuda, "cuda", "NVIDIA GPUs"),
    ];
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Call this first in `main`, before any thread is started; return the exit code if it gives one. In a child of
/// [`self_test`] it does the test; otherwise it quiets the Vulkan loader, names the CUDA toolkit, and lets the panic hook notice that a GPU
/// has no memory left.
#[inline]
pub fn on_start() -> Option<ExitCode> {
    // Mesa's device-select layer complains on stderr where there is no desktop session to ask for its GPU.
    if cfg!(feature = "wgpu") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing else runs yet that could read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    #[cfg(feature = "cuda")]
    // SAFETY: as above.
    unsafe {
        cuda::choose_toolkit();
    }
    let code = self_test::child();
    if code.is_none() {
        gpu_memory::watch();
    }
    code
}

/// Element types of weights and activations, by the names users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits, everywhere
    F32,
    /// 16 bits, 10 of them after the point, on GPUs
    F16,
    /// 16 bits with the range of f32, 7 of them after the point, on GPUs
    Bf16,
}

impl Dtype {
    /// All of them, the most precise first.
    pub fn all() -> impl Iterator<Item = Self> {
        <Self as setting::Choice>::ALL.iter().map(|(dtype, ..)| *dtype)
    }

    /// The name as typed.
    pub fn as_str(self) -> &'static str {
        setting::name(&self)
    }
}

impl setting::Choice for Dtype {
    const ALL: &'static [(Self, &'static str, &'static str)] = &[
        (Self::F32, "f32", "32 bits, everywhere"),
        (Self::F16, "f16", "16 bits, 10 of them after the point, on GPUs"),
        (Self::Bf16, "bf16", "16 bits with the range of f32, 7 of them after the point, on GPUs"),
    ];
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// Opens what `--backend` and `--device` ask for: probes, chooses, and has a GPU prove itself in `dtype`. `auto` goes on to
/// the next best device when one fails; a device that was asked for by name does not.
///
/// # Errors
/// Those of [`Inventory::choose`]; input when a CPU is to compute in another type than f32.
pub fn open(requested: BackendName, row: Option<usize>, dtype: Dtype) -> Result<Choice> {
    let mut inventory = match (requested.on_cpu(), row) {
        (true, None) => Inventory::cpus(),
        _ => Inventory::probe(),
    };
    loop {
        let choice = inventory.choose(requested, row)?;
        let device = &mut inventory.devices[choice.device.row];
        if device.is_gpu() && device.health == Health::Untested {
            device.health = self_test(device, dtype);
            continue;
        }
        if !device.is_gpu() && dtype != Dtype::F32 {
            return Err(Error::input(format!(
                "dtype {dtype} is for GPUs, and this run is on the CPU ({}): leave it out, or choose a GPU of `dlmi doctor`",
                choice.reason
            )));
        }
        if device.kind == DeviceKind::Software {
            tracing::warn!("{device} is a software renderer: slower than the backend flex");
        }
        tracing::info!("running on {}: {}", choice.device, choice.reason);
        return Ok(choice);
    }
}

/// Work that is generic over the backend.
pub trait Job {
    /// What it leaves behind.
    type Output;
    /// Does the work on `device`.
    fn run<B: TrackedBackend>(self, device: B::Device) -> Self::Output;
}

/// Runs `job` on the chosen device.
///
/// This compiles `job` for every backend, minutes for the GPUs: call it from the binary, or from what is generic or
/// inline, so that it happens once.
pub fn dispatch<J: Job>(device: &DeviceInfo, job: J) -> J::Output {
    match device.backend {
        BackendName::Flex => job.run::<Autodiff<Flex>>(FlexDevice),
        #[cfg(feature = "ndarray")]
        BackendName::Ndarray => job.run::<Autodiff<burn::backend::NdArray<f32>>>(Default::default()),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => job.run::<Autodiff<burn::backend::Vulkan<f32, i32>>>(vulkan::device(device)),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => job.run::<Autodiff<burn::backend::Cuda<f32, i32>>>(cuda::device(device)),
        other => unreachable!("a probe made a row of `{other}`, which this build does not contain"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for backend in BackendName::CONCRETE {
            assert_eq!(setting::named(backend.as_str()), Some(backend));
        }
        assert_eq!(setting::named::<BackendName>("metal"), None);
    }
}
