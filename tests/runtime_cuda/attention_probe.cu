// Attention over (batch, queries or keys, Depth) arrays behind a C function.
#include "pequegrad/cuda/attention.h"

#include "probe.h"

template <class T, int Depth, int Width>
__global__ void __launch_bounds__(PG_BLOCK) attention_kernel(long batch, long queries, long keys, long shift, T scale, const T* q, const T* k,
                                                             const T* v, T* out, T* logarithms) {
  pg::attention_forward<T, Depth>(
      whole_grid(), batch, queries, keys, Depth, Depth, shift, pg::strided<T, true, Width>([=](long i) { return q + i * queries * Depth; }, Depth, 1),
      pg::strided<T, true, Width>([=](long i) { return k + i * keys * Depth; }, Depth, 1),
      pg::strided<T, false, Width>([=](long i) { return v + i * keys * Depth; }, 1, Depth), [&](long, long, long, T s) { return s * scale; },
      [&](long i, long row, T value) { pg::store(logarithms + i * queries + row, value); },
      [&](long i, long row, long column, T value) { pg::store(out + (i * queries + row) * Depth + column, value); });
}

template <class T, int Depth, int Width> int attend(const long* s, int blocks, const T* q, const T* k, const T* v, T* out, T* logarithms) {
  const device_array<T> queries(q, s[0] * s[1] * Depth), keys(k, s[0] * s[2] * Depth), values(v, s[0] * s[2] * Depth);
  device_array<T> result(out, queries.count), sums(logarithms, s[0] * s[1]);
  const T scale = T(1) / T(8);
  const int status = run(blocks, pg::attention_shared<T, Depth>, attention_kernel<T, Depth, Width>, s[0], s[1], s[2], s[3], scale, queries.device,
                         keys.device, values.device, result.device, sums.device);
  return status ? status : result.fetch() || sums.fetch();
}

#define PG_EXPORT extern "C" __attribute__((visibility("default")))
// sizes: batch, queries, keys, shift.
PG_EXPORT int probe_attention_f32(const long* sizes, int blocks, int depth, const float* q, const float* k, const float* v, float* out, float* sums) {
  return depth == 16   ? attend<float, 16, 1>(sizes, blocks, q, k, v, out, sums)
         : depth == 64 ? attend<float, 64, 4>(sizes, blocks, q, k, v, out, sums)
                       : attend<float, 128, 4>(sizes, blocks, q, k, v, out, sums);
}
PG_EXPORT int probe_attention_f64(const long* sizes, int blocks, int, const double* q, const double* k, const double* v, double* out, double* sums) {
  return attend<double, 32, 2>(sizes, blocks, q, k, v, out, sums);
}
