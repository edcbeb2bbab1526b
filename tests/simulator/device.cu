// Kernels that use each name of platform.h's device side, with host functions that run them on copies of arrays.
#include <pequegrad/cuda/platform.h>
#if defined(__CUDACC__)
#define EXPORT extern "C"
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define ALL 0xffffffffu

// Copies `in` to the device, runs, copies `out` back. Poisoned at the start, as fresh memory is.
template <class In, class Out, class F> static int with_arrays(const In* in, long n, Out* out, long m, F run) {
  In* device_in = nullptr;
  Out* device_out = nullptr;
  if (cudaMalloc(&device_in, n * sizeof(In)) != cudaSuccess || cudaMalloc(&device_out, m * sizeof(Out)) != cudaSuccess)
    return -1;
  cudaMemcpy(device_in, in, n * sizeof(In), cudaMemcpyHostToDevice);
  int status = run(device_in, device_out);
  const int copied = cudaMemcpy(out, device_out, m * sizeof(Out), cudaMemcpyDeviceToHost);
  if (status == 0) status = copied;
  cudaFree(device_in);
  cudaFree(device_out);
  return status;
}

// ---- warp collectives ----
static __global__ void warp_values(const int* in, int* out) {
  const int i = threadIdx.x, lane = i & 31;
  const int v = in[i];
  int* o = out + i * 12;
  o[0] = __shfl_sync(ALL, v, 5);
  o[1] = __shfl_sync(ALL, v, lane + 1, 8);
  o[2] = __shfl_xor_sync(ALL, v, 3);
  o[3] = __shfl_down_sync(ALL, v, 4, 16);
  o[4] = __shfl_up_sync(ALL, v, 4, 16);
  o[5] = (int)__ballot_sync(ALL, lane % 3 == 0);
  o[6] = __any_sync(ALL, lane == 7);
  o[7] = __all_sync(ALL, lane < 31);
  o[8] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
  o[9] = __syncthreads_or(i == 40);
  o[10] = __syncthreads_and(i < 64);
  o[11] = __syncthreads_count(i % 4 == 0);
}
EXPORT int run_warp_values(const int* in, int* out) {
  return with_arrays(in, 64, out, 64 * 12, [](int* a, int* b) { return pg_launch(warp_values, 1, 64, 0, 0, a, b); });
}

// ---- atomics: every thread adds one; tickets show the order ----
static __global__ void count_threads(const int*, int* out, float* sum) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x;
  out[1 + thread] = atomicAdd(out, 1);
  atomicAdd(sum, 0.5f);
}
EXPORT int run_tickets(int* out, float* sum, int blocks) {
  float* device_sum = nullptr;
  cudaMalloc(&device_sum, 4);
  cudaMemset(device_sum, 0, 4);
  const int zero = 0;
  const int status = with_arrays(&zero, 1, out, 1 + 32 * blocks, [&](int* a, int* b) {
    cudaMemset(b, 0, 4);
    return pg_launch(count_threads, blocks, 32, 0, 0, a, b, device_sum);
  });
  cudaMemcpy(sum, device_sum, 4, cudaMemcpyDeviceToHost);
  cudaFree(device_sum);
  return status;
}
static __global__ void other_atomics(const int* in, int* out) {
  const int v = in[threadIdx.x];
  atomicMax(out, v);
  atomicMin(out + 1, v);
  if (atomicCAS(out + 2, -1, v) == -1) atomicExch(out + 3, v);
  atomicAdd(reinterpret_cast<unsigned long long*>(out + 4), 1ull << 33);
  atomicAdd(reinterpret_cast<double*>(out + 6), 0.25);
}
EXPORT int run_other_atomics(const int* in, int* out) {
  return with_arrays(in, 64, out, 8, [](int* a, int* b) {
    const int start[8] = {-1000, 1000, -1, -1, 0, 0, 0, 0};
    cudaMemcpy(b, start, sizeof start, cudaMemcpyHostToDevice);
    return pg_launch(other_atomics, 1, 64, 0, 0, a, b);
  });
}

// ---- shared memory ----
static __global__ void reverse(const float* in, float* out) {
  PG_SHARED(float, half, 64);
  PG_DYNAMIC_SHARED(float, rest);
  const int i = threadIdx.x;
  if (i < 64) half[i] = in[i];
  else rest[i - 64] = in[i];
  __syncthreads();
  const float* first = half;
  out[i] = i < 64 ? (&rest[0])[63 - i] : first[127 - i];
}
EXPORT int run_reverse(const float* in, float* out) {
  return with_arrays(in, 128, out, 128, [](float* a, float* b) { return pg_launch(reverse, 1, 128, 64 * 4, 0, a, b); });
}
static __global__ void read_unwritten(const unsigned* in, unsigned* out) {
  PG_SHARED(unsigned, left, 4);
  PG_DYNAMIC_SHARED(unsigned, dynamic);
  out[0] = left[3];
  out[1] = dynamic[1];
  out[2] = in[0];
}
EXPORT int run_read_unwritten(unsigned* out) {
  unsigned *a, *b;
  cudaMalloc(&a, 16);
  cudaMalloc(&b, 12);
  pg_launch(read_unwritten, 1, 1, 16, 0, a, b);
  const int status = cudaMemcpy(out, b, 12, cudaMemcpyDeviceToHost);
  cudaFree(a);
  cudaFree(b);
  return status;
}

