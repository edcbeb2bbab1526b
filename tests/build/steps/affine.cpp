// out[i] = a[i] * SCALE + 1 over 256 floats, through the arena and split over the workers. The test defines SCALE.
#include <pequegrad/step.h>

struct Task {
  void* const* arguments;
  float* arena;
  const pg_pool* pool;
  int workers;
};

static void work(void* context, int worker) {
  const Task& task = *static_cast<const Task*>(context);
  const float* a = static_cast<const float*>(task.arguments[0]);
  float* out = static_cast<float*>(task.arguments[1]);
  for (int i = worker; i < 256; i += task.workers) task.arena[i] = a[i] * SCALE;
  task.pool->barrier(task.pool->self, worker, task.workers);
  for (int i = task.workers - 1 - worker; i < 256; i += task.workers) out[i] = task.arena[i] + 1;
}

int pg_step_run(void* const* arguments, unsigned char* arena, const pg_pool* pool, int workers, pg_failure*) {
  Task task = {arguments, reinterpret_cast<float*>(arena), pool, workers};
  pool->run(pool->self, workers, work, &task);
  return 0;
}
