// Products of few rows by dot products along k, computed by shares of several workers.
#include "pequegrad/gemm_dots.h"
using namespace pg;

#define SIZES(SIZE)                                                                                                        \
  SIZE(1, 1, 16) SIZE(1, 40, 64) SIZE(1, 17, 100) SIZE(2, 33, 31) SIZE(3, 16, 16) SIZE(4, 64, 77) SIZE(5, 20, 300)         \
  SIZE(6, 48, 256) SIZE(7, 5, 270) SIZE(8, 31, 512) SIZE(10, 70, 64)

// C[M][N] of A, rows a_row apart, and B, columns b_col apart. `touched` counts how often the epilogue saw each element.
template <class T, long M, long N, long K>
static void product(const T* a, long a_row, const T* b, long b_col, T* c, int* touched, int workers) {
  for (int w = 0; w < workers; ++w) {
    long begin, end;
    share(N, PG_LANES, w, workers, begin, end);
    gemm_dots<T, M, N, K>(a, a_row, b, b_col, begin, end, [&](long row, long col, vec<T> sum, long count) {
      store(c + row * N + col, sum, count);
      for (long i = 0; i < PG_LANES; ++i)
        if (i < count) ++touched[row * N + col + i];
        else if (sum.lane(i) != 0) touched[row * N + col] += 100;
    });
  }
}

#define LISTED(M, N, K) {M, N, K},
extern "C" __attribute__((visibility("default"))) long size_of(int which, int extent) {
  static const long sizes[][3] = {SIZES(LISTED)};
  return which < int(sizeof sizes / sizeof *sizes) ? sizes[which][extent] : 0;
}

#define CHOSEN(M, N, K) \
  if (which-- == 0) return product<TYPE, M, N, K>(a, a_row, b, b_col, c, touched, workers);
#define PRODUCT(T)                                                                                                         \
  extern "C" __attribute__((visibility("default"))) void dots_##T(int which, const T* a, long a_row, const T* b, long b_col, T* c, \
                                                                  int* touched, int workers)
#define TYPE f32
PRODUCT(f32) { SIZES(CHOSEN) }
#undef TYPE
#define TYPE f64
PRODUCT(f64) { SIZES(CHOSEN) }
