//! Which libraries and GPUs there are. Nothing is linked: all of it is looked for at run time, and what is missing is named.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::{
    cublaslt,
    driver::{self, CudaContext, sys},
};
use libloading::Library;
use nanoinfer_kernels::cuda::LEAST_COMPUTE_CAPABILITY;

use super::error::{GpuError, While};

/// The driver that understands PTX 8.4, as drivers count: CUDA 12.4.
const LEAST_DRIVER: i32 = 12_040;
/// Where a toolkit's libraries lie when nothing is set up to find them.
pub(super) const TOOLKIT_FOLDERS: &[&str] = &["/usr/local/cuda/lib64", "/opt/cuda/lib64"];
const DRIVER_NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];
const PRODUCT_NAMES: &[&str] = &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// What is called of the driver, so that a missing function is found before it is needed.
const DRIVER_SYMBOLS: [&str; 35] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
];

/// One GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// As the driver counts, from 0.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Its generation.
    pub compute_capability: (i32, i32),
    /// Bytes free now.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl GpuInfo {
    /// Whether the kernels run on it.
    ///
    /// # Errors
    /// When it is too old.
    pub fn check(&self) -> Result<(), GpuError> {
        if self.compute_capability >= LEAST_COMPUTE_CAPABILITY {
            return Ok(());
        }
        Err(GpuError::OldGpu {
            ordinal: self.ordinal,
            name: self.name.clone(),
            got: self.compute_capability,
            needed: LEAST_COMPUTE_CAPABILITY,
        })
    }
}

/// All GPUs that the driver sees, with everything that running on one needs.
///
/// # Errors
/// Names the library, the function or the GPU that is not there, and where it was looked for.
pub fn find() -> Result<Vec<GpuInfo>, GpuError> {
    guarded(|| (0..load_libraries()?).map(describe).collect())
}

/// One of them, without opening the others, which other ranks do.
///
/// # Errors
/// As [`find()`], and when that one is not there or too old.
pub(super) fn find_one(ordinal: u32) -> Result<(), GpuError> {
    guarded(|| {
        let count = load_libraries()?;
        if ordinal >= count {
            return Err(GpuError::NoSuchGpu { ordinal, count: count as usize });
        }
        describe(ordinal)?.check()
    })
}

/// The bindings panic where a library is not what it seems.
fn guarded<T>(first_use: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    catch_unwind(AssertUnwindSafe(first_use)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(GpuError::Panicked { reason: text.unwrap_or("it panicked").to_owned() })
    })
}

/// `wanted` of these GPUs, or all that are new enough where nothing is wanted in particular.
///
/// # Errors
/// When one that is wanted is not there or too old, or none is left.
pub fn choose(found: &[GpuInfo], wanted: &[u32]) -> Result<Vec<GpuInfo>, GpuError> {
    if wanted.is_empty() {
        let usable: Vec<_> = found.iter().filter(|gpu| gpu.check().is_ok()).cloned().collect();
        return match (usable.is_empty(), found.first()) {
            (false, _) => Ok(usable),
            (true, Some(first)) => first.check().map(|()| Vec::new()),
            (true, None) => Err(GpuError::NoGpu),
        };
    }
    let one = |&ordinal: &u32| {
        let gpu = found.iter().find(|gpu| gpu.ordinal == ordinal);
        let gpu = gpu.ok_or(GpuError::NoSuchGpu { ordinal, count: found.len() })?;
        gpu.check().map(|()| gpu.clone())
    };
    wanted.iter().map(one).collect()
}

/// The first of `names` that the dynamic linker finds, or that lies in one of `folders`.
pub(super) fn open(names: &[&str], folders: &[&str]) -> Option<Library> {
    let there = folders.iter().flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")));
    let candidates = names.iter().map(|&name| name.to_owned()).chain(there);
    // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers touch nothing of ours.
    candidates.map(|name| unsafe { Library::new(name) }).find_map(Result::ok)
}

