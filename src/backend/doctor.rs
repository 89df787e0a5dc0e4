//! What this machine offers to a run, and what it would take to offer more.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::backend::{Absent, BackendName, DeviceInfo, Health, Inventory};
use crate::source::Digests;
use crate::source::hub::HubConfig;

/// Everything `doctor` says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Usable devices; the row is the number for `--device`.
    pub devices: Vec<DeviceInfo>,
    /// What the other backends lack.
    pub absent: Vec<Absent>,
    /// What `--backend auto` takes, and why.
    pub auto: Auto,
    /// The processor.
    pub cpu: Cpu,
    /// Where files go.
    pub folders: Vec<Folder>,
}

/// The choice of `--backend auto`.
#[derive(Debug, Serialize)]
pub struct Auto {
    /// Row of the device.
    pub row: usize,
    /// Why it.
    pub reason: String,
}

/// What matters of the processor for speed.
#[derive(Debug, Serialize)]
pub struct Cpu {
    /// Architecture, as Rust calls it.
    pub arch: &'static str,
    /// Threads of the pool that the kernels share (RAYON_NUM_THREADS sets it).
    pub threads: usize,
    /// Threads that the system grants this process.
    pub available: usize,
    /// Vector extensions that the kernels dispatch on.
    pub simd: Vec<&'static str>,
}

/// A folder that the program writes to.
#[derive(Debug, Serialize)]
pub struct Folder {
    /// What for.
    pub purpose: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Whether a file can be created in it, or in the nearest ancestor that exists.
    pub writable: bool,
}

/// Looks at everything and runs every GPU's self-test, which takes seconds each.
///
/// # Errors
/// Environment if there is no device at all.
pub fn report() -> crate::Result<Report> {
    let mut inventory = Inventory::probe();
    inventory.test();
    let auto = inventory.choose(BackendName::Auto, None)?;
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        auto: Auto { row: auto.device.row, reason: auto.reason },
        devices: inventory.devices,
        absent: inventory.absent,
        cpu: cpu(),
        folders: folders(),
    })
}

fn cpu() -> Cpu {
    Cpu {
        arch: std::env::consts::ARCH,
        threads: rayon::current_num_threads(),
        available: std::thread::available_parallelism().map_or(1, usize::from),
        simd: simd(),
    }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Vec<&'static str> {
    if cfg!(target_feature = "neon") { vec!["neon"] } else { Vec::new() }
}

fn folders() -> Vec<Folder> {
    let folder = |purpose, path: PathBuf| Folder { purpose, writable: writable(&path), path };
    let hub = HubConfig::from_env(false).map(|hub| folder("hub cache", hub.cache));
    let mut folders =
        vec![folder("results", std::env::current_dir().unwrap_or_else(|_| ".".into())), folder("temporary files", std::env::temp_dir())];
    folders.extend(hub);
    folders.extend(Digests::of_user().folder().map(|path| folder("digests of weights", path.to_owned())));
    folders
}

/// Tried rather than read off the permission bits, which know nothing of read-only mounts.
fn writable(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.is_dir());
    existing.is_some_and(|folder| tempfile::tempfile_in(folder).is_ok())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "dlmi {}", self.version)?;
        writeln!(f, "\ndevices (the number is for --device)")?;
        for device in &self.devices {
            write_device(f, device)?;
        }
        for absent in &self.absent {
            writeln!(f, "  -  {:8} {}", absent.backend, absent.why)?;
            writeln!(f, "     {:8} {}", "", absent.hint)?;
        }
        writeln!(f, "  --backend auto takes {}: {}", self.auto.row, self.auto.reason)?;
        let Cpu { arch, threads, available, simd } = &self.cpu;
        writeln!(f, "\ncpu\n  {arch} {}", simd.join(" "))?;
        writeln!(f, "  {threads} threads in use, {available} available (RAYON_NUM_THREADS)")?;
        writeln!(f, "\nfolders")?;
        for Folder { purpose, path, writable } in &self.folders {
            let state = if *writable { "" } else { ": NOT WRITABLE" };
            writeln!(f, "  {purpose:18} {}{state}", path.display())?;
        }
        Ok(())
    }
}

fn write_device(f: &mut fmt::Formatter<'_>, device: &DeviceInfo) -> fmt::Result {
    let DeviceInfo { row, backend, kind, name, dtypes, .. } = device;
    write!(f, "  {row}  {backend:8} {:10} {name}", kind.as_str())?;
    if let Some(driver) = &device.driver {
        write!(f, ", {driver}")?;
    }
    if let Some(bytes) = device.memory_bytes {
        write!(f, ", {}", size(bytes))?;
    }
    if let Some(bytes) = device.max_tensor_bytes {
        write!(f, ", tensors up to {}", size(bytes))?;
    }
    match &device.health {
        Health::Untested => writeln!(f),
        Health::Sound(deviation) => {
            let dtypes: Vec<_> = dtypes.iter().map(|dtype| dtype.as_str()).collect();
            writeln!(f, ", self-test passed ({deviation:.0e} off flex), --dtype {}", dtypes.join(" or "))
        }
        Health::Broken(reason) => writeln!(f, "\n     {:8} FAILS its self-test: {reason}", ""),
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.2} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_yet_to_be_made_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(writable(&folder.path().join("a/b")));
        assert!(!writable(Path::new("/proc/a/b")));
    }

    #[test]
    fn the_report_names_every_backend() {
        // Without the self-tests: the test binary cannot play the child.
        let inventory = Inventory::probe();
        let report = Report {
            version: "0",
            auto: Auto { row: 0, reason: "it is here".into() },
            devices: inventory.devices,
            absent: inventory.absent,
            cpu: cpu(),
            folders: folders(),
        };
        let text = report.to_string();
        for backend in BackendName::CONCRETE {
            assert!(text.contains(backend.as_str()), "{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["devices"][0]["backend"], "flex");
        assert_eq!(json["devices"][0]["health"]["state"], "untested");
    }
}
