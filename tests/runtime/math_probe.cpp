// Applies each function of math.h to arrays; "scalar" entries go through the overloads on plain numbers.
#include "pequegrad/step.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))

#define UNARY(NAME)                                                                                      \
  EXPORT void NAME##_f32(const f32* x, f32* y, long n) {                                                 \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(x + i, n - i)), n - i);                \
  }                                                                                                      \
  EXPORT void NAME##_f64(const f64* x, f64* y, long n) {                                                 \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(x + i, n - i)), n - i);                \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f32(const f32* x, f32* y, long n) {                                          \
    for (long i = 0; i < n; ++i) y[i] = NAME(x[i]);                                                      \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f64(const f64* x, f64* y, long n) {                                          \
    for (long i = 0; i < n; ++i) y[i] = NAME(x[i]);                                                      \
  }
UNARY(exp) UNARY(expm1) UNARY(log) UNARY(log1p) UNARY(sqrt) UNARY(rsqrt) UNARY(reciprocal) UNARY(sin) UNARY(cos)
UNARY(tanh) UNARY(sigmoid) UNARY(softplus) UNARY(erf) UNARY(abs) UNARY(sign) UNARY(floor) UNARY(ceil) UNARY(round) UNARY(trunc)
UNARY(square)

#define BINARY(NAME)                                                                                     \
  EXPORT void NAME##_f32(const f32* a, const f32* b, f32* y, long n) {                                   \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(a + i, n - i), load(b + i, n - i)), n - i); \
  }                                                                                                      \
  EXPORT void NAME##_f64(const f64* a, const f64* b, f64* y, long n) {                                   \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(a + i, n - i), load(b + i, n - i)), n - i); \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f32(const f32* a, const f32* b, f32* y, long n) {                            \
    for (long i = 0; i < n; ++i) y[i] = NAME(a[i], b[i]);                                                \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f64(const f64* a, const f64* b, f64* y, long n) {                            \
    for (long i = 0; i < n; ++i) y[i] = NAME(a[i], b[i]);                                                \
  }
BINARY(pow) BINARY(maximum) BINARY(minimum) BINARY(remainder) BINARY(floor_div) BINARY(fmod)

#define PREDICATE(NAME)                                                                                  \
  EXPORT void NAME##_f32(const f32* x, b8* y, long n) {                                                  \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(x + i, n - i)), n - i);                \
  }                                                                                                      \
  EXPORT void NAME##_f64(const f64* x, b8* y, long n) {                                                  \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, NAME(load(x + i, n - i)), n - i);                \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f32(const f32* x, b8* y, long n) {                                           \
    for (long i = 0; i < n; ++i) y[i] = NAME(x[i]);                                                      \
  }                                                                                                      \
  EXPORT void NAME##_scalar_f64(const f64* x, b8* y, long n) {                                           \
    for (long i = 0; i < n; ++i) y[i] = NAME(x[i]);                                                      \
  }
PREDICATE(isnan) PREDICATE(isinf) PREDICATE(isfinite)
