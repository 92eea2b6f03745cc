//! The card: its memory, copies, launches, and graphs of launches. The only file that talks to the driver, which is opened
//! when the first card is: everything builds, loads and runs without one.
//!
//! A [`Card`] is a queue (a CUDA stream) of its own on the card's primary context. What is queued runs in order and later;
//! [`Card::wait`] waits for it. One thread at a time may queue: whoever shares a card holds a lock over what belongs
//! together.
//!
//! Kernels reach memory by address ([`Ptr`]), unchecked as in every CUDA program. An address that is not the card's own
//! stops the card with an error, it does not reach the process.

use super::{Launch, MODULES, Module, Ptr, TooLarge};
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What can go wrong between here and a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// There is no driver, so no card.
    #[error("no CUDA driver (libcuda) on this machine")]
    NoDriver,
    /// The driver does not know the kernels' PTX.
    #[error("the CUDA driver is of version {}.{}, {}.{} is needed", got / 1000, got % 1000 / 10, NEEDED / 1000, NEEDED % 1000 / 10)]
    OldDriver {
        /// Version, 1000 · major + 10 · minor.
        got: i32,
    },
    /// No card of this index.
    #[error("no card {index}: there are {count}")]
    NoCard {
        /// The index asked for.
        index: u32,
        /// Cards there are.
        count: u32,
    },
    /// The card has not that much memory left.
    #[error("out of memory on the card: {asked} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// A kernel could not be launched.
    #[error("kernel {kernel}, grid {grid:?}: {reason}")]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// Its blocks.
        grid: [u32; 3],
        /// What the driver says.
        reason: String,
    },
    /// A call that no kernel can run.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A copy beyond the end of a buffer.
    #[error("a copy of {len} values to or from place {at} of a buffer of {room}")]
    Copy {
        /// First place.
        at: usize,
        /// Values.
        len: usize,
        /// Values of the buffer.
        room: usize,
    },
    /// Anything else that the driver refuses, or a kernel did wrong.
    #[error("{what}: {reason}")]
    Driver {
        /// What was asked of it.
        what: &'static str,
        /// What it says.
        reason: String,
    },
}

/// Version of the driver that knows PTX 8.0.
const NEEDED: i32 = 12000;

fn driver(what: &'static str) -> impl Fn(DriverError) -> CardError {
    move |e| CardError::Driver { what, reason: reason(e) }
}

/// The driver's words for an error.
fn reason(e: DriverError) -> String {
    let text = e.error_string().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{text} ({:?})", e.0)
}

/// Cards of this machine.
///
/// # Errors
/// There is no driver, an old one, or none that finds a card.
pub fn count() -> Result<u32, CardError> {
    // SAFETY: it only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CardError::NoDriver);
    }
    let mut got = 0;
    // SAFETY: there is a driver, and a place for the number.
    unsafe { sys::cuDriverGetVersion(&mut got) }.result().map_err(driver("asking for the driver's version"))?;
    if got < NEEDED {
        return Err(CardError::OldDriver { got });
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(e) => Err(driver("starting the driver")(e)),
        Ok(()) => result::device::get_count().map(|n| n as u32).map_err(driver("counting cards")),
    }
}

/// The arguments of kernels: what the sources take by value.
///
/// # Safety
/// The type has the layout of the struct in the CUDA source of [`Arguments::MODULE`], without a pointer into the process.
pub unsafe trait Arguments: Copy {
    /// The source.
    const MODULE: &'static str;
}

