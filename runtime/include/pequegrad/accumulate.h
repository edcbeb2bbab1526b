// Row reductions: one accumulator type per monoid, with a lane each for a sweep along a row or for rows side by side.
//
// Invariants: lanes beyond `count` never count; the order of combination depends on the extent and the lanes alone.
#pragma once
#include "math.h"
#include "reduce.h"

namespace pg {

// `add` takes a vector of elements of one row and their positions; `finish` combines the lanes.
// `add_rows` takes one element of each of several rows; `rows` is then the vector of their results.
#define PG_DEFINE_ACCUMULATOR(NAME, NEUTRAL, COMBINE, REDUCE)                                                      \
  template <class T> struct NAME {                                                                                \
    typedef value_of<T> scalar;                                                                                   \
    typedef vector_of<T> lanes_type;                                                                              \
    lanes_type value = splat_like(NEUTRAL);                                                                       \
    static PG_INLINE lanes_type splat_like(scalar x) { return splat<T>(x); }                                      \
    PG_INLINE void add(lanes_type v, vec<i64>, long count) {                                                      \
      if (count < PG_LANES) v = select(lane_mask(count), v, splat_like(NEUTRAL));                                 \
      lanes_type a = value, b = v;                                                                                \
      value = COMBINE;                                                                                            \
    }                                                                                                             \
    PG_INLINE void add_rows(lanes_type v, i64) {                                                                  \
      lanes_type a = value, b = v;                                                                                \
      value = COMBINE;                                                                                            \
    }                                                                                                             \
    PG_INLINE scalar finish() const { return REDUCE(value); }                                                     \
    PG_INLINE lanes_type rows() const { return value; }                                                           \
  };

PG_INLINE bool reduce_any(vec<b8> v) { return any(v); }
PG_INLINE bool reduce_all(vec<b8> v) { return all(v); }

PG_DEFINE_ACCUMULATOR(accumulate_sum, scalar(0), a + b, reduce_add)
PG_DEFINE_ACCUMULATOR(accumulate_prod, scalar(1), a* b, reduce_mul)
PG_DEFINE_ACCUMULATOR(accumulate_max, lowest_value<scalar>(), maximum(a, b), reduce_max)
PG_DEFINE_ACCUMULATOR(accumulate_min, highest_value<scalar>(), minimum(a, b), reduce_min)
PG_DEFINE_ACCUMULATOR(accumulate_any, false, a | b, reduce_any)
PG_DEFINE_ACCUMULATOR(accumulate_all, true, a & b, reduce_all)

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
