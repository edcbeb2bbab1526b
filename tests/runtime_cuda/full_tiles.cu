// Every tile at the sizes of real layers, fixed as in an emitted step: what nvcc is asked to compile without a spill.
#include "pequegrad/cuda/attention.h"
#include "pequegrad/cuda/convolution.h"
#include "pequegrad/cuda/indexing.h"
#include "pequegrad/cuda/product_tensor.h"
#include "pequegrad/cuda/window.h"

__device__ __forceinline__ pg::part whole_grid() { return {int(blockIdx.x), int(gridDim.x)}; }

template <class T, class Tile, bool AK, bool BK, int AW, int BW> __device__ __forceinline__ void multiply(const T* a, const T* b, const T* bias, T* c) {
  const long M = 1024, N = 1024, K = 768;
  const auto left = [=](long) { return a; };
  const auto right = [=](long) { return b; };
  pg::product<T, Tile>(whole_grid(), 1, M, N, K, pg::strided<T, AK, AW>(left, AK ? K : 1, AK ? 1 : M),
                       pg::strided<T, BK, BW>(right, BK ? K : 1, BK ? 1 : N), [&](long, long row, long column, pg::value_of<T> v) {
                         pg::store(c + row * N + column, pg::maximum(pg::value_of<T>(v + pg::load(bias + column)), pg::value_of<T>(0)));
                       });
}

#define PG_PRODUCT(NAME, T, ...) \
  __global__ void __launch_bounds__(PG_BLOCK) NAME(const T* a, const T* b, const T* bias, T* c) { multiply<T, __VA_ARGS__>(a, b, bias, c); }
PG_PRODUCT(f32_128_nn, float, pg::product_tile_128, true, false, 4, 4)
PG_PRODUCT(f32_128_nt, float, pg::product_tile_128, true, true, 4, 4)
PG_PRODUCT(f32_128_tn, float, pg::product_tile_128, false, false, 4, 4)
PG_PRODUCT(f32_128_unaligned, float, pg::product_tile_128, true, true, 1, 1)
PG_PRODUCT(f32_128x64, float, pg::product_tile_128x64, true, false, 4, 4)
PG_PRODUCT(f32_64, float, pg::product_tile_64, true, false, 4, 4)
PG_PRODUCT(f64_64x8, double, pg::product_tile_64x8, true, false, 2, 2)
PG_PRODUCT(tf32_128_nt, float, pg::tensor_tile_128<pg::tf32_precision>, true, true, 4, 4)
PG_PRODUCT(tf32_128_tn, float, pg::tensor_tile_128<pg::tf32_precision>, false, false, 4, 4)
PG_PRODUCT(bf16_128_nn, pg::bf16, pg::tensor_tile_128<pg::bf16_precision>, true, false, 8, 8)
PG_PRODUCT(bf16_of_f32_64, float, pg::tensor_tile_64<pg::bf16_precision>, true, false, 4, 4)

