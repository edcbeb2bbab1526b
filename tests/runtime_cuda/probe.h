// What the probes of this folder share: arrays on the device, and launches whose failure is an answer.
#pragma once
#include "pequegrad/cuda/scalar.h"

#include <new>

// An array of the test, copied to the device, and back at the end if asked.
template <class T> struct device_array {
  T *device = nullptr, *host;
  long count;
  device_array(const T* from, long n) : host(const_cast<T*>(from)), count(n) {
    if (n == 0) return;
    cudaMalloc(reinterpret_cast<void**>(&device), n * sizeof(T));
    cudaMemcpy(device, host, n * sizeof(T), cudaMemcpyHostToDevice);
  }
  device_array(const device_array&) = delete;
  ~device_array() { if (device) cudaFree(device); }
  cudaError_t fetch() { return count ? cudaMemcpy(host, device, count * sizeof(T), cudaMemcpyDeviceToHost) : cudaSuccess; }
};

__device__ __forceinline__ pg::part whole_grid() { return {int(blockIdx.x), int(gridDim.x)}; }

// How many cudaError_t the body met: `run(shared bytes, kernel, arguments…)`.
template <class... P, class... A> int run(int blocks, long shared, void (*kernel)(P...), A... arguments) {
  const cudaError_t launched = pg_launch(kernel, dim3(blocks), dim3(PG_BLOCK), shared, cudaStream_t(nullptr), arguments...);
  return launched != cudaSuccess ? int(launched) : int(cudaDeviceSynchronize());
}
