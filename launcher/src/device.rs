//! What ranks compute on: what was asked for, and what there is.
//!
//! Invariant: the CPU takes a GPU's place only where `auto` was asked for, and the plan says why. Does not load anything.

use std::fmt;

use nanoinfer_shared::{
    ModelShape,
    protocol::{CommKind, DType, Device},
};
use nanoinfer_worker::cuda::{self, Found, GpuError, GpuInfo};

use crate::{
    config::{CommChoice, DeviceChoice},
    error::LaunchError,
    plan::Placement,
};

/// What ranks will compute on, and in what.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) device: Device,
    /// Those of this host, in the order of `device`; none where the ranks are elsewhere.
    pub(crate) gpus: Vec<GpuInfo>,
    pub(crate) dtype: DType,
    pub(crate) kv_dtype: DType,
    /// Why it is the CPU, where that was not asked for.
    pub(crate) instead: Option<String>,
    /// Why there are GPUs that were not taken.
    pub(crate) passed_over: Vec<String>,
}

/// What was asked for of types.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Types {
    pub(crate) dtype: Option<DType>,
    pub(crate) kv_dtype: Option<DType>,
}

impl Types {
    fn or(self, default: DType) -> (DType, DType) {
        let dtype = self.dtype.unwrap_or(default);
        (dtype, self.kv_dtype.unwrap_or(dtype))
    }
}

/// Decides for `world` ranks. `find` looks for as many GPUs of this host, among those that are wanted.
///
/// # Errors
/// When what was asked for is not there, or does not do what is asked.
pub(crate) fn choose(
    choice: &DeviceChoice,
    types: Types,
    shape: &ModelShape,
    world: usize,
    placement: Placement,
    find: impl Fn(&[u32], usize) -> Result<Found, GpuError>,
) -> Result<Chosen, LaunchError> {
    let on_gpus = |wanted: &[u32]| {
        let (dtype, kv_dtype) = types.or(DType::Bf16);
        cuda::fits(shape, dtype, kv_dtype)?;
        let Found { gpus, passed_over } = find(wanted, world)?;
        let device = Device::Gpus(gpus.iter().map(|gpu| gpu.ordinal).collect());
        let passed_over = passed_over.iter().map(first_line).collect();
        Ok::<_, GpuError>(Chosen { device, gpus, dtype, kv_dtype, instead: None, passed_over })
    };
    match (choice, placement) {
        (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, Placement::Elsewhere) => on_cpu(types, None),
        (DeviceChoice::Cuda(wanted), Placement::Here) => Ok(on_gpus(wanted)?),
        (DeviceChoice::Cuda(wanted), Placement::Elsewhere) => {
            // Other hosts' GPUs show when their ranks load. Where none is named, each rank takes the first that it sees.
            let (dtype, kv_dtype) = types.or(DType::Bf16);
            cuda::fits(shape, dtype, kv_dtype)?;
            let ordinals = if wanted.is_empty() { vec![0] } else { wanted.clone() };
            let (device, gpus, passed_over) = (Device::Gpus(ordinals), Vec::new(), Vec::new());
            Ok(Chosen { device, gpus, dtype, kv_dtype, instead: None, passed_over })
        }
        (DeviceChoice::Auto, Placement::Here) => match on_gpus(&[]) {
            Ok(chosen) => Ok(chosen),
            Err(error) => on_cpu(types, Some(&error)),
        },
    }
}

/// The CPU: because it was asked for, or because of `instead`.
///
/// # Errors
/// When the types are not for CPUs.
pub(crate) fn on_cpu(types: Types, instead: Option<&dyn fmt::Display>) -> Result<Chosen, LaunchError> {
    let instead = instead.map(first_line);
    let (dtype, kv_dtype) = types.or(nanoinfer_worker::default_dtype());
    if dtype == DType::F16 || kv_dtype == DType::F16 {
        let why = instead.as_ref().map_or(String::new(), |why| format!(", and none is used: {why}"));
        return Err(LaunchError::Usage {
            problem: format!("f16 is for GPUs{why}"),
            hint: "--dtype bf16; checkpoints of any element type load into it".into(),
        });
    }
    Ok(Chosen { device: Device::Cpu, gpus: Vec::new(), dtype, kv_dtype, instead, passed_over: Vec::new() })
}

