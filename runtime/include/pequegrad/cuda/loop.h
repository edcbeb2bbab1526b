// Many steps without the host: a step's batch cut from datasets on the device, its results kept, and the count of steps.
#pragma once
#include "scalar.h"

namespace pg {

// One argument: `all` is a dataset or the results of all steps, `here` is what the step itself reads or writes.
struct moved {
  unsigned char* all;
  unsigned char* here;
  long bytes;  // of a row of the dataset, or of one step's result
};

// On the device. `moves`: those of the batch, then those of the results.
struct loop_state {
  long step, rows;
  const long* order;
  int batches, results;
};

// In the widest units that both ends and the length allow.
template <class Unit>
__device__ __forceinline__ void copy_units(unsigned char* to, const unsigned char* from, long bytes, long first, long stride) {
  for (long i = first; i < bytes / long(sizeof(Unit)); i += stride)
    reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
}
__device__ __forceinline__ void copy_bytes(unsigned char* to, const unsigned char* from, long bytes, long first, long stride) {
  const unsigned long bits = reinterpret_cast<unsigned long>(to) | reinterpret_cast<unsigned long>(from) | static_cast<unsigned long>(bytes);
  if (bits % sizeof(float) == 0)
    copy_units<float>(to, from, bytes, first, stride);
  else
    copy_units<unsigned char>(to, from, bytes, first, stride);
}

// Puts the rows of the next step where it reads them: a warp takes a row at a time. A template, as the other, so that only
// modules that launch it have it.
template <class Loop> __global__ __launch_bounds__(PG_BLOCK, 1) void launch_take_batch(const Loop* loop, const moved* moves) {
  const part part = {int(blockIdx.x), int(gridDim.x)};
  const long warp = part.thread() / 32, warps = part.threads() / 32, lane = part.thread() % 32;
  const long* const order = loop->order + loop->step * loop->rows;
  for (int i = 0; i < loop->batches; ++i) {
    const moved move = moves[i];
    for (long row = warp; row < loop->rows; row += warps)
      copy_bytes(move.here + row * move.bytes, move.all + order[row] * move.bytes, move.bytes, lane, 32);
  }
}

// Keeps what the step has made. By one block, which counts the step when all is kept.
template <class Loop> __global__ __launch_bounds__(PG_BLOCK, 1) void launch_keep_results(Loop* loop, const moved* moves) {
  for (int i = loop->batches; i < loop->batches + loop->results; ++i)
    copy_bytes(moves[i].all + loop->step * moves[i].bytes, moves[i].here, moves[i].bytes, threadIdx.x, PG_BLOCK);
  __syncthreads();
  if (threadIdx.x == 0) ++loop->step;
}

}  // namespace pg
