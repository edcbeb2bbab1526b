// The same kernels right and wrong: `Bug` plants one mistake in each.
#include <pequegrad/cuda/platform.h>
#if defined(__CUDACC__)
#define EXPORT extern "C"
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define ALL 0xffffffffu

static __device__ float warp_sum(float v) {
  for (int distance = 16; distance; distance /= 2) v += __shfl_xor_sync(ALL, v, distance);
  return v;
}

// Missing barrier between the warps' sums and their sum.
template <bool Bug> static __global__ void block_sum(const float* in, float* out, int n, unsigned*) {
  PG_SHARED(float, of_warp, 8);
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = t; i < n; i += 256) sum += in[i];
  sum = warp_sum(sum);
  if (t % 32 == 0) of_warp[t / 32] = sum;
  if (!Bug) __syncthreads();
  sum = warp_sum(t % 32 < 8 ? of_warp[t % 32] : 0.0f);
  out[t] = sum;
}

// Missing barrier before the tile is filled anew: out[r] = sum of in[r + 16 k], turned through shared memory.
template <bool Bug> static __global__ void tile(const float* in, float* out, int n, unsigned*) {
  PG_SHARED(float, square, 16 * 17);
  const int t = threadIdx.x, x = t % 16, y = t / 16;
  float sum = 0;
  for (int k = 0; k + 256 <= n; k += 256) {
    square[y * 17 + x] = in[k + t];
    __syncthreads();
    for (int e = 0; e < 16; ++e) sum += square[e * 17 + y] * (e == x);
    if (!Bug) __syncthreads();
  }
  out[t] = sum;
}

// A wait that leaves the tile to be read under way.
template <bool Bug> static __global__ void wait_for_copy(const float* in, float* out, int n, unsigned*) {
  PG_SHARED(float, buffer, 2 * 1024);
  const int t = threadIdx.x;
  float sum = 0;
  pg_cp_async16(&buffer[4 * t], in + 4 * t);
  pg_cp_commit();
  for (int k = 0; k < n / 1024; ++k) {
    if (k + 1 < n / 1024) pg_cp_async16(&buffer[(k + 1) % 2 * 1024 + 4 * t], in + (k + 1) * 1024 + 4 * t);
    pg_cp_commit();
    if (Bug) pg_cp_wait<2>();
    else pg_cp_wait<1>();
    __syncthreads();
    for (int e = 0; e < 4; ++e) sum += buffer[k % 2 * 1024 + (t + 256 * e)];
    __syncthreads();
  }
  out[t] = sum;
}

// Writes behind a shared array, through a pointer.
template <bool Bug> static __global__ void shared_bounds(const float* in, float* out, int n, unsigned*) {
  PG_SHARED(float, all, 256);
  float* p = all;
  p[threadIdx.x + (Bug && threadIdx.x == 255)] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = n ? p[threadIdx.x] : 0.0f;
}

// Writes behind global memory, through a pointer that no note saw.
template <bool Bug> static __global__ void global_bounds(const float* in, float* out, int n, unsigned*) {
  for (int i = threadIdx.x; i < (Bug ? 257 : 256); i += 256) out[i] = in[i % n];
}

// Writes a megabyte behind global memory, and a megabyte before it, as emitted kernels write.
template <bool Bug> static __global__ void far_behind(const float* in, float* out, int n, unsigned*) {
  for (int i = threadIdx.x; i < 256; i += 256) {
    float* to = out + i + (Bug && i == 255 ? 1 << 18 : 0);
    pg_sim_note_store(to, 4);
    *to = in[i % n];
  }
}
template <bool Bug> static __global__ void far_before(const float* in, float* out, int n, unsigned*) {
  for (int i = threadIdx.x; i < 256; i += 256) {
    float* to = out + i - (Bug && i == 255 ? 1 << 18 : 0);
    pg_sim_note_store(to, 4);
    *to = in[i % n];
  }
}