/// Loads the driver and cublasLt; returns how many GPUs the driver sees.
fn load_libraries() -> Result<u32, GpuError> {
    // SAFETY: loads the driver's library, which may be loaded at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoLibrary {
            what: "CUDA driver",
            names: DRIVER_NAMES,
            folders: &[],
            hint: "it comes with the NVIDIA driver; in a container, start it with access to the GPUs",
        });
    }
    // SAFETY: as above.
    let library = unsafe { sys::culib() };
    for symbol in DRIVER_SYMBOLS {
        // SAFETY: only looked up, never called through this type.
        let found = unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) };
        found.map_err(|_| GpuError::NoSymbol { library: DRIVER_NAMES[0], symbol })?;
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().doing("ask the driver for its version")?;
    if version < LEAST_DRIVER {
        return Err(GpuError::OldDriver { got: version, needed: LEAST_DRIVER });
    }
    let count = match CudaContext::device_count() {
        Ok(0) | Err(driver::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(GpuError::NoGpu),
        other => other.doing("start the CUDA driver")?,
    };
    load_products()?;
    Ok(count as u32)
}

/// Loads cublasLt, also from where cudarc would not look; once loaded it is found by its name.
pub(super) fn load_products() -> Result<(), GpuError> {
    let library = open(PRODUCT_NAMES, TOOLKIT_FOLDERS).ok_or(GpuError::NoLibrary {
        what: "cublasLt",
        names: PRODUCT_NAMES,
        folders: TOOLKIT_FOLDERS,
        hint: "it comes with the CUDA toolkit, and with the Python package nvidia-cublas, whose folder LD_LIBRARY_PATH may name",
    })?;
    // Stays for the life of the process.
    std::mem::forget(library);
    // SAFETY: loads the library that was just found.
    let library = unsafe { cublaslt::sys::culib() };
    for symbol in ["cublasLtCreate", "cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic"] {
        // SAFETY: only looked up.
        let found = unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) };
        found.map_err(|_| GpuError::NoSymbol { library: "libcublasLt", symbol })?;
    }
    Ok(())
}

fn describe(ordinal: u32) -> Result<GpuInfo, GpuError> {
    let context = CudaContext::new(ordinal as usize).doing("open the GPU")?;
    let (free, total) = context.mem_get_info().doing("ask for free memory")?;
    Ok(GpuInfo {
        ordinal,
        name: context.name().doing("ask for the GPU's name")?,
        compute_capability: context.compute_capability().doing("ask for the GPU's generation")?,
        free_bytes: free as u64,
        total_bytes: total as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: u32, major: i32) -> GpuInfo {
        let name = format!("card {ordinal}");
        GpuInfo { ordinal, name, compute_capability: (major, 0), free_bytes: 1, total_bytes: 2 }
    }

    #[test]
    fn old_gpus_are_passed_over_unless_they_are_asked_for() {
        let found = [gpu(0, 7), gpu(1, 8), gpu(2, 9)];
        let ordinals =
            |wanted: &[u32]| choose(&found, wanted).map(|gpus| gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>());
        assert_eq!(ordinals(&[]).unwrap(), vec![1, 2]);
        assert_eq!(ordinals(&[2, 1]).unwrap(), vec![2, 1]);
        let message = ordinals(&[0]).unwrap_err().to_string();
        assert_eq!(message, "GPU 0 (card 0) has compute capability 7.0, and the kernels need 8.0");
        assert!(ordinals(&[5]).unwrap_err().to_string().contains("no GPU 5: the driver sees 3"));
        assert!(matches!(choose(&found[..1], &[]), Err(GpuError::OldGpu { .. })));
        assert!(matches!(choose(&[], &[]), Err(GpuError::NoGpu)));
    }

    #[test]
    fn what_was_looked_for_is_named_with_where() {
        let names: &[&str] = &["libnothing.so.1", "libnothing.so"];
        assert!(open(names, TOOLKIT_FOLDERS).is_none());
        let error = GpuError::NoLibrary { what: "nothing", names, folders: TOOLKIT_FOLDERS, hint: "none" }.to_string();
        for part in ["no nothing", "libnothing.so.1, libnothing.so", "LD_LIBRARY_PATH", "/usr/local/cuda/lib64", "hint"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
        let old = GpuError::OldDriver { got: 11_080, needed: LEAST_DRIVER }.to_string();
        assert!(old.contains("CUDA 11.8") && old.contains("12.4"), "{old}");
    }
}
