// Work that workers take as they go: each begins with its own share, and one who is through takes of those who are not. So nobody waits
// for a core that is slower, or that something else runs on.
//
// Invariant: what is taken does not depend on who takes it, so that results do not either.
#pragma once
#include "cut.h"

namespace pg {

// How much of a worker's share is taken, by whomever; zero before. On a line of cache of its own.
struct alignas(64) work_queue {
  long taken;
};

// The next of `total` units for worker `index` of `size`, each of whom has a queue, or -1 when all are taken.
PG_NOINLINE inline long take_unit(work_queue* queues, int index, int size, long total) {
  for (int i = 0; i < size; ++i) {
    const int member = (index + i) % size;
    long begin, end;
    share(total, 1, member, size, begin, end);
    if (__atomic_load_n(&queues[member].taken, __ATOMIC_RELAXED) >= end - begin) continue;
    const long position = __atomic_fetch_add(&queues[member].taken, 1, __ATOMIC_RELAXED);
    if (position < end - begin) return begin + position;
  }
  return -1;
}

}  // namespace pg
