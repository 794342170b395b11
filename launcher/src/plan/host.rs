//! What a host has, as the process on it tells: node 0 plans for hosts that it does not see.
//!
//! Does not know ranks, nor what becomes of what it tells.

use std::fs;

use nanoinfer_worker::{
    CpuLevels,
    cuda::{Found, GpuError},
    free_bytes, roofline,
};
use serde::{Deserialize, Serialize};

use super::topology::Topology;
use crate::config::DeviceChoice;

/// More than most caches hold.
const MEASURED_BYTES: u64 = 512 << 20;

/// One host, or what a process may use of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name on the network.
    pub(crate) name: String,
    /// Its boot and its control groups: hosts that name the same divide one machine's cores and memory between them.
    pub(super) machine: String,
    pub(super) topology: Topology,
    /// Memory that is free; none where the system does not say.
    pub(super) free_bytes: Option<u64>,
    pub(super) cpu: CpuLevels,
    /// How fast its threads read memory together, where it was measured.
    pub(super) read_bytes_per_s: Option<f64>,
    pub(super) gpus: Gpus,
}

/// GPUs of a host, of those that were asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Gpus {
    pub(super) usable: Vec<HostGpu>,
    /// Why others were not taken.
    pub(super) passed_over: Vec<String>,
    /// Why there is none.
    pub(super) why_none: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostGpu {
    pub(super) ordinal: u32,
    pub(super) name: String,
    pub(super) free_bytes: u64,
}

impl Host {
    /// What this process may use of its own, with as many GPUs at `most`. `find` looks for GPUs, among those that are wanted.
    pub(crate) fn of_this_process(
        device: &DeviceChoice,
        most: usize,
        find: impl Fn(&[u32], usize) -> Result<Found, GpuError>,
    ) -> Self {
        let gpus = match device {
            DeviceChoice::Cpu => Gpus::default(),
            DeviceChoice::Auto => Gpus::of(find(&[], most)),
            DeviceChoice::Cuda(wanted) => Gpus::of(find(wanted, most)),
        };
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self {
            name,
            machine: machine(),
            topology: Topology::of_host(),
            free_bytes: free_bytes(),
            cpu: CpuLevels::here(),
            read_bytes_per_s: None,
            gpus,
        }
    }
}

impl Host {
    /// The same, once it is known how fast it reads: what most steps spend their time on.
    pub(crate) fn measured(self) -> Self {
        let seconds = roofline::reading_s(MEASURED_BYTES, self.topology.threads());
        Self { read_bytes_per_s: Some(MEASURED_BYTES as f64 / seconds), ..self }
    }
}

impl Gpus {
    fn of(found: Result<Found, GpuError>) -> Self {
        match found {
            Ok(Found { gpus, passed_over }) => Self {
                usable: gpus
                    .into_iter()
                    .map(|gpu| HostGpu { ordinal: gpu.ordinal, name: gpu.name, free_bytes: gpu.free_bytes })
                    .collect(),
                passed_over: passed_over.iter().map(ToString::to_string).collect(),
                why_none: None,
            },
            Err(error) => Self { why_none: Some(error.to_string()), ..Self::default() },
        }
    }
}

/// Containers of one machine have limits of their own, so that they count as several. Empty where the system says neither.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let groups = fs::read_link("/proc/self/ns/cgroup").unwrap_or_default();
    format!("{} {}", boot.trim(), groups.display())
}
