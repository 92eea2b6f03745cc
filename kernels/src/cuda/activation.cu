// What is applied value by value or row by row between the large kernels: sums of parts, gates, activations, softmax,
// means over rows, tokens of an image.

// A thread owns a value: y = Σ parts x · act(gate), or act(Σ parts x) without a gate.
struct GateArgs {
  const void *x;         // (parts, rows, d)
  const void *gate;      // (rows, d), or none
  void *y;               // (rows, d); may be x or the gate
  uint64_t part_stride;
  unsigned x_stride, gate_stride, y_stride;
  unsigned kind, y_kind; // kind of x and the gate
  unsigned parts, rows, d, act;
};

KERNEL(gate, GateArgs, 256) {
  const GateArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, r = at / p.d;
  if (r >= p.rows)
    return;
  const unsigned e = at % p.d;
  float v = 0.0f;
  for (unsigned part = 0; part < p.parts; part++)
    v += load_as(p.kind, p.x, part * p.part_stride + r * p.x_stride + e);
  const float a = activate(p.act, p.gate ? load_as(p.kind, p.gate, r * p.gate_stride + e) : v);
  store_as(p.y_kind, p.y, r * p.y_stride + e, p.gate ? v * a : a);
}

struct RowArgs {
  const void *x;         // (batch, len, d)
  void *y;
  uint64_t x_batch, y_batch;
  unsigned x_stride, y_stride, x_kind, y_kind;
  unsigned batch, len, d, max;
};

// A warp owns a row, len of them in each batch; the maximum is subtracted first.
KERNEL(softmax, RowArgs, 128) {
  const RowArgs &p = args;
  const unsigned lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
  if (row >= p.batch * p.len)
    return;
  const uint64_t from = row / p.len * p.x_batch + (uint64_t)(row % p.len) * p.x_stride;
  const uint64_t to = row / p.len * p.y_batch + (uint64_t)(row % p.len) * p.y_stride;
  float most = -INFINITY, sum = 0.0f;
  for (unsigned e = lane; e < p.d; e += 32)
    most = fmaxf(most, load_as(p.x_kind, p.x, from + e));
  most = warp_max(most);
  for (unsigned e = lane; e < p.d; e += 32)
    sum += expf(load_as(p.x_kind, p.x, from + e) - most);
  sum = warp_sum(sum);
  for (unsigned e = lane; e < p.d; e += 32)
    store_as(p.y_kind, p.y, to + e, expf(load_as(p.x_kind, p.x, from + e) - most) / sum);
}

// A block owns 32 columns of a batch; its 8 warps take every eighth row. y (batch, d): the mean or the largest.
KERNEL(pool, RowArgs, 256) {
  const RowArgs &p = args;
  float *parts = (float *)shared_memory(); // (8, 32)
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, e = blockIdx.x * 32 + lane;
  const bool mine = e < p.d;
  float v = p.max ? -INFINITY : 0.0f;
  for (unsigned row = warp; mine && row < p.len; row += 8) {
    const float x = load_as(p.x_kind, p.x, blockIdx.y * p.x_batch + (uint64_t)row * p.x_stride + e);
    v = p.max ? fmaxf(v, x) : v + x;
  }
  parts[threadIdx.x] = v;
  __syncthreads();
  if (warp || !mine)
    return;
  for (unsigned i = 1; i < 8; i++)
    v = p.max ? fmaxf(v, parts[i * 32 + lane]) : v + parts[i * 32 + lane];
  store_as(p.y_kind, p.y, blockIdx.y * p.y_batch + e, p.max ? v : v / (float)p.len);
}

// A thread owns a value of the tokens: the place's embedding, plus the patch that lies there unless it is a class
// token's.
struct TokenArgs {
  const void *patches;   // (batch, len - classes, d)
  const float *places;   // (len, d)
  void *y;               // (batch, len, d)
  unsigned kind, y_kind;
  unsigned batch, len, d;
  unsigned classes[2];   // rows of class tokens, ascending; len where there is none
};

KERNEL(tokens, TokenArgs, 256) {
  const TokenArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x;
  const unsigned e = at % p.d, row = at / p.d % p.len, b = at / p.d / p.len;
  if (b >= p.batch)
    return;
  float v = p.places[(uint64_t)row * p.d + e];
  const unsigned before = (p.classes[0] < row) + (p.classes[1] < row);
  const unsigned many = p.len - (p.classes[0] < p.len) - (p.classes[1] < p.len);
  if (row != p.classes[0] && row != p.classes[1])
    v += load_as(p.kind, p.patches, ((uint64_t)b * many + row - before) * p.d + e);
  store_as(p.y_kind, p.y, at, v);
}
