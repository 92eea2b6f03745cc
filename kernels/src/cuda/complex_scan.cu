// Recurrences of complex states: complex_scan, complex_filter and s4d, as the files of these names write them.

struct ComplexArgs {
  const float *re, *im;  // poles, (n)
  const float *gain;     // of the filter, (n)
  const float *x;        // (batch, len, n); of the filter (batch, len)
  float *y;              // as x, and may be x
  float *state;          // pool of streams, (2, n) each: real parts, then imaginary ones
  const unsigned *slots;
  uint64_t state_stride, x_batch, y_batch;
  unsigned x_stride, y_stride;
  unsigned batch, len, n;
};

// s ← λ s + u + ε
__device__ __forceinline__ void turn(float lr, float li, float &sr, float &si, float u) {
  const float re = fmaf(lr, sr, fmaf(-li, si, u + TINY));
  si = fmaf(lr, si, fmaf(li, sr, TINY));
  sr = re;
}

// A thread owns a state; steps are fetched four at a time.
KERNEL(complex_scan, ComplexArgs, 64) {
  const ComplexArgs &p = args;
  const unsigned i = blockIdx.x * 64 + threadIdx.x;
  if (i >= p.n)
    return;
  float *s = pool_row(p.state, p.slots, p.state_stride, blockIdx.y);
  const float lr = p.re[i], li = p.im[i];
  float sr = s[i], si = s[p.n + i];
  const float *x = p.x + blockIdx.y * p.x_batch + i;
  float *y = p.y + blockIdx.y * p.y_batch + i;
  for (unsigned t0 = 0; t0 < p.len; t0 += 4) {
    float u[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      u[j] = t0 + j < p.len ? x[(uint64_t)(t0 + j) * p.x_stride] : 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (t0 + j < p.len) {
        turn(lr, li, sr, si, u[j]);
        y[(uint64_t)(t0 + j) * p.y_stride] = sr;
      }
  }
  s[i] = sr, s[p.n + i] = si;
}

// A warp owns a sequence, its lanes up to EACH states.
template <int EACH> __device__ __forceinline__ void filter(const ComplexArgs &p) {
  const unsigned lane = threadIdx.x;
  float *s = pool_row(p.state, p.slots, p.state_stride, blockIdx.x);
  float lr[EACH], li[EACH], sr[EACH], si[EACH], gain[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const unsigned i = lane + 32 * j;
    const bool there = i < p.n;
    lr[j] = there ? p.re[i] : 0.0f, li[j] = there ? p.im[i] : 0.0f, gain[j] = there ? p.gain[i] : 0.0f;
    sr[j] = there ? s[i] : 0.0f, si[j] = there ? s[p.n + i] : 0.0f;
  }
  const float *x = p.x + blockIdx.x * p.x_batch;
  float *y = p.y + blockIdx.x * p.y_batch;
  for (unsigned t0 = 0; t0 < p.len; t0 += 32) {
    // A lane fetches a sample for all, and leaves a result of all.
    const float mine = t0 + lane < p.len ? x[(uint64_t)(t0 + lane) * p.x_stride] : 0.0f;
    float result = 0.0f;
    const unsigned many = min(32u, p.len - t0);
    for (unsigned t = 0; t < many; t++) {
      const float u = __shfl_sync(~0u, mine, t);
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        turn(lr[j], li[j], sr[j], si[j], u);
        sum = fmaf(gain[j], sr[j], sum);
      }
      sum = warp_sum(sum);
      result = lane == t ? sum : result;
    }
    if (t0 + lane < p.len)
      y[(uint64_t)(t0 + lane) * p.y_stride] = result;
  }
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const unsigned i = lane + 32 * j;
    if (i < p.n)
      s[i] = sr[j], s[p.n + i] = si[j];
  }
}

KERNEL(complex_filter_64, ComplexArgs, 32) { filter<2>(args); }
KERNEL(complex_filter_256, ComplexArgs, 32) { filter<8>(args); }

