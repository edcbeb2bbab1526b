// Products computed as those of the transposes, by shares of several workers.
#include "pequegrad/gemm_turned.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define COLUMNS(N) N(2) N(33) N(48) N(77) N(600) N(4500)

// `touched` counts how often the epilogue saw each element.
template <class T, long N>
static void product(long M, long K, const T* a, long a_row, long a_col, const T* b, T* c, T* scratch, int* touched, int workers) {
  for (int w = 0; w < workers; ++w) {
    long begin, end;
    share(N, PG_LANES, w, workers, begin, end);
    gemm_turned<T, N>(M, K, a, a_row, a_col, b, K, scratch, begin, end, [&](long row, long col, vec<T> sum, long count) {
      store(c + row * N + col, sum, count);
      for (long i = 0; i < PG_LANES; ++i)
        if (i < count) ++touched[row * N + col + i];
        else if (sum.lane(i) != 0) touched[row * N + col] += 100;
    });
  }
}

#define CHOSEN(N) \
  if (n == N) product<TYPE, N>(M, K, a, a_row, a_col, b, c, scratch, touched, workers);
#define PRODUCT(T)                                                                                                        \
  EXPORT long turned_scratch_##T(long M, long K) { return gemm_turned_scratch<T>(M, K); }                                 \
  EXPORT void turned_##T(long n, long M, long K, const T* a, long a_row, long a_col, const T* b, T* c, T* scratch, int* touched, int workers)
#define TYPE f32
PRODUCT(f32) { COLUMNS(CHOSEN) }
#undef TYPE
#define TYPE f64
PRODUCT(f64) { COLUMNS(CHOSEN) }