macro_rules! arguments {
    ($($module:ident: [$($args:ident),*]),* $(,)?) => {
        // SAFETY: `repr(C)`, field by field as beside it in the source; the tests compare sizes.
        $($(unsafe impl Arguments for super::$module::$args { const MODULE: &'static str = stringify!($module); })*)*
    };
}

arguments! {
    activation: [Gate, Rows, Tokens],
    attention: [Args],
    bands: [Args],
    causal_conv1d: [Args],
    complex_scan: [Args, S4d],
    conv2d: [Depthwise, Windows, Overlap],
    image: [ResizeArgs, Patches],
    linear: [Args],
    moe_route: [Args],
    norm: [Args],
    selective_scan: [Args],
    similarity: [Args],
    ssd: [Args],
}

/// A card, and a queue on it.
pub struct Card {
    index: u32,
    name: String,
    processors: u32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    loaded: Mutex<Loaded>,
    launches: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Loaded {
    modules: Vec<sys::CUmodule>,
    kernels: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: the driver's handles may be used from every thread in which the context is current, which each call sees to.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl Card {
    /// Opens a queue on the card of this index.
    ///
    /// # Errors
    /// There is no driver or no such card, or the driver refuses.
    pub fn open(index: u32) -> Result<Arc<Self>, CardError> {
        let count = count()?;
        if index >= count {
            return Err(CardError::NoCard { index, count });
        }
        let device = result::device::get(index as i32).map_err(driver("finding the card"))?;
        let name = result::device::get_name(device).unwrap_or_default();
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: a card that was found; its context is given back below or by the card's drop.
        let (processors, context) = unsafe {
            let processors =
                result::device::get_attribute(device, attribute).map_err(driver("asking for processors"))?;
            (processors, result::primary_ctx::retain(device).map_err(driver("opening the card"))?)
        };
        // SAFETY: the context was just retained.
        let stream = unsafe { result::ctx::set_current(context) }
            .and_then(|()| result::stream::create(result::stream::StreamKind::NonBlocking));
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                // SAFETY: retained above, released once.
                let _ = unsafe { result::primary_ctx::release(device) };
                return Err(driver("making a queue")(e));
            }
        };
        Ok(Arc::new(Self {
            index,
            name,
            processors: processors.max(1) as u32,
            device,
            context,
            stream,
            loaded: Mutex::default(),
            launches: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }))
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its processors.
    pub fn processors(&self) -> u32 {
        self.processors
    }

    /// Kernels launched so far, those of graphs included.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// Bytes of its memory that this queue has.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), CardError> {
        // SAFETY: the context lives as long as the card.
        unsafe { result::ctx::set_current(self.context) }.map_err(driver("entering the card's context"))
    }

    /// Memory for `len` values of 32 bits, zeros once what is queued now has run.
    ///
    /// # Errors
    /// There is not that much left.
    pub fn memory(self: &Arc<Self>, len: usize) -> Result<Memory, CardError> {
        self.enter()?;
        let bytes = 4 * len.max(1);
        // SAFETY: the context is current; the memory is freed by `Memory` alone.
        let at = unsafe { result::malloc_sync(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                CardError::OutOfMemory { asked: bytes, free: result::mem_get_info().map_or(0, |i| i.0) }
            }
            _ => driver("asking for memory")(e),
        })?;
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let memory = Memory { card: self.clone(), at, len };
        self.clear(&memory)?;
        Ok(memory)
    }

    /// Queues: zeros everywhere.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn clear(&self, memory: &Memory) -> Result<(), CardError> {
        self.enter()?;
        // SAFETY: memory of this size, which lives until its drop has waited for what is queued.
        unsafe { result::memset_d8_async(memory.at, 0, 4 * memory.len.max(1), self.stream) }
            .map_err(driver("clearing memory"))
    }

    /// Memory of the process that copies to and from the card need no detour for, of `len` values, zeros.
    ///
    /// # Errors
    /// There is not that much left.
    pub fn staging(self: &Arc<Self>, len: usize) -> Result<Staging, CardError> {
        self.enter()?;
        // SAFETY: the context is current; freed by `Staging` alone.
        let at = unsafe { result::malloc_host(4 * len.max(1), 0) }.map_err(driver("asking for pinned memory"))?;
        let at = at.cast::<f32>();
        // SAFETY: room for `len` values, aligned to a page, and nobody else's.
        unsafe { at.write_bytes(0, len.max(1)) };
        Ok(Staging { card: self.clone(), at, len, busy: AtomicBool::new(false) })
    }

    /// Queues a copy of `from`'s values `range` to place `at` of `to`.
    ///
    /// # Errors
    /// They do not fit, or the driver refuses.
    pub fn write(&self, to: &Memory, at: usize, from: &Staging, range: Range<usize>) -> Result<(), CardError> {
        within(from.len, range.start, range.len())?;
        within(to.len, at, range.len())?;
        self.enter()?;
        from.busy.store(true, Ordering::Release);
        // SAFETY: inside both, checked above; `Staging` lets nobody at its values before they have been copied.
        unsafe {
            let values = std::slice::from_raw_parts(from.at.add(range.start), range.len());
            result::memcpy_htod_async(to.at + 4 * at as u64, values, self.stream)
        }
        .map_err(driver("copying to the card"))
    }

    /// Queues a copy of `from`'s `range.len()` values at place `at` to the values `range` of `to`.
    ///
    /// # Errors
    /// As [`Card::write`].
    pub fn read(&self, from: &Memory, at: usize, to: &mut Staging, range: Range<usize>) -> Result<(), CardError> {
        within(to.len, range.start, range.len())?;
        within(from.len, at, range.len())?;
        self.enter()?;
        to.busy.store(true, Ordering::Release);
        // SAFETY: as in `write`.
        unsafe {
            let values = std::slice::from_raw_parts_mut(to.at.add(range.start), range.len());
            result::memcpy_dtoh_async(values, from.at + 4 * at as u64, self.stream)
        }
        .map_err(driver("copying from the card"))
    }

    /// Queues a copy of `from`'s values `range` to place `at` of `to`. Both stay alive until it has been waited for.
    ///
    /// # Errors
    /// As [`Card::write`].
    pub fn copy(&self, to: &Memory, at: usize, from: &Memory, range: Range<usize>) -> Result<(), CardError> {
        within(to.len, at, range.len())?;
        within(from.len, range.start, range.len())?;
        self.enter()?;
        let (to, from) = (to.at + 4 * at as u64, from.at + 4 * range.start as u64);
        // SAFETY: inside both, checked above; freeing memory waits for all that the card does.
        unsafe { result::memcpy_dtod_async(to, from, 4 * range.len(), self.stream) }
            .map_err(driver("copying on the card"))
    }

    /// Queues a copy of `bytes` bytes at `from`, in memory of another context, to the first ones of `to`.
    ///
    /// # Errors
    /// They do not fit, or the driver refuses.
    pub fn bring(&self, to: &Memory, from: Ptr, context: &Context, bytes: usize) -> Result<(), CardError> {
        within(to.len, 0, bytes.div_ceil(4))?;
        self.enter()?;
        // SAFETY: inside `to`, checked above; both contexts are alive. An address that is not `context`'s is refused.
        unsafe { sys::cuMemcpyPeerAsync(to.at, self.context, from.0, context.0, bytes, self.stream) }
            .result()
            .map_err(driver("copying from another context"))
    }

    /// Whether it is this card's context.
    pub fn is_home(&self, context: &Context) -> bool {
        self.context == context.0
    }

    /// The driver's handles of its context and its device, for libraries that share them: valid as long as this is.
    pub fn handles(&self) -> (*mut c_void, i32) {
        (self.context.cast(), self.device)
    }

    /// Queues a kernel; an empty grid is nothing to do.
    ///
    /// # Errors
    /// The driver does not take it.
    pub fn launch<A: Arguments>(&self, launch: &Launch, args: &A) -> Result<(), CardError> {
        let Launch { kernel, grid, block, shared } = *launch;
        if grid.contains(&0) {
            return Ok(());
        }
        self.enter()?;
        let function = self.kernel(A::MODULE, kernel)?;
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one block of arguments, of this type, which the driver copies before it returns.
        unsafe {
            let (grid, block) = ((grid[0], grid[1], grid[2]), (block, 1, 1));
            result::launch_kernel(function, grid, block, shared, self.stream, &mut params)
        }
        .map_err(|e| CardError::Launch { kernel, grid, reason: reason(e) })?;
        self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A kernel, its source loaded when it is first asked for.
    fn kernel(&self, module: &'static str, kernel: &'static str) -> Result<sys::CUfunction, CardError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.kernels.get(kernel) {
            return Ok(*function);
        }
        let no = |reason: &str| CardError::Launch { kernel, grid: [0; 3], reason: reason.into() };
        let source = MODULES.iter().find(|m| m.name == module && m.kernels.contains(&kernel));
        let Module { ptx, kernels, .. } = source.ok_or_else(|| no("not in the module of its arguments"))?;
        let text = CString::new(*ptx).map_err(|_| no("its PTX is no text"))?;
        // SAFETY: a text that ends in NUL, in the current context.
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) }
            .map_err(driver("compiling kernels for the card"))?;
        loaded.modules.push(handle);
        for name in *kernels {
            let text = CString::new(*name).map_err(|_| no("its name is no text"))?;
            // SAFETY: a module that was just loaded.
            let function = unsafe { result::module::get_function(handle, text) }.map_err(driver("finding a kernel"))?;
            loaded.kernels.insert(*name, function);
        }
        loaded.kernels.get(kernel).copied().ok_or_else(|| no("not in its module"))
    }

    /// Waits until everything that was queued has run.
    ///
    /// # Errors
    /// Something that ran went wrong; the card is of no use then.
    pub fn wait(&self) -> Result<(), CardError> {
        self.enter()?;
        // SAFETY: the stream lives as long as the card.
        unsafe { result::stream::synchronize(self.stream) }.map_err(driver("waiting for the card"))
    }

    /// Records what `work` queues, which does not run now. The kernels in it must have been launched before.
    ///
    /// # Errors
    /// What `work` says, or the driver refuses.
    pub fn record<E: From<CardError>>(self: &Arc<Self>, work: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.enter()?;
        let before = self.launches();
        // Relaxed: other engines may ask for memory meanwhile; nothing here does while it records.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the card.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(driver("recording"))?;
        let done = work();
        // SAFETY: as above, and it was recording.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(driver("recording"));
        let launches = self.launches() - before;
        self.launches.fetch_sub(launches, Ordering::Relaxed);
        let graph = match (done, graph) {
            (Ok(()), graph) => graph?,
            (Err(e), graph) => {
                // SAFETY: a graph of this function alone.
                let _ = graph.map(|graph| unsafe { result::graph::destroy(graph) });
                return Err(e);
            }
        };
        // SAFETY: as above.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(driver("making a graph"))?
        };
        Ok(Graph { card: self.clone(), exec, launches })
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.wait();
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nothing runs any more, and nobody else has these handles.
        unsafe {
            for module in loaded.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Fails if `len` values from place `at` are not all in a buffer of `room`.
fn within(room: usize, at: usize, len: usize) -> Result<(), CardError> {
    match at.checked_add(len) {
        Some(end) if end <= room => Ok(()),
        _ => Err(CardError::Copy { at, len, room }),
    }
}

/// A context of the driver in which another library of this process has its memory.
pub struct Context(sys::CUcontext);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context of a handle.
    ///
    /// # Safety
    /// The handle is that of a context, which lives as long as this does.
    pub unsafe fn new(handle: *mut c_void) -> Self {
        Self(handle.cast())
    }

    /// Waits until everything that was queued in it has run.
    ///
    /// # Errors
    /// Something that ran went wrong.
    pub fn wait(&self) -> Result<(), CardError> {
        let mut this = std::ptr::null_mut();
        // SAFETY: a context that is alive; what was current before is so again afterwards.
        unsafe {
            sys::cuCtxPushCurrent_v2(self.0).result().map_err(driver("entering a context"))?;
            let done = sys::cuCtxSynchronize().result();
            let _ = sys::cuCtxPopCurrent_v2(&mut this);
            done.map_err(driver("waiting for a context"))
        }
    }
}

