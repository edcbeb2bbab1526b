// Sorting along the middle of (outer, extent, inner), in the memory of the results.
//
// Invariants: equal elements keep their order, since a place decides between them; NaN is greater than all else; what is
// moved keeps its bits.
#pragma once
#include "control.h"
#include "indexing.h"

namespace pg {

// Up to so many elements are sorted by one thread, more by a block.
constexpr long sorted_by_thread = 32;

template <bool Descending, class T> struct sorted_column {
  T* values;
  i64* places;
  long step;

  __device__ __forceinline__ bool is_before(long i, long j) const {
    const value_of<T> x = load(values + i * step), y = load(values + j * step);
    const bool is_less = x < y || (y != y && x == x), is_greater = y < x || (x != x && y == y);
    if (is_less || is_greater) return Descending ? is_greater : is_less;
    return load(places + i * step) < load(places + j * step);
  }
  __device__ __forceinline__ void exchange(long i, long j) const {
    const packed<T, 1> value = *reinterpret_cast<const packed<T, 1>*>(values + i * step);
    move<1>(values + i * step, values + j * step);
    pg_sim_note_store(values + j * step, sizeof(T));
    *reinterpret_cast<packed<T, 1>*>(values + j * step) = value;
    const i64 place = load(places + i * step);
    store(places + i * step, load(places + j * step));
    store(places + j * step, place);
  }
  // `i` lies before `j` and shall hold what comes before.
  __device__ __forceinline__ void order(long i, long j) const {
    if (is_before(j, i)) exchange(i, j);
  }
  __device__ __forceinline__ void fill(const T* source, long e) const {
    move<1>(values + e * step, source + e * step);
    store(places + e * step, i64(e));
  }
};

// values[o][·][r] = source[o][·][r] in order, and places[o][·][r] where in the source each lies. A block sorts a column by
// a bitonic network whose exchanges all go one way, so that the places behind the last element need not exist.
// Units: outer * inner, or where a thread sorts a column, outer * inner / PG_BLOCK.
template <bool Descending, class T>
__device__ __forceinline__ void sort_columns(const part& part, long outer, long extent, long inner, const T* source, T* values, i64* places) {
  if (extent <= sorted_by_thread) {
    for (long column = part.thread(); column < outer * inner; column += part.threads()) {
      const long first = column / inner * extent * inner + column % inner;
      const sorted_column<Descending, T> sorted = {values + first, places + first, inner};
      for (long e = 0; e < extent; ++e) {
        sorted.fill(source + first, e);
        for (long to = e; to > 0 && sorted.is_before(to, to - 1); --to) sorted.exchange(to, to - 1);
      }
    }
    return;
  }
  for (long column = part.block; column < outer * inner; column += part.blocks) {
    const long first = column / inner * extent * inner + column % inner;
    const sorted_column<Descending, T> sorted = {values + first, places + first, inner};
    for (long e = threadIdx.x; e < extent; e += PG_BLOCK) sorted.fill(source + first, e);
    for (long run = 2; run < 2 * extent; run *= 2) {
      __syncthreads();
      // Two sorted runs of run / 2: each element meets its mirror image, then those at halving distances.
      for (long pair = threadIdx.x; pair < extent; pair += PG_BLOCK) {
        const long begin = pair / (run / 2) * run, at = pair % (run / 2), i = begin + at, j = begin + run - 1 - at;
        if (j < extent) sorted.order(i, j);
      }
      for (long distance = run / 4; distance > 0; distance /= 2) {
        __syncthreads();
        for (long pair = threadIdx.x; pair < extent; pair += PG_BLOCK) {
          const long i = pair / distance * 2 * distance + pair % distance;
          if (i + distance < extent) sorted.order(i, i + distance);
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace pg
