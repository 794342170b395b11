//! The CPUs that this process may use: which of them share a physical core, which are slow, which memory lies beside them;
//! and who runs where.
//!
//! Knows the affinity mask, which a cpuset narrows, and `/sys/devices`; does not know models or memory. Invariant: cores
//! stand in the order of their nodes, so that the threads of a rank, which are neighbours in it, share a memory.
//!
//! ```text
//! node 0                      node 1                      one thread a core, 2 ranks of 4 threads:
//!   core 0,8  core 1,9 …        core 4,12  core 5,13 …      rank 0 on CPUs 0-3, rank 1 on CPUs 4-7
//! ```
//! Reference: `Documentation/admin-guide/cputopology.rst` and `ABI/testing/sysfs-devices-system-cpu` of Linux.

use std::{collections::BTreeMap, fs, path::Path};

use nanoinfer_shared::protocol::Cores;
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::{Deserialize, Serialize};

/// Where the system tells of its CPUs.
const SYS: &str = "/sys/devices";

/// What the threads of all ranks of a host can run on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Topology {
    /// By node, then by their first CPU.
    cores: Vec<Core>,
    /// CPUs' worth of time that a quota of a control group leaves, where that is less than the CPUs there are.
    quota: Option<usize>,
}

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Core {
    node: u32,
    /// Those of its hardware threads that this process may use.
    cpus: Vec<u32>,
    /// Whether it is one of the small cores of a processor that has two kinds.
    is_small: bool,
}

impl Topology {
    /// That of this host, as far as this process may use it.
    pub(super) fn of_host() -> Self {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        let allowed: Vec<u32> = match sched_getaffinity(None) {
            Ok(mask) => (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).map(|cpu| cpu as u32).collect(),
            // More CPUs than a mask holds: they are counted, but not told apart.
            Err(_) => Vec::new(),
        };
        Self::read(Path::new(SYS), &allowed, usable)
    }

    /// That of the `allowed` CPUs, as the folder `sys` describes them. `usable` of them are what their quota is worth.
    fn read(sys: &Path, allowed: &[u32], usable: usize) -> Self {
        let list = |path: &str| read_list(&sys.join(path));
        let online = list("system/cpu/online");
        let allowed: Vec<u32> =
            allowed.iter().copied().filter(|cpu| online.as_ref().is_none_or(|online| online.contains(cpu))).collect();
        let nodes = nodes(sys);
        let small = small_cpus(sys, &allowed);
        // By the first CPU of each.
        let mut cores: BTreeMap<u32, Core> = BTreeMap::new();
        for &cpu in &allowed {
            let topology = format!("system/cpu/cpu{cpu}/topology");
            // The second is what kernels before 5.7 call it.
            let siblings =
                ["core_cpus_list", "thread_siblings_list"].iter().find_map(|f| list(&format!("{topology}/{f}")));
            let first = siblings.and_then(|siblings| siblings.first().copied()).unwrap_or(cpu);
            let node = nodes.iter().find(|(_, cpus)| cpus.contains(&cpu)).map_or(0, |&(node, _)| node);
            let core = Core { node, cpus: Vec::new(), is_small: small.contains(&cpu) };
            cores.entry(first).or_insert(core).cpus.push(cpu);
        }
        let mut cores: Vec<Core> = cores.into_values().collect();
        cores.sort();
        Self { cores, quota: (usable < allowed.len() || allowed.is_empty()).then_some(usable) }
    }

    /// Cores that are not small, or all where all are.
    fn large(&self) -> impl Iterator<Item = &Core> {
        let all_small = self.cores.iter().all(|core| core.is_small);
        self.cores.iter().filter(move |core| all_small || !core.is_small)
    }

    /// Compute threads that this host is best used with: one for each physical core that is not small, within the quota.
    /// A second thread of a core shares its arithmetic units, and a small core holds up those that wait for it.
    pub(super) fn threads(&self) -> usize {
        let cores = self.large().count();
        self.quota.map_or(cores, |quota| if cores == 0 { quota } else { quota.min(cores) }).max(1)
    }

