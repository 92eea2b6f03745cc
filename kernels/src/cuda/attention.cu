// Attention of a stream's steps over the keys and values it remembers, as attention/mod.rs writes it.
//
// A warp owns a head of a sequence and goes through its steps in order: the step's key and value are written to the
// slot whose turn it is, then the query reads all slots that are filled. Without keys and values of the steps, the
// memory is only read. Lanes take slots while scores are summed, values of the result after it.
//
// q, keys, values, y (batch, len, heads · dim); in the memory, keys (heads, dim, padded) and values (slots, heads ·
// dim).

struct AttentionArgs {
  const float *q;
  const float *keys, *values; // or none
  float *y;
  float *k, *v;          // pools of streams
  const unsigned *pool_slots;
  const unsigned *positions; // steps that each sequence remembered before, (batch)
  const float *scale;    // (heads)
  const float *bias;     // by age, (heads, slots), oldest first, or none
  uint64_t k_stride, v_stride;
  unsigned q_stride, keys_stride, values_stride, y_stride;
  unsigned batch, len, heads, dim, slots, padded;
};

KERNEL(attention, AttentionArgs, 32) {
  const AttentionArgs &p = args;
  const unsigned lane = threadIdx.x, head = blockIdx.x, sequence = blockIdx.y;
  float *scores = (float *)shared_memory(), *q = scores + p.slots; // (slots), (dim)
  float *k = pool_row(p.k, p.pool_slots, p.k_stride, sequence) + (uint64_t)head * p.dim * p.padded;
  float *v = pool_row(p.v, p.pool_slots, p.v_stride, sequence) + head * p.dim;
  const uint64_t width = (uint64_t)p.heads * p.dim;
  const unsigned position = p.positions[sequence];
  const float scale = p.scale[head];
  for (unsigned t = 0; t < p.len; t++) {
    const uint64_t row = (uint64_t)sequence * p.len + t;
    const unsigned newest = p.keys ? (position + t) % p.slots : 0;
    const unsigned filled = min(p.keys ? position + t + 1 : position, p.slots);
    for (unsigned i = lane; i < p.dim; i += 32) {
      q[i] = p.q[row * p.q_stride + head * p.dim + i];
      if (p.keys) {
        k[(uint64_t)i * p.padded + newest] = p.keys[row * p.keys_stride + head * p.dim + i];
        v[newest * width + i] = p.values[row * p.values_stride + head * p.dim + i];
      }
    }
    __syncwarp();
    float most = -INFINITY;
    for (unsigned s = lane; s < filled; s += 32) {
      float sum = 0.0f;
      for (unsigned i = 0; i < p.dim; i++)
        sum = fmaf(q[i], k[(uint64_t)i * p.padded + s], sum);
      const unsigned age = newest >= s ? newest - s : newest + p.slots - s;
      if (p.bias)
        sum += p.bias[(uint64_t)head * p.slots + p.slots - 1 - age];
      scores[s] = sum * scale;
      most = fmaxf(most, scores[s]);
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (unsigned s = lane; s < filled; s += 32) {
      scores[s] = expf(scores[s] - most);
      sum += scores[s];
    }
    sum = warp_sum(sum);
    __syncwarp();
    for (unsigned i = lane; i < p.dim; i += 32) {
      float y = 0.0f;
      for (unsigned s = 0; s < filled; s++)
        y = fmaf(scores[s], v[s * width + i], y);
      p.y[row * p.y_stride + head * p.dim + i] = y / sum;
    }
  }
}