// A barrier that only some threads reach.
template <bool Bug> static __global__ void divergent(const float* in, float* out, int n, unsigned*) {
  PG_SHARED(float, turned, 256);
  turned[255 - threadIdx.x] = in[threadIdx.x];
  if (!Bug || threadIdx.x < 17) __syncthreads();
  out[threadIdx.x] = n ? turned[threadIdx.x] : 0.0f;
}

// Missing grid barrier between two phases.
template <bool Bug> static __global__ void phases(const float* in, float* out, int n, unsigned* counter) {
  const int i = blockIdx.x * 256 + threadIdx.x, all = gridDim.x * 256;
  float* between = out + all;
  between[i] = in[i] + n;
  if (!Bug) pg_grid_barrier(counter);
  out[i] = between[all - 1 - i];
}

// A neighbour's sum without an atomic: lost only where threads are interrupted between load and store.
template <bool Bug> static __global__ void histogram(const float* in, float* out, int n, unsigned*) {
  for (int i = threadIdx.x; i < n; i += 256) {
    float* bin = out + (i / 256) % 4;
    if (Bug) {
      pg_sim_note_load(bin, 4);
      const float old = *bin;
      pg_sim_note_store(bin, 4);
      *bin = old + (in[i] >= 0.0f);
    } else {
      atomicAdd(bin, in[i] >= 0.0f ? 1.0f : 0.0f);
    }
  }
}

typedef void (*kernel)(const float*, float*, int, unsigned*);
static const int kernel_count = 10;
static kernel choose(int which, bool bug) {
  static const kernel right[] = {block_sum<false>,     tile<false>,      wait_for_copy<false>, shared_bounds<false>,
                                 global_bounds<false>, divergent<false>, phases<false>,        histogram<false>,
                                 far_behind<false>,    far_before<false>};
  static const kernel wrong[] = {block_sum<true>,     tile<true>,      wait_for_copy<true>, shared_bounds<true>,
                                 global_bounds<true>, divergent<true>, phases<true>,        histogram<true>,
                                 far_behind<true>,    far_before<true>};
  return (bug ? wrong : right)[which];
}

EXPORT int run_planted(int which, int bug, const float* in, int n, float* out, int m) {
  float *device_in = nullptr, *device_out = nullptr;
  unsigned* counter = nullptr;
  cudaMalloc(&device_in, n * 4);
  cudaMalloc(&device_out, m * 4);
  cudaMalloc(&counter, 4);
  cudaMemset(counter, 0, 4);
  if (which == 7) cudaMemset(device_out, 0, m * 4);
  cudaMemcpy(device_in, in, n * 4, cudaMemcpyHostToDevice);
  int status = which == 6
                   ? pg_launch_cooperative(choose(which, bug != 0), 4, 256, 0, 0, device_in, device_out, n, counter)
                   : pg_launch(choose(which, bug != 0), 1, 256, 0, 0, device_in, device_out, n, counter);
  const int copied = cudaMemcpy(out, device_out, m * 4, cudaMemcpyDeviceToHost);
  if (status == 0) status = copied;
  cudaFree(device_in);
  cudaFree(device_out);
  cudaFree(counter);
  return status;
}

#if defined(PG_TEST_MAIN)
// planted KERNEL BUG SEED: for the sanitizers, which need a program of their own.
int main(int count, char** arguments) {
  static float in[4096], out[4096];
  if (count != 4) return 2;
  for (int i = 0; i < 4096; ++i) in[i] = (float)(i % 37);
  pg_sim_configure((unsigned long)atoi(arguments[3]), 0, 0);
  const int first = atoi(arguments[1]), last = first < 0 ? kernel_count - 1 : first;
  for (int which = first < 0 ? 0 : first; which <= last; ++which)
    if (run_planted(which, atoi(arguments[2]), in, 4096, out, which == 6 ? 2048 : which == 7 ? 4 : 256) != 0) {
      printf("%s\n", pg_sim_last_report());
      return 3;
    }
  return 0;
}
#endif
