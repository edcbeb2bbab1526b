// What matrix products are made of: the tile of C that fits the registers, its sums, and operands packed side by side.
//
// Invariants: each sum is over k in rising order; nothing outside the operands' own elements is read.
// The micro-kernels are functions of their own, shared by all epilogues: they leave a tile in L1 that the epilogue reads
// back, a store and a load beside K multiply-adds. Six distinct epilogues compile in 0.7 s.
#pragma once
#include "transpose.h"

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

// ---- micro-kernel -------------------------------------------------------------------------------------------------------

// tile[r][0 … VECTORS * lanes) (+)= sum over k of a[r * a_row + k * a_k] * row k of B, which lies at b + k * b_k, or at
// b + offsets[k] where there are offsets.
// before(k) is called before the k-th products; where it needs registers, k COUNTS_DOWN to 1, which takes one less. Plain kernels take 0.6 %
// longer that way.
template <class T, int ROWS, int VECTORS, bool INDIRECT, bool COUNTS_DOWN = false, class Before>
PG_INLINE void gemm_sums(long K, const T* __restrict a, long a_row, long a_k, const T* __restrict b, long b_k,
                         const long* __restrict offsets, T* __restrict tile, long tile_row, bool accumulate, Before&& before) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  constexpr int N = VECTORS * lanes<T>::parts, L = lanes<T>::count;
  native sum[ROWS][N];
  if (accumulate) {
    const T* from = tile;
    PG_UNROLL for (int r = 0; r < ROWS; ++r, from += tile_row) PG_UNROLL for (int n = 0; n < N; ++n)
      sum[r][n] = *reinterpret_cast<const unaligned*>(from + n * L);
  } else {
    PG_UNROLL for (int r = 0; r < ROWS; ++r) PG_UNROLL for (int n = 0; n < N; ++n) sum[r][n] = native{};
  }
  // Two places to count rows from take fewer registers than seven distances from one.
  const T *upper = a, *lower = ROWS > 4 ? a + 4 * a_row : a;
  PG_FORGET(lower);
  for (long k = COUNTS_DOWN ? K : 0; COUNTS_DOWN ? k > 0 : k < K; k += COUNTS_DOWN ? -1 : 1) {
    before(k);
    const T* source = INDIRECT ? b + offsets[k] : b;
    native column[N];
    PG_UNROLL for (int n = 0; n < N; ++n) {
      column[n] = *reinterpret_cast<const unaligned*>(source + n * L);
      PG_KEEP_IN_REGISTER(column[n]);
    }
    PG_UNROLL for (int r = 0; r < ROWS; ++r) {
      const T* element = r < 4 ? upper + r * a_row : lower + (r - 4) * a_row;
      native broadcast = *element - native{};
      PG_UNROLL for (int n = 0; n < N; ++n) sum[r][n] += broadcast * column[n];
    }
    upper += a_k;
    lower += a_k;
    if (!INDIRECT) b += b_k;
  }
  // Where they go is computed anew: kept since the beginning, it would take the registers of the rows of A.
  PG_FORGET(tile_row);
  PG_UNROLL for (int r = 0; r < ROWS; ++r, tile += tile_row) PG_UNROLL for (int n = 0; n < N; ++n)
    *reinterpret_cast<unaligned*>(tile + n * L) = sum[r][n];
}

// Where their loops begin within a line of instructions is 1 % of some products: at the beginning of one, no other code moves them.
#define PG_MICRO_KERNEL PG_NOINLINE __attribute__((aligned(64)))

template <class T, int ROWS, int VECTORS, bool INDIRECT>
PG_MICRO_KERNEL void gemm_kernel(long K, const T* a, long a_row, long a_k, const T* b, long b_k, const long* offsets, T* tile, long tile_row,
                             bool accumulate) {
  gemm_sums<T, ROWS, VECTORS, INDIRECT>(K, a, a_row, a_k, b, b_k, offsets, tile, tile_row, accumulate, [](long) {});
}

