// Matrix products: C = A B for any strides, handed to an epilogue one vector at a time; C itself is never stored here.
//
// Invariants: each element of C is one sum over k in rising order, in whatever sub-rectangle it is computed, so that
// shares of any number of workers give the same bits; the epilogue sees each element exactly once; nothing outside A's
// and B's own elements is read.
// The micro-kernels are functions of their own, shared by all epilogues: they leave a tile in L1 that the epilogue reads
// back, a store and a load beside K multiply-adds. Six distinct epilogues compile in 0.7 s.
#pragma once
#include "vec.h"

namespace pg {

// The tile of C that fits the registers: rows by vectors.
template <class T> struct gemm_tile {
#if PG_LANES == 16
  enum { rows = sizeof(T) == 4 ? 8 : 6, vectors = sizeof(T) == 4 ? 3 : 2 };
#elif PG_LANES == 8
  enum { rows = 6, vectors = sizeof(T) == 4 ? 2 : 1 };
#elif PG_LANES == 4 && defined(__aarch64__)
  enum { rows = sizeof(T) == 4 ? 8 : 6, vectors = sizeof(T) == 4 ? 3 : 2 };
#elif PG_LANES == 4
  enum { rows = 4, vectors = sizeof(T) == 4 ? 2 : 1 };
#else
  enum { rows = 4, vectors = 2 };
#endif
  enum { width = vectors * PG_LANES };
};

// Splits 0 … total into `workers` shares of whole grains, as even as they come; the last grain may be cut short.
PG_INLINE void share(long total, long grain, int worker, int workers, long& begin, long& end) {
  long grains = (total + grain - 1) / grain, base = grains / workers, extra = grains % workers;
  begin = (worker * base + (worker < extra ? worker : extra)) * grain;
  end = begin + (base + (worker < extra)) * grain;
  begin = begin < total ? begin : total;
  end = end < total ? end : total;
}

// Part i of `count` parts of n, all within one of each other.
PG_INLINE long even_cut(long n, long count, long i) { return n / count * i + (i < n % count ? i : n % count); }

// ---- scratch ------------------------------------------------------------------------------------------------------------

// k is cut into this many even blocks, so that a packed panel of B stays within half of a 512 KiB L2.
template <class T> inline long gemm_k_blocks(long K) {
  const long most = 262144 / long(gemm_tile<T>::width * sizeof(T));
  return K > most ? (K + most - 1) / most : 1;
}
template <class T> inline long gemm_k_block(long K) {
  long blocks = gemm_k_blocks<T>(K), block = (K + blocks - 1) / blocks;
  return (block + PG_LANES - 1) / PG_LANES * PG_LANES;
}

// Bytes of scratch for one worker that computes `rows` rows. With width = vectors * lanes of the tile,
//   blocks = max(1, ceil(K / floor(262144 / (width * sizeof(T))))), block = ceil(K / blocks) rounded up to lanes:
//   sizeof(T) * (block * width + tile_rows * (block + lanes) + (rows * width if blocks > 1 else 0))
// rounded up to 64. The scratch must be aligned to 64 bytes.
template <class T> inline long gemm_scratch(long rows, long K) {
  typedef gemm_tile<T> tile;
  long block = gemm_k_block<T>(K);
  long elements = block * tile::width + tile::rows * (block + PG_LANES) + (gemm_k_blocks<T>(K) > 1 ? rows * tile::width : 0);
  return (elements * long(sizeof(T)) + 63) / 64 * 64;
}

// ---- micro-kernel -------------------------------------------------------------------------------------------------------

// tile[r][0 … VECTORS * lanes) (+)= sum over k of a[r * a_row + k * a_k] * row k of B, which lies at b + k * b_k, or at
// b + offsets[k] where there are offsets.
template <class T, int ROWS, int VECTORS, bool INDIRECT>
PG_NOINLINE void gemm_kernel(long K, const T* __restrict a, long a_row, long a_k, const T* __restrict b, long b_k,
                             const long* __restrict offsets, T* __restrict tile, long tile_row, bool accumulate) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  constexpr int N = VECTORS * lanes<T>::parts, L = lanes<T>::count;
  native sum[ROWS][N];
  const T* row[ROWS];
  PG_UNROLL for (int r = 0; r < ROWS; ++r) row[r] = a + r * a_row;
  if (accumulate) {
    PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int n = 0; n < N; ++n)
      sum[r][n] = *reinterpret_cast<const unaligned*>(tile + r * tile_row + n * L);
  } else {
    PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int n = 0; n < N; ++n) sum[r][n] = native{};
  }
  long i = 0;
  for (long k = 0; k < K; ++k) {
    const T* source = INDIRECT ? b + offsets[k] : b;
    native column[N];
    PG_UNROLL for (int n = 0; n < N; ++n) column[n] = *reinterpret_cast<const unaligned*>(source + n * L);
    PG_UNROLL for (int r = 0; r < ROWS; ++r) {
      native broadcast = row[r][i] - native{};
      PG_UNROLL for (int n = 0; n < N; ++n) sum[r][n] += broadcast * column[n];
    }
    i += a_k;
    if (!INDIRECT) b += b_k;
  }
  PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int n = 0; n < N; ++n)
    *reinterpret_cast<unaligned*>(tile + r * tile_row + n * L) = sum[r][n];
}