    /// Where these ranks run, of `threads` threads each, and why, in words.
    ///
    /// Threads stay where they are put only if they are as many as the cores or CPUs: whoever takes fewer leaves the choice of
    /// cores to the system, as other programs may be on the first ones. Under a quota they neither stay nor spin: the mask
    /// says nothing of which cores are meant, so that every server would take the same, and waiting busily uses the quota up.
    pub(super) fn place(&self, ranks: &[usize], threads: usize) -> (Vec<Cores>, String) {
        let wanted = ranks.len() * threads;
        let each = |cores: Cores| vec![cores; ranks.len()];
        let cpus: Vec<u32> = self.cores.iter().flat_map(|core| core.cpus.iter().copied()).collect();
        let all = cpus.len();
        if let Some(quota) = self.quota {
            let why = format!("a quota allows {quota} of {all} CPUs: threads stay on none, and sleep while they wait");
            return (each(Cores::Shared), why);
        }
        let one_each = |core: &Core| core.cpus[0];
        let ways = [self.large().map(one_each).collect(), self.cores.iter().map(one_each).collect(), cpus];
        if let Some(way) = ways.into_iter().find(|way: &Vec<u32>| way.len() == wanted) {
            let told: Vec<String> =
                ranks.iter().zip(way.chunks(threads)).map(|(&rank, cpus)| self.tell(rank, cpus)).collect();
            let cores = way.chunks(threads).map(|cpus| Cores::Pinned(cpus.to_vec())).collect();
            return (cores, format!("each thread stays on a CPU of its own: {}", told.join("; ")));
        }
        let (cores, pass_time) = if wanted < all { (Cores::Own, "spin") } else { (Cores::Shared, "sleep") };
        (each(cores), format!("{wanted} threads, {all} CPUs: threads stay on none, and {pass_time} while they wait"))
    }

    fn tell(&self, rank: usize, cpus: &[u32]) -> String {
        let of_rank = |core: &&Core| core.cpus.iter().any(|cpu| cpus.contains(cpu));
        let mut nodes: Vec<String> = self.cores.iter().filter(of_rank).map(|core| core.node.to_string()).collect();
        nodes.dedup();
        let has_one_node = self.cores.first().map(|core| core.node) == self.cores.last().map(|core| core.node);
        let node = if has_one_node { String::new() } else { format!(" (node {})", nodes.join(", ")) };
        format!("rank {rank} on {}{node}", format_list(cpus))
    }
}

/// CPUs of each node; a host without such folders has one.
fn nodes(sys: &Path) -> Vec<(u32, Vec<u32>)> {
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, read_list(&entry.path().join("cpulist"))?))
    };
    let mut nodes: Vec<_> =
        fs::read_dir(sys.join("system/node")).into_iter().flatten().flatten().filter_map(node).collect();
    nodes.sort();
    nodes
}

