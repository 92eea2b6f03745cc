// What a kernel's source needs of CUDA, for a C++ compiler: one fiber per thread, blocks one after the other, the order
// of blocks, warps and lanes a parameter. Test only; see docs/cuda.md.
//
// A lane runs alone until it meets a barrier or an exchange within its warp: what relies on lanes or warps running in
// step shows as other bits under another order. Shared memory is NaN before each block and ends at a page that cannot
// be touched, as every buffer does.
#pragma once
#define SSM_CPU 1
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __device__
#define __forceinline__ inline
#define __restrict__

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace runner {

struct Thread {
  uint3 thread;
  unsigned lane, warp;
};

extern thread_local const Thread *self;
extern thread_local uint3 block, block_size, grid_size;
extern thread_local unsigned char *shared;

void barrier(int line);
// Every lane of `mask` gives `value` and gets that of lane `source`.
uint32_t exchange(unsigned mask, uint32_t value, unsigned source, int line);
// Every lane of `mask` gives a bit and gets all of them.
unsigned ballot(unsigned mask, bool bit, int line);

template <typename T> T shuffle(unsigned mask, T value, unsigned source, int line) {
  static_assert(sizeof(T) == 4, "an exchange of 32 bits");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = exchange(mask, bits, source, line);
  std::memcpy(&value, &bits, 4);
  return value;
}

template <typename T> T shuffle_up(unsigned mask, T value, unsigned by, int line) {
  unsigned lane = self->lane;
  return shuffle(mask, value, lane >= by ? lane - by : lane, line);
}

template <typename T> T shuffle_down(unsigned mask, T value, unsigned by, int line) {
  unsigned lane = self->lane;
  return shuffle(mask, value, lane + by < 32 ? lane + by : lane, line);
}

} // namespace runner

#define threadIdx (runner::self->thread)
#define blockIdx (runner::block)
#define blockDim (runner::block_size)
#define gridDim (runner::grid_size)
#define __syncthreads() runner::barrier(__LINE__)
#define __syncwarp() ((void)runner::exchange(~0u, 0, 0, __LINE__))
#define __shfl_sync(mask, v, lane) runner::shuffle(mask, v, lane, __LINE__)
#define __shfl_xor_sync(mask, v, bits) runner::shuffle(mask, v, runner::self->lane ^ (bits), __LINE__)
#define __shfl_up_sync(mask, v, by) runner::shuffle_up(mask, v, by, __LINE__)
#define __shfl_down_sync(mask, v, by) runner::shuffle_down(mask, v, by, __LINE__)
#define __ballot_sync(mask, bit) runner::ballot(mask, bit, __LINE__)

template <typename T> T atomicAdd(T *at, T v) {
  T old = *at;
  *at = old + v;
  return old;
}

inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
using std::max;
using std::min;

// An argument block by value; its size is asked for, so that it equals the caller's.
#define KERNEL(name, Args, threads) \
  static void name(const Args args); \
  extern "C" unsigned name##_bytes() { return sizeof(Args); } \
  extern "C" unsigned name##_threads() { return threads; } \
  extern "C" void name##_body(const void *args) { name(*static_cast<const Args *>(args)); } \
  static void name(const Args args)

inline void *shared_memory() { return runner::shared; }
