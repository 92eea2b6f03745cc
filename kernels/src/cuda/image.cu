// From bytes of frames to rows of patches: Pillow's resize as resize/bytes.rs plans it, bit for bit, then colours, mean
// and deviation on the way into the rows that the patch embedding multiplies.

// A thread owns a byte.
struct ResizeArgs {
  const unsigned char *x; // rows of x_stride bytes
  unsigned char *y;       // (rows, row)
  const unsigned *first;  // first input place of each output place of the axis
  const int *weights;     // (places, taps)
  unsigned x_stride, row, rows; // bytes of an output row; output rows
  unsigned taps, channels;
  unsigned from;          // first row of x that the plan speaks of
};

__device__ __forceinline__ unsigned char in_bytes(int sum) {
  // 22 bits after the point.
  sum = (sum + (1 << 21)) >> 22;
  return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

// Columns of rows from .. from + rows of x.
KERNEL(resize_columns, ResizeArgs, 256) {
  const ResizeArgs &p = args;
  const unsigned at = blockIdx.x * 256 + threadIdx.x, r = at / p.row;
  if (r >= p.rows)
    return;
  const unsigned column = at % p.row / p.channels, c = at % p.channels;
  const unsigned char *x = p.x + (uint64_t)(p.from + r) * p.x_stride + p.first[column] * p.channels + c;
  int sum = 0;
  for (unsigned k = 0; k < p.taps; k++)
    sum += p.weights[(uint64_t)column * p.taps + k] * x[k * p.channels];
  p.y[at] = in_bytes(sum);
}

// Rows; x begins with row `from` of the plan.
KERNEL(resize_rows, ResizeArgs, 256) {
  const ResizeArgs &p = args;
  const unsigned at = blockIdx.x * 256 + threadIdx.x, r = at / p.row;
  if (r >= p.rows)
    return;
  const unsigned char *x = p.x + (uint64_t)(p.first[r] - p.from) * p.x_stride + at % p.row;
  int sum = 0;
  for (unsigned k = 0; k < p.taps; k++)
    sum += p.weights[(uint64_t)r * p.taps + k] * x[(uint64_t)k * p.x_stride];
  p.y[at] = in_bytes(sum);
}

// A thread owns a value of a patch: rows (image, patch), columns (channel, row, column) as patch.rs orders them. One patch
// of the image's size is the image in planes.
struct PatchArgs {
  const unsigned char *channel[3]; // first byte of R, G, B, or of Y, U, V
  const float *table;     // (3, 256): value of each byte, or none: Y, U, V
  void *y;
  uint64_t image;         // bytes between images
  unsigned step[3];       // bytes between pixels
  unsigned height, width, lines, patch, stride; // a patch has `lines` lines of `patch` pixels
  unsigned batch, kind;
  float black, luma, wu[3], wv[3], mean[3], deviation[3];
};

KERNEL(patches, PatchArgs, 256) {
  const PatchArgs &p = args;
  const unsigned across = (p.width - p.patch) / p.stride + 1, down = (p.height - p.lines) / p.stride + 1;
  const unsigned area = p.lines * p.patch, columns = 3 * area;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, row = at / columns;
  const unsigned b = row / (across * down);
  if (b >= p.batch)
    return;
  const unsigned place = row % (across * down), column = at % columns, c = column / area;
  const unsigned line = place / across * p.stride + column % area / p.patch;
  const uint64_t pixel = (uint64_t)line * p.width + place % across * p.stride + column % p.patch;
  float v;
  if (p.table) {
    // Arguments are read at places that are known: no copy of them is made for that.
    const unsigned char *from = c == 0 ? p.channel[0] : c == 1 ? p.channel[1] : p.channel[2];
    v = p.table[c * 256 + from[b * p.image + pixel * p.step[0]]];
  } else {
    const float luma = p.channel[0][b * p.image + pixel * p.step[0]];
    const float u = (float)p.channel[1][b * p.image + pixel * p.step[1]] - 128.0f;
    const float w = (float)p.channel[2][b * p.image + pixel * p.step[2]] - 128.0f;
    const float wu = c == 0 ? p.wu[0] : c == 1 ? p.wu[1] : p.wu[2], wv = c == 0 ? p.wv[0] : c == 1 ? p.wv[1] : p.wv[2];
    const float mean = c == 0 ? p.mean[0] : c == 1 ? p.mean[1] : p.mean[2];
    const float deviation = c == 0 ? p.deviation[0] : c == 1 ? p.deviation[1] : p.deviation[2];
    v = (luma - p.black) * p.luma + wu * u + wv * w;
    v = (fminf(fmaxf(v, 0.0f), 255.0f) / 255.0f - mean) / deviation;
  }
  store_as(p.kind, p.y, at, v);
}
