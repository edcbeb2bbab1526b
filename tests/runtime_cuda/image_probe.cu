// Convolution, pooling, gather, scatter-add and running sums, each behind a C function.
#include "pequegrad/cuda/convolution.h"
#include "pequegrad/cuda/indexing.h"
#include "pequegrad/cuda/product_tensor.h"
#include "pequegrad/cuda/window.h"

#include "probe.h"

#define PG_EXPORT extern "C" __attribute__((visibility("default")))

// ---- convolution -----------------------------------------------------------------------------------------------------

enum { by_wide_tile, by_small_tile, by_tensor_cores, directly };
typedef pg::tensor_tile_32x64<pg::tf32_precision> tensor_tile;

template <int How> __global__ void __launch_bounds__(PG_BLOCK) forward_kernel(pg::conv2d_shape s, const float* x, const float* w, float* y) {
  const auto epilogue = [&](long n, long channel, long position, float v) { pg::store(y + (n * s.O + channel) * s.OH * s.OW + position, v); };
  if constexpr (How == by_wide_tile) pg::conv2d_forward<float, pg::product_tile_16x128, 1>(whole_grid(), s, x, w, epilogue);
  else if constexpr (How == by_small_tile) pg::conv2d_forward<float, pg::product_tile_32, 1>(whole_grid(), s, x, w, epilogue);
  else if constexpr (How == by_tensor_cores) pg::conv2d_forward<float, tensor_tile, 1>(whole_grid(), s, x, w, epilogue);
  else pg::conv2d_forward_direct<float, 4>(whole_grid(), s, x, w, epilogue);
}
template <int How> __global__ void __launch_bounds__(PG_BLOCK) grad_input_kernel(pg::conv2d_shape s, const float* dy, const float* w, float* dx) {
  const auto epilogue = [&](long n, long channel, long position, float v) { pg::store(dx + (n * s.C + channel) * s.H * s.W + position, v); };
  if constexpr (How == by_wide_tile) pg::conv2d_grad_input<float, pg::product_tile_16x128>(whole_grid(), s, dy, w, epilogue);
  else if constexpr (How == by_small_tile) pg::conv2d_grad_input<float, pg::product_tile_32>(whole_grid(), s, dy, w, epilogue);
  else if constexpr (How == by_tensor_cores) pg::conv2d_grad_input<float, tensor_tile>(whole_grid(), s, dy, w, epilogue);
  else pg::conv2d_grad_input_direct<float>(whole_grid(), s, dy, w, epilogue);
}
template <int How>
__global__ void __launch_bounds__(PG_BLOCK) grad_weight_kernel(pg::conv2d_shape s, long chunks, const float* x, const float* dy, float* partials) {
  if constexpr (How == by_wide_tile) pg::conv2d_grad_weight_chunks<float, pg::product_tile_16x128>(whole_grid(), s, chunks, x, dy, partials);
  else if constexpr (How == by_small_tile) pg::conv2d_grad_weight_chunks<float, pg::product_tile_32>(whole_grid(), s, chunks, x, dy, partials);
  else if constexpr (How == by_tensor_cores) pg::conv2d_grad_weight_chunks<float, tensor_tile>(whole_grid(), s, chunks, x, dy, partials);
  else pg::conv2d_grad_weight_direct_chunks<float>(whole_grid(), s, chunks, x, dy, partials);
}
__global__ void __launch_bounds__(PG_BLOCK) combine_weight_kernel(pg::conv2d_shape s, long chunks, const float* partials, long run, float* dw) {
  pg::conv2d_combine_weight<float>(whole_grid(), s, chunks, partials, run,
                                   [&](long row, long column, float v) { pg::store(dw + row * run + column, v); });
}

