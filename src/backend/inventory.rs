//! What devices there are, what the missing ones lack, and which one to take: the choice is a function of the list.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BackendName, Dtype, self_test};
use crate::{Error, Result};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU seen through a hypervisor.
    Virtual,
    /// A CPU that plays a GPU (llvmpipe, SwiftShader).
    Software,
    /// The CPU.
    Cpu,
}

impl DeviceKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Discrete, Self::Integrated, Self::Virtual, Self::Software, Self::Cpu];

    /// The word for it in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Cpu => "cpu",
        }
    }
}

/// What is known about a device's arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "detail")]
pub enum Health {
    /// Never asked to compute.
    Untested,
    /// Agreed with flex, up to this part of the largest value: f32 gives about 1e-7, TF32 products 1e-3.
    Sound(f32),
    /// Crashed, hung or computed something else, as the sentence says.
    Broken(String),
}

/// One device of one backend: a row of `doctor`'s list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceInfo {
    /// Number for `--device`.
    pub row: usize,
    /// The backend that drives it.
    pub backend: BackendName,
    /// What it is.
    pub kind: DeviceKind,
    /// Its number among the devices of this backend and, for wgpu, of this kind: how Burn addresses it.
    pub index: usize,
    /// The name its driver gives.
    pub name: String,
    /// Driver name and version, where the driver tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Total memory in bytes, where the driver tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Largest single tensor in bytes, where it is limited below the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tensor_bytes: Option<u64>,
    /// Outcome of the self-test, if one was run.
    pub health: Health,
    /// Types that `--dtype` may name: f32 alone on a CPU, on a GPU those in which [`Inventory::test`] found it sound.
    pub dtypes: Vec<Dtype>,
}

impl DeviceInfo {
    pub(super) fn new(backend: BackendName, kind: DeviceKind, index: usize, name: impl Into<String>) -> Self {
        Self {
            row: 0,
            backend,
            kind,
            index,
            name: name.into(),
            driver: None,
            memory_bytes: None,
            max_tensor_bytes: None,
            health: Health::Untested,
            dtypes: if backend.on_cpu() { vec![Dtype::F32] } else { Vec::new() },
        }
    }

    /// Whether the self-test applies: a GPU or what plays one.
    pub fn is_gpu(&self) -> bool {
        !self.backend.on_cpu()
    }

    fn is_broken(&self) -> bool {
        matches!(self.health, Health::Broken(_))
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.backend, self.kind.as_str())
    }
}

/// Why a backend cannot be used here. `backend: why; hint` reads as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The backend that is missing.
    pub backend: BackendName,
    /// What is missing.
    pub why: String,
    /// What to install, set or build.
    pub hint: String,
}

impl Absent {
    pub(super) fn new(backend: BackendName, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { backend, why: why.into(), hint: hint.into() }
    }

    fn not_compiled(backend: BackendName) -> Self {
        Self::new(backend, "not compiled in", format!("build with `--features {backend}`"))
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.hint)
    }
}

/// The device to run on, and why it is this one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// The device.
    pub device: DeviceInfo,
    /// Half a sentence on why.
    pub reason: String,
}

/// Everything this machine and this build offer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Inventory {
    /// The usable devices; `devices[n].row == n`.
    pub devices: Vec<DeviceInfo>,
    /// What each unusable backend lacks.
    pub absent: Vec<Absent>,
}

impl Inventory {
    /// The rows that need no driver.
    pub fn cpus() -> Self {
        let mut found = Self::default();
        let name = cpu_name();
        found.push(DeviceInfo::new(BackendName::Flex, DeviceKind::Cpu, 0, &name));
        if BackendName::Ndarray.compiled() {
            found.push(DeviceInfo::new(BackendName::Ndarray, DeviceKind::Cpu, 0, &name));
        } else {
            found.absent.push(Absent::not_compiled(BackendName::Ndarray));
        }
        found
    }

    /// Asks the CUDA driver and the Vulkan loader, without Burn. Never panics.
    pub fn probe() -> Self {
        let mut found = Self::cpus();
        #[cfg(feature = "cuda")]
        found.add(super::cuda::probe());
        #[cfg(feature = "wgpu")]
        found.add(super::vulkan::probe());
        for backend in [BackendName::Cuda, BackendName::Wgpu] {
            if !backend.compiled() {
                found.absent.push(Absent::not_compiled(backend));
            }
        }
        found
    }

    fn push(&mut self, device: DeviceInfo) {
        let row = self.devices.len();
        self.devices.push(DeviceInfo { row, ..device });
    }

    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn add(&mut self, probed: Result<Vec<DeviceInfo>, Vec<Absent>>) {
        match probed {
            Ok(devices) => devices.into_iter().for_each(|device| self.push(device)),
            Err(absent) => self.absent.extend(absent),
        }
    }

    /// Runs the self-test on every GPU in every type; its health is that in f32.
    pub fn test(&mut self) {
        for device in self.devices.iter_mut().filter(|device| device.is_gpu()) {
            device.health = self_test(device, Dtype::F32);
            if let Health::Sound(_) = device.health {
                let sound = |dtype: &Dtype| *dtype == Dtype::F32 || matches!(self_test(device, *dtype), Health::Sound(_));
                device.dtypes = Dtype::all().filter(sound).collect();
            }
        }
    }