// ---- a cooperative grid ----
static __global__ void neighbours(const int* in, int* out, int* between, unsigned* counter, int rounds) {
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  int v = in[i];
  for (int round = 0; round < rounds; ++round) {
    between[i] = v;
    pg_grid_barrier(counter);
    v = between[(i + 1) % n] + 1;
    pg_grid_barrier(counter);
  }
  out[i] = v;
}
EXPORT int run_neighbours(const int* in, int* out, int blocks, int rounds, int cooperative, unsigned start) {
  int* between = nullptr;
  unsigned* counter = nullptr;
  cudaMalloc(&between, blocks * 64 * 4);
  cudaMalloc(&counter, 4);
  cudaMemcpy(counter, &start, 4, cudaMemcpyHostToDevice);
  const int status = with_arrays(in, blocks * 64, out, blocks * 64, [&](int* a, int* b) {
    return cooperative ? pg_launch_cooperative(neighbours, blocks, 64, 0, 0, a, b, between, counter, rounds)
                       : pg_launch(neighbours, blocks, 64, 0, 0, a, b, between, counter, rounds);
  });
  cudaFree(between);
  cudaFree(counter);
  return status;
}

// ---- cp.async: a pipeline of three buffers; the last 16 bytes only half copied ----
static __global__ void pipeline(const float* in, float* out, int tiles) {
  PG_SHARED(float, tile, 3 * 128);
  const int t = threadIdx.x;
  for (int k = 0; k < 2; ++k) {
    if (k < tiles) pg_cp_async16(&tile[k * 128 + t * 4], in + k * 128 + t * 4, k == tiles - 1 && t == 31 ? 8 : 16);
    pg_cp_commit();
  }
  for (int k = 0; k < tiles; ++k) {
    pg_cp_wait<1>();
    __syncthreads();
    const int next = k + 2;
    if (next < tiles)
      pg_cp_async16(&tile[next % 3 * 128 + t * 4], in + next * 128 + t * 4, next == tiles - 1 && t == 31 ? 8 : 16);
    pg_cp_commit();
    for (int e = 0; e < 4; ++e) out[k * 128 + e * 32 + t] = tile[k % 3 * 128 + 127 - (e * 32 + t)];
  }
}
EXPORT int run_pipeline(const float* in, float* out, int tiles) {
  return with_arrays(in, tiles * 128, out, tiles * 128,
                     [=](float* a, float* b) { return pg_launch(pipeline, 1, 32, 0, 0, a, b, tiles); });
}

