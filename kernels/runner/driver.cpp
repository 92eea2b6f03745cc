// What `card.rs` needs of libcuda, on the runner: memory between pages that cannot be touched, streams, graphs, kernels.
//
// Nothing that is queued runs before somebody waits for it, so that a host that reads too early, or writes to a buffer that
// is still to be copied, sees wrong values. Memory begins as NaN. What a kernel does wrong is an illegal address from then
// on, as on a card; cuGetErrorString says what it was.
#include "runner.h"
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <sys/mman.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

extern "C" {
void *ssm_guarded(size_t bytes, int at_end);
void ssm_release(void *memory, size_t bytes);
int ssm_launch(void (*body)(const void *), const void *args, const unsigned *grid, unsigned threads, unsigned shared_bytes,
               unsigned schedule, char *error, size_t error_len);
}

namespace {

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  ILLEGAL_ADDRESS = 700,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
};

using Op = std::function<Result()>;

struct Graph {
  std::vector<Op> ops;
};

struct Context {};

struct Stream {
  Context *context;
  std::vector<Op> queue;
  Graph *capture = nullptr;
};

struct Block {
  size_t bytes;
  Context *context;
};

struct Function {
  void (*body)(const void *);
  unsigned bytes, threads;
};

struct Module {
  std::string ptx;
  std::map<std::string, Function> functions;
};

std::recursive_mutex lock;
std::map<uint64_t, Block> memory; // of the device
std::map<void *, size_t> pinned;
std::vector<Stream *> streams;
size_t used, objects, launches, brought, limit_ = size_t(1) << 33;
unsigned schedule, devices = 1;
bool initialized;
int retained; // the primary context
Context primary;
std::set<Context *> contexts; // the others
Result sticky = SUCCESS;
std::string error;
thread_local std::vector<Context *> entered; // the last one is current

using Guard = std::lock_guard<std::recursive_mutex>;

size_t number(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}

Result fail(Result result, std::string what) {
  error = std::move(what);
  return result;
}

Result ready() {
  if (!initialized)
    return fail(NOT_INITIALIZED, "cuInit was not called");
  Context *current = entered.empty() ? nullptr : entered.back();
  if (current == &primary ? retained <= 0 : !contexts.count(current))
    return fail(INVALID_CONTEXT, "no context is current in this thread");
  return sticky;
}

// Whether the bytes lie in one allocation of the device.
bool inside(uint64_t at, size_t bytes) {
  auto after = memory.upper_bound(at);
  if (after == memory.begin())
    return bytes == 0;
  auto [begin, block] = *std::prev(after);
  return at + bytes <= begin + block.bytes;
}

// Lets nobody, or again everybody, at memory of other contexts.
void others(Context *context, int access) {
  const uint64_t page = 4096;
  for (auto [at, block] : memory)
    if (block.context != context)
      mprotect((void *)(at / page * page), (at % page + block.bytes + page - 1) / page * page, access);
}

Result run(Stream *s) {
  if (s->capture)
    return fail(CAPTURE_UNSUPPORTED, "a wait during a capture");
  std::vector<Op> queue;
  queue.swap(s->queue);
  for (const Op &op : queue)
    if (sticky == SUCCESS)
      sticky = op();
  return sticky;
}

Result run_all() {
  for (Stream *s : streams)
    if (!s->capture)
      run(s);
  return sticky;
}

Result queue(Stream *s, Op op) {
  if (!s)
    return fail(INVALID_HANDLE, "the default stream");
  (s->capture ? s->capture->ops : s->queue).push_back(std::move(op));
  return SUCCESS;
}

Op copy(void *to, const void *from, size_t bytes, bool to_device, bool from_device) {
  return [=] {
    if (to_device && !inside((uint64_t)to, bytes))
      return fail(INVALID_VALUE, "a copy to no memory of the device");
    if (from_device && !inside((uint64_t)from, bytes))
      return fail(INVALID_VALUE, "a copy from no memory of the device");
    memmove(to, from, bytes);
    return SUCCESS;
  };
}

} // namespace

#define ENTER                                                                                                           \
  Guard guard(lock);                                                                                                    \
  if (Result r = ready())                                                                                               \
  return r

