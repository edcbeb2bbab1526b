// The step of `pequegrad doctor`: out = a + b over 1,024 floats, split over the workers, through the arena.
#include <pequegrad/step.h>

namespace {

constexpr int N = 1024;

struct Task {
  void* const* arguments;
  float* arena;
  const pg_pool* pool;
  int workers;
};

void add(void* context, int worker) {
  const Task& task = *static_cast<const Task*>(context);
  const float* a = static_cast<const float*>(task.arguments[0]);
  const float* b = static_cast<const float*>(task.arguments[1]);
  float* out = static_cast<float*>(task.arguments[2]);
  for (int i = worker; i < N; i += task.workers) task.arena[i] = a[i] + b[i];
  task.pool->barrier(task.pool->self, worker, task.workers);
  for (int i = task.workers - 1 - worker; i < N; i += task.workers) out[i] = task.arena[i];
}

}  // namespace

int pg_step_run(void* const* arguments, unsigned char* arena, const pg_pool* pool, int workers, pg_failure*) {
  Task task = {arguments, reinterpret_cast<float*>(arena), pool, workers};
  pool->run(pool->self, workers, add, &task);
  return 0;
}
