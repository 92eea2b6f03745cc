//! The kernels' sources, compiled for this processor and run thread by thread: see `runner.h`. Either one by one
//! ([`launch`], on [`Memory`]), or behind `driver.cpp`, which has the functions of libcuda that the host side calls
//! ([`install`]): then all of it runs as on a card. For tests only.

use half::{bf16, f16};
use ssm_kernels::cuda::{Kind, Launch, MODULES, Ptr};
use std::ffi::{CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

type Body = unsafe extern "C" fn(*const c_void);
type Ask = unsafe extern "C" fn() -> usize;
type Set = unsafe extern "C" fn(u32, usize);
type Count = unsafe extern "C" fn() -> u32;
type Guarded = unsafe extern "C" fn(usize, c_int) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void, usize);
type Run = unsafe extern "C" fn(Body, *const c_void, *const u32, u32, u32, u32, *mut c_char, usize) -> c_int;

struct Library {
    handle: *mut c_void,
    folder: PathBuf,
}

// SAFETY: a handle of dlopen may be used from every thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let folder = build();
    let open = |name: &str| {
        let path = folder.join(name).into_os_string();
        let file = CString::new(path.into_encoded_bytes()).expect("no NUL in a path");
        // SAFETY: a path that ends in NUL; 2 is RTLD_NOW.
        let handle = unsafe { dlopen(file.as_ptr(), 2) };
        assert!(!handle.is_null(), "dlopen: {file:?}");
        handle
    };
    let handle = open("libcuda.so");
    OTHER_NAMES.iter().for_each(|name| _ = open(name));
    Library { handle, folder }
});

/// Under which others open it: libgstcuda, and GStreamer's elements for cards.
const OTHER_NAMES: [&str; 2] = ["libcuda.so.1", "libnvcuvid.so.1"];

/// Makes the stand-in the driver of this process, and gives the folder that it lies in: for another process's
/// `LD_LIBRARY_PATH`.
///
/// Whoever opens `libcuda.so` or `libcuda.so.1` gets the library of that name that is loaded already.
pub fn install() -> &'static Path {
    &LIBRARY.folder
}

/// The driver's order of threads and its bytes of memory, for as long as this lives; one at a time, the others wait.
pub struct Driver(#[allow(dead_code)] MutexGuard<'static, ()>, Schedule);

static DRIVER: Mutex<()> = Mutex::new(());

impl Driver {
    /// Installs the driver with this order of threads, and so many bytes of memory.
    pub fn new(schedule: Schedule, bytes: usize) -> Self {
        let one = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        set(schedule.0, bytes);
        Self(one, schedule)
    }

    /// Streams, modules, graphs, contexts and buffers that are alive.
    pub fn objects(&self) -> usize {
        self.ask("ssm_driver_objects")
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.ask("ssm_driver_used")
    }

    /// Copies between contexts that have run.
    pub fn brought(&self) -> usize {
        self.ask("ssm_driver_brought")
    }

    /// Kernels that have run.
    pub fn launches(&self) -> usize {
        self.ask("ssm_driver_launches")
    }

    /// Makes the memory this large.
    pub fn limit(&self, bytes: usize) {
        set(self.1.0, bytes);
    }

    fn ask(&self, what: &str) -> usize {
        // SAFETY: the functions of driver.cpp have this type.
        unsafe { std::mem::transmute::<*mut c_void, Ask>(LIBRARY.symbol(what))() }
    }
}

fn set(schedule: u32, bytes: usize) {
    // SAFETY: the function of driver.cpp has this type.
    unsafe { std::mem::transmute::<*mut c_void, Set>(LIBRARY.symbol("ssm_driver_set"))(schedule, bytes) }
}

impl Library {
    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).expect("no NUL in a name");
        // SAFETY: an open library and a name that ends in NUL.
        let symbol = unsafe { dlsym(self.handle, name.as_ptr()) };
        assert!(!symbol.is_null(), "the kernels have no {name:?}");
        symbol
    }
}

