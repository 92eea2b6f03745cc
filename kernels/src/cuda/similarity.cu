// How much a step's vector is like those of the steps before: cosines with each of the last ones, as composite.rs of the
// models writes it. The vectors of the steps before are kept with a length of 1, the newest first.
//
//     y_t[k] = v_t · v_{t-1-k} / (|v_t| |v_{t-1-k}|),  k = 0 … lags - 1

struct SimilarityArgs {
  const float *x;        // (batch, len, d)
  float *y;              // (batch, len, lags)
  float *state;          // pool of streams, (lags, d) each
  const unsigned *slots;
  uint64_t state_stride;
  unsigned x_stride, y_stride;
  unsigned batch, len, d, lags;
};

// What makes a vector one of length 1, the same bits in every lane of the warp.
__device__ __forceinline__ float scale_of(const float *v, unsigned d) {
  float sum = 0.0f;
  for (unsigned e = threadIdx.x % 32; e < d; e += 32)
    sum = fmaf(v[e], v[e], sum);
  return 1.0f / sqrtf(warp_sum(sum) + 1e-12f);
}

// A block owns a stream, its 8 warps take every eighth step.
KERNEL(similarity, SimilarityArgs, 256) {
  const SimilarityArgs &p = args;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, b = blockIdx.x;
  const float *x = p.x + (uint64_t)b * p.len * p.x_stride;
  float *last = pool_row(p.state, p.slots, p.state_stride, b);
  for (unsigned t = warp; t < p.len; t += 8) {
    const float *v = x + (uint64_t)t * p.x_stride;
    const float scale = scale_of(v, p.d);
    for (unsigned k = 0; k < p.lags; k++) {
      // One of this call, made as it would lie in the state, or one of an earlier call.
      const bool here = k < t;
      const float *before = here ? v - (uint64_t)(k + 1) * p.x_stride : last + (uint64_t)(k - t) * p.d;
      const float length = here ? scale_of(before, p.d) : 1.0f;
      float sum = 0.0f;
      for (unsigned e = lane; e < p.d; e += 32)
        sum = fmaf(before[e] * length, v[e], sum);
      sum = warp_sum(sum);
      if (lane == 0)
        p.y[((uint64_t)b * p.len + t) * p.y_stride + k] = sum * scale;
    }
  }
  __syncthreads();
  // A thread moves the columns that it owns, the oldest first.
  for (unsigned e = threadIdx.x; e < p.d; e += 256)
    for (unsigned k = p.lags; k-- > p.len;)
      last[(uint64_t)k * p.d + e] = last[(uint64_t)(k - p.len) * p.d + e];
  __syncthreads();
  for (unsigned k = warp; k < min(p.lags, p.len); k += 8) {
    const float *v = x + (uint64_t)(p.len - 1 - k) * p.x_stride;
    const float scale = scale_of(v, p.d);
    for (unsigned e = lane; e < p.d; e += 32)
      last[(uint64_t)k * p.d + e] = v[e] * scale;
  }
}
