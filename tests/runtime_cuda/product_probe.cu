// Products of strided operands, all tiles and ways of walking, behind one C function.
#include "pequegrad/cuda/product_tensor.h"

#include "probe.h"

struct sizes {
  long batch, M, N, K, chunks;
  long a_batch, a_line, a_k, b_batch, b_line, b_k;
};

template <class T, bool AlongK, int Width> __device__ __forceinline__ auto operand_of(const T* start, long batch, long line, long k) {
  const auto base = [=](long matrix) { return start + matrix * batch; };
  return pg::strided<T, AlongK, Width>(base, line, k);
}

template <class T, class Tile, bool AK, bool BK, int AW, int BW>
__global__ void __launch_bounds__(PG_BLOCK) product_kernel(sizes s, const T* a, const T* b, const T* bias, T* c) {
  pg::product<T, Tile>(whole_grid(), s.batch, s.M, s.N, s.K, operand_of<T, AK, AW>(a, s.a_batch, s.a_line, s.a_k),
                       operand_of<T, BK, BW>(b, s.b_batch, s.b_line, s.b_k), [&](long batch, long row, long column, pg::value_of<T> v) {
                         pg::store(c + (batch * s.M + row) * s.N + column, pg::value_of<T>(v + pg::load(bias + column)));
                       });
}
template <class T, class Tile, bool AK, bool BK, int AW, int BW>
__global__ void __launch_bounds__(PG_BLOCK) chunks_kernel(sizes s, const T* a, const T* b, pg::value_of<T>* partials) {
  pg::product_chunks<T, Tile>(whole_grid(), s.batch, s.M, s.N, s.K, s.chunks, operand_of<T, AK, AW>(a, s.a_batch, s.a_line, s.a_k),
                              operand_of<T, BK, BW>(b, s.b_batch, s.b_line, s.b_k), partials);
}
template <class T> __global__ void __launch_bounds__(PG_BLOCK) combine_kernel(sizes s, const pg::value_of<T>* partials, const T* bias, T* c) {
  pg::product_combine<T>(whole_grid(), s.batch, s.M, s.N, s.chunks, partials, [&](long batch, long row, long column, pg::value_of<T> v) {
    pg::store(c + (batch * s.M + row) * s.N + column, pg::value_of<T>(v + pg::load(bias + column)));
  });
}

template <class T, class Tile, bool AK, bool BK, int AW, int BW>
int multiply(const sizes& s, int blocks, const void* a, long a_count, const void* b, long b_count, const void* bias, void* c) {
  const device_array<T> left(static_cast<const T*>(a), a_count), right(static_cast<const T*>(b), b_count);
  const device_array<T> added(static_cast<const T*>(bias), s.N);
  device_array<T> out(static_cast<T*>(c), s.batch * s.M * s.N);
  const long shared = pg::product_shared<T, Tile>;
  int status;
  if (s.chunks == 0) {
    status = run(blocks, shared, product_kernel<T, Tile, AK, BK, AW, BW>, s, left.device, right.device, added.device, out.device);
  } else {
    pg::value_of<T>* partials;
    if (cudaMalloc(reinterpret_cast<void**>(&partials), s.chunks * out.count * sizeof *partials) != cudaSuccess) return -2;
    status = run(blocks, shared, chunks_kernel<T, Tile, AK, BK, AW, BW>, s, left.device, right.device, partials);
    if (!status) status = run(blocks, 0, combine_kernel<T>, s, partials, added.device, out.device);
    cudaFree(partials);
  }
  return status ? status : int(out.fetch());
}

// kind: the row of the list.
extern "C" __attribute__((visibility("default"))) int probe_product(int kind, const sizes* s, int blocks, const void* a, long a_count, const void* b,
                                                                   long b_count, const void* bias, void* c) {
#define PG_CASE(NUMBER, ...) \
  case NUMBER: return multiply<__VA_ARGS__>(*s, blocks, a, a_count, b, b_count, bias, c);
  switch (kind) {
    PG_CASE(0, float, pg::product_tile_128, true, false, 4, 4)
    PG_CASE(1, float, pg::product_tile_128, false, true, 1, 1)
    PG_CASE(2, float, pg::product_tile_128x64, true, true, 4, 4)
    PG_CASE(3, float, pg::product_tile_64, false, false, 4, 4)
    PG_CASE(4, float, pg::product_tile_64, true, false, 1, 1)
    PG_CASE(5, float, pg::product_tile_32, true, true, 1, 1)
    PG_CASE(6, float, pg::product_tile_32, true, false, 4, 2)
    PG_CASE(7, float, pg::product_tile_32x128, false, true, 1, 4)
    PG_CASE(8, float, pg::product_tile_16x128, true, false, 1, 1)
    PG_CASE(9, double, pg::product_tile_64x8, true, false, 2, 2)
    PG_CASE(10, double, pg::product_tile_32, false, true, 1, 1)
    PG_CASE(11, pg::i32, pg::product_tile_32, true, false, 1, 1)
    PG_CASE(12, pg::i64, pg::product_tile_64x8, true, true, 1, 1)
    PG_CASE(13, pg::bf16, pg::product_tile_64, true, false, 4, 4)
    PG_CASE(14, pg::f16, pg::product_tile_32, false, true, 1, 1)
    PG_CASE(15, float, pg::tensor_tile_128<pg::tf32_precision>, true, true, 4, 4)
    PG_CASE(16, float, pg::tensor_tile_64<pg::tf32_precision>, true, false, 4, 4)
    PG_CASE(17, float, pg::tensor_tile_32x64<pg::tf32_precision>, false, true, 1, 1)
    PG_CASE(18, float, pg::tensor_tile_128x64<pg::bf16_precision>, true, false, 4, 1)
    PG_CASE(19, float, pg::tensor_tile_64<pg::bf16_precision>, false, true, 1, 1)
    PG_CASE(20, pg::bf16, pg::tensor_tile_128<pg::bf16_precision>, true, false, 8, 8)
    PG_CASE(21, pg::bf16, pg::tensor_tile_32x64<pg::bf16_precision>, true, true, 8, 1)
    PG_CASE(22, pg::bf16, pg::tensor_tile_128x64<pg::bf16_precision>, false, true, 8, 8)
    PG_CASE(23, float, pg::tensor_tile_32x64<pg::bf16_precision>, true, true, 4, 1)
  }
  return -1;
}