/// Compiles what changed since it was last compiled, and links it: the folder of `libcuda.so`.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (tests, kernels) = (root, root.join("../src/cuda"));
    // A test lies in `deps` of its profile, beside which cargo makes `tmp`.
    let exe = std::env::current_exe().expect("a test binary");
    let out = exe.ancestors().nth(3).expect("a test binary in its folder").join("tmp");
    std::fs::create_dir_all(&out).expect("a folder for objects");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-fno-strict-aliasing",
        "-U_FORTIFY_SOURCE",
        "-Wno-unknown-pragmas",
        // What a card does not say, or says by a wrong result.
        "-fsanitize=alignment,bounds,shift",
        "-fsanitize-undefined-trap-on-error",
    ];
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut base = DefaultHasher::new();
    (&compiler, flags, read(&tests.join("runner.h")), read(&kernels.join("prelude.cu"))).hash(&mut base);

    let mut sources: Vec<PathBuf> = MODULES.iter().map(|m| kernels.join(m.name).with_extension("cu")).collect();
    sources.extend(["planted.cu", "runner.cpp", "driver.cpp"].map(|name| tests.join(name)));
    let mut all = base.clone();
    let mut jobs = Vec::new();
    let mut objects = Vec::new();
    for source in &sources {
        let text = read(source);
        let mut hash = base.clone();
        text.hash(&mut hash);
        text.hash(&mut all);
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let object = out.join(format!("{stem}-{:016x}.o", hash.finish()));
        if !object.exists() {
            jobs.push((source, object.clone()));
        }
        objects.push(object);
    }
    // Two compilers at a time; a file gets its name when it is whole.
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().expect("no compiler panicked").pop();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((source, object)) = next() {
                    let part = object.with_extension(format!("{}.part", std::process::id()));
                    let mut command = Command::new(&compiler);
                    command.args(flags).args(["-x", "c++", "-c", "-o"]).arg(&part).arg("-include");
                    command.arg(tests.join("runner.h")).arg("-include").arg(kernels.join("prelude.cu")).arg(source);
                    let status = command.status().unwrap_or_else(|e| panic!("{compiler}: {e}"));
                    assert!(status.success(), "{compiler}: {} does not compile", source.display());
                    std::fs::rename(part, object).expect("a name for the object");
                }
            });
        }
    });
    let folder = out.join(format!("cuda-{:016x}", all.finish()));
    let library = folder.join("libcuda.so");
    if OTHER_NAMES.iter().all(|name| folder.join(name).exists()) {
        return folder;
    }
    std::fs::create_dir_all(&folder).expect("a folder for the library");
    let part = folder.join(format!("{}.part", std::process::id()));
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-Wl,-soname,libcuda.so", "-o"]).arg(&part).args(&objects).arg("-ldl");
    let status = command.status().expect("a linker");
    assert!(status.success(), "{compiler}: the kernels do not link");
    std::fs::rename(part, library).expect("a name for the library");
    for name in OTHER_NAMES {
        let part = folder.join(format!("{}.part", std::process::id()));
        let mut command = Command::new(&compiler);
        command.arg("-shared").arg(format!("-Wl,-soname,{name},--no-as-needed,-rpath,$ORIGIN")).arg("-o").arg(&part);
        let status = command.arg("-L").arg(&folder).arg("-lcuda").status().expect("a linker");
        assert!(status.success(), "{compiler}: {name} does not link");
        std::fs::rename(part, folder.join(name)).expect("a name for the library");
    }
    folder
}

/// In which order blocks, warps and lanes run, and at which end of a page buffers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule(u32);

/// Ascending, descending, and two random ones.
pub const SCHEDULES: [Schedule; 4] = [Schedule(0), Schedule(1), Schedule(2), Schedule(3)];

/// Memory of the device, between pages that cannot be touched.
pub struct Memory<T> {
    at: *mut T,
    len: usize,
}

impl<T: Copy> Memory<T> {
    /// A copy of `values`.
    pub fn new(schedule: Schedule, values: &[T]) -> Self {
        let guarded: Guarded =
            // SAFETY: the function of runner.cpp has this type.
            unsafe { std::mem::transmute(LIBRARY.symbol("ssm_guarded")) };
        // SAFETY: any size; a page holds what is aligned to its own size.
        let at = unsafe { guarded(size_of_val(values), c_int::from(schedule.0 != 1)) }.cast::<T>();
        assert!(!at.is_null(), "no memory");
        // SAFETY: `at` points to room for the values; nobody else has it.
        unsafe { at.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Self { at, len: values.len() }
    }

    /// Its address.
    pub fn ptr(&self) -> Ptr {
        Ptr(self.at as u64)
    }

    /// What it holds.
    pub fn read(&self) -> Vec<T> {
        // SAFETY: `len` values were written when it was made, and no kernel runs now.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }.to_vec()
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        let release: Release =
            // SAFETY: the function of runner.cpp has this type.
            unsafe { std::mem::transmute(LIBRARY.symbol("ssm_release")) };
        // SAFETY: memory of `ssm_guarded` of the same size, freed once.
        unsafe { release(self.at.cast(), self.len * size_of::<T>()) };
    }
}

/// Numbers of some kind.
pub enum Numbers {
    /// Of 32 bits.
    Single(Memory<f32>),
    /// Of 16 bits.
    Half(Kind, Memory<u16>),
}

impl Numbers {
    /// `values` rounded to `kind`.
    pub fn new(schedule: Schedule, kind: Kind, values: &[f32]) -> Self {
        let half = |f: fn(f32) -> u16| Memory::new(schedule, &values.iter().map(|v| f(*v)).collect::<Vec<_>>());
        match kind {
            Kind::F32 => Self::Single(Memory::new(schedule, values)),
            Kind::Bf16 => Self::Half(kind, half(|v| bf16::from_f32(v).to_bits())),
            Kind::F16 => Self::Half(kind, half(|v| f16::from_f32(v).to_bits())),
        }
    }

