// out[i] = a[i] * SCALE + 1 over 256 floats, by two objects. The test defines SCALE and, for an error in the second, BROKEN.
#include <pequegrad/phases.h>

void scaled(const float* a, float* out);

#if PG_IN_OBJECT(1)
void scaled(const float* a, float* out) {
  for (int i = 0; i < 256; ++i) out[i] = a[i] * SCALE + 1;
}
#endif

#if PG_IN_OBJECT(2)
extern "C" int pg_step_run(void* const* arguments, unsigned char*, const pg_pool*, int, pg_failure*) {
#if defined(BROKEN)
  this_name_is_missing();
#endif
  scaled(static_cast<const float*>(arguments[0]), static_cast<float*>(arguments[1]));
  return 0;
}
#endif
