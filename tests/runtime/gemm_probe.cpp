// A product computed by shares of several workers; `touched` counts how often the epilogue saw each element.
#include "pequegrad/step.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define GEMM(T)                                                                                                            \
  EXPORT long scratch_##T(long rows, long K) { return gemm_scratch<T>(rows, K); }                                          \
  EXPORT void gemm_##T(const long* size, const T* a, long a_row, long a_col, const T* b, long b_row, long b_col, T* c,     \
                       T* scratch, int workers, int* touched, int updates, bool runs_on) {                                 \
    const long M = size[0], N = size[1], K = size[2];                                                                      \
    gemm_update update[8];                                                                                                 \
    for (int i = 0; i < 8; ++i)                                                                                            \
      update[i] = i % 2 ? gemm_update{touched, N * long(sizeof(int)), sizeof(int)} : gemm_update{c, N * long(sizeof(T)), sizeof(T)}; \
    for (int w = 0; w < workers; ++w) {                                                                                    \
      long row_begin, row_end, col_begin, col_end;                                                                         \
      gemm_share<T>(M, N, K, a_row, a_col, b_row, b_col, w, workers, row_begin, row_end, col_begin, col_end);              \
      const auto epilogue = [&](long row, long col, vec<T> sum, long count) {                                              \
        store(c + row * N + col, sum, count);                                                                              \
        for (long i = 0; i < PG_LANES; ++i)                                                                                \
          if (i < count) ++touched[row * N + col + i];                                                                     \
          else if (sum.lane(i) != 0) touched[row * N + col] += 100;                                                        \
      };                                                                                                                   \
      const auto product = runs_on ? gemm<T, gemm_columns::runs_on, decltype(epilogue)&> : gemm<T, gemm_columns::any, decltype(epilogue)&>;\
      product(M, N, K, a, a_row, a_col, b, b_row, b_col, scratch, row_begin, row_end, col_begin, col_end, epilogue, update, updates, {}, pg::gemm_nothing()); \
    }                                                                                                                      \
  }                                                                                                                        \
  EXPORT void gemm_into_##T(const long* size, const T* a, long a_row, long a_col, const T* b, long b_row, long b_col, T* c, long c_row, \
                            T* scratch, int workers, int updates) {                                                        \
    const long M = size[0], N = size[1], K = size[2];                                                                      \
    const gemm_update update = {c, c_row * long(sizeof(T)), sizeof(T)};                                                    \
    for (int w = 0; w < workers; ++w) {                                                                                    \
      long row_begin, row_end, col_begin, col_end;                                                                         \
      gemm_share<T>(M, N, K, a_row, a_col, b_row, b_col, w, workers, row_begin, row_end, col_begin, col_end);              \
      gemm_into<T>(c, c_row, M, N, K, a, a_row, a_col, b, b_row, b_col, scratch, row_begin, row_end, col_begin, col_end, &update, updates, {}); \
    }                                                                                                                      \
  }
GEMM(f32) GEMM(f64)

EXPORT void shares(long total, long grain, int workers, long* bounds) {
  for (int w = 0; w < workers; ++w) share(total, grain, w, workers, bounds[2 * w], bounds[2 * w + 1]);
}
EXPORT void rectangle(long M, long N, long K, bool a_turned, bool b_turned, int worker, int workers, long* bounds) {
  gemm_share<f32>(M, N, K, a_turned ? 1 : K, a_turned ? M : 1, b_turned ? 1 : N, b_turned ? K : 1, worker, workers, bounds[0], bounds[1], bounds[2], bounds[3]);
}
EXPORT void tile_of(long* out) {
  out[0] = gemm_tile<f32>::rows, out[1] = gemm_tile<f32>::width, out[2] = gemm_tile<f64>::rows, out[3] = gemm_tile<f64>::width;
}