// ---- tensor cores: row-major A (16 x K) times column-major B (K x 8) ----
static __global__ void multiply_bf16(const unsigned short* in, float* out) {
  PG_SHARED(unsigned short, rows, 16 * 16);
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (unsigned i = lane; i < 256; i += 32) rows[i] = in[i];
  __syncwarp();
  unsigned a[4], b[2];
  pg_ldmatrix_x4(a, &rows[(lane % 16) * 16 + (lane / 16) * 8]);
  const unsigned* columns = reinterpret_cast<const unsigned*>(in + 256);
  b[0] = columns[g * 8 + t];
  b[1] = columns[g * 8 + t + 4];
  float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  pg_mma_bf16(c, a, b);
  for (unsigned r = 0; r < 4; ++r) out[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = c[r];
}
EXPORT int run_multiply_bf16(const unsigned short* in, float* out) {
  return with_arrays(in, 256 + 128, out, 128,
                     [](unsigned short* a, float* b) { return pg_launch(multiply_bf16, 1, 32, 0, 0, a, b); });
}
static __global__ void multiply_tf32(const float* in, float* out) {
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  unsigned a[4], b[2];
  for (unsigned r = 0; r < 4; ++r) a[r] = pg_to_tf32(in[(g + 8 * (r & 1)) * 8 + t + 4 * (r >> 1)]);
  for (unsigned r = 0; r < 2; ++r) b[r] = pg_to_tf32(in[128 + g * 8 + t + 4 * r]);
  float c[4] = {};
  pg_mma_tf32(c, a, b);
  for (unsigned r = 0; r < 4; ++r) out[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = c[r];
}
EXPORT int run_multiply_tf32(const float* in, float* out) {
  return with_arrays(in, 128 + 64, out, 128,
                     [](float* a, float* b) { return pg_launch(multiply_tf32, 1, 32, 0, 0, a, b); });
}
static __global__ void round_floats(const float* in, unsigned* out) {
  out[2 * threadIdx.x] = pg_pack_bf16(in[threadIdx.x], -in[threadIdx.x]);
  out[2 * threadIdx.x + 1] = pg_to_tf32(in[threadIdx.x]);
}
EXPORT int run_round_floats(const float* in, unsigned* out, int n) {
  return with_arrays(in, n, out, 2 * n,
                     [=](float* a, unsigned* b) { return pg_launch(round_floats, 1, n, 0, 0, a, b); });
}

// ---- traffic ----
static __device__ float noted(const float* p) {
  pg_sim_note_load(p, 4);
  return *p;
}
static __device__ void note(float* p, float v) {
  pg_sim_note_store(p, 4);
  *p = v;
}
static __global__ void copy(const float* in, float* out, int n, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) note(out + i, noted(in + i * stride));
}
EXPORT int run_copy(const float* in, float* out, int n, int stride) {
  return with_arrays(in, n * stride, out, n,
                     [=](float* a, float* b) { return pg_launch(copy, (n + 255) / 256, 256, 0, 0, a, b, n, stride); });
}
static __global__ void copy_vectors(const float* in, float* out) {
  const int i = 4 * threadIdx.x;
  pg_sim_note_load(in + i, 16);
  const float4 v = *reinterpret_cast<const float4*>(in + i);
  pg_sim_note_store(out + i, 16);
  *reinterpret_cast<float4*>(out + i) = v;
}
EXPORT int run_copy_vectors(const float* in, float* out) {
  return with_arrays(in, 256, out, 256, [=](float* a, float* b) { return pg_launch(copy_vectors, 1, 64, 0, 0, a, b); });
}
// Blocks of 32 x 8 threads; Width 32 meets the same bank 32 times, 33 never.
template <int Width> static __global__ void transpose(const float* in, float* out, int n) {
  PG_SHARED(float, tile, 32 * Width);
  const int x = threadIdx.x, y = threadIdx.y, c = blockIdx.x * 32, r = blockIdx.y * 32;
  for (int k = y; k < 32; k += 8) tile[k * Width + x] = noted(in + (r + k) * n + c + x);
  __syncthreads();
  for (int k = y; k < 32; k += 8) note(out + (c + k) * n + r + x, tile[x * Width + k]);
}
EXPORT int run_transpose(const float* in, float* out, int n, int padded) {
  return with_arrays(in, n * n, out, n * n, [=](float* a, float* b) {
    const dim3 grid(n / 32, n / 32), block(32, 8);
    return padded ? pg_launch(transpose<33>, grid, block, 0, 0, a, b, n)
                  : pg_launch(transpose<32>, grid, block, 0, 0, a, b, n);
  });
}

// ---- broken rules that are seen where they happen ----
static __global__ void break_rule(const float* in, float* out, int rule) {
  PG_SHARED(float, s, 8);
  if (rule == 0) out[0] = __shfl_sync(0xfffffffeu, in[threadIdx.x], 1);
  if (rule == 1) out[0] = noted(reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + 2));
  if (rule == 2) pg_cp_async16(&s[1], in);
  if (rule == 3) __trap();
  if (rule == 4) out[0] = noted(in + 64);
  if (rule == 5) out[0] = s[8 + threadIdx.x];
  if (rule == 6 && threadIdx.x != 3) out[0] = __shfl_sync(ALL, in[0], 0);
  if (rule == 6 && threadIdx.x == 3) out[0] = (float)__ballot_sync(ALL, 1);
}
EXPORT int run_break_rule(const float* in, float* out, int rule) {
  return with_arrays(in, 64, out, 1,
                     [=](float* a, float* b) { return pg_launch(break_rule, 2, 64, 0, 0, a, b, rule); });
}
static __global__ void too_much_static(float* out) {
#if defined(__CUDACC__)
  out[0] = 0;  // nvcc refuses the array
#else
  PG_SHARED(float, a, 12289);
  out[0] = a[0];
#endif
}
EXPORT int run_too_much_static() {
  float* out = nullptr;
  cudaMalloc(&out, 4);
  pg_launch(too_much_static, 1, 1, 0, 0, out);
  const int status = cudaDeviceSynchronize();
  cudaFree(out);
  return status;
}
EXPORT int run_sizes(int threads, int blocks, long shared) {
  float* out = nullptr;
  const int status = pg_launch(too_much_static, blocks, threads, shared, 0, out);
  cudaGetLastError();
  return status;
}
EXPORT int run_too_large_grid() {
  float* out = nullptr;
  const int status = pg_launch_cooperative(too_much_static, 1000, 256, 0, 0, out);
  cudaGetLastError();
  return status;
}
