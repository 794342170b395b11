//! What ranks compute on: what was asked for, and what there is.
//!
//! Invariant: the CPU takes a GPU's place only where `auto` was asked for, and the plan says why. Does not load anything.

use std::{convert::identity, fmt, ops::Range};

use nanoinfer_shared::{
    ModelShape,
    protocol::{DType, Device},
};
use nanoinfer_worker::{CpuLevels, Unfit, fits, kv_dtype_on_gpu};

use super::host::{Host, HostGpu};
use crate::{
    config::{ClusterConfig, DeviceChoice},
    error::LaunchError,
};

/// What ranks will compute on, and in what.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Each rank's GPU, in rank order; none on the CPU.
    pub(super) gpus: Vec<HostGpu>,
    pub(super) dtype: DType,
    pub(super) kv_dtype: DType,
    /// Why it is the CPU, where that was not asked for.
    pub(super) instead: Option<String>,
    /// Why there are GPUs that were not taken.
    pub(super) passed_over: Vec<String>,
}

/// Decides for ranks of `config` that run on these hosts, each with the numbers of its ranks: those of a host take its GPUs in turn.
///
/// # Errors
/// When what was asked for is not there, or does not do what is asked.
pub(super) fn choose(
    config: &ClusterConfig,
    shape: &ModelShape,
    hosts: &[(Host, Range<usize>)],
) -> Result<Chosen, LaunchError> {
    let on_gpus = || {
        let (dtype, kv_dtype) = types(config, DType::Bf16, kv_dtype_on_gpu);
        fits(Device::Gpu(0), shape, dtype, kv_dtype)?;
        let mut gpus = Vec::new();
        for (host, ranks) in hosts {
            let usable = &host.gpus.usable;
            if usable.is_empty() {
                let why = host.gpus.why_none.as_deref().unwrap_or("its --device is cpu");
                let whose = if hosts.len() > 1 { format!("{}: ", host.name) } else { String::new() };
                return Err(LaunchError::NoGpu { why: format!("{whose}{why}") });
            }
            gpus.extend((0..ranks.len()).map(|i| usable[i % usable.len()].clone()));
        }
        let passed_over = hosts.iter().flat_map(|(host, _)| host.gpus.passed_over.iter().map(first_line)).collect();
        Ok::<_, LaunchError>(Chosen { gpus, dtype, kv_dtype, instead: None, passed_over })
    };
    match &config.device {
        DeviceChoice::Cpu => on_cpu(config, shape, hosts, None),
        DeviceChoice::Cuda(_) => on_gpus(),
        DeviceChoice::Auto => on_gpus().or_else(|error| on_cpu(config, shape, hosts, Some(&error))),
    }
}

/// The CPU: because it was asked for, or because of `instead`.
///
/// # Errors
/// When the types are not for CPUs.
pub(super) fn on_cpu(
    config: &ClusterConfig,
    shape: &ModelShape,
    hosts: &[(Host, Range<usize>)],
    instead: Option<&dyn fmt::Display>,
) -> Result<Chosen, LaunchError> {
    let instead = instead.map(first_line);
    let (dtype, kv_dtype) = types(config, CpuLevels::default_dtype(hosts.iter().map(|(host, _)| &host.cpu)), identity);
    // That heads are too wide is for the ranks to say.
    if let Err(Unfit::HalfOnCpu { .. }) = fits(Device::Cpu, shape, dtype, kv_dtype) {
        let why = instead.map_or(String::new(), |why| format!(", and none is used: {why}"));
        return Err(Unfit::HalfOnCpu { why }.into());
    }
    Ok(Chosen { gpus: Vec::new(), dtype, kv_dtype, instead, passed_over: Vec::new() })
}

/// What to compute in, and the KV cache's: `default`, and what goes `beside` a type, where nothing was asked for.
fn types(config: &ClusterConfig, default: DType, beside: fn(DType) -> DType) -> (DType, DType) {
    let dtype = config.dtype.unwrap_or(default);
    (dtype, config.kv_dtype.unwrap_or_else(|| beside(dtype)))
}

