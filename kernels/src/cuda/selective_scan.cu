// Selective scan (Mamba, Algorithm 2), as selective_scan/mod.rs writes it.
//
// A block owns C channels of one sequence, one direction and one chunk of time. Channels have S lanes each, a lane N /
// S of the states in registers. Time goes in tiles of TILE steps: all threads fetch the next tile while the recurrence,
// which reads shared memory alone, runs over this one; the skip and the gate follow for the whole tile.
//
// Rows are steps, columns channels: u, z, y (batch, len, d); dt (batch, len, d) before bias and softplus; b, c
// (batch, len, groups · n); a and the state (n, d). Each direction has its own of all but z, `..._dir` values apart.
//
// Long sequences of few streams are cut into chunks. With `ends` each chunk but the last runs from nothing and keeps
// what it ends in and the sum of its steps; `selective_scan_join` goes over the chunks and leaves where each begins;
// without `ends` all of them run from there.

struct ScanArgs {
  const void *u;
  const float *dt;
  const float *dt_bias;  // (directions, d), or none
  const float *a;        // (directions, n, d): -exp(A_log)
  const float *b;
  const float *c;
  const float *skip;     // (directions, d), or none
  const void *z;         // (batch, len, d), or none
  void *y;
  const float *scale;    // of the step size after softplus, (batch), or none: 1
  float *state;          // pool of streams, or none
  const unsigned *slots; // place of each sequence in the pool, or none: its number
  float *chunk_state;    // (directions, batch, chunks, n + 1, d), if there are chunks
  uint64_t u_dir, dt_dir, bc_dir, y_dir, state_dir;
  uint64_t state_stride; // from slot to slot
  unsigned u_stride, dt_stride, bc_stride, z_stride, y_stride; // from row to row
  unsigned kind;         // of u, z and y
  unsigned batch, len, d, n;
  unsigned per_group;    // channels of a group
  unsigned orders;       // 4 bits a direction: 1 backwards, 2 column by column
  unsigned height;       // rows of the image that is read column by column
  unsigned chunk;        // steps of a chunk, a multiple of 16; len where there are no chunks
  unsigned carried;      // a bit a direction: it begins from its state and leaves its end there; else from nothing
  unsigned softplus, add, ends;
};

