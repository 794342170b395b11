//! How much memory there is.

use std::{fs, path::Path};

/// Bytes that this process may still take: the smaller of what the host and its control group have free. `None` where the
/// system does not say.
pub fn free_bytes() -> Option<u64> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| Some(field(&text, "MemAvailable:")? * 1024));
    match (host, free_in_group(Path::new("/sys/fs/cgroup"))) {
        (Some(host), Some(group)) => Some(host.min(group)),
        (one, other) => one.or(other),
    }
}

/// What is left of a control group's limit, by its files in `folder`; `None` where there is no limit. Pages of files count as
/// free, as in the host's `MemAvailable`: the kernel gives them up before it refuses memory, and whoever has read or copied a
/// checkpoint leaves gigabytes of them.
fn free_in_group(folder: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let free = |limit: &str, used: &str, stat: &str, of_files: [&str; 2]| {
        let stat = read(stat).unwrap_or_default();
        let of_files: u64 = of_files.iter().filter_map(|name| field(&stat, name)).sum();
        Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(of_files)))
    };
    free("memory.max", "memory.current", "memory.stat", ["inactive_file ", "active_file "]).or_else(|| {
        let (limit, used) = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes");
        free(limit, used, "memory/memory.stat", ["total_inactive_file ", "total_active_file "])
    })
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_files_are_free_in_either_version_of_control_groups() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        assert_eq!(free_in_group(folder.path()), None);
        fs::create_dir(folder.path().join("memory")).unwrap();
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "900\n");
        write("memory/memory.stat", "cache 999\ninactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n");
        assert_eq!(free_in_group(folder.path()), Some(600));
        write("memory.max", "max\n");
        assert_eq!(free_in_group(folder.path()), Some(600), "no limit in the newer version");
        write("memory.max", "500\n");
        write("memory.current", "450\n");
        assert_eq!(free_in_group(folder.path()), Some(50), "without a list of what is used");
        write("memory.stat", "anon 100\nfile 350\ninactive_file 250\nactive_file 90\n");
        assert_eq!(free_in_group(folder.path()), Some(390));
    }
}