/// Memory of a card, in values of 32 bits.
pub struct Memory {
    card: Arc<Card>,
    at: u64,
    len: usize,
}

impl Memory {
    /// Its address.
    pub fn ptr(&self) -> Ptr {
        Ptr(self.at)
    }

    /// Its values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.card.bytes.fetch_sub(4 * self.len.max(1) as u64, Ordering::Relaxed);
        // What is queued may still use it.
        let _ = self.card.wait();
        // SAFETY: allocated by `Card::memory`, freed once.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// Pinned memory of the process.
pub struct Staging {
    card: Arc<Card>,
    at: *mut f32,
    len: usize,
    /// Whether a copy to or from it may be under way.
    busy: AtomicBool,
}

// SAFETY: it owns its memory; copies under way are waited for before it is touched.
unsafe impl Send for Staging {}
// SAFETY: as above; shared, it only queues copies from itself.
unsafe impl Sync for Staging {}

impl Staging {
    /// Its number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its values, once no copy is under way.
    ///
    /// # Errors
    /// As [`Card::wait`].
    pub fn values(&mut self) -> Result<&mut [f32], CardError> {
        if *self.busy.get_mut() {
            self.card.wait()?;
            *self.busy.get_mut() = false;
        }
        // SAFETY: `len` values, initialised when they were allocated, borrowed as this is.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at, self.len) })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.card.wait();
        // SAFETY: allocated by `Card::staging`, freed once, and no copy is under way.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// Launches that were recorded, and are queued at once.
pub struct Graph {
    card: Arc<Card>,
    exec: sys::CUgraphExec,
    launches: u64,
}

// SAFETY: a handle that any thread may use.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Queues all of it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn replay(&self) -> Result<(), CardError> {
        self.card.enter()?;
        // SAFETY: a graph of the card's own stream; the memory it speaks of is its owner's to keep.
        unsafe { result::graph::launch(self.exec, self.card.stream) }.map_err(driver("running a graph"))?;
        self.card.launches.fetch_add(self.launches, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.card.wait();
        // SAFETY: instantiated by `Card::record`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}
