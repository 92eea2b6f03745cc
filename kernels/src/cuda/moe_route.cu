// Who goes to which expert, as moe_route/mod.rs says, without a count that depends on the order of threads. The
// products in between are those of linear.cu.

struct RouteArgs {
  const float *scores;   // (rows, experts), before softmax
  unsigned *chosen;      // (rows, k), best first
  float *values;         // (rows, k): their share
  unsigned *counts;      // (experts): rows of each
  unsigned *starts;      // (experts + 1)
  unsigned *place;       // (rows, k): where a row's result lies among the experts'
  unsigned *from;        // (rows · k): the row that lies there
  const void *outputs;   // (rows · k, d)
  void *y;               // (rows, d)
  unsigned outputs_stride, y_stride, outputs_kind, y_kind;
  unsigned rows, experts, k, d, add;
};

// A warp owns a row: softmax, then the k largest, the lower number first where two are equal; NaN is below all numbers.
KERNEL(moe_choose, RouteArgs, 128) {
  const RouteArgs &p = args;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * 4 + warp;
  if (row >= p.rows)
    return;
  float *shares = (float *)shared_memory() + warp * p.experts;
  const float *scores = p.scores + (uint64_t)row * p.experts;
  float most = -INFINITY, sum = 0.0f;
  for (unsigned e = lane; e < p.experts; e += 32)
    most = fmaxf(most, scores[e]);
  most = warp_max(most);
  for (unsigned e = lane; e < p.experts; e += 32)
    sum += expf(scores[e] - most);
  sum = warp_sum(sum);
  // A lane reads only what it wrote itself. Shares are 0 or more: below -1 is who was taken, -1 a NaN.
  for (unsigned e = lane; e < p.experts; e += 32) {
    const float share = expf(scores[e] - most) / sum;
    shares[e] = share == share ? share : -1.0f;
  }
  for (unsigned i = 0; i < p.k; i++) {
    float best = -3.0f;
    unsigned which = ~0u;
    for (unsigned e = lane; e < p.experts; e += 32)
      if (shares[e] > best)
        best = shares[e], which = e;
    for (unsigned bit = 16; bit; bit >>= 1) {
      const float other = __shfl_xor_sync(~0u, best, bit);
      const unsigned number = __shfl_xor_sync(~0u, which, bit);
      if (other > best || (other == best && number < which))
        best = other, which = number;
    }
    if (which % 32 == lane)
      shares[which] = -2.0f;
    if (lane == 0) {
      p.chosen[row * p.k + i] = which;
      p.values[row * p.k + i] = best < 0.0f ? __uint_as_float(0x7fc00000) : best;
    }
  }
}

// A warp owns an expert and goes over everybody's choices.
KERNEL(moe_count, RouteArgs, 32) {
  const RouteArgs &p = args;
  unsigned count = 0;
  const unsigned routed = p.rows * p.k;
  for (unsigned i0 = 0; i0 < routed; i0 += 32) {
    const unsigned i = i0 + threadIdx.x;
    count += __popc(__ballot_sync(~0u, i < routed && p.chosen[i] == blockIdx.x));
  }
  if (threadIdx.x == 0)
    p.counts[blockIdx.x] = count;
}

// The same again: the rows of an expert lie together, in the order of the rows.
KERNEL(moe_place, RouteArgs, 32) {
  const RouteArgs &p = args;
  const unsigned lane = threadIdx.x, routed = p.rows * p.k;
  unsigned at = 0;
  for (unsigned e = 0; e < blockIdx.x; e++)
    at += p.counts[e];
  if (lane == 0) {
    p.starts[blockIdx.x] = at;
    if (blockIdx.x + 1 == p.experts)
      p.starts[p.experts] = at + p.counts[blockIdx.x];
  }
  for (unsigned i0 = 0; i0 < routed; i0 += 32) {
    const unsigned i = i0 + lane;
    const bool mine = i < routed && p.chosen[i] == blockIdx.x;
    const unsigned all = __ballot_sync(~0u, mine), before = all & ((1u << lane) - 1);
    if (mine) {
      p.place[i] = at + __popc(before);
      p.from[at + __popc(before)] = i / p.k;
    }
    at += __popc(all);
  }
}

// A thread owns a value of y: the results of a row's experts, best first.
KERNEL(moe_combine, RouteArgs, 256) {
  const RouteArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, row = at / p.d;
  if (row >= p.rows)
    return;
  const unsigned e = at % p.d;
  const uint64_t to = row * p.y_stride + e;
  float sum = p.add ? load_as(p.y_kind, p.y, to) : 0.0f;
  for (unsigned i = 0; i < p.k; i++) {
    const uint64_t place = p.place[row * p.k + i];
    sum = fmaf(p.values[row * p.k + i], load_as(p.outputs_kind, p.outputs, place * p.outputs_stride + e), sum);
  }
  store_as(p.y_kind, p.y, to, sum);
}