template <int How>
int convolve(const pg::conv2d_shape& s, int blocks, long chunks, const float* x, const float* w, const float* dy, float* y, float* dx, float* dw) {
  const long in = s.N * s.C * s.H * s.W, out = s.N * s.O * s.OH * s.OW, filter = s.O * pg::conv2d_sum_length(s);
  const long shared = How == by_wide_tile      ? pg::product_shared<float, pg::product_tile_16x128>
                      : How == by_tensor_cores ? pg::product_shared<float, tensor_tile>
                                               : pg::product_shared<float, pg::product_tile_32>;
  const device_array<float> from(x, in), weight(w, filter), gradient(dy, out);
  device_array<float> result(y, out), grad_input(dx, in), grad_weight(dw, filter);
  int status = run(blocks, How == directly ? pg::conv2d_direct_shared<float, 4>(s) : shared, forward_kernel<How>, s, from.device, weight.device,
                   result.device);
  if (!status) status = run(blocks, shared, grad_input_kernel<How>, s, gradient.device, weight.device, grad_input.device);
  float* partials = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&partials), chunks * filter * sizeof(float)) != cudaSuccess) return -2;
  if (!status) status = run(blocks, shared, grad_weight_kernel<How>, s, chunks, from.device, gradient.device, partials);
  if (!status) status = run(blocks, 0, combine_weight_kernel, s, chunks, partials, s.KH * s.KW, grad_weight.device);
  cudaFree(partials);
  return status ? status : result.fetch() || grad_input.fetch() || grad_weight.fetch();
}

PG_EXPORT int probe_conv2d(int how, const pg::conv2d_shape* s, int blocks, long chunks, const float* x, const float* w, const float* dy, float* y,
                           float* dx, float* dw) {
  return how == by_wide_tile      ? convolve<by_wide_tile>(*s, blocks, chunks, x, w, dy, y, dx, dw)
         : how == by_small_tile   ? convolve<by_small_tile>(*s, blocks, chunks, x, w, dy, y, dx, dw)
         : how == by_tensor_cores ? convolve<by_tensor_cores>(*s, blocks, chunks, x, w, dy, y, dx, dw)
                                  : convolve<directly>(*s, blocks, chunks, x, w, dy, y, dx, dw);
}

// ---- pooling ---------------------------------------------------------------------------------------------------------

template <class Index>
__global__ void __launch_bounds__(PG_BLOCK) max_pool_kernel(pg::pool2d_shape s, const float* x, const float* dy, float* y, Index* index, float* dx,
                                                            float* taken) {
  pg::max_pool2d(whole_grid(), s, x, y, index);
  __syncthreads();  // enough between bodies in a grid of one block
  pg::max_pool2d_grad(whole_grid(), s, dy, index, dx);
  pg::window_take(whole_grid(), s, x, index, taken);
}
template <class Index>
int max_pool(const pg::pool2d_shape& s, const float* x, const float* dy, float* y, void* index, float* dx, float* taken) {
  const long in = s.planes * s.H * s.W, out = s.planes * s.OH * s.OW;
  const device_array<float> from(x, in), gradient(dy, out);
  device_array<float> best(y, out), back(dx, in), again(taken, out);
  device_array<Index> places(static_cast<Index*>(index), out);
  const int status = run(1, 0, max_pool_kernel<Index>, s, from.device, gradient.device, best.device, places.device, back.device, again.device);
  return status ? status : best.fetch() || places.fetch() || back.fetch() || again.fetch();
}
PG_EXPORT int probe_max_pool2d(const pg::pool2d_shape* s, int index_bytes, const float* x, const float* dy, float* y, void* index, float* dx,
                               float* taken) {
  return index_bytes == 1 ? max_pool<pg::u8>(*s, x, dy, y, index, dx, taken) : max_pool<pg::i64>(*s, x, dy, y, index, dx, taken);
}

__global__ void __launch_bounds__(PG_BLOCK) avg_pool_kernel(pg::pool2d_shape s, bool count_include_pad, const float* x, const float* dy, float* y,
                                                            float* dx) {
  pg::avg_pool2d(whole_grid(), s, count_include_pad, x, y);
  pg::avg_pool2d_grad(whole_grid(), s, count_include_pad, dy, dx);
}
PG_EXPORT int probe_avg_pool2d(const pg::pool2d_shape* s, int blocks, int count_include_pad, const float* x, const float* dy, float* y, float* dx) {
  const long in = s->planes * s->H * s->W, out = s->planes * s->OH * s->OW;
  const device_array<float> from(x, in), gradient(dy, out);
  device_array<float> mean(y, out), back(dx, in);
  const int status = run(blocks, 0, avg_pool_kernel, *s, count_include_pad != 0, from.device, gradient.device, mean.device, back.device);
  return status ? status : mean.fetch() || back.fetch();
}

// ---- indexing --------------------------------------------------------------------------------------------------------