extern "C" {

// What tests set and ask for.
void ssm_driver_set(unsigned order, size_t bytes) {
  Guard guard(lock);
  schedule = order, limit_ = bytes;
}
size_t ssm_driver_objects() {
  Guard guard(lock);
  return objects + memory.size() + pinned.size() + retained + contexts.size();
}
size_t ssm_driver_used() {
  Guard guard(lock);
  return used;
}
size_t ssm_driver_brought() {
  Guard guard(lock);
  return brought;
}
size_t ssm_driver_launches() {
  Guard guard(lock);
  return launches;
}

int cuInit(unsigned) {
  Guard guard(lock);
  devices = number("SSM_RUNNER_DEVICES", devices), limit_ = number("SSM_RUNNER_BYTES", limit_);
  if (!devices)
    return fail(NO_DEVICE, "no CUDA-capable device is detected");
  initialized = true;
  return SUCCESS;
}
int cuDriverGetVersion(int *version) {
  *version = number("SSM_RUNNER_VERSION", 12000);
  return SUCCESS;
}
int cuGetErrorName(int, const char **text) {
  *text = "RUNNER";
  return SUCCESS;
}
int cuGetErrorString(int, const char **text) {
  *text = error.c_str();
  return SUCCESS;
}
int cuDeviceGetCount(int *count) {
  *count = devices;
  return SUCCESS;
}
int cuDeviceGet(int *device, int at) {
  *device = at;
  return at >= 0 && unsigned(at) < devices ? SUCCESS : fail(INVALID_DEVICE, "no such device");
}
int cuDeviceGetName(char *name, int len, int) {
  snprintf(name, len, "runner");
  return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int) {
  // 16: processors; 75, 76: compute capability.
  *value = attribute == 16 ? 4 : attribute == 75 ? 8 : 0;
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
  Guard guard(lock);
  retained++;
  *context = &primary;
  return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  Guard guard(lock);
  // The next context begins anew.
  if (!--retained)
    sticky = SUCCESS;
  return SUCCESS;
}
int cuCtxSetCurrent(Context *context) {
  if (!entered.empty())
    entered.pop_back();
  if (context)
    entered.push_back(context);
  return SUCCESS;
}
int cuStreamCreate(Stream **stream, unsigned) {
  ENTER;
  streams.push_back(*stream = new Stream{entered.back(), {}}), objects++;
  return SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
  Guard guard(lock);
  run(stream);
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream, objects--;
  return SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
  ENTER;
  return run(stream);
}
int cuStreamBeginCapture_v2(Stream *stream, int) {
  ENTER;
  stream->capture = new Graph, objects++;
  return SUCCESS;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
  ENTER;
  *graph = stream->capture, stream->capture = nullptr;
  return SUCCESS;
}
int cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long) {
  ENTER;
  *exec = new Graph(*graph), objects++;
  return SUCCESS;
}
int cuGraphDestroy(Graph *graph) {
  Guard guard(lock);
  delete graph, objects--;
  return SUCCESS;
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(Graph *graph, Stream *stream) {
  ENTER;
  for (const Op &op : graph->ops)
    queue(stream, op);
  return SUCCESS;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  ENTER;
  *free = used < limit_ ? limit_ - used : 0, *total = limit_;
  return SUCCESS;
}
int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
  ENTER;
  if (!bytes)
    return fail(INVALID_VALUE, "no bytes");
  if (used + bytes > limit_)
    return fail(OUT_OF_MEMORY, "out of memory");
  // A card's memory begins at multiples of 256 bytes: it is the end that is rounded up then.
  void *p = ssm_guarded((bytes + 255) / 256 * 256, 1);
  if (!p)
    return fail(OUT_OF_MEMORY, "out of memory");
  memset(p, 0xff, bytes);
  *at = (uint64_t)p, memory[*at] = {bytes, entered.back()}, used += bytes;
  return SUCCESS;
}
int cuMemFree_v2(uint64_t at) {
  Guard guard(lock);
  run_all();
  auto found = memory.find(at);
  if (found == memory.end())
    return fail(INVALID_VALUE, "freed twice, or never allocated");
  ssm_release((void *)at, (found->second.bytes + 255) / 256 * 256);
  used -= found->second.bytes, memory.erase(found);
  return SUCCESS;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
  ENTER;
  *at = ssm_guarded((bytes + 63) / 64 * 64, 1);
  if (!*at)
    return fail(OUT_OF_MEMORY, "out of memory");
  memset(*at, 0xff, bytes);
  pinned[*at] = bytes;
  return SUCCESS;
}
int cuMemFreeHost(void *at) {
  Guard guard(lock);
  run_all();
  auto found = pinned.find(at);
  if (found == pinned.end())
    return fail(INVALID_VALUE, "freed twice, or never allocated");
  ssm_release(at, (found->second + 63) / 64 * 64);
  pinned.erase(found);
  return SUCCESS;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, Stream *stream) {
  ENTER;
  return queue(stream, [=] {
    if (!inside(at, bytes))
      return fail(INVALID_VALUE, "no memory of the device");
    memset((void *)at, value, bytes);
    return SUCCESS;
  });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
  ENTER;
  return queue(stream, copy((void *)to, from, bytes, true, false));
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
  ENTER;
  return queue(stream, copy(to, (void *)from, bytes, false, true));
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream *stream) {
  ENTER;
  return queue(stream, copy((void *)to, (void *)from, bytes, true, true));
}
int cuModuleLoadData(Module **module, const void *image) {
  ENTER;
  std::string ptx = static_cast<const char *>(image);
  if (ptx.find(".version") == std::string::npos)
    return fail(INVALID_IMAGE, "no PTX");
  *module = new Module{std::move(ptx), {}}, objects++;
  return SUCCESS;
}
int cuModuleUnload(Module *module) {
  Guard guard(lock);
  run_all();
  delete module, objects--;
  return SUCCESS;
}
int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  ENTER;
  const std::string kernel = name;
  static void *self = [] {
    Dl_info info;
    return dladdr((void *)&cuInit, &info) ? dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
  }();
  void *body = dlsym(self, (kernel + "_body").c_str());
  if (module->ptx.find(".entry " + kernel + "(") == std::string::npos || !body)
    return fail(NOT_FOUND, "no kernel " + kernel);
  auto ask = [&](const char *what) { return ((unsigned (*)())dlsym(self, (kernel + what).c_str()))(); };
  *function = &(module->functions[kernel] = {(void (*)(const void *))body, ask("_bytes"), ask("_threads")});
  return SUCCESS;
}
int cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared_bytes, Stream *stream, void **params, void **) {
  ENTER;
  if (!x || !y || !z || y > 65535 || z > 65535 || !threads || threads > f->threads || shared_bytes > 48 * 1024)
    return fail(INVALID_VALUE, "a grid or a block that cannot be launched");
  auto args = static_cast<const unsigned char *>(params[0]);
  std::vector<unsigned char> own(args, args + f->bytes);
  return queue(stream, [=, body = f->body] {
    const unsigned grid[3] = {x, y, z};
    char text[256] = {};
    // The arguments are aligned as the largest number in them.
    std::vector<uint64_t> aligned((own.size() + 7) / 8);
    memcpy(aligned.data(), own.data(), own.size());
    launches++;
    others(stream->context, PROT_NONE);
    const int failed = ssm_launch(body, aligned.data(), grid, threads, shared_bytes, schedule, text, sizeof text);
    others(stream->context, PROT_READ | PROT_WRITE);
    return failed ? fail(ILLEGAL_ADDRESS, text) : SUCCESS;
  });
}

