//! Which libraries and GPUs there are. Nothing is linked: all of it is looked for at run time, and what is missing is named.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::driver::{self, CudaContext, sys};
use libloading::Library;
use nanoinfer_kernels::cuda::LEAST_COMPUTE_CAPABILITY;

use super::error::{GpuError, While};

/// The driver that understands PTX 8.0, as drivers count: CUDA 12.0.
const LEAST_DRIVER: i32 = 12_000;
/// Where a toolkit's libraries lie when nothing is set up to find them.
const TOOLKIT_FOLDERS: &[&str] = &["/usr/local/cuda/lib64", "/opt/cuda/lib64"];
const DRIVER_NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];
/// Where environments of Python and of conda say that they are. Their packages lie below, and on no linker's path.
const ENVIRONMENTS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];
/// Where a package has NCCL, as PyTorch brings it along.
const PACKAGE_FOLDER: &str = "site-packages/nvidia/nccl/lib";

/// What is called of the driver, so that a missing function is found before it is needed.
const DRIVER_SYMBOLS: [&str; 38] = [
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
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuLaunchKernelEx",
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

/// GPUs to compute on.
#[derive(Debug)]
pub struct Found {
    /// In the order in which they were asked for.
    pub gpus: Vec<GpuInfo>,
    /// Why others were not taken, where none was asked for in particular.
    pub passed_over: Vec<GpuError>,
}

/// The first `most` of the GPUs `wanted`, or of all that can be used where none is wanted in particular, with everything that running
/// on them needs. No other is opened.
///
/// # Errors
/// Names the library, the function or the GPU that is not there, and where it was looked for.
pub fn find(wanted: &[u32], most: usize) -> Result<Found, GpuError> {
    guarded(|| choose(load_driver()?, wanted, most, |ordinal| describe(ordinal).map(|(gpu, _)| gpu)))
}

/// Opens one of them. While the context is kept, the GPU is quickly opened again.
///
/// # Errors
/// As [`find()`].
pub(crate) fn open_one(ordinal: u32) -> Result<Arc<CudaContext>, GpuError> {
    guarded(|| {
        let count = load_driver()?;
        if ordinal >= count {
            return Err(GpuError::NoSuchGpu { ordinal, count });
        }
        describe(ordinal).map(|(_, context)| context)
    })
}

/// The bindings panic where a library is not what it seems.
fn guarded<T>(first_use: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
    catch_unwind(AssertUnwindSafe(first_use)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(GpuError::Panicked { reason: text.unwrap_or("it panicked").to_owned() })
    })
}

/// [`find()`] among `count` GPUs.
fn choose(
    count: u32,
    wanted: &[u32],
    most: usize,
    describe: impl Fn(u32) -> Result<GpuInfo, GpuError>,
) -> Result<Found, GpuError> {
    if let Some(&ordinal) = wanted.iter().find(|&&ordinal| ordinal >= count) {
        return Err(GpuError::NoSuchGpu { ordinal, count });
    }
    if !wanted.is_empty() {
        let gpus = wanted.iter().take(most).map(|&ordinal| describe(ordinal)).collect::<Result<_, _>>()?;
        return Ok(Found { gpus, passed_over: Vec::new() });
    }
    let (mut gpus, mut passed_over) = (Vec::new(), Vec::new());
    for ordinal in 0..count {
        if gpus.len() < most {
            describe(ordinal).map_or_else(|error| passed_over.push(error), |gpu| gpus.push(gpu));
        }
    }
    if gpus.is_empty() && !passed_over.is_empty() {
        Err(passed_over.swap_remove(0))
    } else {
        Ok(Found { gpus, passed_over })
    }
}

/// The first of `names` that the dynamic linker finds, or that lies in a folder of the toolkit or of an environment's packages.
pub(crate) fn open(
    what: &'static str,
    names: &'static [&'static str],
    hint: &'static str,
) -> Result<Library, GpuError> {
    let folders: Vec<String> = TOOLKIT_FOLDERS
        .iter()
        .map(|&folder| folder.to_owned())
        .chain(ENVIRONMENTS.iter().filter_map(env::var_os).flat_map(|prefix| package_folders(Path::new(&prefix))))
        .collect();
    let places = |name: &&str| {
        let there = folders.iter().map(|folder| format!("{folder}/{name}")).collect::<Vec<_>>();
        std::iter::once((*name).to_owned()).chain(there)
    };
    let mut candidates = names.iter().flat_map(places);
    // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers touch nothing of ours.
    let found = candidates.find_map(|name| unsafe { Library::new(name) }.ok());
    found.ok_or_else(|| GpuError::NoLibrary { what, names, folders: folders.clone(), hint })
}

/// Where libraries lie in an environment: its own, and those of the packages of each Python in it.
fn package_folders(prefix: &Path) -> Vec<String> {
    let own = prefix.join("lib");
    let pythons = fs::read_dir(&own).into_iter().flatten().flatten().map(|entry| entry.path().join(PACKAGE_FOLDER));
    let packages: Vec<PathBuf> = pythons.filter(|folder| folder.is_dir()).collect();
    std::iter::once(own).chain(packages).map(|folder| folder.to_string_lossy().into_owned()).collect()
}

