// Matrix products of up to some hundred rows with a B that lies dense along k, as of a small batch with the rows of a layer's weight. They
// are computed as B^T A^T: then the weight is read where it lies, the batch is what is packed, and the tiles of sums are turned on
// their way to the epilogue. gemm.h would pack all of the weight for few multiplications.
//
// Invariants: those of gemm.h; the sums are the same bits.
#pragma once
#include "gemm.h"

namespace pg {

// So many columns of C, rows of B, at most go by for each packing of A: 512 took up to 3 % longer.
constexpr long turned_columns = 4096;
constexpr long common_divisor(long a, long b) { return b == 0 ? a : common_divisor(b, a % b); }
// So many columns' sums, whole vectors of whole tiles, are turned at a time, while they are in L1.
template <class T> constexpr long turned_at_once = gemm_tile<T>::rows * PG_LANES / common_divisor(gemm_tile<T>::rows, PG_LANES);

// Bytes of scratch for one worker: gemm_scratch<T>(1024, K), and a row of sums for each vector of C's rows and column that is turned at once.
template <class T> inline long gemm_turned_scratch(long M, long K) {
  const long row = (M + PG_LANES - 1) / PG_LANES * PG_LANES;
  return gemm_scratch<T>(gemm_cut<T>::most_rows, K) + turned_at_once<T> * row * long(sizeof(T));
}

// gemm() for C's columns col_begin … col_end, col_begin being a multiple of the lanes, where A(m, k) = A[m * a_row + k * a_col] and
// B(k, n) = B[n * b_col + k]. `scratch`: gemm_turned_scratch<T>(M, K) bytes. Where N is a multiple of the lanes, count is a constant.
template <class T, long N, class Epilogue>
PG_INLINE void gemm_turned(long M, long K, const T* A, long a_row, long a_col, const T* B, long b_col, T* scratch, long col_begin, long col_end,
                           Epilogue&& epilogue) {
  T square[PG_LANES][PG_LANES];
  // Rows of a walk whose k is cut are one block: the next would not begin at a whole vector.
  const bool is_cut = gemm_cut<T>(turned_columns, K, M, false, a_col, a_row).k_blocks > 1;
  const long step = is_cut ? long(gemm_cut<T>::most_rows) : turned_columns;
  for (long first = col_begin; first < col_end; first += step) {
    const long end = col_end - first < step ? col_end : first + step;
    gemm_walk<T> walk(N, K, B, b_col, 1, A, a_col, a_row, scratch, first, end, 0, M, nullptr, 0, true, {});
    walk.whole_tiles = true;
    while (walk.part + 1 < walk.all_parts()) {
      walk.enter_block();
      T* const kept = walk.owners_sums;
      const long first_row = walk.col, rows = walk.columns, stride = walk.stride;
      for (long t = 0; t < walk.tiles;) {
        // Sums that wait are all turned at the end: between tiles, with B from memory, that took 2 % longer. Others take their place.
        const long begin = walk.tile_row(t), last = walk.is_cut() ? walk.tiles : t + turned_at_once<T> / gemm_tile<T>::rows;
        if (!walk.is_cut()) walk.owners_sums = kept - begin * stride;
        const T* sums = walk.owners_sums + begin * stride;
        for (; t < last && t < walk.tiles; ++t) walk.tile(t);
        const long done = first + walk.tile_row(t);
        for (long col = first + begin; col < done; col += PG_LANES, sums += PG_LANES * stride) {
          const long count = N % PG_LANES == 0 || done - col >= PG_LANES ? long(PG_LANES) : done - col;
          for (long row = 0; row < rows; row += PG_LANES) {
            const long depth = rows - row < PG_LANES ? rows - row : long(PG_LANES);
            transpose_lanes(sums + row, stride, count, depth, square);
            for (long r = 0; r < depth; ++r) epilogue(first_row + row + r, col, load_plain(static_cast<const T*>(square[r])), count);
          }
        }
      }
    }
  }
}

}  // namespace pg
