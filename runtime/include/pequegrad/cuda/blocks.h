// Blocks of samples: a block of threads runs kernel after kernel on one of them, alone, and keeps what passes from kernel to
// kernel in shared memory.
//
// Invariants: in shared memory the kernels' own comes first, as they take it in turn, and what blocks keep lies behind it;
// between two kernels of which one writes what the other touches, the threads meet.
#pragma once
#include "../cut.h"
#include "scalar.h"

namespace pg {

// What a block of samples keeps to itself.
struct block_memory {
  unsigned char* begin;
  template <class T> __device__ __forceinline__ T* at(long offset) const { return reinterpret_cast<T*>(begin + offset); }
};

// Where it begins, behind so many bytes of the kernels' own.
constexpr int behind(int bytes) { return (bytes + 63) / 64 * 64; }

// Zeros, by all threads of a block.
template <class T> __device__ __forceinline__ void clear(T* to, long count) {
  for (long i = threadIdx.x; i < count; i += PG_BLOCK) store(to + i, value_of<T>(0));
}

}  // namespace pg