// Whether rows of two tiles of A are packed at once.
template <class T> constexpr bool gemm_packs_pairs = false;
#if defined(PG_HAS_SHUFFLEVECTOR)
// Rows of two tiles, as many as a vector has lanes, of two k: to[k][r] = a[k * a_col + r], and of the second tile at to + to_tile. Whole
// lines are read and written.
template <class T> PG_INLINE void gemm_pack_pair(T* to, long to_tile, const T* a, long a_col) {
  typedef typename lanes<T>::unaligned unaligned;
  constexpr int half = lanes<T>::count / 2;
  const typename lanes<T>::native x = *reinterpret_cast<const unaligned*>(a), y = *reinterpret_cast<const unaligned*>(a + a_col);
  *reinterpret_cast<unaligned*>(to) = join_halves<0>(x, y, typename lanes_below<2 * half>::type());
  *reinterpret_cast<unaligned*>(to + to_tile) = join_halves<half>(x, y, typename lanes_below<2 * half>::type());
}
template <> constexpr bool gemm_packs_pairs<float> = PG_LANES == 2 * gemm_tile<float>::rows;
#endif

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

// Rows of so many whole vectors side by side. Masks and a loop over the vectors took 1 to 2 % of products of 256 rows.
template <class T, int VECTORS> PG_INLINE void gemm_pack_whole(T* to, const T* b, long b_row, long K) {
  constexpr long ahead = 8;
  for (long k = 0; k < K; ++k, to += VECTORS * PG_LANES, b += b_row) {
    const T* const next = b + ahead * b_row;
    if (k + ahead < K) PG_UNROLL for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(next + v * PG_LANES);
    PG_UNROLL for (int v = 0; v < VECTORS; ++v) store_plain(to + v * PG_LANES, load_plain(b + v * PG_LANES));
  }
}

// to[k][c] = b[k * b_row + c * b_col], k < K, c < columns, zero from there to `width` (a multiple of the lanes). Where k is
// dense, one square's width after another: the processor follows a vector's lanes of streams, not three times as many. Rows
// a page apart it does not follow at all: they are asked for.
template <class T>
PG_NOINLINE void gemm_pack(T* to, long width, const T* b, long b_row, long b_col, long K, long columns) {
  long k = 0;
  if (b_row == 1 && b_col != 1) {
    constexpr int N = lanes<T>::count;
    for (long c = 0; c < width; c += N)
      for (k = 0; k < K; k += N)
        transpose_square(b + k + c * b_col, b_col, columns - c, K - k < N ? K - k : long(N), to + k * width + c, width);
  } else if (b_col == 1) {
    constexpr int most = gemm_tile<T>::vectors;
    if (columns == width && width == most * PG_LANES) return gemm_pack_whole<T, most>(to, b, b_row, K);
    if (most > 2 && columns == width && width == 2 * PG_LANES) return gemm_pack_whole<T, 2>(to, b, b_row, K);
    for (; k < K; ++k) {
      const T *const row = b + k * b_row, *const ahead = k + 8 < K ? row + 8 * b_row : row;
      for (long c = 0; c < width; c += PG_LANES) {
        __builtin_prefetch(ahead + c);
        const long count = columns - c < PG_LANES ? columns - c : PG_LANES;
        store_plain(to + k * width + c, load_plain(row + c, count > 0 ? count : 0));
      }
    }
  }
  for (; k < K; ++k)
    for (long c = 0; c < width; ++c) to[k * width + c] = c < columns ? b[k * b_row + c * b_col] : T(0);
}