    /// Their address.
    pub fn ptr(&self) -> Ptr {
        match self {
            Self::Single(m) => m.ptr(),
            Self::Half(_, m) => m.ptr(),
        }
    }

    /// What they are.
    pub fn read(&self) -> Vec<f32> {
        match self {
            Self::Single(m) => m.read(),
            Self::Half(Kind::Bf16, m) => m.read().iter().map(|b| bf16::from_bits(*b).to_f32()).collect(),
            Self::Half(_, m) => m.read().iter().map(|b| f16::from_bits(*b).to_f32()).collect(),
        }
    }
}

/// Values as they are after rounding to `kind`.
pub fn rounded(kind: Kind, values: &[f32]) -> Vec<f32> {
    match kind {
        Kind::F32 => values.to_vec(),
        Kind::Bf16 => values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
        Kind::F16 => values.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
    }
}

/// The share of a value that rounding to `kind` may take.
pub fn rounding(kind: Kind) -> f32 {
    match kind {
        Kind::F32 => 0.0,
        Kind::Bf16 => 1.0 / 256.0,
        Kind::F16 => 1.0 / 2048.0,
    }
}

/// Runs a kernel to its end.
pub fn launch<A: Copy>(schedule: Schedule, l: &Launch, args: &A) -> Result<(), String> {
    let symbol = |what: &str| LIBRARY.symbol(&format!("{}_{what}", l.kernel));
    // SAFETY: the functions of runner.h and runner.cpp have these types.
    let (body, bytes, threads, run) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Body>(symbol("body")),
            std::mem::transmute::<*mut c_void, Count>(symbol("bytes")),
            std::mem::transmute::<*mut c_void, Count>(symbol("threads")),
            std::mem::transmute::<*mut c_void, Run>(LIBRARY.symbol("ssm_launch")),
        )
    };
    // SAFETY: they only give numbers.
    let (bytes, threads) = unsafe { (bytes() as usize, threads()) };
    assert_eq!(bytes, size_of::<A>(), "{}: arguments of two sizes", l.kernel);
    assert!(l.block <= threads, "{}: {} threads, at most {threads}", l.kernel, l.block);
    let mut error = [0u8; 256];
    // SAFETY: the arguments have the type that the kernel reads; what they point to is guarded memory that outlives the
    // call; the error fits in its buffer.
    let failed = unsafe {
        let args = std::ptr::from_ref(args).cast();
        run(body, args, l.grid.as_ptr(), l.block, l.shared, schedule.0, error.as_mut_ptr().cast(), error.len())
    };
    let text = error.split(|b| *b == 0).next().unwrap_or_default();
    if failed == 0 { Ok(()) } else { Err(String::from_utf8_lossy(text).into_owned()) }
}

/// Runs `outputs` under every schedule: the same bits each time, or what differs.
pub fn every_schedule(outputs: impl Fn(Schedule) -> Result<Vec<Vec<f32>>, String>) -> Result<Vec<Vec<f32>>, String> {
    let first = outputs(SCHEDULES[0])?;
    for schedule in &SCHEDULES[1..] {
        let other = outputs(*schedule)?;
        for (i, (a, b)) in first.iter().zip(&other).enumerate() {
            if let Some(at) = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
                return Err(format!("{schedule:?}: output {i} at {at}: {} and {}", a[at], b[at]));
            }
        }
    }
    Ok(first)
}

/// What a call must give: within `tolerance` of the largest value, and what rounding to `kind` takes of each.
#[track_caller]
pub fn close(what: &str, kind: Kind, tolerance: f32, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().filter(|v| v.is_finite()).fold(1f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = tolerance * size + rounding(kind) * w.abs();
        let same = g.is_nan() && w.is_nan();
        assert!(same || (g - w).abs() <= allowed, "{what}: at {i} expected {w}, got {g}");
    }
}

/// The address `rows` rows of `stride` floats further on, of what is there.
pub fn after(p: Ptr, rows: usize, stride: u32) -> Ptr {
    if p == Ptr::NONE { p } else { Ptr(p.0 + 4 * rows as u64 * u64::from(stride)) }
}
