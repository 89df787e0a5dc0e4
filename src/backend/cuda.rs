//! Asks the CUDA driver what there is, with the code that burn-cuda would panic in: cudarc's own search for the
//! libraries and cubecl's own search for the headers.

use std::path::Path;

use burn::backend::cuda::CudaDevice;
use cudarc::driver::result::{self, DriverError};

use super::{Absent, BackendName, DeviceInfo, DeviceKind};

/// The headers that generated kernels include. cubecl compiles every kernel against the first, and those of
/// half-precision and tensor-core kernels against the others.
const HEADERS: [&str; 4] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h"];

/// The CUDA devices in the driver's order, or everything that is missing.
pub(super) fn probe() -> Result<Vec<DeviceInfo>, Vec<Absent>> {
    // SAFETY: both only try to load the library; its initialisers are trusted as they will run anyway.
    let (driver, nvrtc) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
        )
    };
    if !driver {
        return Err(vec![absent(
            "the driver library `libcuda.so.1` cannot be loaded",
            "install the NVIDIA driver",
        )]);
    }
    let devices = enumerate().map_err(|error| {
        vec![absent(
            format!("the driver answers {}", driver_says(&error)),
            "check the driver with `nvidia-smi`",
        )]
    })?;
    let missing: Vec<Absent> = [
        devices.is_empty().then(|| {
            absent(
                "the driver sees no GPU",
                "check `nvidia-smi` and CUDA_VISIBLE_DEVICES",
            )
        }),
        (!nvrtc).then(|| {
            absent(
                "the kernel compiler `libnvrtc.so` cannot be loaded",
                "install NVRTC of the CUDA toolkit (no newer than the driver) and put its folder into LD_LIBRARY_PATH",
            )
        }),
        missing_headers(cubecl_cuda::install::cuda_path().as_deref()),
    ]
    .into_iter()
    .flatten()
    .collect();
    if missing.is_empty() {
        Ok(devices)
    } else {
        Err(missing)
    }
}

/// Burn's address of a row.
pub(super) fn device(device: &DeviceInfo) -> CudaDevice {
    CudaDevice::new(device.index)
}

fn enumerate() -> Result<Vec<DeviceInfo>, DriverError> {
    result::init()?;
    (0..result::device::get_count()?)
        .map(|ordinal| {
            let handle = result::device::get(ordinal)?;
            let mut info = DeviceInfo::new(
                BackendName::Cuda,
                DeviceKind::Discrete,
                ordinal as usize,
                result::device::get_name(handle)?,
            );
            // SAFETY: `handle` comes from the driver, two lines above.
            info.memory_bytes = Some(unsafe { result::device::total_mem(handle) }? as u64);
            Ok(info)
        })
        .collect()
}

fn missing_headers(toolkit: Option<&Path>) -> Option<Absent> {
    const HINT: &str = "install the CUDA toolkit's headers (cudart and cccl) and set CUDA_PATH to the folder that holds `include`";
    let Some(toolkit) = toolkit else {
        return Some(absent(
            "no CUDA headers: CUDA_PATH is not set and there is no /usr/local/cuda, /opt/cuda or /usr/bin/nvcc",
            HINT,
        ));
    };
    let include = toolkit.join("include");
    let header = HEADERS
        .iter()
        .find(|header| !include.join(header).is_file())?;
    Some(absent(
        format!(
            "no CUDA headers: `{header}` is not in `{}`",
            include.display()
        ),
        HINT,
    ))
}

fn driver_says(error: &DriverError) -> String {
    match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("error {:?}", error.0),
    }
}

fn absent(why: impl Into<String>, hint: &str) -> Absent {
    Absent::new(BackendName::Cuda, why, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_missed_by_name_and_place() {
        let toolkit = tempfile::tempdir().unwrap();
        let include = toolkit.path().join("include");
        std::fs::create_dir(&include).unwrap();
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
}
