//! Frames that lie on a card (`memory:CUDAMemory`), through libgstcuda, which is opened at run time: the plugin loads without
//! it. The only file of the elements with `unsafe`.
//!
//! Elements of a pipeline agree on a context of the driver by a query. Whoever asks one of ours gets the context that the
//! model's card has, so that its frames lie where the model reads them. Frames of another context are copied on the card.

#![allow(unsafe_code)]

use crate::base::lock;
use glib::ffi::{GFALSE, gboolean};
use glib::prelude::*;
use glib::translate::{FromGlibPtrFull, ToGlibPtr};
use gst::ffi::{GstElement, GstMemory, GstObject, GstQuery};
use gst_video::VideoInfo;
use gst_video::ffi::{GstVideoFrame, gst_video_frame_map, gst_video_frame_unmap};
use ssm_models::frontend::image::CardPlane;
use ssm_models::kernels::cuda::card::Context;
use ssm_models::kernels::cuda::{Card, Ptr};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::{LazyLock, Mutex};

/// Feature of caps of frames on a card.
pub(crate) const FEATURE: &str = "memory:CUDAMemory";

/// Type of the query by which elements agree on a context.
const CONTEXT_TYPE: &str = "gst.cuda.context";

/// `GST_MAP_CUDA`: a map gives addresses of the card.
const MAP_CUDA: u32 = gst::ffi::GST_MAP_FLAG_LAST << 1;

/// The beginning of `GstCudaMemory`, the same in every version.
#[repr(C)]
struct CudaMemory {
    mem: GstMemory,
    context: *mut GstObject,
}

/// What is used of libgstcuda.
struct Library {
    is_cuda_memory: unsafe extern "C" fn(*mut GstMemory) -> gboolean,
    context_type: unsafe extern "C" fn() -> glib::ffi::GType,
    context_handle: unsafe extern "C" fn(*mut GstObject) -> *mut c_void,
    wrap_context: unsafe extern "C" fn(*mut c_void, c_int) -> *mut GstObject,
    answer: unsafe extern "C" fn(*mut GstElement, *mut GstQuery, *mut GstObject) -> gboolean,
    /// From 1.24 on: waits for what the memory's own queue still writes.
    sync: Option<unsafe extern "C" fn(*mut GstMemory)>,
}

/// The library, or why there is none.
static LIBRARY: LazyLock<Result<Library, String>> = LazyLock::new(|| {
    let library = Library::open();
    if let Err(error) = &library {
        gst::info!(crate::CAT, "frames on the card are not taken: {error}");
    }
    library
});

impl Library {
    fn open() -> Result<Self, String> {
        // For machines where it has another name or place.
        let name = std::env::var_os("SSM_GSTCUDA").unwrap_or_else(|| "libgstcuda-1.0.so.0".into());
        // SAFETY: a library of GStreamer, whose initialisers do nothing but that.
        let file = unsafe { libloading::Library::new(name) }.map_err(|e| e.to_string())?;
        // It stays for good: types that GLib knows lie in it.
        let file: &libloading::Library = Box::leak(Box::new(file));
        let text = |e: libloading::Error| e.to_string();
        // SAFETY: the functions have these types in every version from 1.22 on.
        unsafe {
            let load = file.get::<unsafe extern "C" fn() -> gboolean>(c"gst_cuda_load_library").map_err(text)?;
            let start = file.get::<unsafe extern "C" fn()>(c"gst_cuda_memory_init_once").map_err(text)?;
            let library = Self {
                is_cuda_memory: *file.get(c"gst_is_cuda_memory").map_err(text)?,
                context_type: *file.get(c"gst_cuda_context_get_type").map_err(text)?,
                context_handle: *file.get(c"gst_cuda_context_get_handle").map_err(text)?,
                wrap_context: *file.get(c"gst_cuda_context_new_wrapped").map_err(text)?,
                answer: *file.get(c"gst_cuda_handle_context_query").map_err(text)?,
                sync: file.get(c"gst_cuda_memory_sync").ok().map(|f| *f),
            };
            if load() == GFALSE {
                return Err("libgstcuda finds no driver".into());
            }
            start();
            Ok(library)
        }
    }
}

/// Whether frames on a card can be read here.
pub(crate) fn present() -> bool {
    LIBRARY.is_ok()
}

/// A frame whose pixels are mapped for the card.
pub(crate) struct Frame<'a> {
    frame: GstVideoFrame,
    /// That of the pixels.
    pub(crate) context: Context,
    planes: usize,
    buffer: PhantomData<&'a gst::BufferRef>,
}

