//! NCCL, found at run time: adding up between GPUs, each with a rank of its own.
//!
//! Joining waits for all peers, so a thread of its own does it, which has a deadline and is left alone where that passes: the rank's
//! process ends then. A reduction is queued by the call itself. (A communicator that does not block would start a thread for each of them:
//! `ncclGroupEndInternal` in NCCL's `src/group.cc`.) One is made anew, with a new id, at every start, and a rank's ends with its
//! process: NCCL would wait until every graph that holds it is gone. NCCL chooses the order of addition, unlike the links over the host.
//!
//! Only what is needed is declared here; the reference is `nccl.h` (2.14 and later).

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::{Arc, mpsc},
    thread,
};

use cudarc::driver::{CudaContext, sys::CUstream};
use libloading::Library;

use super::{
    error::{GpuError, While},
    find,
    gpu::DEADLINE,
};

const NAMES: &[&str] = &["libnccl.so.2", "libnccl.so"];
const ID_BYTES: usize = 128;
const SUCCESS: c_int = 0;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
type Handle = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([c_char; ID_BYTES]);

/// The functions of the library, which stays for the life of the process: threads of its own run in it.
#[derive(Clone, Copy)]
pub(crate) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int,
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
            init_rank: symbol(&library, "ncclCommInitRank")?,
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

    fn accept(&self, status: c_int, doing: &'static str) -> Result<(), GpuError> {
        if status == SUCCESS {
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
    pub(crate) fn join(
        nccl: Nccl,
        context: &Arc<CudaContext>,
        rank: usize,
        world: usize,
        id: &[u8],
    ) -> Result<Self, GpuError> {
        let doing = "join its peers";
        let bytes: [u8; ID_BYTES] = id
            .try_into()
            .map_err(|_| GpuError::Nccl { doing, reason: format!("an id has {ID_BYTES} bytes, not {}", id.len()) })?;
        let (context, (done, joined)) = (context.clone(), mpsc::channel());
        let join = move || {
            let joined = context.bind_to_thread().doing("use the GPU").and_then(|()| {
                let (mut handle, id) = (ptr::null_mut(), Id(bytes.map(|byte| byte as c_char)));
                // SAFETY: writes one handle; the GPU's context is bound to this thread.
                let status = unsafe { (nccl.init_rank)(&mut handle, world as c_int, id, rank as c_int) };
                nccl.accept(status, doing)?;
                Ok(Self { nccl, handle })
            });
            // Nobody listens where the deadline has passed.
            let _ = done.send(joined);
        };
        let refused = |error| GpuError::Nccl { doing, reason: format!("the system gives no thread: {error}") };
        thread::Builder::new().name("nccl".into()).spawn(join).map_err(refused)?;
        joined
            .recv_timeout(DEADLINE)
            .unwrap_or(Err(GpuError::Deadline { doing: "join the peers of its rank", waited: DEADLINE }))
    }

    /// Queues the sum over all ranks of `count` floats, in place.
    pub(crate) fn all_reduce(&self, address: u64, count: usize, stream: CUstream) -> Result<(), GpuError> {
        let data = address as *mut c_void;
        // SAFETY: `count` floats of device memory that outlive the stream's work.
        let status = unsafe { (self.nccl.all_reduce)(data, data, count, FLOAT32, SUM, self.handle, stream) };
        self.nccl.accept(status, "add up")
    }

    /// Whether all is well so far.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        let mut state = SUCCESS;
        // SAFETY: a live handle; writes one integer.
        let status = unsafe { (self.nccl.async_error)(self.handle, &mut state) };
        self.nccl.accept(status, "add up")?;
        self.nccl.accept(state, "add up")
    }

    /// Ends it, whatever it waits for. Graphs that hold it must be gone: this waits for their end.
    pub(crate) fn end(self) {
        // SAFETY: a live handle, given back once. What goes wrong here changes nothing.
        let _ = unsafe { (self.nccl.abort)(self.handle) };
    }
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; nobody else has this one.
unsafe impl Send for Communicator {}
