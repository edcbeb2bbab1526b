// Gather, scatter, checks of indices, and running sums over data seen as (outer, extent, inner).
//
// Invariants: an index outside [0, extent) is reported and neither read nor written through; sums have a fixed order but
// in scatter_add_atomic, which says so; what is only moved keeps its bits.
#pragma once
#include "control.h"
#include "product.h"

namespace pg {

// How an index array addresses: one index per element of (outer, count, inner), or one per position of `count`.
struct index_shape {
  long outer, extent, count, inner;
  bool per_element;
};

// Which indices are good: those in [0, extent) and, where there is one, `ignored`.
struct index_range {
  long extent;
  bool has_ignored;
  long ignored;
};

// out = index, once each is below `extent` or, where there is such a one, is `ignored`. Units: count / PG_BLOCK.
template <class Index>
__device__ __forceinline__ void check_indices(const part& part, pg_failure* failure, int kernel, long count, const index_range& good,
                                              const Index* index, Index* out) {
  for (long i = part.thread(); i < count; i += part.threads()) {
    const Index at = load(index + i);
    if (!(good.has_ignored && long(at) == good.ignored)) check_index(failure, kernel, at, good.extent);
    store(out + i, at);
  }
}

template <int W, class T> __device__ __forceinline__ void move(T* to, const T* from) {
  pg_sim_note_load(from, sizeof(T) * W);
  const packed<T, W> all = *reinterpret_cast<const packed<T, W>*>(from);
  pg_sim_note_store(to, sizeof(T) * W);
  *reinterpret_cast<packed<T, W>*>(to) = all;
}

// out[o][i][r] = table[o][index][r]. Width > 1 promises that rows are multiples of Width and aligned to it, and one index
// per row. Units: elements of out / (Width * PG_BLOCK).
template <int Width, class T, class Index>
__device__ __forceinline__ void gather_rows(const part& part, pg_failure* failure, int kernel, const index_shape& s, const T* table,
                                            const Index* index, T* out) {
  const long vectors = s.inner / Width;
  for (long unit = part.thread(); unit < s.outer * s.count * vectors; unit += part.threads()) {
    const long row = unit / vectors, r = unit % vectors * Width, o = row / s.count;
    const long at = long(load(index + (s.per_element ? unit : row % s.count)));
    if (check_index(failure, kernel, at, s.extent)) move<Width>(out + row * s.inner + r, table + (o * s.extent + at) * s.inner + r);
  }
}

// What a scatter does with a number and the cell that its index names.
struct adding {
  template <class T> static __device__ __forceinline__ void at(T* cell, const T* number) {
    store(cell, value_of<T>(load(cell) + load(number)));
  }
};
struct replacing {
  template <class T> static __device__ __forceinline__ void at(T* cell, const T* number) { move<1>(cell, number); }
};

// out = base, unless they are the same.
template <class T> __device__ __forceinline__ void copy_base(const T* base, T* out, long first, long count) {
  if (base == out) return;
  for (long i = threadIdx.x; i < count; i += PG_BLOCK) move<1>(out + first + i, base + first + i);
}

// Rows of the table that a block of a scatter owns, where one index moves a whole row: some 2,000 blocks have work.
__host__ __device__ __forceinline__ long scatter_rows(const index_shape& s) {
  const long rows = tiles_of(s.outer * s.extent, 2048);
  return rows < 1 ? 1 : rows;
}

// One index a row: a block owns rows of the table, finds the indices that lie in them, 256 at a time and in order, and
// moves their rows there, one thread a column (with few columns, one a column and row of several).
template <class How, class T, class Index>
__device__ __forceinline__ void scatter_by_rows(const part& part, pg_failure* failure, int kernel, const index_shape& s, const T* base,
                                                const Index* index, const T* source, T* out) {
  PG_SHARED(int, found, PG_BLOCK);
  PG_SHARED(int, found_by_warp, PG_BLOCK / 32);
  const long rows = scatter_rows(s), chunks = tiles_of(s.extent, rows);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const long groups = s.inner < PG_BLOCK && s.inner > 0 ? PG_BLOCK / s.inner : 1;
  const long group = groups > 1 ? thread / s.inner : 0, column = groups > 1 ? thread % s.inner : thread;
  for (long unit = part.block; unit < s.outer * chunks; unit += part.blocks) {
    const long o = unit / chunks, begin = unit % chunks * rows, end = s.extent - begin < rows ? s.extent : begin + rows;
    copy_base(base, out, (o * s.extent + begin) * s.inner, (end - begin) * s.inner);
    T* const to = out + o * s.extent * s.inner;
    for (long first = 0; first < s.count; first += PG_BLOCK) {
      const long i = first + thread, at = i < s.count ? long(load(index + i)) : begin;
      if (unit == 0 && i < s.count) check_index(failure, kernel, at, s.extent);
      const bool is_mine = i < s.count && at >= begin && at < end;
      const unsigned votes = __ballot_sync(~0u, is_mine);
      if (lane == 0) found_by_warp[warp] = __popc(votes);
      __syncthreads();  // the copy of base has ended too
      int place = __popc(votes & ((1u << lane) - 1u)), total = 0;
      for (int w = 0; w < PG_BLOCK / 32; ++w) {
        if (w < warp) place += found_by_warp[w];
        total += found_by_warp[w];
      }
      if (is_mine) found[place] = int(thread);
      __syncthreads();
      if (group < groups)
        for (int f = 0; f < total; ++f) {
          const long position = first + found[f], row = long(load(index + position));
          if (row % groups != group) continue;
          for (long r = column; r < s.inner; r += PG_BLOCK) How::at(to + row * s.inner + r, source + (o * s.count + position) * s.inner + r);
        }
      __syncthreads();
    }
  }
}

// One index an element: a thread owns a column of the table, and goes through it in rising i.
template <class How, class T, class Index>
__device__ __forceinline__ void scatter_by_elements(const part& part, pg_failure* failure, int kernel, const index_shape& s, const T* base,
                                                    const Index* index, const T* source, T* out) {
  // A block takes whole outer slices side by side or, where they are broad, 256 columns of one.
  const long slices = s.inner < PG_BLOCK && s.inner > 0 ? PG_BLOCK / s.inner : 1, tiles = tiles_of(s.inner, PG_BLOCK);
  for (long unit = part.block; unit < tiles_of(s.outer, slices) * tiles; unit += part.blocks) {
    const long first = unit / tiles * slices, last = s.outer - first < slices ? s.outer : first + slices;
    const long o = first + (slices > 1 ? threadIdx.x / s.inner : 0);
    const long r = slices > 1 ? threadIdx.x % s.inner : unit % tiles * PG_BLOCK + threadIdx.x;
    const bool is_column = o < last && r < s.inner;
    if (tiles == 1) {
      copy_base(base, out, first * s.extent * s.inner, (last - first) * s.extent * s.inner);
    } else if (is_column && base != out) {
      for (long e = 0; e < s.extent; ++e) move<1>(out + (o * s.extent + e) * s.inner + r, base + (o * s.extent + e) * s.inner + r);
    }
    __syncthreads();
    if (!is_column) continue;
    for (long i = 0; i < s.count; ++i) {
      const long from = (o * s.count + i) * s.inner + r, at = long(load(index + from));
      if (check_index(failure, kernel, at, s.extent)) How::at(out + (o * s.extent + at) * s.inner + r, source + from);
    }
  }
}

// out = base, then source[o][i][r] goes to out[o][index][r], each cell in rising i: the same bits whatever the grid.
// Units: outer * tiles of scatter_rows(s) of extent, or with one index an element, columns / PG_BLOCK.
template <class How, class T, class Index>
__device__ __forceinline__ void scatter_by(const part& part, pg_failure* failure, int kernel, const index_shape& s, const T* base,
                                           const Index* index, const T* source, T* out) {
  if (s.per_element) scatter_by_elements<How>(part, failure, kernel, s, base, index, source, out);
  else scatter_by_rows<How>(part, failure, kernel, s, base, index, source, out);
}

// The first half of a scatter_add by atomics, a phase of its own: out = base.
template <class T> __device__ __forceinline__ void scatter_start(const part& part, const index_shape& s, const T* base, T* out) {
  if (base == out) return;
  for (long i = part.thread(); i < s.outer * s.extent * s.inner; i += part.threads()) move<1>(out + i, base + i);
}

// The second half: the order of additions, and so the last bits of floats, change from run to run. T: f32, f64 or i32.
template <class T, class Index>
__device__ __forceinline__ void scatter_add_atomic(const part& part, pg_failure* failure, int kernel, const index_shape& s, const Index* index,
                                                   const T* source, T* out) {
  for (long unit = part.thread(); unit < s.outer * s.count * s.inner; unit += part.threads()) {
    const long row = unit / s.inner, r = unit % s.inner;
    const long at = long(load(index + (s.per_element ? unit : row % s.count)));
    if (check_index(failure, kernel, at, s.extent)) atomicAdd(out + (row / s.count * s.extent + at) * s.inner + r, load(source + unit));
  }
}

// Running sums along `extent`. Rows of neighbours are summed by a block, 256 elements at a time: within a warp by doubling
// distances, then over the warps, then over the steps. Else one thread a column. Units: outer, or outer * inner / PG_BLOCK.
template <class T>
__device__ __forceinline__ void running_sum(const part& part, long outer, long extent, long inner, const T* source, T* out) {
  typedef value_of<T> value;
  if (inner != 1 || extent < 64) {
    for (long column = part.thread(); column < outer * inner; column += part.threads()) {
      const long first = column / inner * extent * inner + column % inner;
      value sum = value(0);
      for (long e = 0; e < extent; ++e) {
        sum = value(sum + load(source + first + e * inner));
        store(out + first + e * inner, sum);
      }
    }
    return;
  }
  PG_SHARED(value, of_warp, PG_BLOCK / 32);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  for (long row = part.block; row < outer; row += part.blocks) {
    value before = value(0);
    for (long first = 0; first < extent; first += PG_BLOCK) {
      const long at = row * extent + first + thread;
      const bool is_inside = first + thread < extent;
      value sum = is_inside ? load(source + at) : value(0);
      for (int distance = 1; distance < 32; distance *= 2) {
        const value other = value(__shfl_up_sync(~0u, sum, distance));
        if (lane >= distance) sum = value(other + sum);
      }
      if (lane == 31) of_warp[warp] = sum;
      __syncthreads();
      value start = before;
      for (int w = 0; w < PG_BLOCK / 32; ++w) {
        if (w == warp) sum = value(start + sum);
        start = value(start + of_warp[w]);
      }
      if (is_inside) store(out + at, sum);
      before = start;
      __syncthreads();
    }
  }
}

}  // namespace pg
