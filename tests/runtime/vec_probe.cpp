// Loads, stores, casts, integer arithmetic, comparisons, reductions and random words, over arrays.
#include "pequegrad/step.h"
using namespace pg;

#define EXPORT extern "C" __attribute__((visibility("default")))

// Copies n elements by vectors through the type that the storage computes in.
#define COPY(T)                                                                                          \
  EXPORT void copy_##T(const T* x, T* y, long n) {                                                       \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, load(x + i, n - i), n - i);                      \
  }                                                                                                      \
  EXPORT void copy_full_##T(const T* x, T* y, long n) {                                                  \
    for (long i = 0; i + PG_LANES <= n; i += PG_LANES) store(y + i, load(x + i));                        \
  }                                                                                                      \
  EXPORT void strided_##T(const T* x, T* y, long stride, long n) {                                       \
    for (long i = 0; i < n; i += PG_LANES)                                                               \
      store_strided(y + i * stride, stride, load_strided(x + i * stride, stride, n - i), n - i);         \
  }                                                                                                      \
  EXPORT void gather_##T(const T* x, const i64* at, T* y, long n) {                                      \
    for (long i = 0; i < n; i += PG_LANES) {                                                             \
      vec<i64> offsets = load(at + i, n - i);                                                            \
      store(y + i, i % 2 ? gather(x, offsets, n - i) : gather(x, cast<i32>(offsets), n - i), n - i);     \
    }                                                                                                    \
  }
COPY(b8) COPY(u8) COPY(i32) COPY(i64) COPY(f16) COPY(bf16) COPY(f32) COPY(f64)

#define CAST(FROM, TO)                                                                                   \
  EXPORT void cast_##FROM##_##TO(const FROM* x, TO* y, TO* scalar, long n) {                             \
    for (long i = 0; i < n; i += PG_LANES) store(y + i, cast<TO>(load(x + i, n - i)), n - i);            \
    for (long i = 0; i < n; ++i) store_scalar(scalar + i, cast<TO>(load_scalar(x + i)));                 \
  }
#define CASTS(FROM)                                                                                      \
  CAST(FROM, b8) CAST(FROM, u8) CAST(FROM, i32) CAST(FROM, i64) CAST(FROM, f16) CAST(FROM, bf16) CAST(FROM, f32) CAST(FROM, f64)
CASTS(b8) CASTS(u8) CASTS(i32) CASTS(i64) CASTS(f16) CASTS(bf16) CASTS(f32) CASTS(f64)

#define OPERATION(T, NAME, EXPRESSION)                                                                   \
  EXPORT void NAME##_##T(const T* x, const T* y, T* z, long n) {                                         \
    for (long i = 0; i < n; i += PG_LANES) {                                                             \
      [[maybe_unused]] vec<T> a = load(x + i, n - i), b = load(y + i, n - i);                                           \
      store(z + i, EXPRESSION, n - i);                                                                   \
    }                                                                                                    \
  }
#define INTEGER(T)                                                                                       \
  OPERATION(T, add, a + b) OPERATION(T, subtract, a - b) OPERATION(T, multiply, a* b) OPERATION(T, negative, -a + b * T(0)) \
  OPERATION(T, floor_divide, floor_div(a, b)) OPERATION(T, remainder, remainder(a, b)) OPERATION(T, fmod, fmod(a, b))       \
  OPERATION(T, bitwise_and, a& b) OPERATION(T, bitwise_or, a | b) OPERATION(T, bitwise_xor, a ^ b) OPERATION(T, invert, ~a) \
  OPERATION(T, maximum, maximum(a, b)) OPERATION(T, minimum, minimum(a, b)) OPERATION(T, absolute, abs(a))
INTEGER(u8) INTEGER(i32) INTEGER(i64)

#define COMPARE(T, NAME, FUNCTION)                                                                       \
  EXPORT void NAME##_##T(const T* x, const T* y, b8* z, T* chosen, long n) {                             \
    for (long i = 0; i < n; i += PG_LANES) {                                                             \
      vec<T> a = load(x + i, n - i), b = load(y + i, n - i);                                             \
      vec<b8> mask = FUNCTION(a, b);                                                                     \
      store(z + i, mask, n - i);                                                                         \
      store(chosen + i, select(mask, a, b), n - i);                                                      \
    }                                                                                                    \
  }
