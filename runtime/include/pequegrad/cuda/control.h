// What every phase of a step on a device is told, and what it may report.
#pragma once
#include "../interface.h"
#include "scalar.h"

namespace pg {

// `failure` lies on the device: the first bad index stays. `progress` is the host's memory: the number of the phase that
// was begun last, which outlives a lost context.
struct control {
  pg_failure* failure;
  volatile int* progress;
  int phase;

  // The same answer for all threads of a block, so that barriers behind it are safe.
  __device__ __forceinline__ bool has_failed() const { return __syncthreads_or(failure->code != 0) != 0; }
  __device__ __forceinline__ void enter() const {
    if (blockIdx.x == 0 && threadIdx.x == 0) *progress = phase;
  }
  __device__ __forceinline__ control at(int number) const { return {failure, progress, number}; }
};

// Records an index out of range; the first report stays. `kernel` is the kernel's place in the plan.
__device__ __forceinline__ void report_index(pg_failure* failure, int kernel, long value, long bound) {
  if (atomicCAS(&failure->code, 0, 1) != 0) return;
  failure->kernel = kernel;
  failure->value = value;
  failure->bound = bound;
}

template <class Index>
__device__ __forceinline__ bool check_index(pg_failure* failure, int kernel, Index value, long extent) {
  if (long(value) >= 0 && long(value) < extent) return true;
  report_index(failure, kernel, long(value), extent);
  return false;
}

}  // namespace pg
