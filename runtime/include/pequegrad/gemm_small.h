// Matrix products of which a panel of B stays in L1: all extents and strides are constants, nothing is looked up on the way, and
// the epilogue of one tile runs between the multiply-adds of the next, whose latencies hide its divisions and roots.
//
// Invariants: those of gemm.h; the sums are the same bits, but where a vector has room for two rows of B and A's rows are dense: then
// each sum is one over even k and one over odd k, side by side in a vector, in whatever share it is computed.
#pragma once
#include "gemm.h"

namespace pg {

// The tile of C: rows by vectors, as many as leave registers for an epilogue. A row of C has a whole number of them.
template <class T, long M, long N> struct small_tile {
#if PG_LANES == 16 || defined(__aarch64__)
  static constexpr long sums = 16 / lanes<T>::parts, most_vectors = 4 / lanes<T>::parts;
#else
  static constexpr long sums = 8 / lanes<T>::parts, most_vectors = 2 / lanes<T>::parts;
#endif
  static constexpr long divisor(long n, long most) { return n % most == 0 ? most : divisor(n, most - 1); }
  // Rows that are no whole vectors lie one after another in a tile, and the epilogue gets them as one: gemm_columns::runs_on.
  static constexpr bool is_joined = N % PG_LANES != 0;
  static constexpr long row_vectors = (N + PG_LANES - 1) / PG_LANES;
  static constexpr long vectors = is_joined ? row_vectors : divisor(row_vectors, most_vectors > 1 ? most_vectors : 1);
  static constexpr long most_rows = sums > vectors ? sums / vectors : 1, rows = M < most_rows ? M : most_rows;
  static constexpr long width = vectors * PG_LANES, stride = is_joined ? N : width;
#if defined(PG_HAS_SHUFFLEVECTOR)
  static constexpr bool has_room_for_pairs = sizeof(T) == 4 && 2 * N <= PG_LANES;
#else
  static constexpr bool has_room_for_pairs = false;
#endif

  // The rectangle of C for one worker: panels or tiles of rows, whichever there are more of.
  static PG_INLINE void share(int worker, int workers, long& row_begin, long& row_end, long& col_begin, long& col_end) {
    row_begin = col_begin = 0;
    row_end = M, col_end = N;
    if (row_vectors / vectors > M / rows) pg::share(N, width, worker, workers, col_begin, col_end);
    else pg::share(M, rows, worker, workers, row_begin, row_end);
  }
};

#if defined(PG_HAS_SHUFFLEVECTOR)
template <class V, int... LANE> PG_INLINE V zip_lower(V a, V b, lane_list<LANE...>) {
  return __builtin_shufflevector(a, b, (LANE / 2 + LANE % 2 * int(sizeof...(LANE)))...);
}
template <class V, int... LANE> PG_INLINE auto add_neighbours(V a, lane_list<LANE...>) {
  return __builtin_shufflevector(a, a, (2 * LANE)...) + __builtin_shufflevector(a, a, (2 * LANE + 1)...);
}

// Vector k / 2 at `to` becomes rows k and k + 1 of B, by turns.
template <class T, long N, long K, long B_ROW, long B_COL> PG_INLINE void pack_pairs(T* to, const T* b) {
  for (long k = 0; k < K; k += 2) {
    const auto row = [&](long i) { return B_COL == 1 ? load_plain(b + i * B_ROW, N).part[0] : load_strided(b + i * B_ROW, B_COL, N).part[0]; };
    *reinterpret_cast<typename lanes<T>::native*>(to + k / 2 * PG_LANES) = zip_lower(row(k), row(k + 1), typename lanes_below<PG_LANES>::type());
  }
}

// tile[r * N + n] = sum over k of a[r * a_row + k] B(k, n), N columns of `b` from pack_pairs; before(k) as in gemm_sums. What is
// stored behind a row, the next one replaces.
template <class T, long ROWS, long N, class Before>
PG_INLINE void gemm_pair_sums(long K, const T* a, long a_row, const T* b, T* tile, Before&& before) {
  typedef typename lanes<T>::native native;
  typedef i64 pairs __attribute__((vector_size(sizeof(native))));
  native sum[ROWS] = {};
  for (long k = 0; k < K; k += 2) {
    before(k);
    before(k + 1);
    const native column = *reinterpret_cast<const native*>(b + k / 2 * PG_LANES);
    PG_UNROLL for (long r = 0; r < ROWS; ++r) {
      i64 pair;
      __builtin_memcpy(&pair, a + r * a_row + k, sizeof pair);
      sum[r] += (native)(pair - pairs{}) * column;
    }
  }
  PG_UNROLL for (long r = 0; r < ROWS; ++r) {
    const auto row = add_neighbours(sum[r], typename lanes_below<PG_LANES / 2>::type());
    __builtin_memcpy(tile + r * N, &row, sizeof row);
  }
}
#endif

// gemm() of a rectangle that small_tile::share gave, without scratch; N % PG_LANES must be 0, or gemm_columns::runs_on be true.
template <class T, long M, long N, long K, long A_ROW, long A_COL, long B_ROW, long B_COL, class Epilogue>
PG_INLINE void gemm_small(const T* A, const T* B, long row_begin, long row_end, long col_begin, long col_end, Epilogue&& epilogue) {
  typedef small_tile<T, M, N> tile;
  constexpr bool is_packed = B_COL != 1 || tile::is_joined, is_paired = tile::has_room_for_pairs && A_COL == 1 && K % 2 == 0;
  constexpr long count = (tile::rows * tile::stride + PG_LANES - 1) / PG_LANES;  // vectors of a tile, for the epilogue
  constexpr long steps = K > count ? K / count : 1, at_once = (count + K - 1) / K;  // of k to each at_once vectors
  alignas(64) T packed[is_packed ? K * tile::width : 1], sums[2][tile::rows * tile::stride + PG_LANES];
  // Of the tile before: its sums, its place, and which of its elements the epilogue still lacks.
  const T* before = nullptr;
  T* to = sums[0];
  unsigned long row = 0, col = 0, next = 0, end = 0;
  const auto advance = [&]() __attribute__((always_inline)) {
    if constexpr (tile::is_joined) {
      const long left = end - next;
      if (left >= PG_LANES) epilogue(row, next, load_plain(before + next), long(PG_LANES));
      else epilogue(row, next, load_plain(before + next, left), left);
    } else {
      epilogue(row + next / tile::width, col + next % tile::width, load_plain(before + next), long(PG_LANES));
    }
    next += PG_LANES;
  };
  const auto between = [&](long k) __attribute__((always_inline)) {
    if (k % steps == 0)
      for (long i = 0; i < at_once && next < end; ++i) advance();
  };
  if constexpr (K == 1 && !tile::is_joined) {
    // Nothing is summed: each product goes to the epilogue as it is made. A sum would turn -0 into 0.
    for (long c = col_begin; c < col_end; c += PG_LANES) {
      const vec<T> b = B_COL == 1 ? load(B + c) : B_COL == 0 ? splat<T>(load_scalar(B)) : load_strided(B + c * B_COL, B_COL);
      for (long r = row_begin; r < row_end; ++r) epilogue(r, c, splat<T>(load_scalar(A + r * A_ROW)) * b + zero<T>(), long(PG_LANES));
    }
    return;
  }
  for (long c = col_begin; c < col_end; c += tile::width) {
    if constexpr (is_paired) pack_pairs<T, N, K, B_ROW, B_COL>(packed, B);
    else if (is_packed) gemm_pack(packed, tile::width, B + c * B_COL, B_ROW, B_COL, K, N - c < tile::width ? N - c : tile::width);
    const T* const b = is_packed ? packed : B + c;
    for (long r = row_begin; r < row_end; r += tile::rows) {
      // Where M has not enough rows for the last tile, it takes some of the one before once more.
      const long first = r < M - tile::rows ? r : M - tile::rows;
      if constexpr (is_paired) gemm_pair_sums<T, tile::rows, N>(K, A + first * A_ROW, A_ROW, packed, to, between);
      else gemm_sums<T, tile::rows, tile::vectors, false>(K, A + first * A_ROW, A_ROW, A_COL, b, is_packed ? tile::width : B_ROW, nullptr,
                                                          to, tile::stride, false, between);
      before = to;
      to = to == sums[0] ? sums[1] : sums[0];
      row = first;
      col = c;
      next = (r - first) * tile::stride;
      end = tile::rows * tile::stride;
    }
  }
  while (next < end) advance();
}

}  // namespace pg
