//! One GPU: its stream, its kernels, its memory, and waiting for it.
//!
//! Everything is queued on one stream, in order, though a kernel that follows another may begin with its weights while that one ends
//! (programmatic dependent launches, compute capability 9.0); nothing blocks but [`Gpu::wait`], which has a deadline and asks in between whether
//! waiting still makes sense. Does not know what is computed.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString},
    ptr::NonNull,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaStream, DriverError, result,
    sys::{
        self, CUdevice_attribute, CUfunction, CUfunction_attribute, CUgraphInstantiate_flags, CUjit_option,
        CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUstreamCaptureMode,
    },
};
use nanoinfer_kernels::{
    Element,
    cuda::{Arguments, LEAST_OVERLAPPING, Launch, kernels, overlapping, ptx},
};

use super::{
    error::{GpuError, While},
    find,
};

/// The driver that captures kernels that overlap as such: CUDA 12.3.
const LEAST_OVERLAPPING_DRIVER: i32 = 12_030;
/// How long the GPU may take for what is queued: far above any step, so that only a lost peer or a fault meets it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Waiting is busy for so long: longer than a decode step.
const BUSY: Duration = Duration::from_millis(20);
/// Then it looks up this often.
const NAP: Duration = Duration::from_micros(200);

/// One GPU with the kernels of one element type.
pub(crate) struct Gpu {
    /// As the driver counts.
    pub(crate) ordinal: u32,
    pub(crate) name: String,
    pub(crate) multiprocessors: usize,
    /// Of the second-level cache.
    pub(crate) cache_bytes: usize,
    /// What the memory's clock and width allow, where the driver tells them.
    pub(crate) memory_bytes_per_s: Option<f64>,
    functions: HashMap<&'static str, Function>,
    /// Whether kernels may begin while the one before ends.
    overlaps: bool,
    /// Whether what was queued last is a kernel of ours, which says when the next may begin.
    follows_kernel: Cell<bool>,
    done: CudaEvent,
    stream: Arc<CudaStream>,
    module: CUmodule,
    context: Arc<CudaContext>,
}

/// A kernel, and how much shared memory it can be given beside what it declares.
#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    shared_bytes: usize,
}

impl Gpu {
    /// Opens a GPU and compiles the kernels for it.
    pub(crate) fn open(ordinal: u32, element: Element) -> Result<Self, GpuError> {
        let context = CudaContext::new(ordinal as usize).doing("open the GPU")?;
        // SAFETY: one stream does everything, so that nothing needs to be ordered; and a capture may not wait for events.
        unsafe { context.disable_event_tracking() };
        // The null stream cannot be captured.
        let stream = context.new_stream().doing("make a stream")?;
        let done = context.new_event(None).doing("make an event")?;
        let ptx = ptx(element);
        let capability = context.compute_capability().doing("ask for the GPU's generation")?;
        let overlaps = capability >= LEAST_OVERLAPPING && find::driver_version()? >= LEAST_OVERLAPPING_DRIVER;
        let ptx = if overlaps { overlapping(ptx) } else { ptx.to_owned() };
        let module = compile(&CString::new(ptx).expect("PTX has no zero bytes"))?;
        let attribute = |which| context.attribute(which).doing("ask for the GPU's sizes");
        let clock_khz = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let width_bits = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        // Two transfers a clock.
        let memory_bytes_per_s = f64::from(clock_khz) * 1e3 * 2.0 * f64::from(width_bits) / 8.0;
        let shared = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut gpu = Self {
            ordinal,
            name: context.name().doing("ask for the GPU's name")?,
            multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            cache_bytes: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            memory_bytes_per_s: Some(memory_bytes_per_s).filter(|&rate| rate > 0.0),
            functions: HashMap::new(),
            overlaps,
            follows_kernel: Cell::new(false),
            done,
            stream,
            module,
            context,
        };
        for kernel in kernels(element) {
            // SAFETY: the module was just loaded, and lives as long as `gpu`.
            let function = unsafe { Function::of(module, kernel, shared) }.doing("find a kernel")?;
            gpu.functions.insert(kernel, function);
        }
        Ok(gpu)
    }