#define COMPARISONS(T)                                                                                   \
  COMPARE(T, less, lt) COMPARE(T, less_equal, le) COMPARE(T, greater, gt) COMPARE(T, greater_equal, ge)  \
  COMPARE(T, equal, eq) COMPARE(T, not_equal, ne)
COMPARISONS(b8) COMPARISONS(u8) COMPARISONS(i32) COMPARISONS(i64) COMPARISONS(f32) COMPARISONS(f64)

// out: sum, product, maximum, minimum of the first `count` elements, count <= lanes; at: argmax, argmin over n elements.
#define REDUCE(T)                                                                                        \
  EXPORT void reduce_##T(const T* x, long count, long n, T* out, i64* at) {                              \
    vec<T> v = load(x, count);                                                                           \
    out[0] = reduce_add(v, count);                                                                       \
    out[1] = reduce_mul(v, count);                                                                       \
    out[2] = reduce_max(v, count);                                                                       \
    out[3] = reduce_min(v, count);                                                                       \
    best_lanes<T> top = best_start<T>(), bottom = best_start<T>();                                       \
    for (long i = 0; i < n; i += PG_LANES) {                                                             \
      argmax_update(top, load(x + i, n - i), iota<i64>(i), n - i);                                       \
      argmin_update(bottom, load(x + i, n - i), iota<i64>(i), n - i);                                    \
    }                                                                                                    \
    at[0] = argmax_reduce(top).index;                                                                    \
    at[1] = argmin_reduce(bottom).index;                                                                 \
  }
REDUCE(u8) REDUCE(i32) REDUCE(i64) REDUCE(f32) REDUCE(f64)

// out[i], and one by one: the sum of row i of x, as many rows as lanes.
#define REDUCE_ROWS(T)                                                                                   \
  EXPORT void reduce_rows_##T(const T* x, T* out, T* one_by_one) {                                       \
    vec<T> rows[PG_LANES];                                                                               \
    for (int i = 0; i < PG_LANES; ++i) one_by_one[i] = reduce_add(rows[i] = load(x + i * PG_LANES));     \
    store(out, reduce_add_rows(rows));                                                                   \
  }
REDUCE_ROWS(f32) REDUCE_ROWS(f64)

EXPORT long lane_count() { return PG_LANES; }
EXPORT void any_all(const b8* x, long count, int* out) {
  out[0] = any(load(x, count), count);
  out[1] = all(load(x, count), count);
}

EXPORT void philox_block_at(const u32* counter, const u32* key, u32* out) {
  philox_block block = philox_rounds(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = block.word[i];
}
EXPORT void random_words(u64 seed, u64 stream, i64 first, u32* vector, u32* scalar, long n) {
  for (long i = 0; i < n; i += PG_LANES) store_plain(vector + i, philox_words(seed, stream, first + i), n - i);
  for (long i = 0; i < n; ++i) scalar[i] = philox_word(seed, stream, u64(first + i));
}
#define RANDOM(T)                                                                                        \
  EXPORT void random_##T(u64 seed, u64 stream, i64 first, T* uniforms, T* normals, T* scalars, long n) { \
    for (long i = 0; i < n; i += PG_LANES) {                                                             \
      store(uniforms + i, uniform<T>(seed, stream, first + i), n - i);                                   \
      store(normals + i, normal<T>(seed, stream, first + i), n - i);                                     \
    }                                                                                                    \
    for (long i = 0; i < n; ++i) {                                                                       \
      scalars[i] = uniform_at<T>(seed, stream, u64(first + i));                                          \
      scalars[n + i] = normal_at<T>(seed, stream, u64(first + i));                                       \
    }                                                                                                    \
  }
RANDOM(f32) RANDOM(f64)
EXPORT void random_integers(u64 seed, u64 stream, i64 first, i64 low, u64 range, i64* out, i64* scalar, long n) {
  for (long i = 0; i < n; i += PG_LANES) store(out + i, randint(seed, stream, first + i, low, range), n - i);
  for (long i = 0; i < n; ++i) scalar[i] = randint_at(seed, stream, u64(first + i), low, range);
}
