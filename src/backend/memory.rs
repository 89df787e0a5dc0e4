//! What the machine, or what the program may use of it, has left: sizes are compared with it before they are asked for, since the system
//! would end a program that asks for too much without a word.

use std::path::Path;

use burn::tensor::backend::Backend;

use crate::files::kilobytes;
use crate::{Error, Result};

/// What helps where memory is short.
pub(crate) const ADVICE: &str = "free some, or use a smaller model or fewer prompt tokens";

/// Bytes of memory that are left, as far as the system says so: of the machine, of the program's control groups, of its address space.
pub fn available() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemAvailable:");
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let space = limits.lines().find_map(|line| line.strip_prefix("Max address space")?.split_whitespace().next()?.parse::<u64>().ok());
    let space = space.map(|limit| limit.saturating_sub(kilobytes("/proc/self/status", "VmSize:").unwrap_or(0)));
    machine.into_iter().chain(space).chain(control_groups()).min()
}

/// What is left of the memory of the program's control groups and of each that they lie in.
fn control_groups() -> Vec<u64> {
    left_of_groups(&std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default(), Path::new("/sys/fs/cgroup"))
}

/// As [`control_groups`], by the lines of `/proc/self/cgroup` (`0::/group` of version 2, `7:memory:/group` of version 1) and the folder
/// where the groups are.
fn left_of_groups(own: &str, root: &Path) -> Vec<u64> {
    let mut left = Vec::new();
    for line in own.lines() {
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':')) else { continue };
        let (root, names) = match controllers {
            "" => (root.to_owned(), &V2),
            list if list.split(',').any(|name| name == "memory") => (root.join("memory"), &V1),
            _ => continue,
        };
        // In a container the path may be the host's, of which only the root is there.
        let group = root.join(path.trim_start_matches('/'));
        left.extend(group.ancestors().take_while(|group| group.starts_with(&root)).filter_map(|group| left_of(group, names)));
    }
    left
}

/// What a version of control groups calls its files.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// Within `memory.stat`, with what lies in the group's own groups.
    cached: &'static str,
}

const V1: Names = Names { limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes", cached: "total_inactive_file " };
const V2: Names = Names { limit: "memory.max", used: "memory.current", cached: "inactive_file " };

/// A group's limit without what is used, in which files that are only cached do not count.
fn left_of(group: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(names.cached)?.parse().ok()).unwrap_or(0);
    Some(number(names.limit)?.saturating_sub(number(names.used)?.saturating_sub(cached)))
}

/// Whether a backend computes in the machine's own memory.
pub fn is_on_cpu<B: Backend>(device: &B::Device) -> bool {
    ["flex", "ndarray"].contains(&&*B::name(device))
}

/// Refuses to ask for `bytes` where that is more than is left; `what` begins the sentence.
///
/// # Errors
/// [`Error::Memory`].
pub fn require(bytes: u64, what: &str) -> Result<()> {
    match available() {
        Some(left) if left < bytes => {
            Err(Error::Memory(format!("{what} needs {} MiB of memory, and {} are left: {ADVICE}", bytes.div_ceil(1 << 20), left >> 20)))
        }
        _ => Ok(()),
    }
}

/// Refuses `bytes` that do not keep within so many MiB; `what` begins what they are needed for, "this model needs".
///
/// # Errors
/// The limit is too low.
pub fn keep_within(mib: u64, bytes: u64, what: &str) -> Result<()> {
    let needed = bytes.div_ceil(1 << 20);
    if mib < needed {
        return Err(Error::option("max_memory", format!("{mib} MiB are too few, {what} {needed}; allow more")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Folders of control groups: each file with what is in it.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_limits_of_control_groups_count_in_both_versions() {
        let left = |own: &str, files: &[(&str, &str)]| left_of_groups(own, groups(files).path());
        assert_eq!(left("0::/job/step\n", &[]), [0; 0]);
        assert_eq!(left("0::/job\n", &[("job/memory.max", "max\n"), ("job/memory.current", "700\n")]), [0; 0]);
        let limited = [("job/memory.max", "1000\n"), ("job/memory.current", "700\n")];
        assert_eq!(left("0::/job/step\n", &limited), [300]);
        let cached = [&limited[..], &[("job/memory.stat", "anon 3\ninactive_file 500\n")]].concat();
        assert_eq!(left("0::/job/step\n", &cached), [800]);

        let first = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "5000\n"),
            ("memory/job/memory.limit_in_bytes", "2000\n"),
            ("memory/job/memory.usage_in_bytes", "900\n"),
            ("memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 400\n"),
            ("cpu/job/memory.limit_in_bytes", "1\n"),
            ("cpu/job/memory.usage_in_bytes", "0\n"),
        ];
        assert_eq!(left("9:cpu,cpuacct:/job\n7:memory:/job\n0::/\n", &first), [1500, 9223372036854766712]);
        // In a container the groups have the host's names and the container's own folder.
        assert_eq!(left("7:memory:/docker/0123\n", &first), [9223372036854766712]);
    }

    #[test]
    fn more_than_there_is_is_refused_in_a_sentence() {
        if let Some(left) = available() {
            let error = require(left.saturating_mul(2).max(1 << 50), "this model").unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with("this model needs ") && error.to_string().contains("are left"), "{error}");
        }
        assert!(require(1, "this").is_ok());
    }
}