/// What to do about an error is for whoever asked for what failed.
fn first_line(error: impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The link between ranks, and why it is not the fastest, where that was not asked for. `nccl` looks for NCCL.
///
/// # Errors
/// When what was asked for does not work so.
pub(crate) fn data_link(
    choice: CommChoice,
    world: usize,
    placement: Placement,
    device: &Device,
    nccl: impl FnOnce() -> Result<String, GpuError>,
) -> Result<(CommKind, Option<String>), LaunchError> {
    let usage =
        |problem: &str, hint: &str| Err(LaunchError::Usage { problem: problem.to_owned(), hint: hint.to_owned() });
    // Ranks elsewhere each see GPUs of their own.
    let gpu_each = match device {
        Device::Cpu => false,
        Device::Gpus(gpus) => placement == Placement::Elsewhere || gpus.len() >= world,
    };
    match (choice, placement) {
        (CommChoice::Shm, Placement::Elsewhere) => usage(
            "--comm shm is for ranks that this process starts itself",
            "ranks that join by address use --comm tcp, or auto",
        ),
        (CommChoice::Nccl, _) if *device == Device::Cpu => {
            usage("--comm nccl is for ranks on GPUs", "--device cuda, or --comm shm or tcp")
        }
        (CommChoice::Nccl, _) if !gpu_each => {
            usage("NCCL does not let two ranks share a GPU", "as many GPUs as ranks, or --comm shm")
        }
        _ if world == 1 => Ok((CommKind::Local, None)),
        (CommChoice::Nccl, Placement::Here) => Ok(nccl().map(|_| (CommKind::Nccl, None))?),
        (CommChoice::Nccl, Placement::Elsewhere) => Ok((CommKind::Nccl, None)),
        (CommChoice::Auto, Placement::Here) if gpu_each => match nccl() {
            Ok(_) => Ok((CommKind::Nccl, None)),
            Err(error) => Ok((CommKind::Shm, Some(first_line(error)))),
        },
        (CommChoice::Auto | CommChoice::Shm, Placement::Here) => Ok((CommKind::Shm, None)),
        (CommChoice::Tcp, _) | (CommChoice::Auto, Placement::Elsewhere) => Ok((CommKind::Tcp, None)),
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.device, &self.instead) {
            (Device::Cpu, None) => write!(f, "on the CPU"),
            (Device::Cpu, Some(why)) => write!(f, "on the CPU, as no GPU can be used: {why}"),
            (Device::Gpus(ordinals), _) if self.gpus.is_empty() => {
                let ordinals: Vec<String> = ordinals.iter().map(u32::to_string).collect();
                write!(f, "on GPUs {} of the ranks' hosts", ordinals.join(", "))
            }
            (Device::Gpus(_), _) => {
                let named = self.gpus.iter().map(|gpu| format!("GPU {} ({})", gpu.ordinal, gpu.name));
                write!(f, "on {}", named.collect::<Vec<_>>().join(", "))?;
                self.passed_over.iter().try_for_each(|why| write!(f, "\nwithout {why}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IT_FITS: Types = Types { dtype: None, kv_dtype: None };

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
        types: Types,
        world: usize,
        find: fn(&[u32], usize) -> Result<Found, GpuError>,
    ) -> Result<Chosen, LaunchError> {
        let shape = ModelShape::from_config_json("{}").unwrap();
        choose(&choice.parse().unwrap(), types, &shape, world, Placement::Here, find)
    }

    #[test]
    fn the_cpu_takes_a_gpus_place_only_where_nobody_asked() {
        let chosen = here("auto", AS_IT_FITS, 1, none).unwrap();
        assert_eq!(chosen.device, Device::Cpu);
        assert!(chosen.to_string().contains("no GPU can be used: the CUDA driver is there"), "{chosen}");
        assert!(!chosen.to_string().contains('\n'));
        assert_eq!(here("cuda", AS_IT_FITS, 1, none).unwrap_err().exit_code(), 2);
        assert_eq!(here("cpu", AS_IT_FITS, 1, |_, _| panic!("nobody asked")).unwrap().device, Device::Cpu);
    }

    #[test]
    fn gpus_compute_in_bf16_and_ranks_share_them_where_they_are_fewer() {
        let chosen = here("auto", AS_IT_FITS, 1, two).unwrap();
        assert_eq!((&chosen.device, chosen.dtype), (&Device::Gpus(vec![0]), DType::Bf16));
        let chosen = here("cuda:1,0", AS_IT_FITS, 5, two).unwrap();
        assert_eq!(chosen.device, Device::Gpus(vec![1, 0]));
        assert_eq!(chosen.to_string(), "on GPU 1 (H), GPU 0 (H)");
        assert!(here("cuda:2", AS_IT_FITS, 1, two).unwrap_err().to_string().contains("no GPU 2"));
    }

    #[test]
    fn types_decide_too() {
        let types = |dtype, kv_dtype| Types { dtype: Some(dtype), kv_dtype };
        let chosen = here("auto", types(DType::Int8, None), 1, two).unwrap();
        assert_eq!(chosen.device, Device::Cpu);
        assert!(chosen.instead.unwrap().contains("int8 is for CPUs"));
        assert!(here("cuda", types(DType::Int8, None), 1, two).unwrap_err().to_string().contains("--dtype bf16"));
        let error = here("auto", types(DType::F16, None), 1, none).unwrap_err().to_string();
        assert!(error.contains("f16 is for GPUs, and none is used: the CUDA driver"), "{error}");
        assert_eq!(here("cuda", types(DType::F16, None), 1, two).unwrap().kv_dtype, DType::F16);
        let error = here("cuda", types(DType::F16, Some(DType::F32)), 1, two).unwrap_err().to_string();
        assert!(error.contains("--kv-dtype"), "{error}");
    }

    #[test]
    fn links_follow_placement_and_devices() {
        let found = || Ok("2.28.9".to_owned());
        let link = |choice, world, placement, gpus: &[u32]| {
            let device = if gpus.is_empty() { Device::Cpu } else { Device::Gpus(gpus.to_vec()) };
            data_link(choice, world, placement, &device, found).map(|(kind, _)| kind)
        };
        for (choice, world, placement, gpus, expected) in [
            (CommChoice::Auto, 1, Placement::Here, &[][..], CommKind::Local),
            (CommChoice::Auto, 2, Placement::Here, &[], CommKind::Shm),
            (CommChoice::Tcp, 2, Placement::Here, &[], CommKind::Tcp),
            (CommChoice::Auto, 2, Placement::Elsewhere, &[], CommKind::Tcp),
            (CommChoice::Auto, 2, Placement::Here, &[0, 1], CommKind::Nccl),
            (CommChoice::Auto, 2, Placement::Here, &[0], CommKind::Shm),
            (CommChoice::Shm, 2, Placement::Here, &[0, 1], CommKind::Shm),
            (CommChoice::Auto, 2, Placement::Elsewhere, &[0], CommKind::Tcp),
            (CommChoice::Nccl, 2, Placement::Elsewhere, &[0], CommKind::Nccl),
        ] {
            assert_eq!(link(choice, world, placement, gpus).unwrap(), expected, "{choice:?} {world} {placement:?}");
        }
        for (choice, placement, gpus) in [
            (CommChoice::Shm, Placement::Elsewhere, &[][..]),
            (CommChoice::Nccl, Placement::Here, &[]),
            (CommChoice::Nccl, Placement::Here, &[0]),
        ] {
            assert_eq!(link(choice, 2, placement, gpus).unwrap_err().exit_code(), 2, "{choice:?} {placement:?}");
        }
        let missing = || Err(GpuError::NoGpu);
        let (kind, why) = data_link(CommChoice::Auto, 2, Placement::Here, &Device::Gpus(vec![0, 1]), missing).unwrap();
        assert!(kind == CommKind::Shm && why.is_some());
    }
}
