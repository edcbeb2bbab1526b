// Transpositions in registers, a square of vectors at a time.
//
// Invariant: nothing outside of the given columns and depth is read.
#pragma once
#include "vec.h"

namespace pg {

#if defined(PG_HAS_SHUFFLEVECTOR)
// One round of the transposition of a square of N vectors: swaps the off-diagonal blocks of size D.
template <class T, int D> PG_INLINE void transpose_round(typename lanes<T>::native* r) {
  if constexpr (D < lanes<T>::count) {
    constexpr int N = lanes<T>::count;
    PG_UNROLL for (int i = 0; i < N; ++i) {
      if (i & D) continue;
      auto a = r[i], b = r[i + D];
#define PG_FIRST(l) ((l) & D ? N + (l) - D : (l))
#define PG_SECOND(l) ((l) & D ? N + (l) : (l) + D)
      if constexpr (lanes<T>::parts == 2) {
        r[i] = __builtin_shufflevector(a, b, PG_LIST_LOW(PG_FIRST));
        r[i + D] = __builtin_shufflevector(a, b, PG_LIST_LOW(PG_SECOND));
      } else {
        r[i] = __builtin_shufflevector(a, b, PG_LIST_FULL(PG_FIRST));
        r[i + D] = __builtin_shufflevector(a, b, PG_LIST_FULL(PG_SECOND));
      }
    }
  }
}
#endif

// to[k][c] = from[c][k] for k below `depth`, at most one native vector's lanes, and c below `columns`; columns from there
// on become zero.
template <class T> PG_INLINE void transpose_square(const T* from, long from_row, long columns, long depth, T* to, long to_row) {
  constexpr int N = lanes<T>::count;
#if defined(PG_HAS_SHUFFLEVECTOR)
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  native r[N];
  if (columns >= N && depth >= N) {
    PG_UNROLL for (int i = 0; i < N; ++i) r[i] = *reinterpret_cast<const unaligned*>(from + i * from_row);
  } else {
    PG_UNROLL for (int i = 0; i < N; ++i) r[i] = i < columns ? load_plain(from + i * from_row, depth).part[0] : native{};
  }
  transpose_round<T, 8>(r);
  transpose_round<T, 4>(r);
  transpose_round<T, 2>(r);
  transpose_round<T, 1>(r);
  PG_UNROLL for (int i = 0; i < N; ++i) if (i < depth) *reinterpret_cast<unaligned*>(to + i * to_row) = r[i];
#else
  for (int k = 0; k < N && k < depth; ++k)
    for (int c = 0; c < N; ++c) to[k * to_row + c] = c < columns ? from[c * from_row + k] : T(0);
#endif
}

// to[k][c] = from[c * from_row + k] for k below `depth` and c below `columns`, at most the lanes; columns from there on become zero.
template <class T> PG_NOINLINE void transpose_lanes(const T* from, long from_row, long columns, long depth, T (*to)[PG_LANES]) {
  constexpr int N = lanes<T>::count;
  for (long k = 0; k < depth; k += N)
    for (long c = 0; c < PG_LANES; c += N)
      transpose_square(from + c * from_row + k, from_row, columns - c, depth - k < N ? depth - k : long(N), to[k] + c, PG_LANES);
}

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_TRANSPOSE_PARTS(PART) \
  PART void transpose_lanes<float>(const float*, long, long, long, float (*)[PG_LANES]);
#if defined(PG_PARTS_APART)
PG_TRANSPOSE_PARTS(extern template)
#endif

}  // namespace pg
