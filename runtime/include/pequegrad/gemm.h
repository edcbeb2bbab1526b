// Matrix products: C = A B for any strides, handed to an epilogue one vector at a time, or stored.
//
// Invariants: each element of C is one sum over k in rising order, in whatever sub-rectangle it is computed, so that
// shares of any number of workers give the same bits; the epilogue sees each element exactly once; nothing outside A's
// and B's own elements is read.
#pragma once
#include "gemm_walk.h"

namespace pg {

// ---- driver -------------------------------------------------------------------------------------------------------------

// What is promised of C's columns. `whole`: col_begin and col_end are multiples of the lanes; then count is a constant, which spares
// the epilogue its masks. `runs_on`: to the epilogue (row, N + col) is (row + 1, col); whole rows are then handed over as one, and
// their vectors are full. A masked store to the end of a row would hold up the load of the next row's beginning, into which it
// reaches: 60 cycles a row.
enum class gemm_columns { any, whole, runs_on };

struct gemm_nothing {
  PG_INLINE void operator()(long, long, long, long) const {}
};

// What an epilogue of sums of T, of N columns, reads across its rows, turned for as much of C as it sees between two calls of `before`.
template <class Element, class T, long N>
using gemm_turned_rows = turned_rows<Element, gemm_tile<T>::rows,
                                     ((N < gemm_cut<T>::most_columns ? N : gemm_cut<T>::most_columns) + PG_LANES - 1) / PG_LANES>;

// Calls epilogue(row, col, vec<T> sum, count) once for each vector of C = A B within the given rows and columns, where
// A(m, k) = A[m * a_row + k * a_col] and B(k, n) = B[k * b_row + n * b_col]. M and N are C's whole size, K the length of
// the sums. `scratch`: gemm_scratch<T>(row_end - row_begin, K) bytes. Lanes of `sum` beyond count are zero.
// `updates`: what the epilogue writes, of elements no longer than T, where it is too large to be near, and then what it only
// reads; four at most are asked for ahead, and the rest comes when the epilogue reads it. before(row, rows, col, columns) is called
// before the epilogue sees that part of C, of no more rows than a tile has and no more columns than a block.
template <class T, gemm_columns COLUMNS = gemm_columns::any, class Epilogue, class Before = gemm_nothing>
PG_INLINE void gemm(long M, long N, long K, const T* A, long a_row, long a_col, const T* B, long b_row, long b_col, T* scratch,
          long row_begin, long row_end, long col_begin, long col_end, Epilogue&& epilogue, const gemm_update* updates = nullptr,
          int update_count = 0, gemm_team team = {}, Before&& before = {}) {
  if (row_end > M) row_end = M;
  if (col_end > N) col_end = N;
  if (row_begin >= row_end || col_begin >= col_end) return;
  gemm_walk<T> walk(M, K, A, a_row, a_col, B, b_row, b_col, scratch, row_begin, row_end, col_begin, col_end, updates,
                    update_count, false, team);
  walk.joined = COLUMNS == gemm_columns::runs_on ? N : 0;
  while (walk.next()) {
    const bool runs_on = COLUMNS == gemm_columns::runs_on && walk.joins_rows();
    // Copies: the epilogue's stores could change what lies in the walk.
    const T* sums = walk.done.sums;
    const long row = walk.done.row, col = walk.done.col, stride = walk.done.stride;
    const long rows = runs_on ? 1 : walk.done.rows, columns = runs_on ? walk.done.rows * N : walk.done.columns;
    before(row, walk.done.rows, col, walk.done.columns);
    for (long r = 0; r < rows; ++r, sums += stride) {
      for (long c = 0; c < columns; c += PG_LANES) {
        if (COLUMNS == gemm_columns::whole || columns - c >= PG_LANES) epilogue(row + r, col + c, load_plain(sums + c), long(PG_LANES));
        else epilogue(row + r, col + c, load_plain(sums + c, columns - c), columns - c);
      }
    }
  }
}

// gemm() with an epilogue that only stores, C(m, n) at C[m * c_row + n], in rows of whole vectors. Where k is not cut micro-kernels store
// there themselves: products with 128 k take up to 4 % less than through an epilogue, with 256 k 1 %.
template <class T>
PG_NOINLINE void gemm_into(T* C, long c_row, long M, long N, long K, const T* A, long a_row, long a_col, const T* B, long b_row, long b_col,
                           T* scratch, long row_begin, long row_end, long col_begin, long col_end, const gemm_update* updates,
                           int update_count, gemm_team team) {
  if (row_end > M) row_end = M;
  if (col_end > N) col_end = N;
  if (row_begin >= row_end || col_begin >= col_end) return;
  gemm_walk<T> walk(M, K, A, a_row, a_col, B, b_row, b_col, scratch, row_begin, row_end, col_begin, col_end, updates,
                    update_count, false, team);
  walk.store_to(C, c_row);
  while (walk.next()) {
    if (walk.result) continue;
    const T* sums = walk.done.sums;
    T* to = C + walk.done.row * c_row + walk.done.col;
    for (long r = 0; r < walk.done.rows; ++r, sums += walk.done.stride, to += c_row)
      for (long c = 0; c < walk.done.columns; c += PG_LANES) store_plain(to + c, load_plain(sums + c));
  }
}

// The rectangle of C for one worker: the split of rows and columns with the least work in any one share. In fifths of the product of a row
// and a vector that is 5 for each of C; 60 for 16 columns of B, 10 where it stays in L2 as it lies; for each row of A, as often as
// it is read, 2; where rows are packed, 1, and for each cut of k 20 of a whole sum of a row and a vector, or 128 if sums do not stay in
// L2: measured over the shapes of benchmarks.products, none takes 1 % longer than split the other way. Rows of an A that the workers' L2
// keep count 10, so that a layer's weight, and the gradient that changes it, stay with one worker: where both read all of a
// weight [200, 784] of which each had changed half, a step took 0.99 times as long in most minutes and 1.25 times in some, in which one core
// seems to have been far from the other. Among equals rows are split, which others of a team can take.
// Returns the team of those with the same columns; `queues`: one of each worker.
template <class T>
inline gemm_team gemm_share(long M, long N, long K, long a_row, long a_col, long b_row, long b_col, int worker, int workers,
                            long& row_begin, long& row_end, long& col_begin, long& col_end, gemm_queue* queues = nullptr) {
  const long vectors = (N + PG_LANES - 1) / PG_LANES;
  const bool is_transposed = gemm_is_transposed(a_row, a_col);
  const bool a_stays = !is_transposed && M * K * long(sizeof(T)) <= workers * PG_L2_KIB * 1024L;
  long best_cost = -1, across = 1;
  for (long q = 1; q <= workers; ++q) {
    if (workers % q) continue;
    const long p = workers / q, share_rows = (M + p - 1) / p, share_vectors = (vectors + q - 1) / q;
    const long columns = share_vectors * PG_LANES;
    const gemm_cut<T> cut(share_rows, K, columns, is_transposed, b_row, b_col);
    const long packing = (cut.b_stays ? 10 : 60) * columns / 16;
    const long reading = (is_transposed ? 1 : a_stays ? 10 : 2) * share_rows * cut.column_blocks;
    const bool sums_stay = cut.sums() * long(sizeof(T)) <= PG_L2_KIB * 512L;
    const long cuts = is_transposed ? cut.k_blocks - 1 : 0;
    const long adding = cuts * (sums_stay ? 20 : 128) * share_rows * share_vectors / (K > 0 ? K : 1);
    const long cost = 5 * share_rows * share_vectors + packing + reading + adding;
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      across = q;
    }
  }
  const int down = int(workers / across);
  share(M, 1, worker / int(across), down, row_begin, row_end);
  share(N, PG_LANES, worker % int(across), int(across), col_begin, col_end);
  return {queues ? queues + worker % across * down : nullptr, M, worker / int(across), queues ? down : 1};
}

