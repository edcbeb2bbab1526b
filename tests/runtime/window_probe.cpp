// Pooling with each type of index.
#include "pequegrad/step.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define POOL(T, INDEX)                                                                                                      \
  EXPORT void max_##T##_##INDEX(const pool2d_shape* s, const T* x, T* y, INDEX* index, const T* dy, T* dx, int workers) {   \
    for (int w = 0; w < workers; ++w) {                                                                                     \
      max_pool2d(*s, x, y, index, w, workers);                                                                              \
      max_pool2d_grad(*s, dy, static_cast<const INDEX*>(index), dx, w, workers);                                            \
    }                                                                                                                       \
  }
POOL(f32, u8) POOL(f32, i32) POOL(f32, i64) POOL(f64, u8) POOL(f64, i32) POOL(f64, i64)

#define AVERAGE(T)                                                                                                          \
  EXPORT void avg_##T(const pool2d_shape* s, int include_pad, const T* x, T* y, const T* dy, T* dx, int workers) {          \
    for (int w = 0; w < workers; ++w) {                                                                                     \
      avg_pool2d(*s, include_pad != 0, x, y, w, workers);                                                                   \
      avg_pool2d_grad(*s, include_pad != 0, dy, dx, w, workers);                                                            \
    }                                                                                                                       \
  }
AVERAGE(f32) AVERAGE(f64)