    /// Picks the device for `--backend requested --device row`.
    ///
    /// # Errors
    /// Environment when the backend is absent, its device broken or the row not in the list; input when the row
    /// belongs to another backend than the requested one.
    pub fn choose(&self, requested: BackendName, row: Option<usize>) -> Result<Choice> {
        match (requested, row) {
            (_, Some(row)) => self.choose_row(requested, row),
            (BackendName::Auto, None) => self.choose_auto(),
            (_, None) => self.choose_best(requested),
        }
    }

    /// The rows of the GPUs that are of the same backend and kind as `device`, itself among them; none for a CPU.
    pub fn like(&self, device: &DeviceInfo) -> Vec<usize> {
        let alike = |other: &&DeviceInfo| other.is_gpu() && (other.backend, other.kind) == (device.backend, device.kind);
        self.devices.iter().filter(alike).map(|device| device.row).collect()
    }

    fn choose_row(&self, requested: BackendName, row: usize) -> Result<Choice> {
        let Some(device) = self.devices.get(row) else {
            return Err(Error::environment(format!(
                "there is no device {row}: `dlmi doctor` lists devices 0 to {}",
                self.devices.len().saturating_sub(1)
            )));
        };
        if requested != BackendName::Auto && requested != device.backend {
            return Err(Error::input(format!(
                "device {row} is {device}, not a device of backend `{requested}`: `dlmi doctor` lists the rows"
            )));
        }
        pick(device, format!("device {row} was asked for"))
    }

    fn choose_best(&self, requested: BackendName) -> Result<Choice> {
        let devices = || self.devices.iter().filter(|device| device.backend == requested);
        let best = devices().filter(|device| !device.is_broken()).min_by_key(|device| device.kind).or_else(|| devices().next());
        match best {
            Some(device) => pick(device, format!("backend `{requested}` was asked for")),
            None => Err(Error::environment(format!("backend `{requested}` is not available: {}", self.missing(requested)))),
        }
    }

    fn choose_auto(&self) -> Result<Choice> {
        let usable = |backend, kind: Option<DeviceKind>| {
            self.devices
                .iter()
                .find(|device| device.backend == backend && !device.is_broken() && kind.is_none_or(|kind| kind == device.kind))
        };
        let vulkan = |kind| usable(BackendName::Wgpu, Some(kind));
        if let Some(device) = usable(BackendName::Cuda, None) {
            return pick(device, "CUDA comes first".into());
        }
        let without_cuda = self.missing(BackendName::Cuda);
        if let Some(device) = vulkan(DeviceKind::Discrete).or_else(|| vulkan(DeviceKind::Integrated)) {
            return pick(device, format!("a Vulkan GPU, and no CUDA ({without_cuda})"));
        }
        let without_vulkan = self.missing(BackendName::Wgpu);
        match usable(BackendName::Flex, None) {
            Some(device) => pick(device, format!("no CUDA ({without_cuda}) and no Vulkan GPU ({without_vulkan})")),
            None => Err(Error::environment("this build has no backend at all")),
        }
    }

    /// Why `auto` did not take `backend`, or why it cannot be had.
    fn missing(&self, backend: BackendName) -> String {
        let absent = self.absent.iter().filter(|absent| absent.backend == backend);
        let passed_over = self.devices.iter().filter(|device| device.backend == backend);
        let reasons: Vec<String> = absent
            .map(|absent| absent.to_string())
            .chain(passed_over.map(|device| match &device.health {
                Health::Broken(reason) => format!("{} fails its self-test: {reason}", device.name),
                _ if device.kind == DeviceKind::Software => {
                    format!("{} is a software renderer", device.name)
                }
                _ => format!("{} is a {} GPU", device.name, device.kind.as_str()),
            }))
            .collect();
        reasons.join("; ")
    }
}

fn pick(device: &DeviceInfo, reason: String) -> Result<Choice> {
    if let Health::Broken(why) = &device.health {
        return Err(Error::environment(format!(
            "{device} fails its self-test: {why}; update its driver, or choose another `backend` or `device`"
        )));
    }
    Ok(Choice { device: device.clone(), reason })
}

