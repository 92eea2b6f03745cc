// Matrix product with the weights as PyTorch stores them: y = act(x Wᵀ + bias), or added to y.
//
// x (m, k), whose rows may overlap (windows) and come in batches apart from each other; w (n, k); y (m, n). A row does
// not depend on the rows beside it: sums run over k in ascending order, in `linear_rows` in 32 parts, on the tensor
// cores sixteen at a time.

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
  // Of a product whose weights the row chooses, else none: rows starts[e] .. starts[e + 1] of y are those of expert e,
  // and row r of y is made of row from[r] of x.
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

// One step of the tensor cores over a warp: c (16, 8) += a (16, 16) b (8, 16)ᵀ, numbers of 16 bits, sums in f32. With g
// = lane / 4, t = lane % 4 a lane holds of c (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), and pairs of
// neighbours of a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), of b: (g, 2t), (g, 2t + 8).
template <int KIND> __device__ __forceinline__ void multiply(float *c, const unsigned *a, const unsigned *b) {
#ifdef SSM_CPU
  const unsigned lane = threadIdx.x % 32, g = lane / 4 * 4, t = lane % 4;
  for (unsigned pair = 0; pair < 8; pair++) {
    const unsigned in = pair % 4, half = pair / 4;
    unsigned rows[2], columns[2];
    for (unsigned i = 0; i < 2; i++) {
      rows[i] = __shfl_sync(~0u, a[i + 2 * half], g + in);
      columns[i] = __shfl_sync(~0u, b[half], (2 * t + i) * 4 + in);
    }
    for (unsigned i = 0; i < 4; i++)
      for (unsigned part = 0; part < 32; part += 16)
        c[i] += from_bits(KIND, rows[i / 2] >> part & 0xffff) * from_bits(KIND, columns[i % 2] >> part & 0xffff);
  }
#else
  if (KIND == BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// A block of eight warps, two by four, owns 32 MT x 32 NT values of y; a warp MT by NT steps of the tensor cores. k
// goes in steps of 32. Rows of x and w begin at 16 bytes, and k is a multiple of 8.
template <int KIND, int MT, int NT> struct TensorLinear {
  static const int BM = 32 * MT, BN = 32 * NT;
  static const int ROW = 40; // a row of 32 numbers in shared memory: eight rows' words fall to different banks

  const LinearArgs &p;
  unsigned tid, lane, row0, column0;

  __device__ __forceinline__ TensorLinear(const LinearArgs &args) : p(args) {
    tid = threadIdx.x, lane = tid % 32, row0 = blockIdx.y * BM, column0 = blockIdx.x * BN;
  }

  // Eight numbers of every row of `rows`, those beyond the matrix zeros.
  template <int N>
  __device__ __forceinline__ void fetch(const void *from, const uint64_t *rows, unsigned k, uint4 *to) const {
    const uint4 none = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < N; i++)
      to[i] = rows[i] != ~0ull && k < p.k ? *(const uint4 *)((const unsigned short *)from + rows[i] + k) : none;
  }

  __device__ __forceinline__ void run() const {
    unsigned short *xs = (unsigned short *)shared_memory(), *ws = xs + BM * ROW; // (BM, ROW), (BN, ROW)
    const unsigned inner = tid % 4 * 8, outer = tid / 4, warp = tid / 32;
    const unsigned row = warp / 4 * 16 * MT, column = warp % 4 * 8 * NT, g = lane / 4, t = lane % 4 * 2;
    uint4 x[BM / 64], w[BN / 64];
    uint64_t x_rows[BM / 64], w_rows[BN / 64];
#pragma unroll
    for (int i = 0; i < BM / 64; i++) {
      const unsigned r = row0 + outer + 64 * i;
      x_rows[i] = r < p.m ? x_row(p, r) : ~0ull;
    }
#pragma unroll
    for (int i = 0; i < BN / 64; i++) {
      const unsigned c = column0 + outer + 64 * i;
      w_rows[i] = c < p.n ? (uint64_t)c * p.w_stride : ~0ull;
    }
    fetch<BM / 64>(p.x, x_rows, inner, x);
    fetch<BN / 64>(p.w, w_rows, inner, w);
    float sum[MT][NT][4] = {};
    for (unsigned k0 = 0; k0 < p.k; k0 += 32) {
#pragma unroll
      for (int i = 0; i < BM / 64; i++)
        *(uint4 *)(xs + (outer + 64 * i) * ROW + inner) = x[i];
#pragma unroll
      for (int i = 0; i < BN / 64; i++)
        *(uint4 *)(ws + (outer + 64 * i) * ROW + inner) = w[i];
      __syncthreads();
      if (k0 + 32 < p.k) {
        fetch<BM / 64>(p.x, x_rows, k0 + 32 + inner, x);
        fetch<BN / 64>(p.w, w_rows, k0 + 32 + inner, w);
      }
#pragma unroll
      for (int k = 0; k < 32; k += 16) {
        unsigned a[MT][4], b[NT][2];
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            a[i][j] = *(const unsigned *)(xs + (row + 16 * i + g + j % 2 * 8) * ROW + k + t + j / 2 * 8);
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
          for (int j = 0; j < 2; j++)
            b[i][j] = *(const unsigned *)(ws + (column + 8 * i + g) * ROW + k + t + j * 8);
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int j = 0; j < NT; j++)
            multiply<KIND>(sum[i][j], a[i], b[j]);
      }
      __syncthreads();
    }
    // Sixteen rows at a time go through the warp's part of shared memory, so that lanes write neighbours.
    const int WIDE = 8 * NT;
    float *out = (float *)shared_memory() + warp * 16 * (WIDE + 1);
#pragma unroll 1
    for (int i = 0; i < MT; i++) {
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int v = 0; v < 4; v++)
          out[(g + v / 2 * 8) * (WIDE + 1) + 8 * j + t + v % 2] = sum[0][j][v];
      __syncwarp();
#pragma unroll 1
      for (unsigned at = lane; at < 16 * WIDE; at += 32) {
        const unsigned r = row0 + row + 16 * i + at / WIDE, c = column0 + column + at % WIDE;
        if (r < p.m && c < p.n)
          put(p, r, c, out[at / WIDE * (WIDE + 1) + at % WIDE]);
      }
      __syncwarp();
#pragma unroll
      for (int next = 1; next < MT; next++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
          for (int v = 0; v < 4; v++)
            sum[next - 1][j][v] = sum[next][j][v];
    }
  }
};

KERNEL(linear_64_bf16, LinearArgs, 256) { TensorLinear<BF16, 2, 2>(args).run(); }
KERNEL(linear_128_bf16, LinearArgs, 256) { TensorLinear<BF16, 4, 4>(args).run(); }
KERNEL(linear_64_f16, LinearArgs, 256) { TensorLinear<F16, 2, 2>(args).run(); }
KERNEL(linear_128_f16, LinearArgs, 256) { TensorLinear<F16, 4, 4>(args).run(); }
