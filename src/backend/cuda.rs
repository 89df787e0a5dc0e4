//! Asks the CUDA driver what there is, with the code that burn-cuda would panic in: cudarc's own search for the
//! libraries and cubecl's own search for the headers.

use std::ffi::c_int;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use burn::backend::cuda::CudaDevice;
use cudarc::driver::result::{self, DriverError};

use super::{Absent, BackendName, DeviceInfo, DeviceKind};

/// The headers that generated kernels include. cubecl compiles every kernel against the first, and those of
/// half-precision and tensor-core kernels against the others; the last is included by the one before it, and packaged apart.
const HEADERS: [&str; 5] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h"];

/// Where a toolkit puts its libraries.
const LIBRARIES: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];

/// Names the toolkit whose headers cubecl shall use, if the user did not: cubecl itself looks into fewer places.
///
/// # Safety
/// Writes the environment: no other thread may run.
pub(super) unsafe fn choose_toolkit() {
    if std::env::var_os("CUDA_PATH").is_some() {
        return;
    }
    if let Some(toolkit) = toolkits().into_iter().find(|toolkit| missing_headers(Some(toolkit)).is_none()) {
        // SAFETY: the caller's.
        unsafe { std::env::set_var("CUDA_PATH", toolkit) };
    }
}

/// The CUDA devices in the driver's order, or everything that is missing.
pub(super) fn probe() -> Result<Vec<DeviceInfo>, Vec<Absent>> {
    // SAFETY: only tries to load the library; its initialisers are trusted as they will run anyway.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(vec![absent("the driver library `libcuda.so.1` cannot be loaded", "install the NVIDIA driver")]);
    }
    let mut devices = enumerate()
        .map_err(|error| vec![absent(format!("the driver answers {}", driver_says(&error)), "check the driver with `nvidia-smi`")])?;
    let (nvrtc, toolkit) = (load_nvrtc(), cubecl_cuda::install::cuda_path());
    let missing: Vec<Absent> = [
        devices.is_empty().then(|| absent("the driver sees no GPU", "check `nvidia-smi` and CUDA_VISIBLE_DEVICES")),
        (!nvrtc).then(missing_nvrtc),
        missing_headers(toolkit.as_deref()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let found = found(toolkit.unwrap_or_default());
    devices.iter_mut().for_each(|device| device.driver = Some(found.clone()));
    Ok(devices)
}

/// Burn's address of a row.
pub(super) fn device(device: &DeviceInfo) -> CudaDevice {
    load_nvrtc();
    CudaDevice::new(device.index)
}

fn enumerate() -> Result<Vec<DeviceInfo>, DriverError> {
    result::init()?;
    (0..result::device::get_count()?)
        .map(|ordinal| {
            let handle = result::device::get(ordinal)?;
            let mut info = DeviceInfo::new(BackendName::Cuda, DeviceKind::Discrete, ordinal as usize, result::device::get_name(handle)?);
            // SAFETY: `handle` comes from the driver, two lines above.
            info.memory_bytes = Some(unsafe { result::device::total_mem(handle) }? as u64);
            Ok(info)
        })
        .collect()
}

/// Folders that may hold a toolkit: what the environment names, the links that installers make, then the versions, the newest first.
fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let linked = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    named.chain(linked).chain(versions(Path::new("/usr/local"))).chain(versions(Path::new("/opt"))).collect()
}

/// The folders `cuda-12.8`, `cuda-13.0` and the like in `parent`, the newest first.
fn versions(parent: &Path) -> Vec<PathBuf> {
    let number = |path: &Path| {
        let (major, minor) = path.file_name()?.to_str()?.strip_prefix("cuda-")?.split_once('.').unwrap_or_default();
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, path)| path).collect()
}

/// Whether the kernel compiler can be loaded. Where the system's loader does not find it, a toolkit's is loaded by its path, once: the
/// name by which cudarc asks for it then means that one.
fn load_nvrtc() -> bool {
    static SEARCH: Once = Once::new();
    // SAFETY: only tries to load the library; its initialisers are trusted as they will run anyway.
    let present = || unsafe { cudarc::nvrtc::sys::is_culib_present() };
    SEARCH.call_once(|| {
        if !present() {
            toolkits().iter().find(|toolkit| LIBRARIES.iter().any(|folder| load_from(&toolkit.join(folder))));
        }
    });
    present()
}

