// Matrix products of few rows whose operands both lie dense along k, as of one sample, or a handful, with the rows of a layer's
// weight: k runs along the lanes, and B is read once, where it lies. gemm.h would turn all of B for few multiplications.
//
// Invariants: each element of C is summed in an order that K alone decides, so that shares of any number of workers give the same
// bits; the epilogue sees each element exactly once; nothing outside A's and B's own elements is read.
#pragma once
#include "gemm.h"
#include "reduce.h"

namespace pg {

// Rows of A by rows of B whose dot products are summed at once: as many as leave registers for what is multiplied.
template <class T, long M> struct dots_tile {
#if PG_LANES == 16 || defined(__aarch64__)
  static constexpr int most_rows = 6, most_sums = 24, most_columns = 8;
#else
  static constexpr int most_rows = 3, most_sums = 8, most_columns = 4;
#endif
  static constexpr int groups = (M + most_rows - 1) / most_rows, rows = (M + groups - 1) / groups;
  static constexpr int halved(int columns) { return columns > PG_LANES || columns * rows > most_sums ? halved(columns / 2) : columns; }
  static constexpr int columns = halved(most_columns);
};

// sums[r * lanes of a vec + c]: lane l of it is the sum of a[r * a_row + k] * b[c * b_col + k] over k = l, l + lanes, …
template <class T, int ROWS, int COLUMNS, long K>
PG_INLINE void dots(const T* a, long a_row, const T* b, long b_col, typename lanes<T>::native* sums) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  constexpr long L = lanes<T>::count, whole = K / L * L;
  native sum[ROWS][COLUMNS], x[ROWS], y;
  PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int c = 0; c < COLUMNS; ++c) sum[r][c] = native{};
  for (long k = 0; k < whole; k += L) {
    PG_UNROLL for (int r = 0; r < ROWS; ++r) x[r] = *reinterpret_cast<const unaligned*>(a + r * a_row + k);
    PG_UNROLL for (int c = 0; c < COLUMNS; ++c) {
      y = *reinterpret_cast<const unaligned*>(b + c * b_col + k);
      PG_UNROLL for (int r = 0; r < ROWS; ++r) sum[r][c] += x[r] * y;
    }
  }
  if constexpr (whole < K) {
    PG_UNROLL for (int r = 0; r < ROWS; ++r) x[r] = load_plain(a + r * a_row + whole, K - whole).part[0];
    PG_UNROLL for (int c = 0; c < COLUMNS; ++c) {
      y = load_plain(b + c * b_col + whole, K - whole).part[0];
      PG_UNROLL for (int r = 0; r < ROWS; ++r) sum[r][c] += x[r] * y;
    }
  }
  PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int c = 0; c < COLUMNS; ++c) sums[r * PG_LANES + c] = sum[r][c];
}

// Calls epilogue(row, col, vec<T> sum, count) for C's columns col_begin … col_end, col_begin being a multiple of the lanes, where
// A(m, k) = A[m * a_row + k] and B(k, n) = B[n * b_col + k]. Where N is a multiple of the lanes, count is a constant.
template <class T, long M, long N, long K, class Epilogue>
PG_INLINE void gemm_dots(const T* A, long a_row, const T* B, long b_col, long col_begin, long col_end, Epilogue&& epilogue) {
  typedef dots_tile<T, M> tile;
  typedef typename lanes<T>::native native;
  constexpr bool is_whole = N % PG_LANES == 0;
  native sums[tile::rows * PG_LANES];
  T of_row[PG_LANES];
  for (long col = col_begin; col < col_end; col += PG_LANES) {
    const long count = is_whole || N - col >= PG_LANES ? PG_LANES : N - col;
    for (int group = 0; group < tile::groups; ++group) {
      // Where M has not enough rows for the last group, it takes some of the one before once more.
      const long begin = group * tile::rows, first = begin < M - tile::rows ? begin : M - tile::rows;
      const T* const a = A + first * a_row;
      long c = 0;
      for (; c + tile::columns <= count; c += tile::columns)
        dots<T, tile::rows, tile::columns, K>(a, a_row, B + (col + c) * b_col, b_col, sums + c);
      if constexpr (!is_whole)
        for (; c < count; ++c) dots<T, tile::rows, 1, K>(a, a_row, B + (col + c) * b_col, b_col, sums + c);
      for (long r = begin - first; r < tile::rows; ++r) {
        native* const row = sums + r * PG_LANES;
        for (c = count; c < PG_LANES; ++c) row[c] = native{};
        reduce_add_each<T, PG_LANES>(row, of_row);
        epilogue(first + r, col, load_plain(static_cast<const T*>(of_row)), is_whole ? long(PG_LANES) : count);
      }
    }
  }
}

}  // namespace pg
