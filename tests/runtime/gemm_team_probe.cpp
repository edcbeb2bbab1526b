// A product by several threads at once, one of which may be slow; `who` says which of them handed over each element.
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "pequegrad/step.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))

template <gemm_columns COLUMNS>
static void product(const long* size, const f32* a, long a_row, long a_col, const f32* b, long b_row, long b_col, f32* c, int* who, int* touched,
                    int workers, int slow, long microseconds, bool meets) {
  const long M = size[0], N = size[1], K = size[2];
  std::vector<gemm_queue> queues(static_cast<size_t>(workers));
  int ready = 0, is_slow_there = 0;
  std::vector<std::thread> threads;
  for (int w = 0; w < workers; ++w)
    threads.emplace_back([&, w] {
      long row_begin, row_end, col_begin, col_end;
      const gemm_team team = gemm_share<f32>(M, N, K, a_row, a_col, b_row, b_col, w, workers, row_begin, row_end, col_begin, col_end, queues.data());
      const long bytes = gemm_scratch<f32>(row_end - row_begin, K);
      f32* const scratch = static_cast<f32*>(std::aligned_alloc(64, static_cast<size_t>(bytes + 64)));
      __atomic_fetch_add(&ready, 1, __ATOMIC_RELAXED);
      while (__atomic_load_n(&ready, __ATOMIC_RELAXED) < workers) sched_yield();
      gemm<f32, COLUMNS>(M, N, K, a, a_row, a_col, b, b_row, b_col, scratch, row_begin, row_end, col_begin, col_end,
                         [&](long row, long col, vec<f32> sum, long count) {
                           // Else a thread that is started late has nothing open yet when the others look.
                           if (w == slow) __atomic_store_n(&is_slow_there, 1, __ATOMIC_RELAXED);
                           while (meets && !__atomic_load_n(&is_slow_there, __ATOMIC_RELAXED)) sched_yield();
                           if (w == slow && col == 0 && microseconds > 0)
                             std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
                           store(c + row * N + col, sum, count);
                           for (long i = 0; i < count; ++i) {
                             who[row * N + col + i] = w;
                             __atomic_fetch_add(touched + row * N + col + i, 1, __ATOMIC_RELAXED);
                           }
                         },
                         nullptr, 0, team);
      // What another may still write here would be seen by a checked allocator.
      std::free(scratch);
    });
  for (std::thread& thread : threads) thread.join();
}

EXPORT void team_product(const long* size, const f32* a, long a_row, long a_col, const f32* b, long b_row, long b_col, f32* c, int* who,
                         int* touched, int workers, int slow, long microseconds, bool runs_on, bool meets) {
  (runs_on ? product<gemm_columns::runs_on> : product<gemm_columns::any>)(size, a, a_row, a_col, b, b_row, b_col, c, who, touched, workers,
                                                                          slow, microseconds, meets);
}

// Takes all units by `workers` threads; counts[u]: how often unit u was taken.
EXPORT void take_units(int workers, long total, int* counts) {
  std::vector<work_queue> queues(static_cast<size_t>(workers));
  std::vector<std::thread> threads;
  for (int w = 0; w < workers; ++w)
    threads.emplace_back([&, w] {
      for (long unit; (unit = take_unit(queues.data(), w, workers, total)) >= 0;) __atomic_fetch_add(counts + unit, 1, __ATOMIC_RELAXED);
    });
  for (std::thread& thread : threads) thread.join();
}
