//! Which data link ranks use: what was asked for, and what there is.

use nanoinfer_shared::protocol::{CommKind, Device};
use nanoinfer_worker::cuda::GpuError;

use super::device::first_line;
use crate::{config::CommChoice, error::LaunchError};

/// The link between ranks that compute on `devices` of so many hosts, and why it is not the fastest, where that was not asked for.
/// `nccl` looks for NCCL.
///
/// # Errors
/// When what was asked for does not work so.
pub(super) fn choose(
    choice: CommChoice,
    hosts: usize,
    devices: &[(usize, Device)],
    nccl: impl FnOnce() -> Result<String, GpuError>,
) -> Result<(CommKind, Option<String>), LaunchError> {
    let usage = |problem: &str, hint: &str| Err(LaunchError::usage(problem, hint));
    let on_cpus = devices.iter().any(|(_, device)| *device == Device::Cpu);
    let gpu_each = !on_cpus && devices.iter().enumerate().all(|(i, device)| !devices[..i].contains(device));
    match choice {
        CommChoice::Shm if hosts > 1 => {
            usage("--comm shm is for ranks of one host", "between hosts it is --comm tcp, or auto")
        }
        CommChoice::Nccl if on_cpus => usage("--comm nccl is for ranks on GPUs", "--device cuda, or --comm shm or tcp"),
        CommChoice::Nccl if !gpu_each => {
            usage("NCCL does not let two ranks share a GPU", "as many GPUs as ranks, or --comm shm")
        }
        _ if devices.len() == 1 => Ok((CommKind::Local, None)),
        CommChoice::Nccl => Ok(nccl().map(|_| (CommKind::Nccl, None))?),
        CommChoice::Tcp => Ok((CommKind::Tcp, None)),
        CommChoice::Auto if hosts > 1 => Ok((CommKind::Tcp, None)),
        CommChoice::Auto if gpu_each => match nccl() {
            Ok(_) => Ok((CommKind::Nccl, None)),
            Err(error) => Ok((CommKind::Shm, Some(first_line(error)))),
        },
        CommChoice::Auto | CommChoice::Shm => Ok((CommKind::Shm, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_follow_hosts_and_devices() {
        let found = || Ok("2.28.9".to_owned());
        let cpus = |world| vec![(0, Device::Cpu); world];
        let gpus = |places: &[(usize, u32)]| places.iter().map(|&(host, gpu)| (host, Device::Gpu(gpu))).collect();
        let link = |choice, hosts, devices: &[_]| choose(choice, hosts, devices, found).map(|(kind, _)| kind);
        for (choice, hosts, devices, expected) in [
            (CommChoice::Auto, 1, cpus(1), CommKind::Local),
            (CommChoice::Auto, 1, cpus(2), CommKind::Shm),
            (CommChoice::Tcp, 1, cpus(2), CommKind::Tcp),
            (CommChoice::Auto, 2, cpus(2), CommKind::Tcp),
            (CommChoice::Auto, 1, gpus(&[(0, 0), (0, 1)]), CommKind::Nccl),
            (CommChoice::Auto, 1, gpus(&[(0, 0), (0, 0)]), CommKind::Shm),
            (CommChoice::Shm, 1, gpus(&[(0, 0), (0, 1)]), CommKind::Shm),
            (CommChoice::Auto, 2, gpus(&[(0, 0), (1, 0)]), CommKind::Tcp),
            (CommChoice::Nccl, 2, gpus(&[(0, 0), (1, 0)]), CommKind::Nccl),
        ] {
            assert_eq!(link(choice, hosts, &devices).unwrap(), expected, "{choice:?} {hosts} {devices:?}");
        }
        for (choice, hosts, devices) in [
            (CommChoice::Shm, 2, cpus(2)),
            (CommChoice::Nccl, 1, cpus(2)),
            (CommChoice::Nccl, 1, gpus(&[(0, 0), (0, 0)])),
        ] {
            assert_eq!(link(choice, hosts, &devices).unwrap_err().exit_code(), 2, "{choice:?} {hosts} {devices:?}");
        }
        let missing = || Err(GpuError::NoGpu);
        let (kind, why) = choose(CommChoice::Auto, 1, &gpus(&[(0, 0), (0, 1)]), missing).unwrap();
        assert!(kind == CommKind::Shm && why.is_some());
    }
}
