// Transpositions in registers, a square of vectors at a time.
//
// Invariant: nothing outside of the given columns and depth is read.
#pragma once
#include "vec.h"

namespace pg {

#if defined(PG_HAS_SHUFFLEVECTOR)
template <int... LANE> struct lane_list {};
template <int N, int... LANE> struct lanes_below : lanes_below<N - 1, N - 1, LANE...> {};
template <int... LANE> struct lanes_below<0, LANE...> { typedef lane_list<LANE...> type; };

template <class V, int... LANE> PG_INLINE auto join_vectors(V a, V b, lane_list<LANE...>) {
  return __builtin_shufflevector(a, b, LANE...);
}

// The lanes of a and b by turns, of the lower or of the upper half of each block of BLOCK lanes: one instruction.
template <int BLOCK, bool UPPER, class V, int... LANE> PG_INLINE V zip_blocks(V a, V b, lane_list<LANE...>) {
  return __builtin_shufflevector(a, b, (LANE - LANE % BLOCK + LANE % BLOCK / 2 + UPPER * BLOCK / 2 + LANE % 2 * int(sizeof...(LANE)))...);
}

// Of each of two vectors the half from a lane on.
template <int FIRST, class V, int... LANE> PG_INLINE V join_halves(V a, V b, lane_list<LANE...>) {
  constexpr int half = sizeof...(LANE) / 2;
  return __builtin_shufflevector(a, b, (FIRST + LANE % half + LANE / half * 2 * half)...);
}

// N lanes in blocks of BLOCK, which lie `stride` elements apart.
template <class T, int BLOCK, int N> PG_INLINE auto load_blocks(const T* from, long stride) {
  if constexpr (N == BLOCK) {
    typedef T block __attribute__((vector_size(BLOCK * sizeof(T))));
    block r;
    __builtin_memcpy(&r, from, sizeof r);
    return r;
  } else {
    return join_vectors(load_blocks<T, BLOCK, N / 2>(from, stride), load_blocks<T, BLOCK, N / 2>(from + N / 2 / BLOCK * stride, stride),
                        typename lanes_below<N>::type());
  }
}
#endif

// to[k][c] = from[c][k] for k below `depth`, at most one native vector's lanes, and c below `columns`; columns from there
// on become zero. Blocks of 16 bytes come to their places as they are loaded; what is left is to transpose within the blocks.
template <class T> PG_INLINE void transpose_square(const T* from, long from_row, long columns, long depth, T* to, long to_row) {
  constexpr int N = lanes<T>::count;
#if defined(PG_HAS_SHUFFLEVECTOR)
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  constexpr int block = N * sizeof(T) < 16 ? N : 16 / int(sizeof(T));
  const typename lanes_below<N>::type all;
  alignas(64) T padded[N * N];
  if (columns < N || depth % block != 0) {
    for (int i = 0; i < N; ++i)
      *reinterpret_cast<unaligned*>(padded + i * N) = i < columns ? load_plain(from + i * from_row, depth).part[0] : native{};
    from = padded;
    from_row = N;
  }
  for (long k = 0; k < depth; k += block) {
    native r[block], s[block];
    PG_UNROLL for (int i = 0; i < block; ++i) r[i] = load_blocks<T, block, N>(from + i * from_row + k, block * from_row);
    PG_UNROLL for (int round = 1; round < block; round *= 2) {
      PG_UNROLL for (int i = 0; i < block; ++i) s[i] = r[i];
      PG_UNROLL for (int i = 0; i < block / 2; ++i) {
        r[2 * i] = zip_blocks<block, false>(s[i], s[i + block / 2], all);
        r[2 * i + 1] = zip_blocks<block, true>(s[i], s[i + block / 2], all);
      }
    }
    PG_UNROLL for (int i = 0; i < block; ++i)
      if (k + i < depth) *reinterpret_cast<unaligned*>(to + (k + i) * to_row) = r[i];
  }
#else
  for (int k = 0; k < N && k < depth; ++k)
    for (int c = 0; c < N; ++c) to[k * to_row + c] = c < columns ? from[c * from_row + k] : T(0);
#endif
}

// to[k][c] = from[c][k] for two k and as many columns as a vector has lanes, through registers that vectors leave free; from_row and to_row
// are bytes. Only where transposes_pairs. Beside a micro-kernel it takes one or two cycles for a vector, where a square on its own takes four
// to five. In one piece: GCC, short of registers there, keeps addresses in those of vectors and fetches them for each element, 12 to 16 cycles.
template <class T> constexpr bool transposes_pairs = false;
template <class T> void transpose_pair(const char* from, long from_row, char* to, long to_row);
#if defined(__x86_64__) && PG_LANES > 1
template <> constexpr bool transposes_pairs<float> = true;
template <> PG_INLINE void transpose_pair<float>(const char* from, long from_row, char* to, long to_row) {
  long pair;
  __asm__ volatile(".rept %c5\n\t"
                   "mov (%0), %2\n\t"
                   "mov %k2, (%1)\n\t"
                   "shr $32, %2\n\t"
                   "mov %k2, (%1,%4)\n\t"
                   "mov (%0,%3), %2\n\t"
                   "mov %k2, 4(%1)\n\t"
                   "shr $32, %2\n\t"
                   "mov %k2, 4(%1,%4)\n\t"
                   "lea (%0,%3,2), %0\n\t"
                   "add $8, %1\n\t"
                   ".endr"
                   : "+r"(from), "+r"(to), "=&r"(pair)
                   : "r"(from_row), "r"(to_row), "i"(PG_LANES / 2)
                   : "memory", "cc");
}
#endif

// to[k][c] = from[c * from_row + k] for k below `depth` and c below `columns`, at most the lanes; columns from there on become zero.
template <class T> PG_NOINLINE void transpose_lanes(const T* from, long from_row, long columns, long depth, T (*to)[PG_LANES]) {
  constexpr int N = lanes<T>::count;
  for (long k = 0; k < depth; k += N)
    for (long c = 0; c < PG_LANES; c += N)
      transpose_square(from + c * from_row + k, from_row, columns - c, depth - k < N ? depth - k : long(N), to[k] + c, PG_LANES);
}

// Some rows of a matrix that lies by columns, element (row, column) at start[row + column * stride]: at most ROWS of them, and of as many
// columns as SLOTS vectors hold, turned together before vectors along the rows are read.
template <class T, int ROWS, int SLOTS> struct turned_rows {
  const T* start;
  long stride, first_row = 0, first_column = 0;
  alignas(64) T kept[SLOTS][ROWS][PG_LANES];

  PG_INLINE turned_rows(const T* start, long stride) : start(start), stride(stride) {}

  // first_column is a multiple of the lanes; zeros follow the last column.
  PG_NOINLINE void turn(long row, long rows, long column, long columns) {
    first_row = row;
    first_column = column;
    for (long c = 0; c < columns; c += PG_LANES)
      transpose_lanes(start + row + (column + c) * stride, stride, columns - c, rows, kept[c / PG_LANES]);
  }

  // Where the vector lies that begins at a column, a multiple of the lanes.
  PG_INLINE const T* at(long row, long column) const { return kept[(column - first_column) / PG_LANES][row - first_row]; }
};

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_TRANSPOSE_PARTS(PART) \
  PART void transpose_lanes<float>(const float*, long, long, long, float (*)[PG_LANES]);
#if defined(PG_PARTS_APART)
PG_TRANSPOSE_PARTS(extern template)
#endif

}  // namespace pg
