// Matrix product with the weights as PyTorch stores them: y = act(x Wᵀ + bias), or added to y.
//
// x (m, k), whose rows may overlap (windows) and come in batches apart from each other; w (n, k); y (m, n). Sums run over
// k in ascending order in `linear_*`, so that a row does not depend on the rows beside it; `linear_rows` sums in 32 parts.

struct LinearArgs {
  const void *x;
  const void *w;
  const float *bias;     // (n), or none
  void *y;
  uint64_t x_batch, y_batch; // values between batches of rows
  unsigned x_stride, y_stride, w_stride;
  unsigned batch_rows;   // rows of a batch
  unsigned x_kind, w_kind, y_kind;
  unsigned m, n, k;
  unsigned act, add;
  // Of a product whose weights the row chooses, else none: rows starts[e] .. starts[e + 1] of y are those of expert e, and
  // row r of y is made of row from[r] of x.
  const unsigned *starts, *from;
  uint64_t w_expert;     // values between the experts' weights
  unsigned experts;
};

__device__ __forceinline__ uint64_t x_row(const LinearArgs &p, unsigned r) {
  return r / p.batch_rows * p.x_batch + (uint64_t)(r % p.batch_rows) * p.x_stride;
}

__device__ __forceinline__ void put(const LinearArgs &p, unsigned r, unsigned c, float sum) {
  const uint64_t at = r / p.batch_rows * p.y_batch + (uint64_t)(r % p.batch_rows) * p.y_stride + c;
  const float v = activate(p.act, p.bias ? sum + p.bias[c] : sum);
  store_as(p.y_kind, p.y, at, p.add ? load_as(p.y_kind, p.y, at) + v : v);
}