    /// The queue of everything, for who queues something by itself.
    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        self.follows_kernel.set(false);
        &self.stream
    }

    /// For who needs it on another thread.
    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Bytes of shared memory that a kernel can be given.
    pub(crate) fn shared_bytes(&self, kernel: &str) -> usize {
        self.functions[kernel].shared_bytes
    }

    /// How many blocks of a kernel the GPU has room for at a time.
    pub(crate) fn blocks_at_once(&self, kernel: &str, launch: Launch) -> Result<usize, GpuError> {
        let (function, shared_bytes) = (self.functions[kernel].handle, launch.shared_bytes as usize);
        let mut blocks = 0;
        // SAFETY: a function of the module; writes one integer.
        unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, launch.threads as i32, shared_bytes)
        }
        .result()
        .doing("ask how many blocks fit")?;
        Ok(blocks as usize * self.multiprocessors)
    }

    /// Bytes free.
    pub(crate) fn free_bytes(&self) -> Result<u64, GpuError> {
        self.context.mem_get_info().map(|(free, _)| free as u64).doing("ask for free memory")
    }

    /// Memory on the device, for `what`.
    pub(crate) fn allocate(&self, bytes: usize, what: &'static str) -> Result<Memory, GpuError> {
        // The driver refuses nothing at all, and a rank's share may be empty.
        // SAFETY: whoever reads it writes it first; `zeroed` is for what may be read before.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Memory { address, bytes, context: self.context.clone() }),
            Err(_) => Err(GpuError::Memory {
                ordinal: self.ordinal,
                name: self.name.clone(),
                free: self.free_bytes()?,
                needed: bytes as u64,
                what,
            }),
        }
    }

    /// The same, of zeros.
    pub(crate) fn zeroed(&self, bytes: usize, what: &'static str) -> Result<Memory, GpuError> {
        let memory = self.allocate(bytes, what)?;
        self.clear(memory.address, bytes)?;
        Ok(memory)
    }

    /// Queues zeros.
    pub(crate) fn clear(&self, address: u64, bytes: usize) -> Result<(), GpuError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: addresses here are inside of live allocations, see `Memory::at`.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream().cu_stream()) }.doing("clear memory")
    }

    /// Memory of the host that the device reads and writes by itself.
    pub(crate) fn pinned(&self, words: usize) -> Result<Pinned, GpuError> {
        let words = words.max(1);
        // SAFETY: set to zero before anybody reads it.
        let address = unsafe { result::malloc_host(words * 4, 0) }.doing("allocate pinned memory")?;
        let address = NonNull::new(address.cast::<u32>()).expect("the driver returned memory");
        // SAFETY: `words` words were just allocated.
        unsafe { address.write_bytes(0, words) };
        Ok(Pinned { address, words, context: self.context.clone() })
    }

    /// Memory of the device, of zeros, and as much of the host.
    pub(crate) fn mirrored(&self, words: usize, what: &'static str) -> Result<Mirrored, GpuError> {
        Ok(Mirrored { memory: self.zeroed(words * 4, what)?, host: self.pinned(words)? })
    }

    /// Queues a copy of the first `words` words to the device. They stay as they are until a wait.
    pub(crate) fn upload(&self, from: &Pinned, words: usize, to: u64) -> Result<(), GpuError> {
        if words == 0 {
            return Ok(());
        }
        // SAFETY: pinned memory outlives the stream's work, as every step ends with a wait; the target is inside an allocation.
        unsafe { result::memcpy_htod_async(to, &from.words()[..words], self.stream().cu_stream()) }
            .doing("copy to the GPU")
    }

    /// Queues a copy of `words` words from the device, to be read after a wait.
    pub(crate) fn download(&self, from: u64, to: &mut Pinned, words: usize) -> Result<(), GpuError> {
        if words == 0 {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(&mut to.words_mut()[..words], from, self.stream().cu_stream()) }
            .doing("copy from the GPU")
    }

    /// Queues a kernel.
    pub(crate) fn launch<A: Arguments>(&self, launch: Launch, arguments: &A) -> Result<(), GpuError> {
        self.launch_as(A::NAME, launch, arguments)
    }

    /// Queues the kernel of this name, which takes the same arguments as `A`'s.
    pub(crate) fn launch_as<A: Arguments>(
        &self,
        name: &'static str,
        Launch { grid, threads, shared_bytes }: Launch,
        arguments: &A,
    ) -> Result<(), GpuError> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast()];
        let mut overlap = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = CUlaunchConfig {
            gridDimX: grid.0,
            gridDimY: grid.1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &mut overlap,
            numAttrs: u32::from(self.overlaps && self.follows_kernel.replace(true)),
        };
        let function = self.functions[name].handle;
        // SAFETY: `Arguments` promises the kernel's layout; the driver copies all of it before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .doing("launch a kernel")
    }

    /// What is queued from now on becomes a graph, and is not run.
    pub(crate) fn begin_capture(&self) -> Result<(), GpuError> {
        self.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).doing("begin a capture")
    }

    /// What was queued since [`Gpu::begin_capture`]. To be called also after a failure, or the stream would capture for ever.
    pub(crate) fn end_capture(&self) -> Result<CudaGraph, GpuError> {
        let graph = self.stream().end_capture(CUgraphInstantiate_flags(0)).doing("make a graph")?;
        Ok(graph.expect("a captured stream gives a graph"))
    }

    /// What `queue` queues, as a graph; it is not run.
    pub(crate) fn capture(&self, queue: impl FnOnce() -> Result<(), GpuError>) -> Result<CudaGraph, GpuError> {
        self.begin_capture()?;
        let queued = queue();
        let graph = self.end_capture();
        queued?;
        graph
    }

    /// Waits until all that is queued is done. `check` is asked now and then, and ends the wait with its error.
    pub(crate) fn wait(
        &self,
        doing: &'static str,
        check: impl FnMut() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        self.done.record(self.stream()).doing(doing)?;
        poll(doing, BUSY, NAP, || self.done.try_is_complete().doing(doing), check)
    }
}

