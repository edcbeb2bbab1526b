// The platform below the device headers: CUDA under nvcc, the simulator under any other compiler, by the same names.
//
// Needs sm_80 (cp.async, mma.sync with bf16 and tf32). Includes no header of CUDA beyond the runtime that nvcc itself
// brings: cooperative_groups.h, cub and cuda_bf16.h would double the time to compile a step.
#pragma once

#define PG_BLOCK 256  // threads of every kernel's block

#if defined(__CUDACC__)

#define PG_APART __noinline__  // of a function that is not inlined
#define PG_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define PG_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(1024) unsigned char pg_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(pg_dynamic_shared)

// The simulator counts and checks these.
__device__ __forceinline__ void pg_sim_note_load(const void*, int) {}
__device__ __forceinline__ void pg_sim_note_store(const void*, int) {}
__device__ __forceinline__ void pg_sim_note_shared(const void*, int) {}

// More than 48 KB of dynamic shared memory must be asked for.
template <class Kernel> inline cudaError_t pg_allow_shared(Kernel* kernel, size_t shared) {
  if (shared <= 48 * 1024) return cudaSuccess;
  const cudaError_t status = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  return status == cudaErrorInvalidValue ? cudaErrorInvalidConfiguration : status;
}
template <class... P, class... A>
inline cudaError_t pg_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                             A... arguments) {
  const cudaError_t status = pg_allow_shared(kernel, shared);
  if (status != cudaSuccess) return status;
  kernel<<<grid, block, shared, stream>>>(static_cast<P>(arguments)...);
  return cudaGetLastError();
}
template <class... P, class... A>
inline cudaError_t pg_launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                         cudaStream_t stream, A... arguments) {
  const cudaError_t status = pg_allow_shared(kernel, shared);
  if (status != cudaSuccess) return status;
  return [&](P... converted) {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&converted))..., nullptr};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses, shared, stream);
  }(static_cast<P>(arguments)...);
}

// All threads of a cooperative grid meet; what any wrote before is seen by all after. The counter starts at 0 and is
// used by one grid at a time. Each meeting adds 2^31 in sum, so the top bit flips when the last block has come and the
// counter may wrap.
__device__ __forceinline__ void pg_grid_barrier(unsigned* counter) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    __threadfence();
    const unsigned before = atomicAdd(counter, first ? 0x80000000u - (blocks - 1) : 1u);
    unsigned now;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    while (((before ^ now) & 0x80000000u) == 0);
  }
  __syncthreads();
}

__device__ __forceinline__ unsigned pg_shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
// Copies source_bytes and fills the rest with zeros; lands at the pg_cp_wait that covers its group.
__device__ __forceinline__ void pg_cp_async16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(pg_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(source_bytes) : "memory");
}
__device__ __forceinline__ void pg_cp_async4(void* shared, const void* global, int source_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               ::"r"(pg_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(source_bytes) : "memory");
}
__device__ __forceinline__ void pg_cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's committed groups are under way. Other threads' copies need a barrier too.
template <int N> __device__ __forceinline__ void pg_cp_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8, and receives columns
// 2 (l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void pg_ldmatrix_x4(unsigned* fragment, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(pg_shared_address(row))
               : "memory");
}
// c += a b: c 16x8 float, a 16x16 and b 16x8 bf16. With g = lane / 4, t = lane % 4: a's register r holds row
// g + 8 (r & 1), columns 2t + 8 (r >> 1) and the next; b's holds rows 2t + 8r and the next of column g; c's holds row
// g + 8 (r >> 1), column 2t + (r & 1).
__device__ __forceinline__ void pg_mma_bf16(float* c, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a b: c 16x8 float, a 16x8 and b 8x8 tf32. a's register r holds row g + 8 (r & 1), column t + 4 (r >> 1); b's
// holds row t + 4r of column g; c as above.
__device__ __forceinline__ void pg_mma_tf32(float* c, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ unsigned pg_pack_bf16(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ unsigned pg_to_tf32(float x) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

#else
#include "simulator.h"
#endif