/// A function of a library that is called `name`.
///
/// # Safety
/// `T` is the function's type, or is never called.
pub(crate) unsafe fn symbol<T: Copy>(
    library: &Library,
    name: &'static str,
    symbol: &'static str,
) -> Result<T, GpuError> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<T>(symbol.as_bytes()) };
    found.map(|found| *found).map_err(|_| GpuError::NoSymbol { library: name, symbol })
}

/// That a library has functions, none of which is called here.
fn check_symbols(library: &Library, name: &'static str, symbols: &[&'static str]) -> Result<(), GpuError> {
    // SAFETY: only looked up.
    symbols.iter().try_for_each(|wanted| unsafe { symbol::<unsafe extern "C" fn()>(library, name, wanted) }.map(drop))
}

/// Loads the driver; returns how many GPUs it sees.
fn load_driver() -> Result<u32, GpuError> {
    // SAFETY: loads the driver's library, which may be loaded at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoLibrary {
            what: "CUDA driver",
            names: DRIVER_NAMES,
            folders: Vec::new(),
            hint: "it comes with the NVIDIA driver; in a container, start it with access to the GPUs",
        });
    }
    // SAFETY: as above.
    check_symbols(unsafe { sys::culib() }, DRIVER_NAMES[0], &DRIVER_SYMBOLS)?;
    let version = driver_version()?;
    if version < LEAST_DRIVER {
        return Err(GpuError::OldDriver { got: version, needed: LEAST_DRIVER });
    }
    let count = match CudaContext::device_count() {
        Ok(0) | Err(driver::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(GpuError::NoGpu),
        other => other.doing("start the CUDA driver")?,
    };
    Ok(count as u32)
}

/// As drivers count.
pub(crate) fn driver_version() -> Result<i32, GpuError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    match unsafe { sys::cuDriverGetVersion(&mut version) } {
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Err(GpuError::Stub),
        status => status.result().map(|()| version).doing("ask the driver for its version"),
    }
}

/// What a GPU is, and its context.
fn describe(ordinal: u32) -> Result<(GpuInfo, Arc<CudaContext>), GpuError> {
    let described = || {
        let context = CudaContext::new(ordinal as usize).doing("open it")?;
        let (free, total) = context.mem_get_info().doing("ask for free memory")?;
        let gpu = GpuInfo {
            ordinal,
            name: context.name().doing("ask for its name")?,
            compute_capability: context.compute_capability().doing("ask for its generation")?,
            free_bytes: free as u64,
            total_bytes: total as u64,
        };
        Ok((gpu, context))
    };
    let (gpu, context) = described().map_err(|source| GpuError::Unusable { ordinal, source: Box::new(source) })?;
    if gpu.compute_capability < LEAST_COMPUTE_CAPABILITY {
        let (name, got) = (gpu.name, gpu.compute_capability);
        return Err(GpuError::OldGpu { ordinal, name, got, needed: LEAST_COMPUTE_CAPABILITY });
    }
    Ok((gpu, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is too old.
    fn describe(ordinal: u32) -> Result<GpuInfo, GpuError> {
        let name = format!("card {ordinal}");
        match ordinal {
            0 => Err(GpuError::OldGpu { ordinal, name, got: (7, 0), needed: LEAST_COMPUTE_CAPABILITY }),
            _ => Ok(GpuInfo { ordinal, name, compute_capability: (9, 0), free_bytes: 1, total_bytes: 2 }),
        }
    }

    #[test]
    fn gpus_that_cannot_be_used_are_passed_over_unless_they_are_asked_for() {
        let choose = |count, wanted: &[u32], most| choose(count, wanted, most, describe);
        let ordinals = |found: Found| found.gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>();
        let all = choose(4, &[], 2).unwrap();
        let message = "GPU 0 (card 0) has compute capability 7.0, and the kernels need 8.0";
        assert_eq!(all.passed_over.iter().map(ToString::to_string).collect::<Vec<_>>(), [message]);
        assert_eq!(ordinals(all), [1, 2], "no more than are needed");
        assert_eq!(ordinals(choose(4, &[], 9).unwrap()), [1, 2, 3]);
        assert_eq!(ordinals(choose(4, &[2, 1, 0], 2).unwrap()), [2, 1]);
        assert_eq!(choose(4, &[1, 0], 2).unwrap_err().to_string(), message);
        assert_eq!(choose(1, &[], 1).unwrap_err().to_string(), message);
        assert!(choose(3, &[5], 1).unwrap_err().to_string().contains("no GPU 5: the driver sees 3"));
    }

    #[test]
    fn what_was_looked_for_is_named_with_where() {
        let names = &["libnothing.so.1", "libnothing.so"];
        let error = open("nothing", names, "none").unwrap_err().to_string();
        for part in ["no nothing", "libnothing.so.1, libnothing.so", "LD_LIBRARY_PATH", "/usr/local/cuda/lib64", "hint"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
        let old = GpuError::OldDriver { got: 11_080, needed: LEAST_DRIVER }.to_string();
        assert!(old.contains("CUDA 11.8") && old.contains("12.0"), "{old}");
    }
}