/// A module of kernels, or what the driver's compiler says of them.
fn compile(ptx: &CStr) -> Result<CUmodule, GpuError> {
    use CUjit_option::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    let (mut module, mut log) = (std::ptr::null_mut(), vec![0u8; 4096]);
    let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The size is a value, not an address.
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    // SAFETY: text that ends with a zero, a buffer of that size, as many values as options; the context is bound to this thread.
    let status = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 2, options, values)
    };
    status.result().map(|()| module).map_err(|source| {
        let said = log.split(|&byte| byte == 0).next().unwrap_or_default();
        GpuError::Compile { source, log: String::from_utf8_lossy(said).trim().to_owned() }
    })
}

/// Asks whether it `is_done` until it is: again and again for as long as `busy`, then after a `nap` each time, and after a `check`.
pub(crate) fn poll(
    doing: &'static str,
    busy: Duration,
    nap: Duration,
    mut is_done: impl FnMut() -> Result<bool, GpuError>,
    mut check: impl FnMut() -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let begun = Instant::now();
    while !is_done()? {
        let waited = begun.elapsed();
        if waited > DEADLINE {
            return Err(GpuError::Deadline { doing, waited });
        }
        if waited > busy {
            check()?;
            thread::sleep(nap);
        } else {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

impl Function {
    /// Finds a kernel, and lets it have all of a block's `shared` bytes.
    ///
    /// # Safety
    /// The module is loaded.
    unsafe fn of(module: CUmodule, kernel: &str, shared: i32) -> Result<Self, DriverError> {
        let name = CString::new(kernel).expect("names have no zero bytes");
        // SAFETY: the caller's promise; the function is the module's.
        unsafe {
            let handle = result::module::get_function(module, name)?;
            let declared = result::function::get_function_attribute(
                handle,
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
            )?;
            let left = shared - declared;
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(handle, attribute, left)?;
            Ok(Self { handle, shared_bytes: left as usize })
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // An error has been reported by whoever met it first; what is left goes with the process.
        let _ = self.context.bind_to_thread();
        // SAFETY: loaded in `open`; nobody launches any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Memory on a device.
pub(crate) struct Memory {
    address: u64,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl Memory {
    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The address of `bytes` bytes behind its first `offset`.
    ///
    /// # Panics
    /// When they are not all inside: kernels do not look.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> u64 {
        assert!(offset + bytes <= self.bytes, "{offset} + {bytes} bytes lie inside {}", self.bytes);
        self.address + offset as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // As for the GPU itself.
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `Gpu::allocate` and freed once; freeing waits for what is queued.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Page-locked memory of the host, in words of 32 bits.
pub(crate) struct Pinned {
    address: NonNull<u32>,
    words: usize,
    context: Arc<CudaContext>,
}

impl Pinned {
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: `words` initialised words, lent as this is; the device writes only between a `download` and a wait.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.words) }
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.words) }
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.words_mut())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // As for the GPU itself.
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `Gpu::pinned` and freed once.
        let _ = unsafe { result::free_host(self.address.as_ptr().cast()) };
    }
}

/// Memory of the device, and of the host what is copied there or comes from there.
pub(crate) struct Mirrored {
    pub(crate) memory: Memory,
    pub(crate) host: Pinned,
}

impl Mirrored {
    /// [`Gpu::upload`] of the first `words` words.
    pub(crate) fn upload(&self, gpu: &Gpu, words: usize) -> Result<(), GpuError> {
        gpu.upload(&self.host, words, self.memory.at(0, words * 4))
    }

    /// [`Gpu::download`] of the first `words` words.
    pub(crate) fn download(&mut self, gpu: &Gpu, words: usize) -> Result<(), GpuError> {
        gpu.download(self.memory.at(0, words * 4), &mut self.host, words)
    }
}
