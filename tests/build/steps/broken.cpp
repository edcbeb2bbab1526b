// Does not compile.
#include <pequegrad/step.h>

int pg_step_run(void* const*, unsigned char*, const pg_pool*, int, pg_failure*) { return this_name_is_missing; }
