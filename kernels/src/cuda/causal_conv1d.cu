// Causal depthwise convolution over time, as causal_conv1d/mod.rs writes it.
//
// A thread owns a channel of one sequence and one direction, and STEPS rows of it; the last K rows are in registers.
// The thread of the first rows alone reads the old tail and leaves the new one.
//
// x (batch, len, d), the same for all directions; y (directions, batch, len, d); taps (directions, k, d); the tail
// (k - 1, d), oldest first.

struct ConvArgs {
  const void *x;
  const float *taps;
  const float *bias;     // (directions, d)
  void *y;
  float *tail;           // pool of streams, or none
  const unsigned *slots;
  uint64_t y_dir, tail_dir, tail_stride;
  unsigned x_stride, y_stride, kind;
  unsigned batch, len, d, k, act;
  unsigned reversed, carried; // a bit a direction
};

template <int K, int STEPS> struct CausalConv {
  const ConvArgs &p;
  unsigned e, direction, sequence;
  float *tail;

  __device__ __forceinline__ uint64_t row(int t) const {
    const unsigned r = p.reversed >> direction & 1 ? p.len - 1 - t : t;
    return (uint64_t)sequence * p.len + r;
  }

  // x at a time, which may lie before the first row.
  __device__ __forceinline__ float source(int t) const {
    if (t >= 0)
      return load_as(p.kind, p.x, row(t) * p.x_stride + e);
    return tail ? tail[(uint64_t)((int)p.k - 1 + t) * p.d + e] : 0.0f;
  }

  __device__ __forceinline__ CausalConv(const ConvArgs &args) : p(args) {
    e = blockIdx.x * 128 + threadIdx.x;
    direction = blockIdx.z / p.batch, sequence = blockIdx.z % p.batch;
    tail = 0;
    if (p.tail && p.carried >> direction & 1)
      tail = pool_row(p.tail, p.slots, p.tail_stride, sequence) + direction * p.tail_dir;
  }

  __device__ __forceinline__ void run() const {
    if (e >= p.d)
      return;
    const int len = p.len, k = p.k, first = blockIdx.y * STEPS, end = min(first + STEPS, len);
    // Taps and window end at place K - 1; places before K - k are not used.
    float taps[K], x[K];
#pragma unroll
    for (int j = 0; j < K; j++) {
      taps[j] = j >= K - k ? p.taps[((uint64_t)direction * k + j - (K - k)) * p.d + e] : 0.0f;
      x[j] = j > K - k ? source(first - K + j) : 0.0f;
    }
    if (tail && first == 0) {
      float last[K];
#pragma unroll
      for (int j = 1; j < K; j++)
        last[j] = j > K - k ? source(len - K + j) : 0.0f;
#pragma unroll
      for (int j = 1; j < K; j++)
        if (j > K - k)
          tail[(uint64_t)(j - 1 - (K - k)) * p.d + e] = last[j];
    }
    const float bias = p.bias[direction * p.d + e];
#pragma unroll 1
    for (int t = first; t < end; t++) {
#pragma unroll
      for (int j = 1; j < K; j++)
        x[j - 1] = x[j];
      x[K - 1] = source(t);
      float y = bias;
#pragma unroll
      for (int j = 0; j < K; j++)
        if (j >= K - k)
          y = fmaf(taps[j], x[j], y);
      store_as(p.kind, p.y, direction * p.y_dir + row(t) * p.y_stride + e, activate(p.act, y));
    }
  }
};

KERNEL(causal_conv1d_k4, ConvArgs, 128) { CausalConv<4, 16>(args).run(); }
KERNEL(causal_conv1d_k8, ConvArgs, 128) { CausalConv<8, 16>(args).run(); }
