// Mistakes that the runner must find, beside the same without them.

struct PlantedArgs {
  const float *x;
  float *y;
  unsigned n;
};

// Threads each sum what the thread of the other warps put down.
template <bool BARRIER> __device__ __forceinline__ void turned(const PlantedArgs &p) {
  float *values = (float *)shared_memory();
  const unsigned i = threadIdx.x;
  values[i] = p.x[i];
  if (BARRIER)
    __syncthreads();
  p.y[i] = values[p.n - 1 - i] + values[i];
}
KERNEL(planted_no_barrier, PlantedArgs, 128) { turned<false>(args); }
KERNEL(planted_none_of_barrier, PlantedArgs, 128) { turned<true>(args); }

// A barrier that is there, but not at both places: the next round overwrites what others still read.
template <bool BARRIER> __device__ __forceinline__ void rounds(const PlantedArgs &p) {
  float *values = (float *)shared_memory();
  const unsigned i = threadIdx.x;
  float sum = 0.0f;
  for (unsigned round = 0; round < 4; round++) {
    values[i] = p.x[i] * (float)(round + 1);
    __syncthreads();
    sum += values[p.n - 1 - i];
    if (BARRIER)
      __syncthreads();
  }
  p.y[i] = sum;
}
KERNEL(planted_one_barrier, PlantedArgs, 128) { rounds<false>(args); }
KERNEL(planted_none_of_rounds, PlantedArgs, 128) { rounds<true>(args); }

// Differences of neighbours: the last has none.
template <bool OFF> __device__ __forceinline__ void differences(const PlantedArgs &p) {
  const unsigned i = blockIdx.x * 128 + threadIdx.x;
  if (i < p.n - (OFF ? 0 : 1))
    p.y[i] = p.x[i + 1] - p.x[i];
}
KERNEL(planted_off_by_one, PlantedArgs, 128) { differences<true>(args); }
KERNEL(planted_none_of_off_by_one, PlantedArgs, 128) { differences<false>(args); }

// One before the first.
KERNEL(planted_off_by_one_below, PlantedArgs, 128) {
  const unsigned i = blockIdx.x * 128 + threadIdx.x;
  if (i < args.n)
    args.y[i] = args.x[i] - args.x[(int)i - 1];
}

template <bool GUARD> __device__ __forceinline__ void copied(const PlantedArgs &p) {
  const unsigned i = blockIdx.x * 128 + threadIdx.x;
  if (!GUARD || i < p.n)
    p.y[i] = p.x[i];
}
KERNEL(planted_no_guard, PlantedArgs, 128) { copied<false>(args); }
KERNEL(planted_none_of_guard, PlantedArgs, 128) { copied<true>(args); }

// Every block adds to one value; with numbers of several sizes the order shows.
KERNEL(planted_race, PlantedArgs, 128) {
  const unsigned i = blockIdx.x * 128 + threadIdx.x;
  if (i < args.n)
    atomicAdd(args.y, args.x[i]);
}

// Warps read, add and write without anything between them.
KERNEL(planted_lost_update, PlantedArgs, 128) {
  const float sum = warp_sum(args.x[threadIdx.x]);
  const float old = args.y[0];
  const float all = __shfl_sync(~0u, old + sum, 0);
  if (threadIdx.x % 32 == 0)
    args.y[0] = all;
}

// Shared memory that nobody wrote.
KERNEL(planted_uninitialised, PlantedArgs, 128) {
  float *values = (float *)shared_memory();
  if (threadIdx.x)
    values[threadIdx.x] = args.x[threadIdx.x];
  __syncthreads();
  args.y[threadIdx.x] = values[threadIdx.x];
}

// More shared memory than the launch gives.
KERNEL(planted_small_shared, PlantedArgs, 128) {
  float *values = (float *)shared_memory();
  values[threadIdx.x + 4] = args.x[threadIdx.x];
  args.y[threadIdx.x] = values[threadIdx.x + 4];
}

// Lanes of a warp that rely on running in step.
template <bool SYNC> __device__ __forceinline__ void in_step(const PlantedArgs &p) {
  float *values = (float *)shared_memory();
  const unsigned i = threadIdx.x;
  values[i] = p.x[i];
  if (SYNC)
    __syncwarp();
  p.y[i] = values[i ^ 1];
}
KERNEL(planted_in_step, PlantedArgs, 128) { in_step<false>(args); }
KERNEL(planted_none_of_in_step, PlantedArgs, 128) { in_step<true>(args); }

// A barrier that only some threads reach, and an exchange with lanes that have left.
KERNEL(planted_left_early, PlantedArgs, 128) {
  if (threadIdx.x >= 100)
    return;
  __syncthreads();
  args.y[threadIdx.x] = args.x[threadIdx.x];
}
KERNEL(planted_lanes_left, PlantedArgs, 128) {
  if (threadIdx.x >= 100)
    return;
  args.y[threadIdx.x] = warp_sum(args.x[threadIdx.x]);
}

// Two numbers at once from a place where only one may lie.
KERNEL(planted_misaligned, PlantedArgs, 128) {
  const unsigned i = threadIdx.x;
  if (2 * i + 2 >= args.n)
    return;
  const float2 pair = *(const float2 *)(args.x + 2 * i + 1);
  args.y[i] = pair.x + pair.y;
}

// One register too far.
KERNEL(planted_beyond_registers, PlantedArgs, 128) {
  float values[4];
  for (unsigned i = 0; i < 4; i++)
    values[i] = args.x[i];
  args.y[threadIdx.x] = values[threadIdx.x % 5];
}

KERNEL(planted_division_by_zero, PlantedArgs, 128) { args.y[threadIdx.x] = threadIdx.x / (args.n - 128); }
