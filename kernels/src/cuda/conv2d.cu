// Convolutions over images whose pixels are rows, as conv2d/mod.rs writes them, and over time with overlapping results.

// x (batch, height · width, d), y the same; taps (kernel · kernel, d).
struct DepthwiseArgs {
  const void *x;
  const float *taps, *bias;
  void *y;
  unsigned x_stride, y_stride, kind;
  unsigned batch, height, width, d, kernel, act;
};

// A thread owns a channel of STRIP pixels of a line, whose windows it slides over.
template <int STRIP> __device__ __forceinline__ void depthwise3(const DepthwiseArgs &p) {
  const unsigned strips = (p.width + STRIP - 1) / STRIP;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x;
  const unsigned e = at % p.d, column = at / p.d % strips * STRIP;
  const uint64_t line_of = at / p.d / strips;
  const unsigned line = line_of % p.height, b = line_of / p.height;
  if (b >= p.batch)
    return;
  float x[3][STRIP + 2];
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int j = 0; j < STRIP + 2; j++) {
      // Below 0 wraps around to beyond the image.
      const unsigned from = line + i - 1, across = column + j - 1;
      const uint64_t pixel = ((uint64_t)b * p.height + from) * p.width + across;
      x[i][j] = from < p.height && across < p.width ? load_as(p.kind, p.x, pixel * p.x_stride + e) : 0.0f;
    }
  float y[STRIP];
  const float bias = p.bias[e];
#pragma unroll
  for (int s = 0; s < STRIP; s++)
    y[s] = bias;
#pragma unroll
  for (int i = 0; i < 3; i++)
#pragma unroll
    for (int j = 0; j < 3; j++) {
      const float tap = p.taps[(uint64_t)(3 * i + j) * p.d + e];
#pragma unroll
      for (int s = 0; s < STRIP; s++)
        y[s] = fmaf(tap, x[i][s + j], y[s]);
    }
#pragma unroll 1
  for (int s = 0; s < STRIP && column + s < p.width; s++) {
    const uint64_t pixel = ((uint64_t)b * p.height + line) * p.width + column + s;
    store_as(p.kind, p.y, pixel * p.y_stride + e, activate(p.act, y[0]));
#pragma unroll
    for (int next = 1; next < STRIP; next++)
      y[next - 1] = y[next];
  }
}

KERNEL(depthwise_3, DepthwiseArgs, 256) { depthwise3<4>(args); }

// A thread owns a value; any odd kernel.
KERNEL(depthwise_any, DepthwiseArgs, 256) {
  const DepthwiseArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, pixel = at / p.d;
  const unsigned e = at % p.d, column = pixel % p.width, line = pixel / p.width % p.height;
  const unsigned b = pixel / p.width / p.height, half = p.kernel / 2;
  if (b >= p.batch)
    return;
  float y = p.bias[e];
  for (unsigned i = 0; i < p.kernel; i++)
    for (unsigned j = 0; j < p.kernel; j++) {
      const unsigned from = line + i - half, across = column + j - half;
      const uint64_t source = ((uint64_t)b * p.height + from) * p.width + across;
      if (from < p.height && across < p.width)
        y = fmaf(p.taps[(uint64_t)(i * p.kernel + j) * p.d + e], load_as(p.kind, p.x, source * p.x_stride + e), y);
    }
  store_as(p.kind, p.y, pixel * p.y_stride + e, activate(p.act, y));
}

// x (batch, height · width, d); y (batch · windows, kernel · kernel · d), columns in the order (line, column, channel).
struct WindowArgs {
  const void *x;
  void *y;
  unsigned x_stride, y_stride, kind;
  unsigned batch, height, width, d;
  unsigned kernel, stride, padding, down, across; // windows of an image
  unsigned transposed;   // 1: columns in the order (column, line, channel), as patch merging has them
};

// A thread owns a value of a window.
KERNEL(windows, WindowArgs, 256) {
  const WindowArgs &p = args;
  const unsigned columns = p.kernel * p.kernel * p.d;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, row = at / columns;
  const unsigned column = at % columns, e = column % p.d, tap = column / p.d;
  const unsigned b = row / (p.down * p.across), window = row % (p.down * p.across);
  if (b >= p.batch)
    return;
  const unsigned i = p.transposed ? tap % p.kernel : tap / p.kernel, j = p.transposed ? tap / p.kernel : tap % p.kernel;
  const unsigned line = window / p.across * p.stride + i - p.padding;
  const unsigned place = window % p.across * p.stride + j - p.padding;
  const uint64_t pixel = ((uint64_t)b * p.height + line) * p.width + place;
  const bool there = line < p.height && place < p.width;
  store_as(p.kind, p.y, row * p.y_stride + column, there ? load_as(p.kind, p.x, pixel * p.x_stride + e) : 0.0f);
}

// The second half of a transposed convolution over time whose kernel is twice its stride: row t of x, (batch, len, 2 ·
// stride · d), gives rows stride · t .. stride · (t + 2) of y, (batch, stride · (len + last), d); what overlaps with
// rows that come later stays in the state, (stride, d).
struct OverlapArgs {
  const void *x;
  const float *bias;     // (d)
  void *y;
  float *state;          // pool of streams
  const unsigned *slots;
  uint64_t state_stride, y_batch;
  unsigned x_stride, kind;
  unsigned batch, len, d, stride, act, last;
};

// A thread owns a place between two rows of x, and a channel, for all rows.
KERNEL(overlap_add, OverlapArgs, 128) {
  const OverlapArgs &p = args;
  const unsigned at = blockIdx.x * 128 + threadIdx.x, half = p.stride * p.d;
  if (at >= half)
    return;
  float *state = pool_row(p.state, p.slots, p.state_stride, blockIdx.y) + at;
  const float bias = p.bias[at % p.d];
  float waiting = *state;
  for (unsigned t = 0; t < p.len + p.last; t++) {
    float sum = waiting;
    if (t < p.len) {
      const uint64_t x = ((uint64_t)blockIdx.y * p.len + t) * p.x_stride + at;
      sum += load_as(p.kind, p.x, x);
      waiting = load_as(p.kind, p.x, x + half);
    }
    store_as(p.kind, p.y, blockIdx.y * p.y_batch + (uint64_t)t * half + at, activate(p.act, sum + bias));
  }
  *state = waiting;
}
