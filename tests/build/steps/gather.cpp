// A step that checks its index: out = table[index] of 10 longs; and that reports the pool it was given.
#include <pequegrad/step.h>

int pg_step_run(void* const* arguments, unsigned char*, const pg_pool* pool, int, pg_failure* failure) {
  const long index = *static_cast<const long*>(arguments[1]);
  long* out = static_cast<long*>(arguments[2]);
  if (index < 0 || index >= 10) {
    *failure = pg_failure{1, 3, index, 10};
    return 1;
  }
  out[0] = static_cast<const long*>(arguments[0])[index];
  out[1] = reinterpret_cast<long>(pool->self);
  return 0;
}