template <class T>
using gemm_kernel_function = void (*)(long K, const T* a, long a_row, long a_k, const T* b, long b_k, const long* offsets,
                                      T* tile, long tile_row, bool accumulate);

template <class T, bool INDIRECT, int ROWS> PG_INLINE gemm_kernel_function<T> gemm_kernel_of_vectors(int vectors) {
  if constexpr (gemm_tile<T>::vectors >= 3)
    if (vectors == 3) return gemm_kernel<T, ROWS, 3, INDIRECT>;
  if constexpr (gemm_tile<T>::vectors >= 2)
    if (vectors == 2) return gemm_kernel<T, ROWS, 2, INDIRECT>;
  return gemm_kernel<T, ROWS, 1, INDIRECT>;
}

template <class T, bool INDIRECT> PG_NOINLINE gemm_kernel_function<T> gemm_kernel_for(int rows, int vectors) {
  if constexpr (gemm_tile<T>::rows >= 8) {
    if (rows == 8) return gemm_kernel_of_vectors<T, INDIRECT, 8>(vectors);
    if (rows == 7) return gemm_kernel_of_vectors<T, INDIRECT, 7>(vectors);
  }
  if constexpr (gemm_tile<T>::rows >= 6) {
    if (rows == 6) return gemm_kernel_of_vectors<T, INDIRECT, 6>(vectors);
    if (rows == 5) return gemm_kernel_of_vectors<T, INDIRECT, 5>(vectors);
  }
  if (rows == 4) return gemm_kernel_of_vectors<T, INDIRECT, 4>(vectors);
  if (rows == 3) return gemm_kernel_of_vectors<T, INDIRECT, 3>(vectors);
  if (rows == 2) return gemm_kernel_of_vectors<T, INDIRECT, 2>(vectors);
  return gemm_kernel_of_vectors<T, INDIRECT, 1>(vectors);
}

// ---- packing ------------------------------------------------------------------------------------------------------------

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

// to[k][c] = b[k * b_row + c * b_col], k < K, c < columns, zero from there to `width` (a multiple of the lanes).
template <class T>
PG_NOINLINE void gemm_pack(T* to, long width, const T* b, long b_row, long b_col, long K, long columns) {
  long k = 0;
  if (b_row == 1 && b_col != 1) {
    constexpr int N = lanes<T>::count;
    for (; k < K; k += N)
      for (long c = 0; c < width; c += N)
        transpose_square(b + k + c * b_col, b_col, columns - c, K - k < N ? K - k : long(N), to + k * width + c, width);
  } else if (b_col == 1) {
    for (; k < K; ++k)
      for (long c = 0; c < width; c += PG_LANES) {
        long count = columns - c < PG_LANES ? columns - c : PG_LANES;
        store_plain(to + k * width + c, load_plain(b + k * b_row + c, count > 0 ? count : 0));
      }
  }
  for (; k < K; ++k)
    for (long c = 0; c < width; ++c) to[k * width + c] = c < columns ? b[k * b_row + c * b_col] : T(0);
}

// Rows whose stride is a multiple of 4 KiB fall into the same sets of L1: copy them side by side, padded.
template <class T> PG_NOINLINE void gemm_copy_rows(T* to, long to_row, const T* a, long a_row, long rows, long K) {
  for (long r = 0; r < rows; ++r)
    for (long k = 0; k < K; k += PG_LANES)
      store_plain(to + r * to_row + k, load_plain(a + r * a_row + k, K - k), K - k < PG_LANES ? K - k : PG_LANES);
}

// A B of so many bytes stays in L1 between tiles of rows, and is read where it lies.
constexpr long gemm_resident_bytes = 16384;

// ---- driver -------------------------------------------------------------------------------------------------------------