/// Loads `libnvrtc.so.*` of `folder`, for as long as the process runs, behind `libnvrtc-builtins.so.*`, which it asks for later.
fn load_from(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let of = |prefix: &str, path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    // A plain name is the developers' link, and `.so.13` what the library calls itself.
    let mut libraries: Vec<_> = entries.filter(|path| of("libnvrtc.so.", path) || of("libnvrtc-builtins.so.", path)).collect();
    libraries.sort();
    // SAFETY: initialisers of NVIDIA's own libraries, which would run anyway had the system's loader found them.
    let load = |path: &PathBuf| unsafe { libloading::Library::new(path) }.map(std::mem::forget).is_ok();
    let loaded: Vec<bool> = libraries.iter().map(load).collect();
    libraries.iter().zip(loaded).any(|(path, loaded)| loaded && of("libnvrtc.so.", path))
}

fn missing_nvrtc() -> Absent {
    let Version { major, minor } = driver_version();
    absent(
        "the kernel compiler `libnvrtc.so` cannot be loaded",
        format!(
            "install NVRTC of the CUDA toolkit, no newer than the driver's CUDA {major}.{minor} (Debian, Ubuntu: cuda-nvrtc-{major}-{minor}; \
             pip: nvidia-cuda-nvrtc), and put its folder into LD_LIBRARY_PATH if it is not under /usr/local/cuda"
        ),
    )
}

fn missing_headers(toolkit: Option<&Path>) -> Option<Absent> {
    const HINT: &str = "install the CUDA toolkit's headers (Debian, Ubuntu: cuda-cudart-dev, cuda-crt or cuda-nvcc, and cuda-cccl, of NVRTC's \
                        version) and set CUDA_PATH to the folder that holds `include`";
    let Some(toolkit) = toolkit else {
        let why = "no CUDA headers: CUDA_PATH is not set and there is no /usr/local/cuda, /opt/cuda, /usr/local/cuda-* or /usr/bin/nvcc";
        return Some(absent(why, HINT));
    };
    let include = toolkit.join("include");
    let header = HEADERS.iter().find(|header| !include.join(header).is_file())?;
    Some(absent(format!("no CUDA headers: `{header}` is not in `{}`", include.display()), HINT))
}

/// A version of CUDA.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: c_int,
    minor: c_int,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the driver understands; 0.0 if it does not tell.
fn driver_version() -> Version {
    let mut number = 0;
    // SAFETY: the driver is loaded, and writes one number.
    let _ = unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut number) };
    Version { major: number / 1000, minor: number % 1000 / 10 }
}

/// What was found, in words. A newer NVRTC may write code that the driver does not read, which only the self-test can tell.
fn found(toolkit: PathBuf) -> String {
    let (driver, mut nvrtc) = (driver_version(), Version { major: 0, minor: 0 });
    // SAFETY: NVRTC is loaded, and writes two numbers.
    let _ = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut nvrtc.major, &mut nvrtc.minor) };
    let newer = if nvrtc > driver { " (NEWER than the driver)" } else { "" };
    format!("driver of CUDA {driver}, NVRTC {nvrtc}{newer}, headers of {}", toolkit.display())
}

fn driver_says(error: &DriverError) -> String {
    match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("error {:?}", error.0),
    }
}

fn absent(why: impl Into<String>, hint: impl Into<String>) -> Absent {
    Absent::new(BackendName::Cuda, why, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_missed_by_name_and_place() {
        let toolkit = tempfile::tempdir().unwrap();
        let include = toolkit.path().join("include");
        std::fs::create_dir_all(include.join("crt")).unwrap();
        for header in &HEADERS[..2] {
            std::fs::write(include.join(header), "").unwrap();
        }
        let absent = missing_headers(Some(toolkit.path())).unwrap();
        assert!(absent.why.contains("`cuda_bf16.h`"), "{absent}");
        assert!(absent.why.contains(&*include.to_string_lossy()), "{absent}");

        for header in &HEADERS[2..] {
            std::fs::write(include.join(header), "").unwrap();
        }
        assert_eq!(missing_headers(Some(toolkit.path())), None);
    }

    #[test]
    fn without_a_toolkit_the_searched_places_are_named() {
        let absent = missing_headers(None).unwrap();
        for place in ["CUDA_PATH", "/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc"] {
            assert!(absent.why.contains(place), "{absent}");
        }
    }

    #[test]
    fn versions_are_sorted_by_number_and_nothing_else_is_taken() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["cuda", "cuda-9.2", "cuda-12", "cuda-12.8", "cuda-12.10", "cuda-13.0", "cuda-new.1", "python"] {
            std::fs::create_dir(parent.path().join(name)).unwrap();
        }
        let found: Vec<_> = versions(parent.path()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(found, ["cuda-13.0", "cuda-12.10", "cuda-12.8", "cuda-9.2"]);
    }

    #[test]
    fn a_folder_without_nvrtc_gives_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc-builtins.so.13.0"), "").unwrap();
        std::fs::write(folder.path().join("libnvrtc.so.13"), "no library").unwrap();
        assert!(!load_from(folder.path()) && !load_from(&folder.path().join("none")));
    }
}
