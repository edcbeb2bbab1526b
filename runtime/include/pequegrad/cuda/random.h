// Random draws of one element a thread; the streams are philox_scalar.h's, equal to the lane vectors' word for word.
#pragma once
#include "../philox_scalar.h"
#include "scalar.h"

namespace pg {

template <class T> __device__ __forceinline__ T uniform(u64 seed, u64 stream, i64 index) {
  return uniform_at<T>(seed, stream, u64(index));
}
template <class T> __device__ __forceinline__ T normal(u64 seed, u64 stream, i64 index) {
  return normal_at<T>(seed, stream, u64(index));
}
__device__ __forceinline__ i64 randint(u64 seed, u64 stream, i64 index, i64 low, u64 range) {
  return randint_at(seed, stream, u64(index), low, range);
}

}  // namespace pg
