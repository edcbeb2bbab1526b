// Matrix products of a few tens of rows with a B that lies dense along k, as of a small batch with the rows of a layer's weight. They
// are computed as B^T A^T: then the weight is read where it lies, the batch is what is packed, and the tiles of sums are turned on
// their way to the epilogue. gemm.h would pack all of the weight for few multiplications.
//
// Invariants: those of gemm.h; the sums are the same bits.
#pragma once
#include "gemm.h"

namespace pg {

// So many columns of C are computed, then turned: their sums are still in L2.
constexpr long turned_columns = 512;

// Bytes of scratch for one worker: gemm_scratch<T>(turned_columns, K) and a row of sums for each column and vector of rows of C.
template <class T> inline long gemm_turned_scratch(long M, long K) {
  const long row = (M + PG_LANES - 1) / PG_LANES * PG_LANES;
  return gemm_scratch<T>(turned_columns, K) + turned_columns * row * long(sizeof(T));
}

// gemm() for C's columns col_begin … col_end, col_begin being a multiple of the lanes, where A(m, k) = A[m * a_row + k * a_col] and
// B(k, n) = B[n * b_col + k]. `scratch`: gemm_turned_scratch<T>(M, K) bytes. Where N is a multiple of the lanes, count is a constant.
template <class T, long N, class Epilogue>
PG_INLINE void gemm_turned(long M, long K, const T* A, long a_row, long a_col, const T* B, long b_col, T* scratch, long col_begin, long col_end,
                           Epilogue&& epilogue) {
  T square[PG_LANES][PG_LANES];
  for (long begin = col_begin; begin < col_end; begin += turned_columns) {
    const long end = col_end - begin < turned_columns ? col_end : begin + turned_columns;
    gemm_walk<T> walk(N, K, B, b_col, 1, A, a_col, a_row, scratch, begin, end, 0, M, nullptr, 0, true, {});
    while (walk.part + 1 < walk.all_parts()) {
      walk.enter_block();
      for (long t = 0; t < walk.tiles; ++t) walk.tile(t);
      const T* sums = walk.owners_sums;
      const long first_row = walk.col, rows = walk.columns, stride = walk.stride;
      for (long col = begin; col < end; col += PG_LANES, sums += PG_LANES * stride) {
        const long count = N % PG_LANES == 0 || end - col >= PG_LANES ? long(PG_LANES) : end - col;
        for (long row = 0; row < rows; row += PG_LANES) {
          const long depth = rows - row < PG_LANES ? rows - row : long(PG_LANES);
          transpose_lanes(sums + row, stride, count, depth, square);
          for (long r = 0; r < depth; ++r) epilogue(first_row + row + r, col, load_plain(static_cast<const T*>(square[r])), count);
        }
      }
    }
  }
}

}  // namespace pg
