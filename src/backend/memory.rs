//! What the machine, or what the program may use of it, has left: sizes are compared with it before they are asked for, since the system
//! would end a program that asks for too much without a word.

use burn::tensor::backend::Backend;

use crate::{Error, Result};

/// Bytes of memory that are left, as far as the system says so: of the machine, of the program's control groups, of its address space.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = field(&meminfo, "MemAvailable:");
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let space = limits.lines().find_map(|line| line.strip_prefix("Max address space")?.split_whitespace().next()?.parse::<u64>().ok());
    let space = space.map(|limit| limit.saturating_sub(field(&status, "VmSize:").unwrap_or(0)));
    machine.into_iter().chain(space).chain(control_groups()).min()
}

/// A line of /proc in kB, as bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// What is left of the memory of the program's control group and of each that it lies in.
fn control_groups() -> Vec<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let root = std::path::Path::new("/sys/fs/cgroup");
    let group = root.join(path.trim());
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(left_of).collect()
}

/// A group's limit without what is used, in which files that are only cached do not count.
fn left_of(group: &std::path::Path) -> Option<u64> {
    let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
    Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(cached)))
}

/// Whether a backend computes in the machine's own memory.
pub fn is_on_cpu<B: Backend>(device: &B::Device) -> bool {
    ["flex", "ndarray"].contains(&&*B::name(device))
}

/// Refuses to ask for `bytes` where that is more than is left; `what` begins the sentence.
///
/// # Errors
/// Environment.
pub fn require(bytes: u64, what: &str) -> Result<()> {
    match available() {
        Some(left) if left < bytes => Err(Error::environment(format!(
            "{what} needs {} MiB of memory, and {} are left: free some, or use a smaller model or fewer prompt tokens",
            bytes.div_ceil(1 << 20),
            left >> 20
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_the_system_says() {
        assert_eq!(field("MemFree: 1 kB\nMemAvailable:    2048 kB\n", "MemAvailable:"), Some(2 << 20));
        assert_eq!(field("MemFree: 1 kB\n", "MemAvailable:"), None);
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(group.path().join(name), text).unwrap();
        assert_eq!(left_of(group.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left_of(group.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left_of(group.path()), Some(300));
        write("memory.stat", "anon 3\ninactive_file 500\n");
        assert_eq!(left_of(group.path()), Some(800));
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
