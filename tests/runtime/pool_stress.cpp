// Exercises the pool from several threads, across barriers, sleeps, growth and a fork. Prints the first thing that is
// wrong and returns 1. "no-fork" as argument leaves the fork out (ThreadSanitizer does not follow one).
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "pequegrad/pool.h"

static int failures = 0;

static void check(bool ok, const char* what) {
  if (ok) return;
  if (++failures == 1) std::printf("failed: %s\n", what);
}

// Each worker writes its slot, passes a barrier and reads its neighbour's.
struct Ring {
  const pg_pool* pool;
  int workers;
  int rounds;
  std::vector<long> slots, wrong;
};

static void ring_task(void* context, int worker) {
  Ring& ring = *static_cast<Ring*>(context);
  for (int round = 1; round <= ring.rounds; ++round) {
    ring.slots[static_cast<size_t>(worker)] = round;
    ring.pool->barrier(ring.pool->self, worker, ring.workers);
    if (ring.slots[static_cast<size_t>((worker + 1) % ring.workers)] != round) ++ring.wrong[static_cast<size_t>(worker)];
    ring.pool->barrier(ring.pool->self, worker, ring.workers);
  }
}

static bool ring_is_right(const pg_pool* pool, int workers, int rounds) {
  Ring ring = {pool, workers, rounds, std::vector<long>(static_cast<size_t>(workers)), std::vector<long>(static_cast<size_t>(workers))};
  pool->run(pool->self, workers, ring_task, &ring);
  for (int w = 0; w < workers; ++w)
    if (ring.wrong[static_cast<size_t>(w)] != 0 || ring.slots[static_cast<size_t>(w)] != rounds) return false;
  return true;
}

static void idle(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

int main(int count, char** arguments) {
  const bool forks = !(count > 1 && std::strcmp(arguments[1], "no-fork") == 0);
  pg_pool* pool = pg_pool_create(3);
  check(pool != nullptr && pool->size(pool->self) == 3, "create");
  for (int i = 0; i < 300; ++i) check(ring_is_right(pool, 1 + i % 3, 4), "many small regions of changing width");
  for (int i = 0; i < 5; ++i) {
    idle(30);  // long enough for the threads to fall asleep
    check(ring_is_right(pool, 3, 2), "a region after a pause");
  }
  check(ring_is_right(pool, 5, 10) && pool->size(pool->self) == 5, "a region wider than the pool");

  std::vector<std::thread> callers;
  int right[3] = {};
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) right[t] += ring_is_right(pool, 1 + (i + t) % 3, 3);
    });
  for (std::thread& caller : callers) caller.join();
  for (int t = 0; t < 3; ++t) check(right[t] == 50, "several callers at once");

  if (forks) {
    const pid_t child = fork();
    if (child == 0) {
      bool ok = ring_is_right(pool, 3, 20) && ring_is_right(pool, 2, 20);
      _exit(ok ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child of a fork");
    check(ring_is_right(pool, 3, 20), "the parent after a fork");
  }

  pg_pool* second = pg_pool_create(2);
  check(ring_is_right(second, 2, 10), "a second pool");
  pg_pool_destroy(second);
  if (failures == 0) std::printf("ok\n");
  return failures != 0;
}