// ---- compiled once ------------------------------------------------------------------------------------------------------

// What depends on no graph, of float: binding/parts.cpp compiles it once for all steps of a machine (PART: template), and
// a step that is linked with it, which defines PG_PARTS_APART, does not (PART: extern template).
#define PG_GEMM_PARTS(PART)                                                                \
  PART gemm_kernel_function<float> gemm_kernel_for<float, false>(int, int);                \
  PART gemm_kernel_function<float> gemm_kernel_for<float, true>(int, int);                 \
  PART void gemm_pack<float>(float*, long, const float*, long, long, long, long);          \
  PART void gemm_into<float>(float*, long, long, long, long, const float*, long, long, const float*, long, long, float*, long, long, long, \
                             long, const gemm_update*, int, gemm_team);                    \
  PART void gemm_copy_rows<float>(float*, long, const float*, long, long, long);           \
  PART gemm_walk<float>::gemm_walk(long, long, const float*, long, long, const float*, long, long, float*, long, long, long, long, \
                                        const gemm_update*, int, bool, gemm_team);         \
  PART bool gemm_walk<float>::next();                                                      \
  PART bool gemm_walk<float>::take();                                                      \
  PART void gemm_walk<float>::enter_part(long);                                            \
  PART void gemm_walk<float>::enter_block();                                               \
  PART bool gemm_walk<float>::next_panels();                                               \
  PART void gemm_walk<float>::pack();                                                      \
  PART void gemm_walk<float>::begin_next_part();                                           \
  PART void gemm_walk<float>::begin_part(long);                                            \
  PART void gemm_walk<float>::pack_slice(long);                                            \
  PART void gemm_walk<float>::look_for_b();                                                \
  PART void gemm_walk<float>::enter_group(long);                                           \
  PART void gemm_walk<float>::pack_rows(long);                                             \
  PART void gemm_walk<float>::look_for_rows();                                             \
  PART void gemm_walk<float>::tile(long);                                                  \
  PART void gemm_walk<float>::enter_tile(long);                                            \
  PART void gemm_walk<float>::sum_panels();                                                \
  PART void gemm_walk<float>::sum_panel_on_errands(long);
#if defined(PG_PARTS_APART)
PG_GEMM_PARTS(extern template)
#endif

}  // namespace pg
