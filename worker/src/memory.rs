//! How much memory there is.

use std::{fs, path::Path};

/// Bytes that this process may still take: the smallest of what the host and its control groups have free. `None` where the
/// system does not say.
pub fn free_bytes() -> Option<u64> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| Some(field(&text, "MemAvailable:")? * 1024));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    [host, free_in_groups(Path::new("/sys/fs/cgroup"), &groups), free_address_space()].into_iter().flatten().min()
}

/// What is left of a limit on address space (`ulimit -v`), beyond which the system refuses all memory.
fn free_address_space() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(limit.saturating_sub(field(&status, "VmSize:")? * 1024))
}

/// The files of a version of control groups.
struct Version {
    /// Where its groups are, below the folder of all control groups.
    folder: &'static str,
    /// The controllers in the line of `/proc/self/cgroup` that names the process's own group.
    controllers: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Fields of memory.stat: pages of files in the group and those below it.
    of_files: [&'static str; 2],
}

const VERSIONS: [Version; 2] = [
    Version {
        folder: "",
        controllers: "",
        limit: "memory.max",
        used: "memory.current",
        of_files: ["inactive_file ", "active_file "],
    },
    Version {
        folder: "memory",
        controllers: "memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        of_files: ["total_inactive_file ", "total_active_file "],
    },
];

/// What is left of the tightest limit that holds for a process of these `groups` (as `/proc/self/cgroup` lists them): that of its
/// own group or of one around it, up to the `root`, which in a container is its group although it may have another name here.
fn free_in_groups(root: &Path, groups: &str) -> Option<u64> {
    let own = |version: &Version| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == version.controllers).then(|| path.trim_start_matches('/'))
        })
    };
    let free = |version: &Version| {
        let top = root.join(version.folder);
        let folder = top.join(own(version).unwrap_or_default());
        folder.ancestors().take_while(|folder| folder.starts_with(&top)).filter_map(|folder| version.free(folder)).min()
    };
    VERSIONS.iter().filter_map(free).min()
}

impl Version {
    /// What is left of the limit of the group in `folder`; `None` where there is no limit. Pages of files count as free, as in
    /// the host's `MemAvailable`: the kernel gives them up before it refuses memory, and whoever has read or copied a
    /// checkpoint leaves gigabytes of them.
    fn free(&self, folder: &Path) -> Option<u64> {
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let stat = read("memory.stat").unwrap_or_default();
        let of_files: u64 = self.of_files.iter().filter_map(|name| field(&stat, name)).sum();
        Some(number(self.limit)?.saturating_sub(number(self.used)?.saturating_sub(of_files)))
    }
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the files of the group `folder` below `root`.
    fn write(root: &Path, folder: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(folder)).unwrap();
        files.iter().for_each(|(file, text)| fs::write(root.join(folder).join(file), text).unwrap());
    }

    #[test]
    fn pages_of_files_are_free_in_either_version_of_control_groups() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let free = || free_in_groups(root, "4:memory:/\n0::/\n");
        assert_eq!(free(), None);
        let stat = "cache 999\ninactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n";
        let used = ("memory.usage_in_bytes", "900\n");
        write(root, "memory", &[("memory.limit_in_bytes", "1000\n"), used, ("memory.stat", stat)]);
        assert_eq!(free(), Some(600));
        write(root, "", &[("memory.max", "max\n")]);
        assert_eq!(free(), Some(600), "no limit in the newer version");
        write(root, "", &[("memory.max", "500\n"), ("memory.current", "450\n")]);
        assert_eq!(free(), Some(50), "without a list of what is used");
        write(root, "", &[("memory.stat", "anon 100\nfile 350\ninactive_file 250\nactive_file 90\n")]);
        assert_eq!(free(), Some(390));
    }

    #[test]
    fn the_tightest_limit_around_a_process_counts_and_those_of_others_do_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let limit = |folder: &str, limit: &str| {
            write(root, folder, &[("memory.max", limit), ("memory.current", "100")]);
        };
        let free = || free_in_groups(root, "3:cpu,cpuacct:/of-cpus\n0::/system.slice/infer.service\n");
        limit("system.slice/infer.service", "max");
        assert_eq!(free(), None);
        limit("system.slice/other.service", "110");
        limit("of-cpus", "120");
        limit("system.slice", "1000");
        assert_eq!(free(), Some(900), "a slice around it");
        limit("system.slice/infer.service", "400");
        assert_eq!(free(), Some(300), "its own");
        limit("", "350");
        assert_eq!(free(), Some(250), "that of the container");
        assert_eq!(free_in_groups(root, "0::/name/outside/the/container\n"), Some(250));
        assert_eq!(free_in_groups(root, ""), Some(250));

        let older = [("memory.limit_in_bytes", "150"), ("memory.usage_in_bytes", "10")];
        write(root, "memory/user.slice/one", &older);
        assert_eq!(free_in_groups(root, "4:hugetlb,memory:/user.slice/one\n"), Some(140));
    }
}