int cuMemcpyPeerAsync(uint64_t to, Context *there, uint64_t from, Context *here, size_t bytes, Stream *stream) {
  ENTER;
  return queue(stream, [=] {
    auto of = [](uint64_t at) {
      auto after = memory.upper_bound(at);
      return after == memory.begin() ? nullptr : std::prev(after)->second.context;
    };
    if (of(to) != there || of(from) != here)
      return fail(INVALID_VALUE, "memory of another context");
    brought++;
    return copy((void *)to, (void *)from, bytes, true, true)();
  });
}

// For libgstcuda.

int cuCtxCreate_v2(Context **context, unsigned, int) {
  Guard guard(lock);
  contexts.insert(*context = new Context);
  entered.push_back(*context);
  return SUCCESS;
}
int cuCtxDestroy_v2(Context *context) {
  Guard guard(lock);
  if (!contexts.erase(context))
    return fail(INVALID_CONTEXT, "destroyed twice, or never made");
  delete context;
  return SUCCESS;
}
int cuCtxPushCurrent_v2(Context *context) {
  entered.push_back(context);
  return SUCCESS;
}
int cuCtxPopCurrent_v2(Context **context) {
  if (entered.empty())
    return fail(INVALID_CONTEXT, "no context is current in this thread");
  if (context)
    *context = entered.back();
  entered.pop_back();
  return SUCCESS;
}
int cuCtxSynchronize() {
  ENTER;
  return run_all();
}
int cuMemAllocPitch_v2(uint64_t *at, size_t *pitch, size_t width, size_t height, unsigned) {
  *pitch = (width + 511) / 512 * 512;
  return cuMemAlloc_v2(at, *pitch * height);
}
int cuMemAllocHost_v2(void **at, size_t bytes) { return cuMemHostAlloc(at, bytes, 0); }
int cuStreamDestroy(Stream *stream) { return cuStreamDestroy_v2(stream); }

