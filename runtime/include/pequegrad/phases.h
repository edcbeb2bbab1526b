// How a step's phases run: on the calling thread alone, or on all workers of the pool with a barrier after each phase.
#pragma once
#include "cut.h"
#include "interface.h"
#include "queue.h"
#include "vec.h"

// A step of many kernels is compiled as several objects at once: each has PG_OBJECT defined, from 1 on. Without it, it is one.
#if defined(PG_OBJECT)
#define PG_IN_OBJECT(number) (PG_OBJECT == number)
#else
#define PG_IN_OBJECT(number) 1
#endif

namespace pg {

// What every kernel of a step may ask for.
struct step_context {
  void* const* arguments;
  unsigned char* arena;
  const pg_pool* pool;
  int workers;
  pg_failure* failure;
  void (*phases)(const step_context&, int worker);

  PG_INLINE void barrier(int worker) const {
    if (workers > 1) pool->barrier(pool->self, worker, workers);
  }
  template <class T> PG_INLINE T* argument(int slot) const { return static_cast<T*>(arguments[slot]); }
  template <class T> PG_INLINE T* at(long offset) const { return reinterpret_cast<T*>(arena + offset); }
  // The context of kernels that one worker runs for itself, with the memory from `offset` on.
  PG_INLINE step_context alone(long offset) const { return {arguments, arena + offset, nullptr, 1, failure, phases}; }
  // The same answer on every worker: nobody goes on to report more before all have read.
  PG_INLINE bool any_failed(int worker) const {
    barrier(worker);
    const bool failed = __atomic_load_n(&failure->code, __ATOMIC_ACQUIRE) != 0;
    barrier(worker);
    return failed;
  }
};

// Records an index out of range; the first report stays.
PG_NOINLINE inline void report_index(const step_context& step, int kernel, long value, long bound) {
  int none = 0;
  if (__atomic_compare_exchange_n(&step.failure->code, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
    step.failure->kernel = kernel;
    step.failure->value = value;
    step.failure->bound = bound;
  }
}

inline int run_phases(step_context& step) {
  if (step.workers <= 1 || !step.pool) {
    step.workers = 1;
    step.phases(step, 0);
  } else {
    step.pool->run(step.pool->self, step.workers,
                   [](void* context, int worker) {
                     const step_context& shared = *static_cast<step_context*>(context);
                     shared.phases(shared, worker);
                   },
                   &step);
  }
  return step.failure->code;
}

// (index / inner) % extent, lane by lane: division by constants is a multiplication, which vectors of 64 bits lack.
PG_INLINE vec<i64> coordinate(vec<i64> index, long inner, long extent) {
  for (int lane = 0; lane < PG_LANES; ++lane) index.set_lane(lane, index.lane(lane) / inner % extent);
  return index;
}

PG_INLINE long at_most(long value, long limit) { return value < limit ? value : limit; }

}  // namespace pg