// N, C, H, W, O, KH, KW, stride, padding and dilation (each by h and w), groups, OH, OW
#define PG_CONV const pg::conv2d_shape s = {32, 16, 28, 28, 32, 3, 3, 2, 2, 1, 1, 1, 1, 1, 14, 14}
__global__ void __launch_bounds__(PG_BLOCK) conv_forward(const float* x, const float* w, float* y) {
  PG_CONV;
  pg::conv2d_forward<float, pg::product_tile_32x128, 4>(
      whole_grid(), s, x, w, [&](long n, long channel, long position, float v) { pg::store(y + (n * 32 + channel) * 196 + position, v); });
}
__global__ void __launch_bounds__(PG_BLOCK) conv_grad_input(const float* dy, const float* w, float* dx) {
  PG_CONV;
  pg::conv2d_grad_input<float, pg::product_tile_16x128>(
      whole_grid(), s, dy, w, [&](long n, long channel, long position, float v) { pg::store(dx + (n * 16 + channel) * 784 + position, v); });
}
__global__ void __launch_bounds__(PG_BLOCK) conv_grad_weight(const float* x, const float* dy, float* partials) {
  PG_CONV;
  pg::conv2d_grad_weight_chunks<float, pg::product_tile_32>(whole_grid(), s, 8, x, dy, partials);
}
__global__ void __launch_bounds__(PG_BLOCK) conv_forward_tf32(const float* x, const float* w, float* y) {
  PG_CONV;
  pg::conv2d_forward<float, pg::tensor_tile_32x64<pg::tf32_precision>, 4>(
      whole_grid(), s, x, w, [&](long n, long channel, long position, float v) { pg::store(y + (n * 32 + channel) * 196 + position, v); });
}
__global__ void __launch_bounds__(PG_BLOCK) conv_direct(const float* x, const float* w, float* y) {
  const pg::conv2d_shape s = {512, 1, 28, 28, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 28, 28};
  pg::conv2d_forward_direct<float, 8>(
      whole_grid(), s, x, w, [&](long n, long channel, long position, float v) { pg::store(y + (n * 8 + channel) * 784 + position, v); });
}
__global__ void __launch_bounds__(PG_BLOCK) pooling(const float* x, float* y, pg::u8* index, const float* dy, float* dx) {
  const pg::pool2d_shape s = {512, 28, 28, 2, 2, 2, 2, 0, 0, 1, 1, 14, 14};
  pg::max_pool2d(whole_grid(), s, x, y, index);
  pg::max_pool2d_grad(whole_grid(), s, dy, index, dx);
}
__global__ void __launch_bounds__(PG_BLOCK) embedding(const float* table, const int* index, float* out, pg_failure* failure) {
  pg::gather_rows<4>(whole_grid(), failure, 0, pg::index_shape{1, 50257, 4096, 768, false}, table, index, out);
}
__global__ void __launch_bounds__(PG_BLOCK) embedding_grad(const float* zeros, const int* index, const float* source, float* out, pg_failure* failure) {
  pg::scatter_by<pg::adding>(whole_grid(), failure, 1, pg::index_shape{1, 50257, 4096, 768, false}, zeros, index, source, out);
}
// Heads within rows of all heads, as a transformer's one product leaves them: (4, 1024, 3, 12, Depth).
template <int Depth> struct heads_of {
  enum { row = 36 * Depth, out = 12 * Depth };
  template <class P> static __device__ __forceinline__ P* in(P* p, long i) { return p + i / 12 * 1024 * row + i % 12 * Depth; }
  template <class P> static __device__ __forceinline__ P* result(P* p, long i, long r) { return p + (i / 12 * 1024 + r) * out + i % 12 * Depth; }
  static __device__ __forceinline__ auto rows(const float* p) {
    return pg::strided<float, true, 4>([=](long i) { return in(p, i); }, row, 1);
  }
};
template <int Depth>
__global__ void __launch_bounds__(PG_BLOCK, 1) attention(const float* q, const float* k, const float* v, float* out, float* sums) {
  typedef heads_of<Depth> heads;
  pg::attention_forward<float, Depth>(
      whole_grid(), 48, 1024, 1024, Depth, Depth, 0, heads::rows(q), heads::rows(k),
      pg::strided<float, false, 4>([=](long i) { return heads::in(v, i); }, 1, heads::row), [](long, long, long, float score) { return score * 0.125f; },
      [&](long i, long row, float value) { pg::store(sums + i * 1024 + row, value); },
      [&](long i, long row, long column, float value) { pg::store(heads::result(out, i, row) + column, value); });
}
template <int Depth>
__global__ void __launch_bounds__(PG_BLOCK, 1) attention_gradient(const float* q, const float* k, const float* v, const float* g, const float* sums,
                                                                  const float* excess, float* g_q, float* g_k, float* g_v) {
  typedef heads_of<Depth> heads;
  const auto row_of = [](const float* p) { return [=](long i, long row) { return pg::load(p + i * 1024 + row); }; };
  const auto put = [](float* p) { return [=](long i, long row, long column, float value) { pg::store(heads::in(p, i) + row * heads::row + column, value); }; };
  pg::attention_gradient<float, Depth>(
      whole_grid(), 48, 1024, 1024, Depth, Depth, 0, 0.125f, heads::rows(q), heads::rows(k), heads::rows(v),
      pg::strided<float, true, 4>([=](long i) { return heads::result(g, i, 0); }, heads::out, 1), row_of(sums), row_of(excess), put(g_q), put(g_k), put(g_v));
}
#define PG_ATTENTION(D)                                                                                                        \
  template __global__ void attention<D>(const float*, const float*, const float*, float*, float*);                            \
  template __global__ void attention_gradient<D>(const float*, const float*, const float*, const float*, const float*,        \
                                                 const float*, float*, float*, float*);
PG_ATTENTION(32) PG_ATTENTION(64) PG_ATTENTION(128)