struct Rectangle {
  size_t src_x, src_y;
  unsigned src_type;
  const void *src_host;
  uint64_t src_device;
  void *src_array;
  size_t src_pitch, dst_x, dst_y;
  unsigned dst_type;
  void *dst_host;
  uint64_t dst_device;
  void *dst_array;
  size_t dst_pitch, width, height;
};
// A kind of memory of 2 is the device's, 1 the process's.
int cuMemcpy2DAsync_v2(const Rectangle *r, Stream *) {
  ENTER;
  run_all();
  auto from = r->src_type == 2 ? (const char *)r->src_device : (const char *)r->src_host;
  auto to = r->dst_type == 2 ? (char *)r->dst_device : (char *)r->dst_host;
  for (size_t i = 0; i < r->height; i++) {
    auto src = from + (r->src_y + i) * r->src_pitch + r->src_x;
    auto dst = to + (r->dst_y + i) * r->dst_pitch + r->dst_x;
    if (Result failed = copy(dst, src, r->width, r->dst_type == 2, r->src_type == 2)())
      return failed;
  }
  return sticky;
}
int cuMemcpy2D_v2(const Rectangle *r) { return cuMemcpy2DAsync_v2(r, nullptr); }
int cuDeviceCanAccessPeer(int *can, int, int) {
  *can = 0;
  return SUCCESS;
}

// Of which no test makes use.
#define UNSUPPORTED(name)                                                                                              \
  int name() { return fail(NOT_SUPPORTED, #name); }
UNSUPPORTED(cuCtxEnablePeerAccess)
UNSUPPORTED(cuCtxDisablePeerAccess)
UNSUPPORTED(cuGraphicsMapResources)
UNSUPPORTED(cuGraphicsUnmapResources)
UNSUPPORTED(cuGraphicsUnregisterResource)
UNSUPPORTED(cuGraphicsGLRegisterImage)
UNSUPPORTED(cuGraphicsGLRegisterBuffer)
UNSUPPORTED(cuGraphicsResourceSetMapFlags_v2)
UNSUPPORTED(cuGraphicsSubResourceGetMappedArray)
UNSUPPORTED(cuGraphicsResourceGetMappedPointer_v2)
UNSUPPORTED(cuGLGetDevices_v2)
UNSUPPORTED(cuTexObjectCreate)
UNSUPPORTED(cuTexObjectDestroy)
// Of libnvcuvid, without which GStreamer's plugin has no elements.
UNSUPPORTED(cuvidCreateDecoder)
UNSUPPORTED(cuvidCreateVideoParser)
UNSUPPORTED(cuvidCtxLock)
UNSUPPORTED(cuvidCtxLockCreate)
UNSUPPORTED(cuvidCtxLockDestroy)
UNSUPPORTED(cuvidCtxUnlock)
UNSUPPORTED(cuvidDecodePicture)
UNSUPPORTED(cuvidDestroyDecoder)
UNSUPPORTED(cuvidDestroyVideoParser)
UNSUPPORTED(cuvidGetDecoderCaps)
UNSUPPORTED(cuvidMapVideoFrame64)
UNSUPPORTED(cuvidParseVideoData)
UNSUPPORTED(cuvidReconfigureDecoder)
UNSUPPORTED(cuvidUnmapVideoFrame64)
}
