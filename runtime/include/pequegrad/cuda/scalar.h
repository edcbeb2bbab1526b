// One element a thread: the names of the lane vectors for vectors of one lane, so that an op's expression text serves both.
//
// Invariant: global memory of a step is read and written through load and store, which the simulator counts.
#pragma once
#include "platform.h"
#include "../scalar.h"

// Threads of every block.
#define PG_BLOCK 256

namespace pg {

// The share of a grid that runs one kernel body: `block` of `blocks`. Bodies stride over their units by `blocks`, so that
// any number of blocks does all of the work.
struct part {
  int block, blocks;
  // The same blocks counted from another one on, so that kernels side by side start on different blocks.
  __device__ __forceinline__ part after(int units) const { return {(block + blocks - units % blocks) % blocks, blocks}; }
  __device__ __forceinline__ long thread() const { return long(block) * PG_BLOCK + threadIdx.x; }
  __device__ __forceinline__ long threads() const { return long(blocks) * PG_BLOCK; }
};

template <class T> using vec = value_of<T>;

template <class T> __device__ __forceinline__ value_of<T> splat(value_of<T> value) { return value; }
template <class T> __device__ __forceinline__ T iota(not_deduced<T> start) { return start; }
__device__ __forceinline__ i64 coordinate(i64 index, long inner, long extent) { return index / inner % extent; }

template <class T> __device__ __forceinline__ value_of<T> load(const T* p) {
  pg_sim_note_load(p, sizeof(T));
  return value_of<T>(*p);
}
template <class T> __device__ __forceinline__ void store(T* p, value_of<not_deduced<T>> value) {
  pg_sim_note_store(p, sizeof(T));
  *p = T(value);
}

// ---- elements in vectors ---------------------------------------------------------------------------------------------

// W elements moved as one.
template <class T, int W> struct __align__(sizeof(T) * W) packed {
  T element[W];
};

// W neighbours from global memory, aligned to W elements.
template <int W, class T> __device__ __forceinline__ void load_packed(const T* p, value_of<T> (&to)[W]) {
  pg_sim_note_load(p, sizeof(T) * W);
  const packed<T, W> all = *reinterpret_cast<const packed<T, W>*>(p);
#pragma unroll
  for (int i = 0; i < W; ++i) to[i] = value_of<T>(all.element[i]);
}
template <int W, class T> __device__ __forceinline__ void store_packed(T* p, const value_of<T> (&from)[W]) {
  pg_sim_note_store(p, sizeof(T) * W);
  packed<T, W> all;
#pragma unroll
  for (int i = 0; i < W; ++i) all.element[i] = T(from[i]);
  *reinterpret_cast<packed<T, W>*>(p) = all;
}

}  // namespace pg
