// The plain C interface between a generated step and the binding that loads it. Included by both; needs nothing.
#pragma once

extern "C" {

// A thread pool as a step sees it; pool.h makes one. `run` calls task(context, 0 … workers - 1), one call a thread, and
// returns when all have. `barrier`, within a task, returns when all `workers` of the region have reached it.
struct pg_pool {
  void* self;
  int (*size)(void* self);
  void (*run)(void* self, int workers, void (*task)(void* context, int worker), void* context);
  void (*barrier)(void* self, int worker, int workers);
};

// What went wrong in a step: code 0 nothing, 1 index out of range, 2 a call of the device's failed (`text` says which),
// 3 the device lacks memory (`value` bytes asked, `bound` free). `kernel`: its place in the plan, or the phase for 2.
struct pg_failure {
  int code;
  int kernel;
  long value;
  long bound;
  char text[360];
};

__attribute__((visibility("default"))) int pg_step_run(void* const* arguments, unsigned char* arena, const pg_pool* pool,
                                                      int workers, pg_failure* failure);

// One argument of a step that `pg_loop` cuts a batch from: `rows` rows of so many bytes for each step.
struct pg_batch {
  int slot;
  long row_bytes;
};

// Many steps in one call. Arguments named in `batches` are whole datasets, from which step i takes the rows
// order[i * rows … (i + 1) * rows); those named in `results` are arrays of `steps` results, one after another.
struct pg_loop {
  long steps, rows;
  const long* order;
  const pg_batch* batches;
  const int* results;
  const long* dataset_bytes;  // of each of `batches`
  int batch_count, result_count;
};

// Defined by steps for targets on which the processor need not lead each step; for others the binding repeats pg_step_run.
__attribute__((weak, visibility("hidden"))) int pg_step_run_many(void* const* arguments, const pg_loop* loop, pg_failure* failure);
}
