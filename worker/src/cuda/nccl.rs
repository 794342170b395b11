//! NCCL, found at run time: adding up between GPUs, each with a rank of its own.
//!
//! A communicator does not block: whoever waits polls it with a deadline, so that a rank whose peer is gone ends. It is made anew,
//! with a new id, at every start, and a rank's ends with its process: NCCL would wait until every graph that holds it is gone. NCCL
//! chooses the order of addition, unlike the links over the host.
//!
//! Only what is needed is declared here; the reference is `nccl.h` (2.14 and later).

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
    time::Duration,
};

use cudarc::driver::sys::CUstream;
use libloading::Library;

use super::{error::GpuError, find, gpu::poll};

const NAMES: &[&str] = &["libnccl.so.2", "libnccl.so"];
const ID_BYTES: usize = 128;
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
/// A pending call is waited for busily for so long: a thread of NCCL's queues a reduction in less.
const BUSY: Duration = Duration::from_micros(200);
/// Then it is looked at this often.
const NAP: Duration = Duration::from_micros(100);

type Handle = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([c_char; ID_BYTES]);

/// `ncclConfig_t` as of 2.14, and its first later field, which otherwise would be padding of unknown content.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
}

const CONFIG: Config = Config {
    size: size_of::<Config>(),
    magic: 0xcafe_beef,
    version: 21_400,
    blocking: 0,
    // NCCL_CONFIG_UNDEF_INT.
    cga_cluster_size: c_int::MIN,
};

/// The functions of the library, which stays for the life of the process: threads of its own run in it.
#[derive(Clone, Copy)]
pub(crate) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int, *const Config) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, CUstream) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
    /// Its version, like 22809 for 2.28.9.
    pub(crate) version: c_int,
}

impl Nccl {
    /// Looks for the library.
    ///
    /// # Errors
    /// Names what was looked for and where, or the function that it lacks.
    pub(crate) fn load() -> Result<Self, GpuError> {
        let hint = "the Python package nvidia-nccl-cu12 has it, as PyTorch does; --comm shm does without, through the host's memory";
        let library = find::open("NCCL", NAMES, hint)?;
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = symbol(&library, "ncclGetVersion")?;
        let mut nccl = Self {
            get_unique_id: symbol(&library, "ncclGetUniqueId")?,
            init_rank: symbol(&library, "ncclCommInitRankConfig")?,
            async_error: symbol(&library, "ncclCommGetAsyncError")?,
            all_reduce: symbol(&library, "ncclAllReduce")?,
            abort: symbol(&library, "ncclCommAbort")?,
            error_string: symbol(&library, "ncclGetErrorString")?,
            last_error: symbol(&library, "ncclGetLastError")?,
            version: 0,
        };
        std::mem::forget(library);
        // SAFETY: writes one integer.
        let status = unsafe { get_version(&mut nccl.version) };
        nccl.accept(status, "tell its version")?;
        Ok(nccl)
    }

    /// What the peers of the rank that calls this need to join it.
    pub(crate) fn new_id(&self) -> Result<Vec<u8>, GpuError> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: writes the 128 bytes.
        let status = unsafe { (self.get_unique_id)(&mut id) };
        self.accept(status, "make an id")?;
        Ok(id.0.map(|byte| byte as u8).to_vec())
    }

    /// A pending call counts as accepted.
    fn accept(&self, status: c_int, doing: &'static str) -> Result<(), GpuError> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: strings that live as long as the library; the second is of the last failure in this process.
        let (kind, detail) = unsafe { (text((self.error_string)(status)), text((self.last_error)(ptr::null_mut()))) };
        Err(GpuError::Nccl { doing, reason: if detail.is_empty() { kind } else { format!("{kind}: {detail}") } })
    }
}

/// # Safety
/// A string that lives.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().trim().to_owned()
}

fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T, GpuError> {
    // SAFETY: the callers name the types of `nccl.h`.
    unsafe { find::symbol(library, NAMES[0], name) }
}

/// This rank among its peers.
pub(crate) struct Communicator {
    nccl: Nccl,
    handle: Handle,
}

impl Communicator {
    /// Joins the others; returns when all are there.
    ///
    /// # Errors
    /// When they are not, by the deadline, or NCCL refuses.
    pub(crate) fn join(nccl: Nccl, rank: usize, world: usize, id: &[u8]) -> Result<Self, GpuError> {
        let bytes: [u8; ID_BYTES] = id.try_into().map_err(|_| GpuError::Nccl {
            doing: "join its peers",
            reason: format!("an id has {ID_BYTES} bytes, not {}", id.len()),
        })?;
        let mut handle = ptr::null_mut();
        // SAFETY: the configuration is read before the call returns; the GPU's context is bound to this thread.
        let status = unsafe {
            (nccl.init_rank)(&mut handle, world as c_int, Id(bytes.map(|b| b as c_char)), rank as c_int, &CONFIG)
        };
        nccl.accept(status, "join its peers")?;
        let communicator = Self { nccl, handle };
        communicator.settle("join its peers")?;
        Ok(communicator)
    }

    /// Queues the sum over all ranks of `count` floats, in place.
    pub(crate) fn all_reduce(&self, address: u64, count: usize, stream: CUstream) -> Result<(), GpuError> {
        let data = address as *mut c_void;
        // SAFETY: `count` floats of device memory that outlive the stream's work.
        let status = unsafe { (self.nccl.all_reduce)(data, data, count, FLOAT32, SUM, self.handle, stream) };
        self.nccl.accept(status, "add up")?;
        if status == IN_PROGRESS { self.settle("add up") } else { Ok(()) }
    }

    /// Whether all is well so far.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        self.state("add up").map(drop)
    }

    /// Ends it, whatever it waits for. Graphs that hold it must be gone: this waits for their end.
    pub(crate) fn end(self) {
        // SAFETY: a live handle, given back once. What goes wrong here changes nothing.
        let _ = unsafe { (self.nccl.abort)(self.handle) };
    }

    fn state(&self, doing: &'static str) -> Result<c_int, GpuError> {
        let mut state = SUCCESS;
        // SAFETY: a live handle; writes one integer.
        let status = unsafe { (self.nccl.async_error)(self.handle, &mut state) };
        self.nccl.accept(status, doing)?;
        self.nccl.accept(state, doing)?;
        Ok(state)
    }

    /// Waits until a pending call has been carried out.
    fn settle(&self, doing: &'static str) -> Result<(), GpuError> {
        poll(doing, BUSY, NAP, || Ok(self.state(doing)? != IN_PROGRESS), || Ok(()))
    }
}