// Calls epilogue(row, col, vec<T> sum, count) once for each vector of C = A B within the given rows and columns, where
// A(m, k) = A[m * a_row + k * a_col] and B(k, n) = B[k * b_row + n * b_col]. M and N are C's whole size, K the length of
// the sums. `scratch`: gemm_scratch<T>(row_end - row_begin, K) bytes. Lanes of `sum` beyond count are zero. WHOLE promises
// that col_begin and col_end are multiples of the lanes: then count is a constant, which spares the epilogue its masks.
template <class T, bool WHOLE = false, class Epilogue>
void gemm(long M, long N, long K, const T* A, long a_row, long a_col, const T* B, long b_row, long b_col, T* scratch,
          long row_begin, long row_end, long col_begin, long col_end, Epilogue&& epilogue) {
  typedef gemm_tile<T> tile;
  if (row_end > M) row_end = M;
  if (col_end > N) col_end = N;
  const long rows = row_end - row_begin, columns = col_end - col_begin;
  if (rows <= 0 || columns <= 0) return;
  const long k_blocks = gemm_k_blocks<T>(K), k_block = gemm_k_block<T>(K);
  T* const panel = scratch;
  T* const row_copy = panel + k_block * tile::width;
  T* const sums = row_copy + tile::rows * (k_block + PG_LANES);
  const bool copies_rows = a_col == 1 && a_row * long(sizeof(T)) % 4096 == 0 && K >= 64;
  const long vectors = (columns + PG_LANES - 1) / PG_LANES, panels = (vectors + tile::vectors - 1) / tile::vectors;
  const long row_tiles = (rows + tile::rows - 1) / tile::rows;
  alignas(64) T small[tile::rows * tile::width];

  for (long p = 0; p < panels; ++p) {
    const long first = even_cut(vectors, panels, p), count = even_cut(vectors, panels, p + 1) - first;
    const long col = first * PG_LANES, width = count * PG_LANES, used = columns - col < width ? columns - col : width;
    for (long block = 0; block < k_blocks; ++block) {
      const long k_begin = block * k_block, k_count = K - k_begin < k_block ? K - k_begin : k_block;
      const T* b = B + k_begin * b_row + (col_begin + col) * b_col;
      long b_k = b_row;
      const bool is_reused = rows > 2 * tile::rows && k_count * b_row * long(sizeof(T)) > gemm_resident_bytes;
      if (b_col != 1 || used != width || is_reused) {
        gemm_pack(panel, width, b, b_row, b_col, k_count, used);
        b = panel;
        b_k = width;
      }
      for (long t = 0; t < row_tiles; ++t) {
        const long row = even_cut(rows, row_tiles, t), tile_rows = even_cut(rows, row_tiles, t + 1) - row;
        const T* a = A + (row_begin + row) * a_row + k_begin * a_col;
        long a_stride = a_row;
        if (copies_rows) {
          gemm_copy_rows(row_copy, k_block + PG_LANES, a, a_row, tile_rows, k_count);
          a = row_copy;
          a_stride = k_block + PG_LANES;
        }
        T* result = k_blocks > 1 ? sums + row * width : small;
        gemm_kernel_for<T, false>(int(tile_rows), int(count))(k_count, a, a_stride, a_col, b, b_k, nullptr, result, width, block > 0);
        if (block + 1 < k_blocks) continue;
        for (long r = 0; r < tile_rows; ++r)
          for (long c = 0; c < used; c += PG_LANES)
            epilogue(row_begin + row + r, col_begin + col + c, load_plain(static_cast<const T*>(result + r * width + c)),
                     WHOLE || used - c >= PG_LANES ? long(PG_LANES) : used - c);
      }
    }
  }
}

// The rectangle of C for one worker: the split of rows and columns with the least rows * vectors + packing in any one
// share, columns preferred, since a column's panel is packed by each worker that shares its rows.
inline void gemm_share(long M, long N, int worker, int workers, long unit_rows, long& row_begin, long& row_end,
                       long& col_begin, long& col_end) {
  const long vectors = (N + PG_LANES - 1) / PG_LANES, packing = 16;
  long best_cost = -1, across = 1;
  for (long q = 1; q <= workers; ++q) {
    if (workers % q) continue;
    const long p = workers / q, share_rows = (M + p - 1) / p, share_vectors = (vectors + q - 1) / q;
    const long cost = share_vectors * (share_rows + packing);
    if (best_cost < 0 || cost <= best_cost) {
      best_cost = cost;
      across = q;
    }
  }
  const int down = int(workers / across);
  share(M, unit_rows, worker / int(across), down, row_begin, row_end);
  share(N, PG_LANES, worker % int(across), int(across), col_begin, col_end);
}

// ---- compiled once ------------------------------------------------------------------------------------------------------

// What depends on no graph, of float: binding/parts.cpp compiles it once for all steps of a machine (PART: template), and
// a step that is linked with it, which defines PG_PARTS_APART, does not (PART: extern template).
// Nothing that takes a whole shape is here: in a step the compiler knows its numbers, and makes use of them.
#define PG_GEMM_PARTS(PART)                                                                \
  PART gemm_kernel_function<float> gemm_kernel_for<float, false>(int, int);                \
  PART gemm_kernel_function<float> gemm_kernel_for<float, true>(int, int);                 \
  PART void gemm_pack<float>(float*, long, const float*, long, long, long, long);          \
  PART void gemm_copy_rows<float>(float*, long, const float*, long, long, long);
#if defined(PG_PARTS_APART)
PG_GEMM_PARTS(extern template)
#endif

}  // namespace pg
