//! Why a GPU cannot be used, or failed.

use std::time::Duration;

use cudarc::driver::{DriverError, sys::CUresult};

use crate::fit::Unfit;

/// Why a GPU cannot be used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A library is not there.
    #[error(
        "no {what}: looked for {} in LD_LIBRARY_PATH, the system's libraries{}{}\n  hint: {hint}",
        .names.join(", "),
        if .folders.is_empty() { "" } else { ", " },
        .folders.join(", ")
    )]
    NoLibrary {
        /// For what.
        what: &'static str,
        /// File names that would have done.
        names: &'static [&'static str],
        /// Where else they were looked for.
        folders: Vec<String>,
        /// What to do.
        hint: &'static str,
    },
    /// A library lacks a function.
    #[error("{library} has no {symbol}\n  hint: it is too old, or a stub; a driver of CUDA 12.0 or later has it")]
    NoSymbol {
        /// Which library.
        library: &'static str,
        /// Which function.
        symbol: &'static str,
    },
    /// What the toolkit has for linking without a driver.
    #[error(
        "libcuda.so is a stub of the CUDA toolkit\n  hint: take the folder that ends with `stubs` out of LD_LIBRARY_PATH"
    )]
    Stub,
    /// The driver does not understand the kernels.
    #[error("the driver is of CUDA {}.{}, and the kernels need {}.{}\n  hint: update the NVIDIA driver", .got / 1000, .got % 1000 / 10, .needed / 1000, .needed % 1000 / 10)]
    OldDriver {
        /// As the driver counts, 12040 for 12.4.
        got: i32,
        /// Likewise.
        needed: i32,
    },
    /// The driver sees none.
    #[error(
        "the CUDA driver is there, and sees no GPU\n  hint: nvidia-smi lists what it sees; CUDA_VISIBLE_DEVICES may hide some"
    )]
    NoGpu,
    /// One that was asked for is not there.
    #[error("there is no GPU {ordinal}: the driver sees {count}, counted from 0")]
    NoSuchGpu {
        /// As asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// One that the driver does not open or describe.
    #[error("GPU {ordinal}: {source}")]
    Unusable {
        /// Which.
        ordinal: u32,
        /// Why.
        source: Box<GpuError>,
    },
    /// Made before the kernels' least.
    #[error("GPU {ordinal} ({name}) has compute capability {}.{}, and the kernels need {}.{}", .got.0, .got.1, .needed.0, .needed.1)]
    OldGpu {
        /// Which.
        ordinal: u32,
        /// Its name.
        name: String,
        /// Its.
        got: (i32, i32),
        /// The kernels'.
        needed: (i32, i32),
    },
    /// Not enough of its memory is free.
    #[error("GPU {ordinal} ({name}) has {free} bytes free, and this rank needs {needed} for its {what}")]
    Memory {
        /// Which.
        ordinal: u32,
        /// Its name.
        name: String,
        /// Free bytes.
        free: u64,
        /// Wanted bytes.
        needed: u64,
        /// For what.
        what: &'static str,
    },
    /// The kernels do not compute what is asked.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The driver refused something.
    #[error("cannot {doing}: {source}")]
    Driver {
        /// What.
        doing: &'static str,
        /// Why.
        source: DriverError,
    },
    /// The driver does not compile the kernels.
    #[error("cannot compile the kernels: {source}{}{}", said(.log), compiler_hint(.source))]
    Compile {
        /// Why.
        source: DriverError,
        /// What its compiler said.
        log: String,
    },
    /// NCCL refused something.
    #[error(
        "NCCL cannot {doing}: {reason}\n  hint: NCCL_DEBUG=WARN makes it say more; --comm shm does without, through the host's memory. In a \
         container it needs more of /dev/shm than there is by default: --shm-size=1g, or --ipc=host"
    )]
    Nccl {
        /// What.
        doing: &'static str,
        /// Why.
        reason: String,
    },
    /// Something did not end.
    #[error("waited {waited:?} for the GPU to {doing}")]
    Deadline {
        /// What.
        doing: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The libraries are not what they seem.
    #[error("the CUDA libraries failed at their first use: {reason}")]
    Panicked {
        /// What was said.
        reason: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": {log}") }
}

fn compiler_hint(source: &DriverError) -> &'static str {
    if source.0 == CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND {
        "\n  hint: libnvidia-ptxjitcompiler.so.1 comes with the driver; a container has it where NVIDIA_DRIVER_CAPABILITIES is compute,utility"
    } else {
        ""
    }
}

/// Says what was done when the driver refused.
pub(crate) trait While<T> {
    fn doing(self, doing: &'static str) -> Result<T, GpuError>;
}

impl<T> While<T> for Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, GpuError> {
        self.map_err(|source| GpuError::Driver { doing, source })
    }
}