// A block owns BM x BN values of y, a thread TM x TN of them, one BM / TM apart, K steps of BK at a time; the next step
// is on its way from global memory while this one is multiplied.
template <int BM, int BN, int BK, int TM, int TN, bool EXPERTS> struct Linear {
  static const int ROWS = BM / TM, COLUMNS = BN / TN, THREADS = ROWS * COLUMNS;
  static const int XS = BM * BK / THREADS, WS = BN * BK / THREADS;

  const LinearArgs &p;
  unsigned tid, row0, column0, m; // m: the row after the last
  uint64_t expert;                // where its weights begin

  __device__ __forceinline__ Linear(const LinearArgs &args) : p(args) {
    tid = threadIdx.x, row0 = blockIdx.y * BM, column0 = blockIdx.x * BN, m = p.m;
    expert = 0;
    if (!EXPERTS)
      return;
    // Blocks of rows are counted expert by expert; those after the last have nothing to do.
    row0 = m = 0;
    unsigned tile = blockIdx.y;
    for (unsigned e = 0; e < p.experts; e++) {
      const unsigned begin = p.starts[e], end = p.starts[e + 1], tiles = (end - begin + BM - 1) / BM;
      if (tile < tiles) {
        row0 = begin + tile * BM, m = end, expert = e * p.w_expert;
        return;
      }
      tile -= tiles;
    }
  }

  template <int N>
  __device__ __forceinline__ void fetch(unsigned k0, const uint64_t *rows, bool mine, unsigned kind, const void *from,
                                        unsigned *bits) const {
#pragma unroll
    for (int i = 0; i < N; i++)
      bits[i] = mine && rows[i] != ~0ull ? load_bits(kind, from, rows[i] + k0) : 0;
  }

  __device__ __forceinline__ void run() const {
    if (row0 >= m)
      return;
    // Steps of k outermost, so that a row of values to multiply lies together; a word more keeps writes apart.
    float *xs = (float *)shared_memory(), *ws = xs + BK * (BM + 1);
    const unsigned inner = tid % BK, outer = tid / BK;
    uint64_t x_rows[XS], w_rows[WS];
#pragma unroll
    for (int i = 0; i < XS; i++) {
      const unsigned r = row0 + outer + i * (THREADS / BK);
      x_rows[i] = r < m ? x_row(p, EXPERTS && p.from ? p.from[r] : r) + inner : ~0ull;
    }
#pragma unroll
    for (int i = 0; i < WS; i++) {
      const unsigned c = column0 + outer + i * (THREADS / BK);
      w_rows[i] = c < p.n ? expert + (uint64_t)c * p.w_stride + inner : ~0ull;
    }
    unsigned x_bits[XS], w_bits[WS];
    fetch<XS>(0, x_rows, inner < p.k, p.x_kind, p.x, x_bits);
    fetch<WS>(0, w_rows, inner < p.k, p.w_kind, p.w, w_bits);
    float sum[TM][TN] = {};
    const unsigned row = tid / COLUMNS, column = tid % COLUMNS;
    for (unsigned k0 = 0; k0 < p.k; k0 += BK) {
#pragma unroll
      for (int i = 0; i < XS; i++)
        xs[inner * (BM + 1) + outer + i * (THREADS / BK)] = from_bits(p.x_kind, x_bits[i]);
#pragma unroll
      for (int i = 0; i < WS; i++)
        ws[inner * (BN + 1) + outer + i * (THREADS / BK)] = from_bits(p.w_kind, w_bits[i]);
      __syncthreads();
      if (k0 + BK < p.k) {
        const bool mine = k0 + BK + inner < p.k;
        fetch<XS>(k0 + BK, x_rows, mine, p.x_kind, p.x, x_bits);
        fetch<WS>(k0 + BK, w_rows, mine, p.w_kind, p.w, w_bits);
      }
#pragma unroll
      for (int k = 0; k < BK; k++) {
        float x[TM], w[TN];
#pragma unroll
        for (int i = 0; i < TM; i++)
          x[i] = xs[k * (BM + 1) + row + i * ROWS];
#pragma unroll
        for (int j = 0; j < TN; j++)
          w[j] = ws[k * (BN + 1) + column + j * COLUMNS];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
          for (int j = 0; j < TN; j++)
            sum[i][j] = fmaf(x[i], w[j], sum[i][j]);
      }
      __syncthreads();
    }
    // The epilogue is long: one copy of it, which meets the sums one after the other in the same register.
#pragma unroll 1
    for (int i = 0; i < TM; i++) {
#pragma unroll 1
      for (int j = 0; j < TN; j++) {
        const unsigned r = row0 + row + i * ROWS, c = column0 + column + j * COLUMNS;
        if (r < m && c < p.n)
          put(p, r, c, sum[0][0]);
#pragma unroll
        for (int next = 1; next < TN; next++)
          sum[0][next - 1] = sum[0][next];
      }
#pragma unroll
      for (int next = 1; next < TM; next++)
#pragma unroll
        for (int j = 0; j < TN; j++)
          sum[next - 1][j] = sum[next][j];
    }
  }
};

KERNEL(linear_64, LinearArgs, 256) { Linear<64, 64, 16, 4, 4, false>(args).run(); }
KERNEL(linear_128, LinearArgs, 256) { Linear<128, 128, 8, 8, 8, false>(args).run(); }
KERNEL(linear_experts, LinearArgs, 256) { Linear<64, 64, 16, 4, 4, true>(args).run(); }

// A warp owns a column of y for all rows, up to 8: each weight is read once.
KERNEL(linear_rows, LinearArgs, 128) {
  const LinearArgs &p = args;
  const unsigned lane = threadIdx.x % 32, c = blockIdx.x * 4 + threadIdx.x / 32;
  if (c >= p.n)
    return;
  float sum[8] = {};
  for (unsigned k = lane; k < p.k; k += 32) {
    const float w = load_as(p.w_kind, p.w, (uint64_t)c * p.w_stride + k);
#pragma unroll
    for (int r = 0; r < 8; r++)
      if (r < p.m)
        sum[r] = fmaf(load_as(p.x_kind, p.x, x_row(p, r) + k), w, sum[r]);
  }
#pragma unroll 1
  for (int r = 0; r < p.m; r++) {
    const float v = warp_sum(sum[0]);
    if (lane == 0)
      put(p, r, c, v);
#pragma unroll
    for (int next = 1; next < 8; next++)
      sum[next - 1] = sum[next];
  }
}
