// Reductions across the lanes of one vector, and (value, index) pairs for argmax and argmin.
//
// Invariant: the order is fixed: lane l meets lane l + half, halving until one is left. Lanes beyond count are the
// neutral element. Maximum and minimum return NaN if any lane is NaN; of equal values the lowest index wins.
#pragma once
#include "math.h"

namespace pg {

template <int Distance, class T> PG_INLINE typename lanes<T>::native swap_lanes(typename lanes<T>::native v) {
#define PG_PARTNER(i) ((i) ^ Distance)
#if defined(PG_HAS_SHUFFLEVECTOR)
  if constexpr (lanes<T>::parts == 2) return __builtin_shufflevector(v, v, PG_LIST_LOW(PG_PARTNER));
  else return __builtin_shufflevector(v, v, PG_LIST_FULL(PG_PARTNER));
#else
  typename lanes<T>::native r;
  for (int l = 0; l < lanes<T>::count; ++l) r[l] = v[PG_PARTNER(l)];
  return r;
#endif
}

template <class T, class F> PG_INLINE T reduce_lanes(vec<T> v, F combine) {
  vec<T> swapped = v;
  if constexpr (lanes<T>::parts == 2) {
    swapped.part[0] = v.part[1];
    v = combine(v, swapped);
  }
  auto step = [&](auto shuffled) {
    swapped.part[0] = shuffled;
    v = combine(v, swapped);
  };
  if constexpr (lanes<T>::count >= 16) step(swap_lanes<8, T>(v.part[0]));
  if constexpr (lanes<T>::count >= 8) step(swap_lanes<4, T>(v.part[0]));
  if constexpr (lanes<T>::count >= 4) step(swap_lanes<2, T>(v.part[0]));
  if constexpr (lanes<T>::count >= 2) step(swap_lanes<1, T>(v.part[0]));
  return T(v.part[0][0]);
}

template <class T> PG_INLINE T reduce_add(vec<T> v) {
  return reduce_lanes(v, [](vec<T> a, vec<T> b) { return a + b; });
}
template <class T> PG_INLINE T reduce_mul(vec<T> v) {
  return reduce_lanes(v, [](vec<T> a, vec<T> b) { return a * b; });
}
template <class T> PG_INLINE T reduce_max(vec<T> v) {
  return reduce_lanes(v, [](vec<T> a, vec<T> b) { return maximum(a, b); });
}
template <class T> PG_INLINE T reduce_min(vec<T> v) {
  return reduce_lanes(v, [](vec<T> a, vec<T> b) { return minimum(a, b); });
}
template <class T> PG_INLINE T reduce_add(vec<T> v, long count) { return reduce_add(select(lane_mask(count), v, T(0))); }
template <class T> PG_INLINE T reduce_mul(vec<T> v, long count) { return reduce_mul(select(lane_mask(count), v, T(1))); }
template <class T> PG_INLINE T reduce_max(vec<T> v, long count) { return reduce_max(select(lane_mask(count), v, lowest_value<T>())); }
template <class T> PG_INLINE T reduce_min(vec<T> v, long count) { return reduce_min(select(lane_mask(count), v, highest_value<T>())); }

#if defined(PG_HAS_SHUFFLEVECTOR)
// One round of the sums of N vectors: lanes D apart meet, of vectors D apart in one.
template <class T, int N, int D> PG_INLINE void reduce_round(typename lanes<T>::native* v) {
  if constexpr (D > 0) {
    constexpr int L = lanes<T>::count;
#define PG_MEET_FIRST(l) ((l) & D ? L + (l) - D : (l))
#define PG_MEET_SECOND(l) ((l) & D ? L + (l) : (l) + D)
    PG_UNROLL for (int i = 0; i < N; ++i) {
      if (i & D) continue;
      const auto a = v[i], b = v[i + D < N ? i + D : i];
      if constexpr (lanes<T>::parts == 2)
        v[i] = __builtin_shufflevector(a, b, PG_LIST_LOW(PG_MEET_FIRST)) + __builtin_shufflevector(a, b, PG_LIST_LOW(PG_MEET_SECOND));
      else v[i] = __builtin_shufflevector(a, b, PG_LIST_FULL(PG_MEET_FIRST)) + __builtin_shufflevector(a, b, PG_LIST_FULL(PG_MEET_SECOND));
    }
    reduce_round<T, N, D / 2>(v);
  }
}
#endif

// to[i] = the sum of the lanes of v[i], i < N, in the order of reduce_add; v is lost.
template <class T, int N> PG_INLINE void reduce_add_each(typename lanes<T>::native* v, T* to) {
#if defined(PG_HAS_SHUFFLEVECTOR)
  constexpr int L = lanes<T>::count, M = N < L ? N : L;
  reduce_round<T, M, L / 2>(v);
  PG_UNROLL for (int i = 0; i < M; ++i) to[i] = v[0][i];
  if constexpr (N > M) reduce_add_each<T, N - M>(v + M, to + M);
#else
  for (int i = 0; i < N; ++i) {
    vec<T> sum{};
    sum.part[0] = v[i];
    to[i] = reduce_add(sum);
  }
#endif
}

// Lane i is the sum of the lanes of v[i], in the order of reduce_add; v is lost.
template <class T> PG_INLINE vec<T> reduce_add_rows(vec<T>* v) {
  constexpr int L = lanes<T>::count;
  vec<T> r;
  PG_EACH_PART(T) {
    typename lanes<T>::native rows[L];
    PG_UNROLL for (int i = 0; i < L; ++i) rows[i] = lanes<T>::parts == 2 ? v[p * L + i].part[0] + v[p * L + i].part[1] : v[i].part[0];
#if defined(PG_HAS_SHUFFLEVECTOR)
    reduce_round<T, L, L / 2>(rows);
    r.part[p] = rows[0];
#else
    reduce_add_each<T, L>(rows, reinterpret_cast<T*>(&r.part[p]));
#endif
  }
  return r;
}

// ---- argmax, argmin ----------------------------------------------------------------------------------------------------

// One candidate a lane. Feed each lane rising indices, then reduce.
template <class T> struct best_lanes {
  vec<T> value;
  vec<i64> index;
};
template <class T> PG_INLINE best_lanes<T> best_start() { return {vec<T>{}, splat<i64>(-1)}; }

template <class T> PG_INLINE void argmax_update(best_lanes<T>& b, vec<T> value, vec<i64> index, long count = PG_LANES) {
  vec<b8> better = lt(b.index, i64(0)) | gt(value, b.value) | (ne(value, value) & eq(b.value, b.value));
  better = better & lane_mask(count);
  b.value = select(better, value, b.value);
  b.index = select(better, index, b.index);
}
template <class T> PG_INLINE void argmin_update(best_lanes<T>& b, vec<T> value, vec<i64> index, long count = PG_LANES) {
  vec<b8> better = lt(b.index, i64(0)) | lt(value, b.value) | (ne(value, value) & eq(b.value, b.value));
  better = better & lane_mask(count);
  b.value = select(better, value, b.value);
  b.index = select(better, index, b.index);
}
template <class T> PG_INLINE best<T> argmax_reduce(best_lanes<T> b) {
  best<T> r = {T(b.value.lane(0)), b.index.lane(0)};
  for (int l = 1; l < PG_LANES; ++l) r = argmax_combine(r, best<T>{T(b.value.lane(l)), b.index.lane(l)});
  return r;
}
template <class T> PG_INLINE best<T> argmin_reduce(best_lanes<T> b) {
  best<T> r = {T(b.value.lane(0)), b.index.lane(0)};
  for (int l = 1; l < PG_LANES; ++l) r = argmin_combine(r, best<T>{T(b.value.lane(l)), b.index.lane(l)});
  return r;
}

}  // namespace pg