// to[t][k][r] = a[k * a_col + r of tile t], k from k_begin to k_end, for tiles begin … end: tile t is rows first_row(t) …
// first_row(t + 1). Rows from `safe` on are not A's. Eight k at a time: as many lines as L1 keeps where they lie a power of two apart.
// `asks`: for lines that have not been asked for.
template <class T, class FirstRow>
PG_INLINE void gemm_pack_rows(T* to, long to_tile, const T* a, long a_col, long k_begin, long k_end, long begin, long end, long safe,
                              const FirstRow& first_row, bool asks) {
  for (long block = k_begin; block < k_end; block += 8) {
    const long block_end = k_end - block < 8 ? k_end : block + 8;
    const T *const first = a + first_row(begin), *const last = a + first_row(end);
    for (long k = block_end; asks && k < k_end && k < block_end + 8; ++k)
      for (const T* line = first + k * a_col; line < last + k * a_col; line += 64 / sizeof(T)) __builtin_prefetch(line, 0, 2);
    for (long t = begin; t < end; ++t) {
      const long row = first_row(t), count = first_row(t + 1) - row;
      if constexpr (gemm_packs_pairs<T>) {
        if (t + 1 < end && first_row(t + 2) - row == 2 * gemm_tile<T>::rows && (block_end - block) % 2 == 0) {
          for (long k = block; k < block_end; k += 2)
            gemm_pack_pair(to + (t - begin) * to_tile + k * gemm_tile<T>::rows, to_tile, a + k * a_col + row, a_col);
          ++t;
          continue;
        }
      }
      T* packed = to + (t - begin) * to_tile + block * count;
      if (count == gemm_tile<T>::rows) {
        // A whole vector's store would cross a line at every other k.
        for (long k = block; k < block_end; ++k, packed += gemm_tile<T>::rows)
          __builtin_memcpy(packed, a + k * a_col + row, gemm_tile<T>::rows * sizeof(T));
      } else if (row + (gemm_tile<T>::rows + PG_LANES - 1) / PG_LANES * PG_LANES <= safe) {
        // What is written behind a tile's rows, the next k replaces.
        for (long k = block; k < block_end; ++k, packed += count)
          PG_UNROLL for (int r = 0; r < gemm_tile<T>::rows; r += PG_LANES) store_plain(packed + r, load_plain(a + k * a_col + row + r));
      } else {
        for (long k = block; k < block_end; ++k, packed += count)
          for (long r = 0; r < count; ++r) packed[r] = a[k * a_col + row + r];
      }
    }
  }
}

// Rows whose stride is a multiple of 4 KiB fall into the same sets of L1: copy them side by side, padded. L1 has a way for each 4 KiB,
// and twelve are enough for a tile's rows and what goes by: A [4096, 1024] and [1024, 4096], 256 columns, took 4 % longer copied.
constexpr bool gemm_copies_rows = PG_L1_KIB < 48;

template <class T> PG_NOINLINE void gemm_copy_rows(T* to, long to_row, const T* a, long a_row, long rows, long K) {
  for (long r = 0; r < rows; ++r)
    for (long k = 0; k < K; k += PG_LANES)
      store_plain(to + r * to_row + k, load_plain(a + r * a_row + k, K - k), K - k < PG_LANES ? K - k : PG_LANES);
}

// Whether k rows of B, `stride` bytes apart, stay in L2 between tiles of rows where they lie: then they are read there, of 400 rows of A
// as fast as packed, of 256 up to 4 %, of 32 and 24 rows 15 and 29 % faster. Rows a multiple of a power of two apart fall into few sets.
// Half of L2 and no more: of [256, 768] a panel's rows, each in a page of its own, come from further away, and 1,536 rows of A took 5 % longer.
PG_INLINE bool gemm_stays(long k, long row_bytes, long stride) {
  const long lines = (row_bytes + 63) / 64, apart = stride % 64 == 0 ? (stride & -stride) / 64 : 1;
  return k * (lines > apart ? lines : apart) * 64 <= PG_L2_KIB * 512L;
}

// Those that do not stay are faster packed only where more tiles pass by than these: measured with 1 MiB of L2, of 20 rows it is 20 %, of
// 32 rows 5 to 25, of 64 and 96 rows 1 to 7, of 128 rows 7 % faster where they lie. So many rows whole pages apart that their pages are not
// at hand either are packed for fewer: B [1024, 1024] and 96 rows take 1 to 7, [2048, 2048] and 128 rows 8 to 14, [1024, 8192] and 64 rows 20 % less.
template <class T> PG_INLINE long gemm_few_tiles(long k, long b_row, bool is_near) {
  const long size = sizeof(T);
  if (k * size <= 2048 || b_row * size % 4096 != 0) return 16;
  return is_near ? 8 : 5;
}

}  // namespace pg