// Features lie in blocks of 16, as s4d/mod.rs lays them out: coefficients (blocks, row by row of a state: a, b, then p
// and t of each rank; then c by channel and state; then the skips), the state (blocks, n, 2, 16).
struct S4dArgs {
  const float *coefficients;
  const float *u;        // (batch, len, features)
  float *y;              // (batch, len, channels · features)
  float *state;          // pool of streams
  const unsigned *slots;
  const unsigned *sets;  // of coefficients, which of them each sequence has, or none: the first
  uint64_t state_stride, set_stride;
  unsigned u_stride, y_stride;
  unsigned batch, len, features, n, channels, rank;
  unsigned read;         // 0: y is left alone
};

// A warp owns a feature of a sequence, its lanes up to EACH states.
template <int EACH, int RANK> __device__ __forceinline__ void s4d(const S4dArgs &p) {
  const unsigned lane = threadIdx.x % 32, feature = blockIdx.x * 4 + threadIdx.x / 32, sequence = blockIdx.y;
  if (feature >= p.features)
    return;
  const unsigned block = feature / 16, at = feature % 16, row = (2 + 2 * p.rank) * 32;
  const float *rows = p.coefficients + (p.sets ? p.sets[sequence] : 0) * p.set_stride;
  rows += (uint64_t)block * (p.n * row + p.channels * (p.n * 2 + 1) * 16) + at;
  const float *cs = rows + p.n * row, *skips = cs + p.channels * p.n * 32;
  float *state = pool_row(p.state, p.slots, p.state_stride, sequence) + (uint64_t)block * p.n * 32 + at;
  float ar[EACH], ai[EACH], br[EACH], bi[EACH], re[EACH], im[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const unsigned i = lane + 32 * j;
    ar[j] = ai[j] = br[j] = bi[j] = re[j] = im[j] = 0.0f;
    if (i < p.n) {
      const float *r = rows + i * row;
      ar[j] = r[0], ai[j] = r[16], br[j] = r[32], bi[j] = r[48];
      re[j] = state[i * 32], im[j] = state[i * 32 + 16];
    }
  }
  for (unsigned t = 0; t < p.len; t++) {
    const uint64_t step = (uint64_t)sequence * p.len + t;
    const float u = p.u[step * p.u_stride + feature];
    float q[RANK > 0 ? RANK : 1];
#pragma unroll
    for (int r = 0; r < RANK; r++) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const unsigned i = lane + 32 * j;
        const float *from = rows + i * row + (3 + 2 * r) * 32;
        if (r < p.rank && i < p.n)
          sum = fmaf(from[0], re[j], fmaf(-from[16], im[j], sum));
      }
      q[r] = 2.0f * warp_sum(sum);
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const unsigned i = lane + 32 * j;
      float new_re = fmaf(ar[j], re[j], fmaf(-ai[j], im[j], fmaf(br[j], u, TINY)));
      float new_im = fmaf(ar[j], im[j], fmaf(ai[j], re[j], fmaf(bi[j], u, TINY)));
#pragma unroll
      for (int r = 0; r < RANK; r++) {
        const float *from = rows + i * row + (2 + 2 * r) * 32;
        if (r < p.rank && i < p.n)
          new_re = fmaf(-from[0], q[r], new_re), new_im = fmaf(-from[16], q[r], new_im);
      }
      re[j] = new_re, im[j] = new_im;
    }
    for (unsigned ch = 0; p.read && ch < p.channels; ch++) {
      float y = 0.0f;
#pragma unroll
      for (int j = 0; j < EACH; j++) {
        const unsigned i = lane + 32 * j;
        const float *c = cs + (ch * p.n + i) * 32;
        if (i < p.n)
          y = fmaf(c[0], re[j], fmaf(-c[16], im[j], y));
      }
      y = warp_sum(y);
      if (lane == 0)
        p.y[step * p.y_stride + ch * p.features + feature] = fmaf(skips[ch * 16], u, y);
    }
  }
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    const unsigned i = lane + 32 * j;
    if (i < p.n)
      state[i * 32] = re[j], state[i * 32 + 16] = im[j];
  }
}

KERNEL(s4d_32, S4dArgs, 128) { s4d<1, 0>(args); }
KERNEL(s4d_128, S4dArgs, 128) { s4d<4, 0>(args); }
KERNEL(s4_32, S4dArgs, 128) { s4d<1, 4>(args); }
KERNEL(s4_128, S4dArgs, 128) { s4d<4, 4>(args); }
