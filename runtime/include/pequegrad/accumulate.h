// Row reductions: one accumulator type per monoid, with a lane each for a sweep along a row or for rows side by side.
//
// Invariants: lanes beyond `count` never count; the order of combination depends on the extent and the lanes alone.
#pragma once
#include "math.h"
#include "reduce.h"

namespace pg {

// `add` takes a vector of elements of one row (and, where the result is a position, theirs); `finish` combines the lanes.
// `add_rows` takes one element of each of several rows; `rows` is then the vector of their results.
#define PG_DEFINE_ACCUMULATOR(NAME, NEUTRAL, COMBINE, REDUCE)                                                      \
  template <class T> struct NAME {                                                                                \
    vec<T> value = splat<T>(NEUTRAL);                                                                             \
    PG_INLINE void add(vec<T> v, long count) {                                                                    \
      add_rows(count < PG_LANES ? select(lane_mask(count), v, splat<T>(NEUTRAL)) : v);                            \
    }                                                                                                             \
    PG_INLINE void add_rows(vec<T> v) {                                                                           \
      vec<T> a = value, b = v;                                                                                    \
      value = COMBINE;                                                                                            \
    }                                                                                                             \
    PG_INLINE value_of<T> finish() const { return REDUCE(value); }                                                \
    PG_INLINE vec<T> rows() const { return value; }                                                               \
  };

PG_INLINE bool reduce_any(vec<b8> v) { return any(v); }
PG_INLINE bool reduce_all(vec<b8> v) { return all(v); }

PG_DEFINE_ACCUMULATOR(accumulate_prod, T(1), a* b, reduce_mul)
PG_DEFINE_ACCUMULATOR(accumulate_max, lowest_value<T>(), maximum(a, b), reduce_max)
PG_DEFINE_ACCUMULATOR(accumulate_min, highest_value<T>(), minimum(a, b), reduce_min)
PG_DEFINE_ACCUMULATOR(accumulate_any, false, a | b, reduce_any)
PG_DEFINE_ACCUMULATOR(accumulate_all, true, a & b, reduce_all)

// Sums in three levels of 128 each: a long row's rounding errors grow with the cube root of its length, not with it.
template <class T> struct accumulate_sum {
  enum { level = 128 };
  vec<T> value{}, middle{}, high{};
  long added = 0;
  PG_INLINE void add(vec<T> v, long count) { add_rows(count < PG_LANES ? select(lane_mask(count), v, vec<T>{}) : v); }
  PG_INLINE void add_rows(vec<T> v) {
    value = value + v;
    if (is_float<T> && ++added % level == 0) carry();
  }
  PG_INLINE void carry() {
    middle = middle + value;
    value = vec<T>{};
    if (added % (level * level) != 0) return;
    high = high + middle;
    middle = vec<T>{};
  }
  PG_INLINE T finish() const { return reduce_add(rows()); }
  PG_INLINE vec<T> rows() const { return is_float<T> ? high + (middle + value) : value; }
};

#define PG_DEFINE_ARG_ACCUMULATOR(NAME, UPDATE, REDUCE)                                                            \
  template <class T> struct NAME {                                                                                \
    best_lanes<T> best = best_start<T>();                                                                         \
    PG_INLINE void add(vec<T> v, vec<i64> position, long count) { UPDATE(best, v, position, count); }             \
    PG_INLINE void add_rows(vec<T> v, i64 position) { UPDATE(best, v, splat<i64>(position)); }                    \
    PG_INLINE i64 finish() const { return REDUCE(best).index; }                                                   \
    PG_INLINE vec<i64> rows() const { return best.index; }                                                        \
  };

PG_DEFINE_ARG_ACCUMULATOR(accumulate_argmax, argmax_update, argmax_reduce)
PG_DEFINE_ARG_ACCUMULATOR(accumulate_argmin, argmin_update, argmin_reduce)

}  // namespace pg
