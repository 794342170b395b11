//! Which data link ranks use: what was asked for, and what there is.

use nanoinfer_shared::protocol::{CommKind, Device};
use nanoinfer_worker::cuda::GpuError;

use super::{device::first_line, placement::Placement};
use crate::{config::CommChoice, error::LaunchError};

/// The link between ranks, and why it is not the fastest, where that was not asked for. `nccl` looks for NCCL.
///
/// # Errors
/// When what was asked for does not work so.
pub(super) fn choose(
    choice: CommChoice,
    world: usize,
    placement: Placement,
    device: &Device,
    nccl: impl FnOnce() -> Result<String, GpuError>,
) -> Result<(CommKind, Option<String>), LaunchError> {
    let usage = |problem: &str, hint: &str| Err(LaunchError::usage(problem, hint));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_placement_and_devices() {
        let found = || Ok("2.28.9".to_owned());
        let link = |choice, world, placement, gpus: &[u32]| {
            let device = if gpus.is_empty() { Device::Cpu } else { Device::Gpus(gpus.to_vec()) };
            choose(choice, world, placement, &device, found).map(|(kind, _)| kind)
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
        let (kind, why) = choose(CommChoice::Auto, 2, Placement::Here, &Device::Gpus(vec![0, 1]), missing).unwrap();
        assert!(kind == CommKind::Shm && why.is_some());
    }
}