/// The processor's name, as far as the system tells.
fn cpu_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(gpus: &[(BackendName, DeviceKind)]) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.push(DeviceInfo::new(BackendName::Flex, DeviceKind::Cpu, 0, "cpu"));
        for (backend, kind) in gpus {
            inventory.push(DeviceInfo::new(*backend, *kind, 0, format!("{} one", kind.as_str())));
        }
        for backend in [BackendName::Cuda, BackendName::Wgpu] {
            if gpus.iter().all(|(present, _)| *present != backend) {
                inventory.absent.push(Absent::new(backend, format!("no {backend} library"), "install it"));
            }
        }
        inventory
    }

    const CUDA: (BackendName, DeviceKind) = (BackendName::Cuda, DeviceKind::Discrete);
    const DISCRETE: (BackendName, DeviceKind) = (BackendName::Wgpu, DeviceKind::Discrete);
    const INTEGRATED: (BackendName, DeviceKind) = (BackendName::Wgpu, DeviceKind::Integrated);
    const VIRTUAL: (BackendName, DeviceKind) = (BackendName::Wgpu, DeviceKind::Virtual);
    const SOFTWARE: (BackendName, DeviceKind) = (BackendName::Wgpu, DeviceKind::Software);

    fn auto(gpus: &[(BackendName, DeviceKind)]) -> Choice {
        inventory(gpus).choose(BackendName::Auto, None).unwrap()
    }

    #[test]
    fn auto_takes_cuda_then_vulkan_then_flex() {
        assert_eq!(auto(&[INTEGRATED, DISCRETE, CUDA]).device.row, 3);
        assert_eq!(auto(&[SOFTWARE, INTEGRATED, DISCRETE]).device.row, 3);
        assert_eq!(auto(&[SOFTWARE, INTEGRATED]).device.row, 2);
        assert_eq!(auto(&[]).device.backend, BackendName::Flex);
    }

    #[test]
    fn auto_never_takes_a_software_renderer_and_says_why() {
        let choice = auto(&[SOFTWARE]);
        assert_eq!(choice.device.backend, BackendName::Flex);
        assert!(choice.reason.contains("software one is a software renderer"), "{}", choice.reason);
        assert!(choice.reason.contains("no cuda library; install it"), "{}", choice.reason);
        assert_eq!(auto(&[VIRTUAL]).device.backend, BackendName::Flex);
    }

    #[test]
    fn auto_passes_over_what_failed_its_test() {
        let mut inventory = inventory(&[CUDA, DISCRETE, INTEGRATED]);
        inventory.devices[1].health = Health::Broken("NVRTC is too old".into());
        let choice = inventory.choose(BackendName::Auto, None).unwrap();
        assert_eq!(choice.device.row, 2);
        assert!(choice.reason.contains("NVRTC is too old"), "{}", choice.reason);
        inventory.devices[2].health = Health::Broken("it hangs".into());
        inventory.devices[3].health = Health::Sound(1e-7);
        assert_eq!(inventory.choose(BackendName::Auto, None).unwrap().device.row, 3);
    }

    #[test]
    fn a_backend_by_name_takes_its_best_device() {
        let wgpu = |gpus: &[_]| inventory(gpus).choose(BackendName::Wgpu, None).unwrap().device.row;
        assert_eq!(wgpu(&[SOFTWARE, INTEGRATED, DISCRETE]), 3);
        assert_eq!(wgpu(&[SOFTWARE]), 1);
    }

    #[test]
    fn a_broken_device_by_name_is_refused_with_the_reason() {
        let mut inventory = inventory(&[CUDA]);
        inventory.devices[1].health = Health::Broken("signal: 11".into());
        for (backend, row) in [(BackendName::Cuda, None), (BackendName::Auto, Some(1))] {
            let error = inventory.choose(backend, row).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("signal: 11"), "{error}");
        }
    }

    #[test]
    fn rows_choose_any_device_but_not_another_backend() {
        let inventory = inventory(&[SOFTWARE, CUDA]);
        let row = |backend, row| inventory.choose(backend, Some(row));
        assert_eq!(row(BackendName::Auto, 1).unwrap().device.kind, DeviceKind::Software);
        assert_eq!(row(BackendName::Cuda, 2).unwrap().device.row, 2);

        let error = row(BackendName::Cuda, 1).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("device 1 is software one (wgpu, software)"), "{error}");

        let error = row(BackendName::Auto, 3).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("devices 0 to 2"), "{error}");
    }

    #[test]
    fn gpus_that_are_alike_can_be_shared_out() {
        let inventory = inventory(&[CUDA, SOFTWARE, CUDA, DISCRETE]);
        assert_eq!(inventory.like(&inventory.devices[1]), [1, 3]);
        assert_eq!(inventory.like(&inventory.devices[4]), [4]);
        assert!(inventory.like(&inventory.devices[0]).is_empty());
    }

    #[test]
    fn an_absent_backend_is_one_sentence() {
        let error = inventory(&[]).choose(BackendName::Wgpu, None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(error.to_string(), "backend `wgpu` is not available: no wgpu library; install it");
        let mut bare = inventory(&[DISCRETE]);
        bare.absent = vec![Absent::not_compiled(BackendName::Cuda)];
        let error = bare.choose(BackendName::Cuda, None).unwrap_err();
        assert!(error.to_string().contains("not compiled in; build with `--features cuda`"), "{error}");
    }

    #[test]
    fn a_probe_numbers_its_rows_and_accounts_for_every_backend() {
        let inventory = Inventory::probe();
        for (row, device) in inventory.devices.iter().enumerate() {
            assert_eq!(device.row, row);
        }
        for backend in BackendName::CONCRETE {
            let present = inventory.devices.iter().any(|device| device.backend == backend);
            let absent = inventory.absent.iter().any(|absent| absent.backend == backend);
            assert!(present != absent, "{backend}");
        }
    }
}
