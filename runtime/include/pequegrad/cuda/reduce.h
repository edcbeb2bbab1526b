// Reductions over the threads of a warp, of a block, or of the slices that share a row: one accumulator type per monoid.
//
// Invariants: the order of combination depends on the extents and PG_BLOCK alone; every thread of the group gets the
// result; accumulators are trivial types, so that they can lie in shared memory.
#pragma once
#include "scalar.h"

namespace pg {

enum { warp_threads = 32, block_warps = PG_BLOCK / warp_threads };

// `add` takes one element (and, where the result is a position, its position); `finish` is the result.
#define PG_DEFINE_THREAD_ACCUMULATOR(NAME, NEUTRAL, COMBINE)                                                         \
  template <class T> struct NAME {                                                                                 \
    value_of<T> value;                                                                                             \
    static __device__ __forceinline__ NAME start() { return {value_of<T>(NEUTRAL)}; }                              \
    __device__ __forceinline__ void add(value_of<T> b) {                                                           \
      const value_of<T> a = value;                                                                                 \
      value = value_of<T>(COMBINE);                                                                                \
    }                                                                                                              \
    __device__ __forceinline__ void merge(const NAME& other) { add(other.value); }                                 \
    __device__ __forceinline__ NAME from_lane(int distance) const { return {value_of<T>(__shfl_xor_sync(~0u, value, distance))}; } \
    __device__ __forceinline__ value_of<T> finish() const { return value; }                                        \
  };

PG_DEFINE_THREAD_ACCUMULATOR(accumulate_prod, 1, a* b)
PG_DEFINE_THREAD_ACCUMULATOR(accumulate_max, lowest_value<value_of<T>>(), maximum(a, b))
PG_DEFINE_THREAD_ACCUMULATOR(accumulate_min, highest_value<value_of<T>>(), minimum(a, b))

// Sums in two levels of 128: a long row's rounding errors grow with the root of its length, not with it.
template <class T> struct accumulate_sum {
  enum { level = 128 };
  value_of<T> value, high;
  int added;
  static __device__ __forceinline__ accumulate_sum start() { return {value_of<T>(0), value_of<T>(0), 0}; }
  __device__ __forceinline__ void add(value_of<T> b) {
    value = value_of<T>(value + b);
    if (is_float<value_of<T>> && ++added % level == 0) {
      high = value_of<T>(high + value);
      value = value_of<T>(0);
    }
  }
  __device__ __forceinline__ void merge(const accumulate_sum& other) {
    value = value_of<T>(value + other.value);
    high = value_of<T>(high + other.high);
  }
  __device__ __forceinline__ accumulate_sum from_lane(int distance) const {
    return {value_of<T>(__shfl_xor_sync(~0u, value, distance)), value_of<T>(__shfl_xor_sync(~0u, high, distance)), 0};
  }
  __device__ __forceinline__ value_of<T> finish() const { return value_of<T>(high + value); }
};

#define PG_DEFINE_VOTE(NAME, NEUTRAL, OP)                                                                          \
  template <class T> struct NAME {                                                                                 \
    int value;                                                                                                     \
    static __device__ __forceinline__ NAME start() { return {NEUTRAL}; }                                           \
    __device__ __forceinline__ void add(bool b) { value = value OP int(b); }                                       \
    __device__ __forceinline__ void merge(const NAME& other) { value = value OP other.value; }                     \
    __device__ __forceinline__ NAME from_lane(int distance) const { return {__shfl_xor_sync(~0u, value, distance)}; } \
    __device__ __forceinline__ bool finish() const { return value != 0; }                                          \
  };

PG_DEFINE_VOTE(accumulate_any, 0, |)
PG_DEFINE_VOTE(accumulate_all, 1, &)

#define PG_DEFINE_THREAD_ARG(NAME, COMBINE)                                                                          \
  template <class T> struct NAME {                                                                                 \
    value_of<T> value;                                                                                             \
    i64 index;                                                                                                     \
    static __device__ __forceinline__ NAME start() { return {value_of<T>(0), -1}; }                                \
    __device__ __forceinline__ void add(value_of<T> v, i64 position) { merge({v, position}); }                     \
    __device__ __forceinline__ void merge(const NAME& other) {                                                     \
      const best<value_of<T>> r = COMBINE(best<value_of<T>>{value, index}, best<value_of<T>>{other.value, other.index}); \
      value = r.value;                                                                                             \
      index = r.index;                                                                                             \
    }                                                                                                              \
    __device__ __forceinline__ NAME from_lane(int distance) const {                                                \
      return {value_of<T>(__shfl_xor_sync(~0u, value, distance)), __shfl_xor_sync(~0u, index, distance)}; \
    }                                                                                                              \
    __device__ __forceinline__ i64 finish() const { return index; }                                                \
  };

PG_DEFINE_THREAD_ARG(accumulate_argmax, argmax_combine)
PG_DEFINE_THREAD_ARG(accumulate_argmin, argmin_combine)

template <class A> __device__ __forceinline__ A combine_warp(A mine) {
  for (int distance = 1; distance < warp_threads; distance *= 2) {
    // The lower lane's share comes first on both sides, so that both reach the same bits.
    A other = mine.from_lane(distance);
    if (threadIdx.x & distance) {
      other.merge(mine);
      mine = other;
    } else {
      mine.merge(other);
    }
  }
  return mine;
}

// Over `Threads` threads (a warp or the whole block) that share a row.
template <int Threads, class A> __device__ __forceinline__ A combine_row(A mine) {
  static_assert(Threads == warp_threads || Threads == PG_BLOCK, "a row belongs to a warp or to a block");
  mine = combine_warp(mine);
  if constexpr (Threads == PG_BLOCK) {
    PG_SHARED(A, of_warp, block_warps);
    if (threadIdx.x % warp_threads == 0) of_warp[threadIdx.x / warp_threads] = mine;
    __syncthreads();
    mine = of_warp[0];
    for (int warp = 1; warp < block_warps; ++warp) mine.merge(of_warp[warp]);
    __syncthreads();
  }
  return mine;
}

// Over the block's slices of a row each lane has to itself: thread t holds slice t / 32 of row t % 32.
template <class A> __device__ __forceinline__ A combine_slices(A mine) {
  PG_SHARED(A, share, PG_BLOCK);
  share[threadIdx.x] = mine;
  __syncthreads();
  const int lane = threadIdx.x % warp_threads;
  mine = share[lane];
  for (int slice = 1; slice < block_warps; ++slice) mine.merge(share[slice * warp_threads + lane]);
  __syncthreads();
  return mine;
}

}  // namespace pg
