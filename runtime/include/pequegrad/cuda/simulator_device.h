// Device code's names: threads, shared memory, barriers, warp collectives, atomics, tensor-core steps, cp.async.
//
// What CUDA leaves undefined is poison here: lanes outside a mask give 0xff, the target of a cp.async holds 0xff until
// the wait that lands it, shared memory starts as 0xff.
#pragma once
#include <math.h>

#include "simulator_launch.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define threadIdx (pg_sim::running.thread->index)
#define blockIdx (pg_sim::running.thread->block->index)
#define blockDim (pg_sim::running.block_size)
#define gridDim (pg_sim::running.grid_size)
constexpr int warpSize = 32;

#define PG_SIM_VECTORS(T, name)                                                                       \
  struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };                                 \
  struct name##3 { T x, y, z; };                                                                      \
  struct __attribute__((aligned(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16))) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                          \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                  \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PG_SIM_VECTORS(float, float)
PG_SIM_VECTORS(int, int)
PG_SIM_VECTORS(signed char, char)
PG_SIM_VECTORS(unsigned char, uchar)
PG_SIM_VECTORS(short, short)
PG_SIM_VECTORS(unsigned short, ushort)
#undef PG_SIM_VECTORS
struct __attribute__((aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
  unsigned x, y, z, w;
};
struct __attribute__((aligned(16))) double2 {
  double x, y;
};
struct __attribute__((aligned(16))) longlong2 {
  long long x, y;
};
struct __attribute__((aligned(16))) ulonglong2 {
  unsigned long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

#pragma GCC visibility push(hidden)
namespace pg_sim {

template <class To, class From> inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// A __shared__ array: indexing checks bounds and counts.
template <class T> class SharedArray {
 public:
  SharedArray(T* data, long count, const char* name) : data_(data), count_(count), name_(name) {}
  operator T*() const { return data_; }
  T& operator[](long i) const {
    if (i < 0 || i >= count_) fail("index %ld of shared array `%s` of %ld elements", i, name_, count_);
    if (running.count_traffic) note_shared(data_ + i, sizeof(T));
    return data_[i];
  }

 private:
  T* data_;
  long count_;
  const char* name_;
};

inline char* shared_bytes(int& site, std::size_t bytes) {
  const Quiet quiet;
  if (!site) site = ++machine.sites;
  Block& block = *running.thread->block;
  if (block.shared.size() <= static_cast<std::size_t>(site)) block.shared.resize(static_cast<std::size_t>(site) + 1);
  Allocation& a = block.shared[static_cast<std::size_t>(site)];
  if (!a.data) {
    block.static_bytes += bytes;
    if (block.static_bytes > static_shared_limit)
      fail("%zu bytes of static shared memory, more than the %zu that nvcc takes", block.static_bytes,
           static_shared_limit);
    a = allocate_guarded(bytes, shared_zone);
  }
  return a.data;
}
template <class T> SharedArray<T> shared_array(int& site, long count, const char* name) {
  return {reinterpret_cast<T*>(shared_bytes(site, sizeof(T) * static_cast<std::size_t>(count))), count, name};
}
template <class T> SharedArray<T> dynamic_shared_array(const char* name) {
  const Quiet quiet;
  const std::size_t bytes = machine.launch->shared_bytes;
  char* data = bytes ? running.thread->block->shared[0].data : nullptr;
  return {reinterpret_cast<T*>(data), static_cast<long>(bytes / sizeof(T)), name};
}

inline int block_vote(bool vote, int rule, const Place& place) {
  Meeting& barrier = running.thread->block->barrier;
  const unsigned parity = arrive(barrier, place, true, vote);
  const Quiet quiet;
  const unsigned votes = barrier.result[parity];
  return rule == 0 ? votes != 0 : rule == 1 ? votes == barrier.needed : static_cast<int>(votes);
}

template <class T> T shuffle(unsigned mask, T value, unsigned source, const Place& place) {
  static_assert(sizeof(T) <= 16, "");
  const Slots slots = exchange(mask, &value, sizeof value, place);
  const Quiet quiet;
  T result;
  std::memcpy(&result, slots[source & 31], sizeof result);
  return result;
}
inline unsigned lane() { return running.thread->lane; }

inline unsigned ballot(unsigned mask, int predicate, const Place& place) {
  const unsigned char vote = predicate != 0;
  const Slots slots = exchange(mask, &vote, 1, place);
  const Quiet quiet;
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= static_cast<unsigned>(slots[i][0] == 1) << i;
  return result;
}

template <class T, class F> T atomic_update(T* target, F update) {
  preempt_sometimes();
  T old, changed;
  __atomic_load(target, &old, __ATOMIC_RELAXED);
  do changed = update(old);
  while (!__atomic_compare_exchange(target, &old, &changed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace pg_sim

#define PG_APART __attribute__((noinline))
#define PG_SHARED(T, name, count) \
  static int name##_site;         \
  const pg_sim::SharedArray<T> name = pg_sim::shared_array<T>(name##_site, (count), #name)
#define PG_DYNAMIC_SHARED(T, name) const pg_sim::SharedArray<T> name = pg_sim::dynamic_shared_array<T>(#name)

inline void __syncthreads(PG_SIM_CALLER) {
  pg_sim::arrive(pg_sim::running.thread->block->barrier, {"__syncthreads", file, line}, true);
}
inline int __syncthreads_or(int vote, PG_SIM_CALLER) {
  return pg_sim::block_vote(vote, 0, {"__syncthreads_or", file, line});
}
inline int __syncthreads_and(int vote, PG_SIM_CALLER) {
  return pg_sim::block_vote(vote, 1, {"__syncthreads_and", file, line});
}
inline int __syncthreads_count(int vote, PG_SIM_CALLER) {
  return pg_sim::block_vote(vote, 2, {"__syncthreads_count", file, line});
}
inline void __syncwarp(unsigned mask = ~0u, PG_SIM_CALLER) {
  const pg_sim::Place place{"__syncwarp", file, line};
  pg_sim::arrive(pg_sim::collective(mask, place).meeting, place, true);
}

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, PG_SIM_CALLER) {
  const unsigned w = static_cast<unsigned>(width), first = pg_sim::lane() & ~(w - 1);
  return pg_sim::shuffle(mask, value, first | (static_cast<unsigned>(source) & (w - 1)), {"__shfl_sync", file, line});
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, PG_SIM_CALLER) {
  const unsigned lane = pg_sim::lane(), w = static_cast<unsigned>(width),
                 source = lane ^ static_cast<unsigned>(distance);
  // A source in a later segment of `width` lanes is out of reach, one in an earlier segment is not (the PTX manual).
  return pg_sim::shuffle(mask, value, source > (lane | (w - 1)) ? lane : source, {"__shfl_xor_sync", file, line});
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, PG_SIM_CALLER) {
  const unsigned lane = pg_sim::lane(), w = static_cast<unsigned>(width);
  const unsigned source = lane + distance > (lane | (w - 1)) ? lane : lane + distance;
  return pg_sim::shuffle(mask, value, source, {"__shfl_down_sync", file, line});
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, PG_SIM_CALLER) {
  const unsigned lane = pg_sim::lane(), w = static_cast<unsigned>(width);
  const unsigned source = (lane & (w - 1)) < distance ? lane : lane - distance;
  return pg_sim::shuffle(mask, value, source, {"__shfl_up_sync", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, PG_SIM_CALLER) {
  return pg_sim::ballot(mask, predicate, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, PG_SIM_CALLER) {
  return pg_sim::ballot(mask, predicate, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, PG_SIM_CALLER) {
  return pg_sim::ballot(mask, !predicate, {"__all_sync", file, line}) == 0;
}

#define PG_SIM_ATOMICS(T)                                                            \
  inline T atomicAdd(T* p, T v) {                                                    \
    return pg_sim::atomic_update(p, [v](T old) { return static_cast<T>(old + v); }); \
  }                                                                                  \
  inline T atomicExch(T* p, T v) {                                                   \
    return pg_sim::atomic_update(p, [v](T) { return v; });                           \
  }
#define PG_SIM_INTEGER_ATOMICS(T)                                                                \
  inline T atomicMin(T* p, T v) {                                                                \
    return pg_sim::atomic_update(p, [v](T old) { return v < old ? v : old; });                   \
  }                                                                                              \
  inline T atomicMax(T* p, T v) {                                                                \
    return pg_sim::atomic_update(p, [v](T old) { return v > old ? v : old; });                   \
  }                                                                                              \
  inline T atomicAnd(T* p, T v) {                                                                \
    return pg_sim::atomic_update(p, [v](T old) { return old & v; });                             \
  }                                                                                              \
  inline T atomicOr(T* p, T v) {                                                                 \
    return pg_sim::atomic_update(p, [v](T old) { return old | v; });                             \
  }                                                                                              \
  inline T atomicXor(T* p, T v) {                                                                \
    return pg_sim::atomic_update(p, [v](T old) { return old ^ v; });                             \
  }                                                                                              \
  inline T atomicCAS(T* p, T expected, T v) {                                                    \
    return pg_sim::atomic_update(p, [expected, v](T old) { return old == expected ? v : old; }); \
  }
PG_SIM_ATOMICS(float)
PG_SIM_ATOMICS(double)
// Integers add as unsigned ones: overflow wraps.
inline int atomicAdd(int* p, int v) {
  return pg_sim::atomic_update(
      p, [v](int old) { return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(v)); });
}
inline int atomicExch(int* p, int v) {
  return pg_sim::atomic_update(p, [v](int) { return v; });
}
PG_SIM_ATOMICS(unsigned)
PG_SIM_ATOMICS(unsigned long long)
PG_SIM_INTEGER_ATOMICS(int)
PG_SIM_INTEGER_ATOMICS(unsigned)
PG_SIM_INTEGER_ATOMICS(unsigned long long)
inline long long atomicMin(long long* p, long long v) {
  return pg_sim::atomic_update(p, [v](long long old) { return v < old ? v : old; });
}
inline long long atomicMax(long long* p, long long v) {
  return pg_sim::atomic_update(p, [v](long long old) { return v > old ? v : old; });
}
#undef PG_SIM_ATOMICS
#undef PG_SIM_INTEGER_ATOMICS

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { pg_sim::yield(); }
[[noreturn]] inline void __trap() { pg_sim::fail("__trap()"); }
template <class T> T __ldg(const T* p) { return *p; }

inline unsigned __float_as_uint(float x) { return pg_sim::bits<unsigned>(x); }
inline int __float_as_int(float x) { return pg_sim::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return pg_sim::bits<float>(x); }
inline float __int_as_float(int x) { return pg_sim::bits<float>(x); }
inline long long __double_as_longlong(double x) { return pg_sim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return pg_sim::bits<double>(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<unsigned long long>(x) * y >> 32);
}
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<long long>(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
#pragma GCC visibility pop