/// CPUs of small cores: those that Intel's hybrids list, and on Arm those with less than half of the greatest capacity.
fn small_cpus(sys: &Path, allowed: &[u32]) -> Vec<u32> {
    if let Some(small) = read_list(&sys.join("cpu_atom/cpus")) {
        return small;
    }
    let capacity = |cpu: u32| {
        let text = fs::read_to_string(sys.join(format!("system/cpu/cpu{cpu}/cpu_capacity"))).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let capacities: Vec<(u32, u32)> = allowed.iter().filter_map(|&cpu| Some((cpu, capacity(cpu)?))).collect();
    let most = capacities.iter().map(|&(_, capacity)| capacity).max().unwrap_or(0);
    capacities.iter().filter(|(_, capacity)| capacity * 2 < most).map(|&(cpu, _)| cpu).collect()
}

fn read_list(path: &Path) -> Option<Vec<u32>> {
    parse_list(&fs::read_to_string(path).ok()?)
}

/// The kernel's lists, like `0-3,8`; `None` for what is none.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// As the kernel writes it.
fn format_list(cpus: &[u32]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[u32]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up `/sys/devices`.
    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    fn siblings(cpus: impl Iterator<Item = (u32, String)>) -> Vec<(String, String)> {
        cpus.map(|(cpu, list)| (format!("system/cpu/cpu{cpu}/topology/core_cpus_list"), list)).collect()
    }

    fn tree(cores: &[(String, String)], others: &[(&str, &str)]) -> tempfile::TempDir {
        let cores = cores.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        sys(&cores.chain(others.iter().copied()).collect::<Vec<_>>())
    }

    /// Two nodes of two cores of two threads; CPUs 0 and 4 share a core, and so on.
    fn two_nodes() -> tempfile::TempDir {
        let cores = siblings((0..8).map(|cpu| (cpu, format!("{},{}", cpu % 4, cpu % 4 + 4))));
        let nodes = [("system/node/node0/cpulist", "0,2,4,6"), ("system/node/node1/cpulist", "1,3,5,7")];
        tree(&cores, &[&nodes[..], &[("system/cpu/online", "0-7")]].concat())
    }

    fn pinned(topology: &Topology, world: usize, threads: usize) -> Vec<Vec<u32>> {
        let (cores, _) = place(topology, world, threads);
        cores.iter().map(|cores| cores.pinned().unwrap_or_else(|| panic!("{cores:?}")).to_vec()).collect()
    }

    fn place(topology: &Topology, world: usize, threads: usize) -> (Vec<Cores>, String) {
        topology.place(&(0..world).collect::<Vec<_>>(), threads)
    }

    #[test]
    fn a_thread_has_a_physical_core_and_a_rank_has_a_node() {
        let root = two_nodes();
        let topology = Topology::read(root.path(), &[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(topology.threads(), 4);
        assert_eq!(pinned(&topology, 2, 2), [[0, 2], [1, 3]]);
        assert_eq!(pinned(&topology, 1, 4), [[0, 2, 1, 3]]);
        assert_eq!(pinned(&topology, 2, 4), [[0, 4, 2, 6], [1, 5, 3, 7]], "all hardware threads, where asked for");
        let (_, why) = place(&topology, 2, 2);
        assert!(why.contains("rank 0 on 0,2 (node 0); rank 1 on 1,3 (node 1)"), "{why}");
        assert_eq!(place(&topology, 1, 3).0, [Cores::Own]);
        assert_eq!(place(&topology, 3, 2).0, vec![Cores::Own; 3]);
        assert_eq!(place(&topology, 3, 3).0, vec![Cores::Shared; 3]);
    }

    #[test]
    fn what_a_cpuset_or_the_administrator_took_away_is_not_used() {
        let root = two_nodes();
        let topology = Topology::read(root.path(), &[4, 5, 6], 3);
        assert_eq!(topology.threads(), 3);
        assert_eq!(pinned(&topology, 3, 1), [[4], [6], [5]]);
        fs::write(root.path().join("system/cpu/online"), "0-2,4-7\n").unwrap();
        let topology = Topology::read(root.path(), &[0, 1, 2, 3], 4);
        assert_eq!(pinned(&Topology { quota: None, ..topology }, 3, 1), [[0], [2], [1]]);
    }

    #[test]
    fn under_a_quota_nothing_is_pinned_and_nothing_spins() {
        let root = two_nodes();
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        for (usable, threads) in [(1, 1), (2, 2), (4, 4), (7, 4)] {
            let topology = Topology::read(root.path(), &all, usable);
            assert_eq!(topology.threads(), threads);
            for (world, threads) in [(1, usable), (1, 4), (1, 8), (1, 1)] {
                let (cores, why) = place(&topology, world, threads);
                assert_eq!(cores, [Cores::Shared]);
                assert!(why.contains(&format!("a quota allows {usable} of 8 CPUs")), "{why}");
            }
        }
    }

    #[test]
    fn small_cores_are_left_out_unless_they_are_all_or_asked_for() {
        // Two large cores of two threads, four small ones.
        let large = [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")].map(|(cpu, list)| (cpu, list.to_owned()));
        let small = (4..8).map(|cpu| (cpu, cpu.to_string()));
        let cores = siblings(large.into_iter().chain(small));
        let root = tree(&cores, &[("cpu_atom/cpus", "4-7"), ("cpu_core/cpus", "0-3")]);
        let topology = Topology::read(root.path(), &[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(topology.threads(), 2);
        assert_eq!(pinned(&topology, 1, 2), [[0, 2]]);
        assert_eq!(pinned(&topology, 1, 6), [[0, 2, 4, 5, 6, 7]]);
        assert_eq!(Topology::read(root.path(), &[5, 6], 2).threads(), 2);

        let capacity = |cpu: u32, capacity: &str| (format!("system/cpu/cpu{cpu}/cpu_capacity"), capacity.to_owned());
        let arm = [capacity(0, "250"), capacity(1, "250"), capacity(2, "870"), capacity(3, "1024")];
        let topology = Topology::read(tree(&arm, &[]).path(), &[0, 1, 2, 3], 4);
        assert_eq!(pinned(&topology, 1, 2), [[2, 3]]);
    }

    #[test]
    fn a_system_that_tells_little_has_a_core_for_each_cpu() {
        let empty = tempfile::tempdir().unwrap();
        let topology = Topology::read(empty.path(), &[0, 1, 2], 3);
        assert_eq!(pinned(&topology, 3, 1), [[0], [1], [2]]);
        // Kernels before 5.7.
        let older: Vec<_> = (0..4)
            .map(|cpu| {
                (
                    format!("system/cpu/cpu{cpu}/topology/thread_siblings_list"),
                    format!("{}-{}", cpu / 2 * 2, cpu / 2 * 2 + 1),
                )
            })
            .collect();
        assert_eq!(Topology::read(tree(&older, &[]).path(), &[0, 1, 2, 3], 4).threads(), 2);
        // No mask at all.
        let unknown = Topology::read(empty.path(), &[], 2000);
        assert_eq!((unknown.threads(), place(&unknown, 1, 2000).0), (2000, vec![Cores::Shared]));
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(format_list(&parse_list(text).unwrap()), text);
        }
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("0-x"), None);
        let host = Topology::of_host();
        let (threads, cpus) = (host.threads(), host.cores.iter().map(|core| core.cpus.len()).sum::<usize>());
        assert!(threads >= 1 && (host.quota.is_some() || threads <= cpus));
    }
}