template <int C, int S, int N, int TILE> struct Scan {
  static const int THREADS = C * S;
  static const int ITEMS = TILE / S;                           // of u, dt, z, y for a thread, S steps apart
  static const int PAIRS = (TILE * N + THREADS - 1) / THREADS; // of b and of c, THREADS / N steps apart
  static const int STATES = N / S;

  // A tile on its way from global to shared memory.
  struct Tile {
    float dt[ITEMS], b[PAIRS], c[PAIRS];
    unsigned u[ITEMS], z[ITEMS];
  };

  const ScanArgs &p;
  unsigned group, first, count; // channels first .. first + count
  unsigned direction, sequence, begin, end;
  unsigned tid, e, item_step, n, pair_step; // what the thread fetches: channel and state, and the first step of each
  float2 *steps;                            // (TILE, C): delta, delta · u
  float *bs, *cs, *ys;                      // (TILE, N), (TILE, N), (TILE, C)
  unsigned *rows;                           // of this tile, the next and the one before: (3, TILE)

  __device__ __forceinline__ Scan(const ScanArgs &args) : p(args) {
    const unsigned blocks = (p.per_group + C - 1) / C;
    group = blockIdx.x / blocks;
    first = group * p.per_group + blockIdx.x % blocks * C;
    count = min((unsigned)C, (group + 1) * p.per_group - first);
    direction = blockIdx.z / p.batch;
    sequence = blockIdx.z % p.batch;
    begin = blockIdx.y * p.chunk;
    end = min(begin + p.chunk, p.len);
    tid = threadIdx.x;
    e = tid % C, item_step = tid / C;
    n = tid % N, pair_step = tid / N;
    steps = (float2 *)shared_memory();
    bs = (float *)(steps + TILE * C), cs = bs + TILE * N, ys = cs + TILE * N;
    rows = (unsigned *)(ys + TILE * C);
  }

  // The rows of a tile, for `fetch` and `put` after the next barrier.
  __device__ __forceinline__ void place(unsigned t0) const {
    const unsigned t = t0 + tid, order = p.orders >> 4 * direction & 15;
    if (tid >= TILE || t >= end)
      return;
    unsigned row = order & 1 ? p.len - 1 - t : t;
    if (order & 2)
      row = row % p.height * (p.len / p.height) + row / p.height;
    rows[t0 / TILE % 3 * TILE + tid] = sequence * p.len + row;
  }

  __device__ __forceinline__ void fetch(unsigned t0, Tile &tile) const {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      const unsigned s = item_step + i * S;
      tile.dt[i] = 0.0f;
      tile.u[i] = tile.z[i] = 0;
      if (t0 - begin + s >= end - begin || e >= count)
        continue;
      const uint64_t r = rows[t0 / TILE % 3 * TILE + s];
      tile.dt[i] = p.dt[direction * p.dt_dir + r * p.dt_stride + first + e];
      tile.u[i] = load_bits(p.kind, p.u, direction * p.u_dir + r * p.u_stride + first + e);
      if (p.z)
        tile.z[i] = load_bits(p.kind, p.z, r * p.z_stride + first + e);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const unsigned s = pair_step + i * (THREADS / N);
      tile.b[i] = tile.c[i] = 0.0f;
      if (s >= TILE || t0 - begin + s >= end - begin || n >= p.n)
        continue;
      const uint64_t r = rows[t0 / TILE % 3 * TILE + s];
      const uint64_t at = direction * p.bc_dir + r * p.bc_stride + group * p.n + n;
      tile.b[i] = p.b[at];
      tile.c[i] = p.c[at];
    }
  }

  // This direction's state of the stream, if it carries one.
  __device__ __forceinline__ float *own_state() const {
    if (!p.state || !(p.carried >> direction & 1))
      return 0;
    return pool_row(p.state, p.slots, p.state_stride, sequence) + direction * p.state_dir;
  }

  __device__ __forceinline__ void run() const {
    // The lanes of a channel lie in one warp.
    const int wide = 32 / S;
    const unsigned channel = tid / 32 * wide + tid % wide, part = tid % 32 / wide, n0 = part * STATES;
    const bool mine = channel < count;
    const bool chunks = p.chunk < p.len;

    float *state = 0;
    if (chunks)
      state = p.chunk_state + ((uint64_t)blockIdx.z * ((p.len + p.chunk - 1) / p.chunk) + blockIdx.y) * (p.n + 1) * p.d;
    else
      state = own_state();
    float a[STATES], h[STATES], total = 0.0f;
#pragma unroll
    for (int j = 0; j < STATES; j++) {
      const bool there = mine && n0 + j < p.n;
      a[j] = there ? p.a[((uint64_t)direction * p.n + n0 + j) * p.d + first + channel] * LOG2E : 0.0f;
      h[j] = there && state && !p.ends ? state[(uint64_t)(n0 + j) * p.d + first + channel] : 0.0f;
    }
    const float bias = p.dt_bias && e < count ? p.dt_bias[direction * p.d + first + e] : 0.0f;
    const float scale = p.scale ? p.scale[sequence] : 1.0f;
    const float skip = p.skip && e < count ? p.skip[direction * p.d + first + e] : 0.0f;

    Tile tile;
    place(begin);
    __syncthreads();
    fetch(begin, tile);
    for (unsigned t0 = begin; t0 < end; t0 += TILE) {
      float u[ITEMS];
      unsigned z[ITEMS];
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        const float dt = tile.dt[i] + bias, delta = scale * (p.softplus ? softplus(dt) : dt);
        u[i] = from_bits(p.kind, tile.u[i]), z[i] = tile.z[i];
        steps[(item_step + i * S) * C + e] = {delta, delta * u[i]};
      }
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        const unsigned at = tid + i * THREADS;
        if (at < TILE * N)
          bs[at] = tile.b[i], cs[at] = tile.c[i];
      }
      place(t0 + TILE);
      __syncthreads();
      if (t0 + TILE < end)
        fetch(t0 + TILE, tile);

      const unsigned many = min((unsigned)TILE, end - t0);
