// The head recurrence of Mamba-2, as ssd/mod.rs writes it: one decay per head.
//
// A block owns C channels of one head of one sequence. Channels have S lanes each, a lane N / S of the states in
// registers. Time goes in tiles of TILE steps, as in selective_scan.cu: all threads fetch the next tile while the
// recurrence runs over this one.
//
// x, z, y (batch, len, heads · p); dt (batch, len, heads); b, c (batch, len, groups · n); the state (n, heads · p).

struct SsdArgs {
  const void *x;
  const float *dt;
  const float *dt_bias;  // (heads)
  const float *a;        // (heads): -exp(A_log)
  const float *b;
  const float *c;
  const float *skip;     // (heads · p)
  const void *z;         // or none
  void *y;
  const float *scale;    // of the step size, (batch), or none: 1
  float *state;          // pool of streams, or none: from nothing, and what it ends in is not kept
  const unsigned *slots;
  uint64_t state_stride;
  unsigned x_stride, dt_stride, bc_stride, z_stride, y_stride;
  unsigned kind;         // of x, z and y
  unsigned batch, len, heads, p, n;
  unsigned per_group;    // heads of a group
  float low, high;       // bounds of the step size
};

template <int C, int S, int N, int TILE> struct Ssd {
  static const int THREADS = C * S;
  static const int ITEMS = TILE / S;
  static const int PAIRS = TILE * N / THREADS;
  static const int STATES = N / S;

  struct Tile {
    float dt, b[PAIRS], c[PAIRS];
    unsigned x[ITEMS], z[ITEMS];
  };

  const SsdArgs &p;
  unsigned head, first, count, sequence; // channels first .. first + count
  unsigned tid, e, item_step, n, pair_step;

  __device__ __forceinline__ Ssd(const SsdArgs &args) : p(args) {
    const unsigned blocks = (p.p + C - 1) / C;
    head = blockIdx.x / blocks;
    first = head * p.p + blockIdx.x % blocks * C;
    count = min((unsigned)C, (head + 1) * p.p - first);
    sequence = blockIdx.y;
    tid = threadIdx.x;
    e = tid % C, item_step = tid / C;
    n = tid % N, pair_step = tid / N;
  }

  __device__ __forceinline__ uint64_t row(unsigned t) const { return (uint64_t)sequence * p.len + t; }

  __device__ __forceinline__ void fetch(unsigned t0, Tile &tile) const {
    tile.dt = tid < TILE && t0 + tid < p.len ? p.dt[row(t0 + tid) * p.dt_stride + head] : 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const unsigned t = t0 + item_step + i * S;
      tile.x[i] = tile.z[i] = 0;
      if (t >= p.len || e >= count)
        continue;
      tile.x[i] = load_bits(p.kind, p.x, row(t) * p.x_stride + first + e);
      if (p.z)
        tile.z[i] = load_bits(p.kind, p.z, row(t) * p.z_stride + first + e);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const unsigned t = t0 + pair_step + i * (THREADS / N);
      const bool there = t < p.len && n < p.n;
      const uint64_t at = there ? row(t) * p.bc_stride + head / p.per_group * p.n + n : 0;
      tile.b[i] = there ? p.b[at] : 0.0f;
      tile.c[i] = there ? p.c[at] : 0.0f;
    }
  }

  __device__ __forceinline__ void run() const {
    float2 *steps = (float2 *)shared_memory(); // (TILE): delta, exp(delta · a)
    float *xs = (float *)(steps + TILE), *ys = xs + TILE * C;
    float *bs = ys + TILE * C, *cs = bs + TILE * N;
    const int wide = 32 / S;
    const unsigned channel = tid / 32 * wide + tid % wide, part = tid % 32 / wide, n0 = part * STATES;
    const bool mine = channel < count;
    const uint64_t d = (uint64_t)p.heads * p.p;

    float *state = p.state ? pool_row(p.state, p.slots, p.state_stride, sequence) : 0;
    float h[STATES];
#pragma unroll
    for (int j = 0; j < STATES; j++)
      h[j] = mine && state && n0 + j < p.n ? state[(n0 + j) * d + first + channel] : 0.0f;
    const float a = p.a[head] * LOG2E, bias = p.dt_bias[head];
    const float scale = p.scale ? p.scale[sequence] : 1.0f, skip = e < count ? p.skip[first + e] : 0.0f;

    Tile tile;
    fetch(0, tile);
    for (unsigned t0 = 0; t0 < p.len; t0 += TILE) {
      unsigned x[ITEMS], z[ITEMS];
      if (tid < TILE) {
        float delta = softplus(tile.dt + bias);
        delta = scale * (delta < p.low ? p.low : delta > p.high ? p.high : delta);
        steps[tid] = {delta, exp2f(delta * a)};
      }
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        x[i] = tile.x[i], z[i] = tile.z[i];
        xs[(item_step + i * S) * C + e] = from_bits(p.kind, x[i]);
      }
#pragma unroll
      for (int i = 0; i < PAIRS; i++)
        bs[tid + i * THREADS] = tile.b[i], cs[tid + i * THREADS] = tile.c[i];
      __syncthreads();
      if (t0 + TILE < p.len)
        fetch(t0 + TILE, tile);

      const unsigned many = min((unsigned)TILE, p.len - t0);
#pragma unroll 2
      for (unsigned s = 0; s < many; s++) {
        const float2 step = steps[s];
        const float dx = step.x * xs[s * C + channel];
        float y = 0.0f;
#pragma unroll
        for (int j = 0; j < STATES; j++) {
          h[j] = fmaf(step.y, h[j], fmaf(dx, bs[s * N + n0 + j], TINY));
          y = fmaf(h[j], cs[s * N + n0 + j], y);
        }
#pragma unroll
        for (int bit = wide; bit < 32; bit <<= 1)
          y += __shfl_xor_sync(~0u, y, bit);
        if (part == 0)
          ys[s * C + channel] = y;
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        const unsigned s = item_step + i * S;
        if (s >= many || e >= count)
          continue;
        float y = fmaf(skip, from_bits(p.kind, x[i]), ys[s * C + e]);
        if (p.z)
          y *= silu(from_bits(p.kind, z[i]));
        store_as(p.kind, p.y, row(t0 + s) * p.y_stride + first + e, y);
      }
    }
    if (!mine || !state)
      return;
#pragma unroll
    for (int j = 0; j < STATES; j++)
      if (n0 + j < p.n)
        state[(n0 + j) * d + first + channel] = h[j];
  }
};

KERNEL(ssd_n16, SsdArgs, 128) { Ssd<64, 2, 16, 16>(args).run(); }
KERNEL(ssd_n64, SsdArgs, 256) { Ssd<32, 8, 64, 16>(args).run(); }
KERNEL(ssd_n128, SsdArgs, 256) { Ssd<16, 16, 128, 16>(args).run(); }
