// Normalisation over channels with the residual add, as norm/mod.rs writes it.
//
// A warp owns a row, which it keeps in shared memory.
//
//     s = Σ parts x (· silu(z) before)      residual += s, s = residual, if there is one
//     y = norm(s) · weight + bias (· silu(z) after)

struct NormArgs {
  const void *x;         // (parts, rows, d)
  const void *z;         // gate, (rows, d), or none
  float *residual;       // (rows, d), or none
  const float *weight;   // (d)
  const float *bias;     // (d)
  void *y;               // (rows, d)
  uint64_t part_stride;
  unsigned x_stride, z_stride, residual_stride, y_stride;
  unsigned x_kind, y_kind; // z is of the kind of x
  unsigned parts, rows, d;
  unsigned layer;        // 1: mean and variance; 0: root mean square
  unsigned gate_first;
  float eps;
};

KERNEL(norm, NormArgs, 128) {
  const NormArgs &p = args;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
  if (row >= p.rows)
    return;
  float *values = (float *)shared_memory() + warp * p.d;
  const uint64_t r = row;
  float sum = 0.0f;
  for (unsigned e = lane; e < p.d; e += 32) {
    float v = 0.0f;
    for (unsigned part = 0; part < p.parts; part++)
      v += load_as(p.x_kind, p.x, part * p.part_stride + r * p.x_stride + e);
    if (p.z && p.gate_first)
      v *= silu(load_as(p.x_kind, p.z, r * p.z_stride + e));
    if (p.residual) {
      v += p.residual[r * p.residual_stride + e];
      p.residual[r * p.residual_stride + e] = v;
    }
    values[e] = v;
    sum += v;
  }
  const float mean = p.layer ? warp_sum(sum) / (float)p.d : 0.0f;
  float squares = 0.0f;
  // Each lane reads back only what it wrote.
  for (unsigned e = lane; e < p.d; e += 32)
    squares = fmaf(values[e] - mean, values[e] - mean, squares);
  const float scale = 1.0f / sqrtf(warp_sum(squares) / (float)p.d + p.eps);
  for (unsigned e = lane; e < p.d; e += 32) {
    float y = fmaf((values[e] - mean) * scale, p.weight[e], p.bias[e]);
    if (p.z && !p.gate_first)
      y *= silu(load_as(p.x_kind, p.z, r * p.z_stride + e));
    store_as(p.y_kind, p.y, r * p.y_stride + e, y);
  }
}