template <class T, int Width>
__global__ void __launch_bounds__(PG_BLOCK) gather_kernel(pg::index_shape s, const T* table, const pg::i64* index, T* out, pg_failure* failure) {
  pg::gather_rows<Width>(whole_grid(), failure, 7, s, table, index, out);
}
template <class How, class T>
__global__ void __launch_bounds__(PG_BLOCK) scatter_kernel(pg::index_shape s, const T* base, const pg::i64* index, const T* source, T* out,
                                                           pg_failure* failure) {
  pg::scatter_by<How>(whole_grid(), failure, 7, s, base, index, source, out);
}
template <class T> __global__ void __launch_bounds__(PG_BLOCK) scatter_start_kernel(pg::index_shape s, const T* base, T* out) {
  pg::scatter_start(whole_grid(), s, base, out);
}
__global__ void __launch_bounds__(PG_BLOCK) scatter_atomic_kernel(pg::index_shape s, const pg::i64* index, const float* source, float* out,
                                                                  pg_failure* failure) {
  pg::scatter_add_atomic(whole_grid(), failure, 7, s, index, source, out);
}

// sizes: outer, extent, count, inner, one index an element. width 4: rows are read as vectors. failure: code, kernel, value, bound.
template <class T>
int index_all(const long* sizes, int blocks, int width, const T* table, const pg::i64* index, const T* source, T* gathered, T* added, T* replaced,
              T* atomic, long* failure) {
  const pg::index_shape s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4] != 0};
  const long cells = s.outer * s.extent * s.inner, elements = s.outer * s.count * s.inner;
  const device_array<T> base(table, cells), more(source, elements);
  const device_array<pg::i64> at(index, s.per_element ? elements : s.count);
  device_array<T> rows(gathered, elements), sums(added, cells), latest(replaced, cells), fast(atomic, cells);
  pg_failure report = {0, 0, 0, 0};
  device_array<pg_failure> wrong(&report, 1);
  int status = width == 4 ? run(blocks, 0, gather_kernel<T, 4>, s, base.device, at.device, rows.device, wrong.device)
                          : run(blocks, 0, gather_kernel<T, 1>, s, base.device, at.device, rows.device, wrong.device);
  if (!status) status = run(blocks, 0, scatter_kernel<pg::adding, T>, s, base.device, at.device, more.device, sums.device, wrong.device);
  if (!status) status = run(blocks, 0, scatter_kernel<pg::replacing, T>, s, base.device, at.device, more.device, latest.device, wrong.device);
  if constexpr (sizeof(T) == 4) {
    if (!status) status = run(blocks, 0, scatter_start_kernel<T>, s, base.device, fast.device);
    if (!status) status = run(blocks, 0, scatter_atomic_kernel, s, at.device, more.device, fast.device, wrong.device);
  }
  if (status || rows.fetch() || sums.fetch() || latest.fetch() || fast.fetch() || wrong.fetch()) return status ? status : -2;
  failure[0] = report.code;
  failure[1] = report.kernel;
  failure[2] = report.value;
  failure[3] = report.bound;
  return 0;
}
PG_EXPORT int probe_index_f32(const long* sizes, int blocks, int width, const float* table, const pg::i64* index, const float* source,
                              float* gathered, float* added, float* replaced, float* atomic, long* failure) {
  return index_all(sizes, blocks, width, table, index, source, gathered, added, replaced, atomic, failure);
}
PG_EXPORT int probe_index_bf16(const long* sizes, int blocks, int width, const pg::bf16* table, const pg::i64* index, const pg::bf16* source,
                               pg::bf16* gathered, pg::bf16* added, pg::bf16* replaced, pg::bf16* atomic, long* failure) {
  return index_all(sizes, blocks, width, table, index, source, gathered, added, replaced, atomic, failure);
}

template <class T>
__global__ void __launch_bounds__(PG_BLOCK) running_sum_kernel(long outer, long extent, long inner, const T* source, T* out) {
  pg::running_sum(whole_grid(), outer, extent, inner, source, out);
}
template <class T> int sum_up(const long* sizes, int blocks, const T* source, T* out) {
  const long count = sizes[0] * sizes[1] * sizes[2];
  const device_array<T> from(source, count);
  device_array<T> to(out, count);
  const int status = run(blocks, 0, running_sum_kernel<T>, sizes[0], sizes[1], sizes[2], from.device, to.device);
  return status ? status : int(to.fetch());
}
PG_EXPORT int probe_running_sum_f64(const long* sizes, int blocks, const double* source, double* out) { return sum_up(sizes, blocks, source, out); }
PG_EXPORT int probe_running_sum_i64(const long* sizes, int blocks, const pg::i64* source, pg::i64* out) { return sum_up(sizes, blocks, source, out); }
