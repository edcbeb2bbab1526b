// Gather, scatter, checks of indices, and running sums over data seen as (outer, extent, inner).
//
// Invariant: an index outside [0, extent) is reported and neither read nor written through.
#pragma once
#include "phases.h"

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

template <class Index> PG_INLINE bool check_index(const step_context& step, int kernel, Index value, long extent) {
  if (long(value) >= 0 && long(value) < extent) return true;
  report_index(step, kernel, long(value), extent);
  return false;
}

// out = index, once each is below `extent` or, where there is such a one, is `ignored`.
template <class Index>
void check_indices(const step_context& step, int kernel, long count, const index_range& good, const Index* index, Index* out, int worker) {
  long begin, end;
  share(count, PG_LANES, worker, step.workers, begin, end);
  for (long i = begin; i < end; ++i) {
    if (!(good.has_ignored && long(index[i]) == good.ignored)) check_index(step, kernel, index[i], good.extent);
    out[i] = index[i];
  }
}

template <class T, class Index>
void gather_rows(const step_context& step, int kernel, const index_shape& s, const T* table, const Index* index, T* out, int worker) {
  long begin, end;
  share(s.outer * s.count, 1, worker, step.workers, begin, end);
  for (long unit = begin; unit < end; ++unit) {
    const long o = unit / s.count, i = unit % s.count;
    T* to = out + unit * s.inner;
    const T* from = table + o * s.extent * s.inner;
    if (s.per_element) {
      const Index* at = index + unit * s.inner;
      for (long r = 0; r < s.inner; ++r)
        if (check_index(step, kernel, at[r], s.extent)) to[r] = from[long(at[r]) * s.inner + r];
    } else if (check_index(step, kernel, index[i], s.extent)) {
      __builtin_memcpy(to, from + long(index[i]) * s.inner, s.inner * sizeof(T));
    }
  }
}

// What a scatter does with a number and the cell that its index names.
struct adding {
  template <class T> static PG_INLINE void at(T& cell, T number) { cell = T(cell + number); }
};
struct replacing {
  template <class T> static PG_INLINE void at(T& cell, T number) { cell = number; }
};

// out = base, then source[o][i][r] goes to out[o][index][r], in rising i whatever the number of workers, so that the last
// one stays where cells are replaced: each worker owns outer slices or, where there are few, columns of `inner`.
template <class How, class T, class Index>
void scatter_by(const step_context& step, int kernel, const index_shape& s, const T* base, const Index* index, const T* source, T* out,
                int worker) {
  long outer_begin, outer_end, begin = 0, end = s.inner;
  if (s.outer >= step.workers) {
    share(s.outer, 1, worker, step.workers, outer_begin, outer_end);
  } else {
    outer_begin = 0;
    outer_end = s.outer;
    share(s.inner, PG_LANES, worker, step.workers, begin, end);
  }
  for (long o = outer_begin; o < outer_end; ++o) {
    T* to = out + o * s.extent * s.inner;
    const T* original = base + o * s.extent * s.inner;
    if (to != original)
      for (long e = 0; e < s.extent; ++e)
        for (long r = begin; r < end; ++r) to[e * s.inner + r] = original[e * s.inner + r];
    for (long i = 0; i < s.count; ++i) {
      const T* from = source + (o * s.count + i) * s.inner;
      for (long r = begin; r < end; ++r) {
        const Index at = s.per_element ? index[(o * s.count + i) * s.inner + r] : index[i];
        if (!check_index(step, kernel, at, s.extent)) {
          if (!s.per_element) break;
          continue;
        }
        How::at(to[long(at) * s.inner + r], from[r]);
      }
    }
  }
}

template <class T>
void running_sum(const step_context& step, long outer, long extent, long inner, const T* source, T* out, int worker) {
  long begin, end;
  share(outer * inner, 1, worker, step.workers, begin, end);
  for (long unit = begin; unit < end; ++unit) {
    const long at = unit / inner * extent * inner + unit % inner;
    T sum = T(0);
    for (long e = 0; e < extent; ++e) {
      sum = T(sum + source[at + e * inner]);
      out[at + e * inner] = sum;
    }
  }
}

}  // namespace pg