/// What to do about an error is for whoever asked for what failed.
pub(super) fn first_line(error: impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Chosen {
    /// Of a rank.
    pub(super) fn device(&self, rank: usize) -> Device {
        self.gpus.get(rank).map_or(Device::Cpu, |gpu| Device::Gpu(gpu.ordinal))
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instead {
            Some(why) => return write!(f, "on the CPU, as no GPU can be used: {why}"),
            None if self.gpus.is_empty() => return write!(f, "on the CPU"),
            None => {}
        }
        let mut named: Vec<String> = Vec::new();
        for HostGpu { ordinal, name, .. } in &self.gpus {
            let gpu = format!("GPU {ordinal} ({name})");
            if !named.contains(&gpu) {
                named.push(gpu);
            }
        }
        write!(f, "on {}", named.join(", "))?;
        self.passed_over.iter().try_for_each(|why| write!(f, "\nwithout {why}"))
    }
}

#[cfg(test)]
mod tests {
    use nanoinfer_worker::cuda::{Found, GpuError, GpuInfo};

    use super::*;
    use crate::model::Caches;

    type Types = (Option<DType>, Option<DType>);

    const AS_IT_FITS: Types = (None, None);

    fn gpu(ordinal: u32) -> GpuInfo {
        let name = "H".into();
        GpuInfo { ordinal, name, compute_capability: (9, 0), free_bytes: 80 << 30, total_bytes: 80 << 30 }
    }

    fn two(wanted: &[u32], most: usize) -> Result<Found, GpuError> {
        let ordinals = if wanted.is_empty() { &[0, 1] } else { wanted };
        let ordinals = &ordinals[..most.min(ordinals.len())];
        match ordinals.iter().find(|&&ordinal| ordinal > 1) {
            Some(&ordinal) => Err(GpuError::NoSuchGpu { ordinal, count: 2 }),
            None => Ok(Found { gpus: ordinals.iter().map(|&ordinal| gpu(ordinal)).collect(), passed_over: Vec::new() }),
        }
    }

    fn none(_: &[u32], _: usize) -> Result<Found, GpuError> {
        Err(GpuError::NoGpu)
    }

    fn here(
        choice: &str,
        (dtype, kv_dtype): Types,
        nproc: usize,
        find: fn(&[u32], usize) -> Result<Found, GpuError>,
    ) -> Result<Chosen, LaunchError> {
        let shape = ModelShape::from_config_json("{}").unwrap();
        let device = choice.parse().unwrap();
        let config = ClusterConfig { device, dtype, kv_dtype, nproc, ..ClusterConfig::new(Caches::nowhere()) };
        let host = Host::of_this_process(&config.device, nproc, find);
        choose(&config, &shape, &[(host, 0..nproc)])
    }

    #[test]
    fn the_cpu_takes_a_gpus_place_only_where_nobody_asked() {
        let chosen = here("auto", AS_IT_FITS, 1, none).unwrap();
        assert_eq!(chosen.device(0), Device::Cpu);
        assert!(chosen.to_string().contains("no GPU can be used: the CUDA driver is there"), "{chosen}");
        assert!(!chosen.to_string().contains('\n'));
        assert_eq!(here("cuda", AS_IT_FITS, 1, none).unwrap_err().exit_code(), 2);
        assert_eq!(here("cpu", AS_IT_FITS, 1, |_, _| panic!("nobody asked")).unwrap().device(0), Device::Cpu);
    }

    #[test]
    fn gpus_compute_in_bf16_and_ranks_share_them_where_they_are_fewer() {
        let chosen = here("auto", AS_IT_FITS, 1, two).unwrap();
        assert_eq!((chosen.device(0), chosen.dtype), (Device::Gpu(0), DType::Bf16));
        let chosen = here("cuda:1,0", AS_IT_FITS, 5, two).unwrap();
        assert_eq!([0, 1, 2, 4].map(|rank| chosen.device(rank)), [1, 0, 1, 1].map(Device::Gpu));
        assert_eq!(chosen.to_string(), "on GPU 1 (H), GPU 0 (H)");
        assert!(here("cuda:2", AS_IT_FITS, 1, two).unwrap_err().to_string().contains("no GPU 2"));
    }

    #[test]
    fn types_decide_too() {
        let types = |dtype, kv_dtype| (Some(dtype), kv_dtype);
        let of = |chosen: Chosen| (chosen.device(0), chosen.dtype, chosen.kv_dtype);
        let bytes = |device, find| of(here(device, types(DType::Int8, None), 1, find).unwrap());
        assert_eq!(bytes("auto", two), (Device::Gpu(0), DType::Int8, DType::Bf16));
        assert_eq!(bytes("cpu", two), (Device::Cpu, DType::Int8, DType::Int8));
        let chosen = here("auto", types(DType::Int8, Some(DType::Int8)), 1, two).unwrap();
        assert_eq!(chosen.device(0), Device::Cpu);
        assert!(chosen.instead.unwrap().contains("beside int8 weights is bf16, not int8"));
        let error = here("auto", types(DType::F16, None), 1, none).unwrap_err().to_string();
        assert!(error.contains("f16 is for GPUs, and none is used: the CUDA driver"), "{error}");
        assert_eq!(here("cuda", types(DType::F16, None), 1, two).unwrap().kv_dtype, DType::F16);
        let error = here("cuda", types(DType::F16, Some(DType::F32)), 1, two).unwrap_err().to_string();
        assert!(error.contains("--kv-dtype"), "{error}");
    }
}
