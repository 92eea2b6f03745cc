// What the kernels share; put before each source. `SSM_CPU` is set where a C++ compiler reads them
// (tests/cuda/runner.h).
//
// Numbers in memory are float, bf16 or f16; all arithmetic is f32.

#ifndef SSM_CPU
typedef unsigned long long uint64_t;
#define INFINITY __uint_as_float(0x7f800000)

// A kernel takes one block of arguments by value; `threads` is what it is launched with at most.
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args args)

// All shared memory of a kernel, aligned to 16 bytes; its size is given at the launch.
__device__ __forceinline__ void *shared_memory() {
  extern __shared__ float4 shared_bytes[];
  return shared_bytes;
}
#endif

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float to_float(f16 v) {
#ifdef SSM_CPU
  _Float16 half;
  std::memcpy(&half, &v.bits, 2);
  return half;
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#endif
}

template <typename T> struct Number;
template <> struct Number<float> {
  static __device__ __forceinline__ float from(float v) { return v; }
};
// Rounded to nearest, ties to even.
template <> struct Number<bf16> {
  static __device__ __forceinline__ bf16 from(float v) {
    bf16 r;
#ifdef SSM_CPU
    unsigned bits = __float_as_uint(v);
    r.bits = v != v ? 0x7fff : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
#endif
    return r;
  }
};
template <> struct Number<f16> {
  static __device__ __forceinline__ f16 from(float v) {
    f16 r;
#ifdef SSM_CPU
    _Float16 half = (_Float16)v;
    std::memcpy(&r.bits, &half, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
#endif
    return r;
  }
};

template <typename T> __device__ __forceinline__ float load(const T *p, uint64_t at) { return to_float(p[at]); }
template <typename T> __device__ __forceinline__ void store(T *p, uint64_t at, float v) { p[at] = Number<T>::from(v); }

// Numbers whose kind the caller names: one kernel for all of them, where the conversion hides behind other work.
enum Kind { F32, BF16, F16 };

// The bits at a place, so that nothing waits for them before they are used.
__device__ __forceinline__ unsigned load_bits(unsigned kind, const void *p, uint64_t at) {
  return kind == F32 ? ((const unsigned *)p)[at] : ((const unsigned short *)p)[at];
}
__device__ __forceinline__ float from_bits(unsigned kind, unsigned bits) {
  f16 half = {(unsigned short)bits};
  return kind == F32 ? __uint_as_float(bits) : kind == BF16 ? __uint_as_float(bits << 16) : to_float(half);
}
__device__ __forceinline__ float load_as(unsigned kind, const void *p, uint64_t at) {
  return from_bits(kind, load_bits(kind, p, at));
}
__device__ __forceinline__ void store_as(unsigned kind, void *p, uint64_t at, float v) {
  if (kind == F32)
    ((float *)p)[at] = v;
  else
    ((unsigned short *)p)[at] = kind == BF16 ? Number<bf16>::from(v).bits : Number<f16>::from(v).bits;
}

// As `TINY` in lib.rs.
#define TINY 1e-30f
#define LOG2E 1.4426950408889634f

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// x / (1 + exp(-x)); the quotient of a large divisor is 0, as it should be.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }

// ln(1 + exp(x)), x itself above 20.
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// Numbered as `Act` in activation/mod.rs.
__device__ __forceinline__ float activate(unsigned act, float x) {
  switch (act) {
  case 1:
    return x > 0.0f || x != x ? x : 0.0f;
  case 2:
    return silu(x);
  case 3:
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  case 4:
    return sigmoid(x);
  case 5:
    return softplus(x);
  default:
    return x;
  }
}

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float v) {
  for (unsigned bit = 16; bit; bit >>= 1)
    v += __shfl_xor_sync(~0u, v, bit);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
  for (unsigned bit = 16; bit; bit >>= 1)
    v = fmaxf(v, __shfl_xor_sync(~0u, v, bit));
  return v;
}

// A stream's own part of a pool: that of slot `slots[row]`, or of slot `row` where there are no slots.
__device__ __forceinline__ float *pool_row(float *pool, const unsigned *slots, uint64_t stride, unsigned row) {
  return pool + (uint64_t)(slots ? slots[row] : row) * stride;
}