#pragma unroll 2
      for (unsigned s = 0; s < many; s++) {
        const float2 step = steps[s * C + channel];
        float y = 0.0f;
#pragma unroll
        for (int j = 0; j < STATES; j++) {
          h[j] = fmaf(exp2f(step.x * a[j]), h[j], fmaf(step.y, bs[s * N + n0 + j], TINY));
          y = fmaf(h[j], cs[s * N + n0 + j], y);
        }
        total += step.x;
#pragma unroll
        for (int bit = wide; bit < 32; bit <<= 1)
          y += __shfl_xor_sync(~0u, y, bit);
        if (part == 0)
          ys[s * C + channel] = y;
      }
      __syncthreads();
      if (p.ends)
        continue;
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        const unsigned s = item_step + i * S;
        if (s >= many || e >= count)
          continue;
        float y = fmaf(skip, u[i], ys[s * C + e]);
        if (p.z)
          y *= silu(from_bits(p.kind, z[i]));
        const uint64_t r = rows[t0 / TILE % 3 * TILE + s], at = direction * p.y_dir + r * p.y_stride + first + e;
        store_as(p.kind, p.y, at, p.add ? load_as(p.kind, p.y, at) + y : y);
      }
    }

    // The last chunk's end is the stream's new state.
    if (chunks && !p.ends) {
      if (end < p.len)
        return;
      state = own_state();
    }
    if (!mine || !state)
      return;
#pragma unroll
    for (int j = 0; j < STATES; j++)
      if (n0 + j < p.n)
        state[(uint64_t)(n0 + j) * p.d + first + channel] = h[j];
    if (p.ends && part == 0)
      state[(uint64_t)p.n * p.d + first + channel] = total;
  }
};

#define SCAN(name, C, S, N, TILE) \
  KERNEL(selective_scan_##name, ScanArgs, C *S) { Scan<C, S, N, TILE>(args).run(); }

SCAN(n1, 128, 1, 1, 8)
SCAN(n16, 32, 4, 16, 16)
SCAN(n64, 16, 8, 64, 16)
SCAN(n128, 8, 16, 128, 16)

// A thread owns one state of one channel. On the way the end of each chunk is replaced by its beginning.
KERNEL(selective_scan_join, ScanArgs, 128) {
  const ScanArgs &p = args;
  const unsigned at = blockIdx.x * 128 + threadIdx.x, chunks = (p.len + p.chunk - 1) / p.chunk;
  if (at >= p.n * p.d)
    return;
  const unsigned direction = blockIdx.y / p.batch, sequence = blockIdx.y % p.batch;
  const float a = p.a[(uint64_t)direction * p.n * p.d + at] * LOG2E;
  float h = 0.0f;
  if (p.state && p.carried >> direction & 1)
    h = pool_row(p.state, p.slots, p.state_stride, sequence)[direction * p.state_dir + at];
  float *chunk = p.chunk_state + (uint64_t)blockIdx.y * chunks * (p.n + 1) * p.d;
  for (unsigned i = 1; i < chunks; i++, chunk += (uint64_t)(p.n + 1) * p.d) {
    const float end = chunk[at], total = chunk[(uint64_t)p.n * p.d + at % p.d];
    chunk[at] = h;
    h = fmaf(exp2f(total * a), h, end);
  }
  chunk[at] = h;
}
