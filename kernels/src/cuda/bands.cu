// What lies between samples, spectra and the bands of a mask, as band_mask.rs of the models writes it. The transforms are
// products of linear.cu with the waves as weights.

struct BandArgs {
  const float *x;        // samples that came in, (batch, len, hop)
  float *signal;         // the tail, then x: (batch, kept + len · hop)
  float *spectra;        // (batch · len, bins, 2)
  const unsigned *place; // column of each bin's features, (3, bins), and of its masks, (2, bins)
  const float *mean;     // of the features, (3, bins)
  const float *scale;
  float *features;       // (batch · len, 3 · bins)
  const float *masks;    // (batch · len, 2 · bins)
  const float *shares;   // of each frame, (batch · len, 2 · hop)
  float *y;              // samples that go out, (batch, len, hop)
  float *tail;           // pool of streams: the samples before the next hop that its frame begins with, (kept)
  float *overlap;        // pool of streams: the half of the last output that the next one completes, (hop)
  const unsigned *slots;
  uint64_t state_stride;
  unsigned batch, len, hop, kept, bins;
  float floor, compression;
};

// A block owns a stream.
KERNEL(bands_signal, BandArgs, 256) {
  const BandArgs &p = args;
  const unsigned fresh = p.len * p.hop;
  float *signal = p.signal + (uint64_t)blockIdx.x * (p.kept + fresh);
  float *tail = pool_row(p.tail, p.slots, p.state_stride, blockIdx.x);
  const float *x = p.x + (uint64_t)blockIdx.x * fresh;
  for (unsigned i = threadIdx.x; i < p.kept + fresh; i += 256)
    signal[i] = i < p.kept ? tail[i] : x[i - p.kept];
  __syncthreads();
  for (unsigned i = threadIdx.x; i < p.kept; i += 256)
    tail[i] = signal[fresh + i];
}

// A thread owns a bin of a frame.
KERNEL(bands_features, BandArgs, 256) {
  const BandArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, row = at / p.bins;
  if (row >= (uint64_t)p.batch * p.len)
    return;
  const unsigned bin = at % p.bins;
  const float re = p.spectra[2 * at], im = p.spectra[2 * at + 1];
  const float power = logf(re * re + im * im + p.floor), scale = expf(p.compression * power);
  const float values[3] = {power, re * scale, im * scale};
#pragma unroll
  for (int j = 0; j < 3; j++) {
    const unsigned i = j * p.bins + bin;
    p.features[row * 3 * p.bins + p.place[i]] = (values[j] - p.mean[i]) * p.scale[i];
  }
}

// A thread owns a bin of a frame, which it multiplies by its mask.
KERNEL(bands_masks, BandArgs, 256) {
  const BandArgs &p = args;
  const uint64_t at = (uint64_t)blockIdx.x * 256 + threadIdx.x, row = at / p.bins;
  if (row >= (uint64_t)p.batch * p.len)
    return;
  const unsigned bin = at % p.bins, *place = p.place + 3 * p.bins;
  const float u = p.masks[row * 2 * p.bins + place[bin]], v = p.masks[row * 2 * p.bins + place[p.bins + bin]];
  const float radius = sqrtf(u * u + v * v + 1e-12f), bound = tanhf(radius) / radius;
  const float a = u * bound, b = v * bound, re = p.spectra[2 * at], im = p.spectra[2 * at + 1];
  p.spectra[2 * at] = a * re - b * im;
  p.spectra[2 * at + 1] = a * im + b * re;
}

// A thread owns a place of a stream's hops.
KERNEL(bands_overlap, BandArgs, 256) {
  const BandArgs &p = args;
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  if (i >= p.hop)
    return;
  float *overlap = pool_row(p.overlap, p.slots, p.state_stride, blockIdx.y);
  float rest = overlap[i];
  for (unsigned t = 0; t < p.len; t++) {
    const uint64_t row = (uint64_t)blockIdx.y * p.len + t;
    p.y[row * p.hop + i] = rest + p.shares[row * 2 * p.hop + i];
    rest = p.shares[row * 2 * p.hop + p.hop + i];
  }
  overlap[i] = rest;
}
