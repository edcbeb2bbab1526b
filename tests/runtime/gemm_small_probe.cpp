// Small products, whose sizes are constants, computed by shares of several workers, beside gemm's own sums.
#include "pequegrad/gemm_small.h"
using namespace pg;

// C[M][N] of A[M][K] and B[K][N], stored by rows or by columns. `touched` counts how often the epilogue saw each element.
template <class T, long M, long N, long K, bool A_BY_ROWS, bool B_BY_ROWS>
static void product(const T* a, const T* b, T* c, int* touched, int workers) {
  for (int w = 0; w < workers; ++w) {
    long row_begin, row_end, col_begin, col_end;
    small_tile<T, M, N>::share(w, workers, row_begin, row_end, col_begin, col_end);
    gemm_small<T, M, N, K, A_BY_ROWS ? K : 1, A_BY_ROWS ? 1 : M, B_BY_ROWS ? N : 1, B_BY_ROWS ? 1 : K>(
        a, b, row_begin, row_end, col_begin, col_end, [&](long row, long col, vec<T> sum, long count) {
          store(c + row * N + col, sum, count);
          for (long i = 0; i < PG_LANES; ++i)
            if (i < count) ++touched[row * N + col + i];
            else if (sum.lane(i) != 0) touched[row * N + col] += 100;
        });
  }
}

struct size {
  long m, n, k;
};
static const size sizes[] = {
#define SIZE(M, N, K) {M, N, K},
#include "gemm_small_sizes.inc"
#undef SIZE
};

extern "C" __attribute__((visibility("default"))) long size_of(int which, int extent) {
  if (which >= int(sizeof sizes / sizeof *sizes)) return 0;
  return extent == 0 ? sizes[which].m : extent == 1 ? sizes[which].n : sizes[which].k;
}

#define SIZE(M, N, K)                                                                                                    \
  if (which-- == 0)                                                                                                      \
    return a_by_rows ? (b_by_rows ? product<TYPE, M, N, K, true, true> : product<TYPE, M, N, K, true, false>)(a, b, c, touched, workers) \
                     : (b_by_rows ? product<TYPE, M, N, K, false, true> : product<TYPE, M, N, K, false, false>)(a, b, c, touched, workers);
#define PRODUCT(T)                                                                                                       \
  extern "C" __attribute__((visibility("default"))) void small_##T(int which, bool a_by_rows, bool b_by_rows, const T* a, const T* b, T* c, \
                                                                   int* touched, int workers)
#define TYPE f32
PRODUCT(f32) {
#include "gemm_small_sizes.inc"
}
#undef TYPE
#define TYPE f64
PRODUCT(f64) {
#include "gemm_small_sizes.inc"
}