impl<'a> Frame<'a> {
    /// Maps a buffer of a layout, and waits until its pixels have been written.
    ///
    /// # Errors
    /// The text says what the buffer is instead.
    pub(crate) fn map(buffer: &'a gst::BufferRef, info: &VideoInfo) -> Result<Self, String> {
        let library = LIBRARY.as_ref().map_err(Clone::clone)?;
        if buffer.n_memory() != 1 {
            return Err(format!("expected one memory of a card, got {}", buffer.n_memory()));
        }
        // SAFETY: the buffer has a memory, which it keeps; what is a `GstCudaMemory` begins as one. Its context is alive as
        // long as it is.
        let (memory, context) = unsafe {
            let memory = gst::ffi::gst_buffer_peek_memory(buffer.as_mut_ptr(), 0);
            if (library.is_cuda_memory)(memory) == GFALSE {
                return Err("expected memory of a card, got memory of the machine".into());
            }
            let object = (*memory.cast::<CudaMemory>()).context;
            let kind = (library.context_type)();
            if glib::gobject_ffi::g_type_check_instance_is_a(object.cast(), kind) == GFALSE {
                return Err("libgstcuda has a memory of another layout".into());
            }
            (memory, Context::new((library.context_handle)(object)))
        };
        let mut frame = MaybeUninit::zeroed();
        let flags = gst::ffi::GST_MAP_READ | MAP_CUDA;
        // SAFETY: a buffer that lives longer than the map, and a frame that is unmapped by `drop` if it was mapped.
        let frame = unsafe {
            if gst_video_frame_map(frame.as_mut_ptr(), info.to_glib_none().0, buffer.as_mut_ptr(), flags) == GFALSE {
                return Err(format!("expected {} bytes, got {}", info.size(), buffer.size()));
            }
            frame.assume_init()
        };
        let mapped = Self { frame, context, planes: info.n_planes() as usize, buffer: PhantomData };
        match library.sync {
            // SAFETY: memory of a card, as asked above.
            Some(sync) => unsafe { sync(memory) },
            None => mapped.context.wait().map_err(|e| e.to_string())?,
        }
        Ok(mapped)
    }

    /// Its planes.
    pub(crate) fn planes(&self) -> impl Iterator<Item = CardPlane> + '_ {
        (0..self.planes).map(|i| {
            let at = self.frame.data[i] as usize;
            // Each plane lies in a map; which one depends on how the buffer says its layout.
            let end = |map: &gst::ffi::GstMapInfo| (map.data as usize, map.data as usize + map.size);
            let around = self.frame.map.iter().map(end).find(|(begin, end)| (*begin..*end).contains(&at));
            let stride = usize::try_from(self.frame.info.stride[i]).unwrap_or(0);
            CardPlane { at: Ptr(at as u64), bytes: around.map_or(0, |(_, end)| end - at), stride }
        })
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        // SAFETY: mapped when this was made, unmapped once.
        unsafe { gst_video_frame_unmap(&mut self.frame) };
    }
}

/// The contexts of cards as libgstcuda knows them, by index: one for all elements.
static SHARED: Mutex<Option<HashMap<u32, glib::WeakRef<gst::Object>>>> = Mutex::new(None);

/// The context of a card, for other elements; it keeps the card.
fn shared(index: u32) -> Option<gst::Object> {
    let library = LIBRARY.as_ref().ok()?;
    let mut shared = lock(&SHARED);
    let map = shared.get_or_insert_default();
    if let Some(context) = map.get(&index).and_then(glib::WeakRef::upgrade) {
        return Some(context);
    }
    let card = Card::open(index).ok()?;
    let (context, device) = card.handles();
    // SAFETY: a context that lives as long as the object, which holds the card.
    let context = unsafe {
        let object = (library.wrap_context)(context, device);
        if object.is_null() {
            return None;
        }
        let object = gst::Object::from_glib_full(object);
        object.set_data("ssm-card", card);
        object
    };
    map.insert(index, context.downgrade());
    Some(context)
}

/// Answers another element's query for a context with that of a card. Says whether it was such a query.
pub(crate) fn answer(element: &gst::Element, query: &mut gst::QueryRef, card: &Card) -> bool {
    let asked = matches!(query.view(), gst::QueryView::Context(q) if q.context_type() == CONTEXT_TYPE);
    let (true, Ok(library), Some(context)) = (asked, &*LIBRARY, asked.then(|| shared(card.index())).flatten()) else {
        return false;
    };
    // SAFETY: all three live during the call; the query is one that may be written to.
    let done = unsafe {
        let (element, context) = (element.to_glib_none().0, context.to_glib_none().0);
        (library.answer)(element, query.as_mut_ptr(), context)
    };
    done != GFALSE
}
