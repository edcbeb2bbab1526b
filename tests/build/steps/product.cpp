// out = a b for a (3, 4) and b (4, 4), by the micro-kernels that steps share, on the calling thread alone.
#include <pequegrad/gemm.h>
#include <pequegrad/scratch.h>
#include <pequegrad/step.h>

extern "C" int pg_step_run(void* const* arguments, unsigned char*, const pg_pool*, int, pg_failure*) {
  float* const scratch = static_cast<float*>(pg::thread_scratch(pg::gemm_scratch<float>(3, 4)));
  float* const out = static_cast<float*>(arguments[2]);
  pg::gemm<float>(3, 4, 4, static_cast<const float*>(arguments[0]), 4, 1, static_cast<const float*>(arguments[1]), 4, 1, scratch, 0, 3, 0, 4,
                  [&](long row, long column, pg::vec<float> sum, long count) { pg::store(out + row * 4 + column, sum, count); });
  return 0;
}
