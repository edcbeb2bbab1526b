// Arithmetic, comparisons, casts and elementary functions of single elements, as NumPy defines them. One expression text
// serves these and the lane vectors of vec.h and math.h.
//
// Invariants: integers wrap; integer division by zero gives 0; maximum and minimum return NaN if either side is NaN;
// sign(NaN) is NaN. Plain C++ that host and device compilers read alike.
#pragma once
#include "element.h"

namespace pg {

// One element, as the type it computes in.
template <class T> PG_INLINE value_of<T> load_scalar(const T* p) { return value_of<T>(*p); }
template <class T> PG_INLINE void store_scalar(T* p, value_of<not_deduced<T>> value) { *p = T(value); }
// Whether two numbers are the same bits.
template <class T> PG_INLINE bool is_same_number(const T* a, const T* b) { return __builtin_memcmp(a, b, sizeof(T)) == 0; }

PG_INLINE bool bitwise_not(bool a) { return !a; }
template <class T> PG_INLINE T bitwise_not(T a) { return T(~a); }

// Shifts as NumPy defines them: by the width or more, all bits leave; a negative count is such a count.
template <class T> PG_INLINE T shift_left(T a, T b) { return u64(b) < sizeof(T) * 8 ? T(u64(a) << u64(b)) : T(0); }
template <class T> PG_INLINE T shift_right(T a, T b) {
  const T width = T(sizeof(T) * 8);
  return T(a >> (u64(b) < u64(width) ? b : T(width - 1))) & (T(-1) < T(0) || u64(b) < u64(width) ? T(-1) : T(0));
}

template <class T> constexpr bool is_float = false;
template <> inline constexpr bool is_float<f32> = true;
template <> inline constexpr bool is_float<f64> = true;

// Integer quotients as NumPy gives them: x / 0 is 0, the lowest number / -1 is itself.
template <class T> PG_INLINE T trunc_div(T a, T b) {
  if constexpr (is_float<T>) {
    T q = a / b;
    return sizeof(T) == 4 ? T(__builtin_truncf(f32(q))) : T(__builtin_trunc(f64(q)));
  } else {
    if (b == 0) return 0;
    if (T(-1) < T(0) && b == T(-1)) return T(0 - u64(a));
    return T(a / b);
  }
}

template <class T> PG_INLINE T fmod(T a, T b) {
  if constexpr (is_float<T>) return sizeof(T) == 4 ? T(__builtin_fmodf(f32(a), f32(b))) : T(__builtin_fmod(f64(a), f64(b)));
  else return (b == 0 || (T(-1) < T(0) && b == T(-1))) ? T(0) : T(a % b);
}

// Remainder with the sign of the divisor, as Python, NumPy and torch define it; a zero has that sign too.
template <class T> PG_INLINE T remainder(T a, T b) {
  T r = fmod(a, b);
  if (r != 0 && (b < 0) != (r < 0)) return T(r + b);
  if constexpr (is_float<T>) {
    if (r == 0) return sizeof(T) == 4 ? T(__builtin_copysignf(0, f32(b))) : T(__builtin_copysign(0, f64(b)));
  }
  return r;
}

template <class T> PG_INLINE T floor_div(T a, T b) {
  if constexpr (is_float<T>) {
    if (b == 0) return a / b;
    T rest = fmod(a, b), q = (a - rest) / b;
    if (rest != 0 && (b < 0) != (rest < 0)) q -= 1;
    if (q == 0) return sizeof(T) == 4 ? T(__builtin_copysignf(0, f32(a / b))) : T(__builtin_copysign(0, f64(a / b)));
    T down = sizeof(T) == 4 ? T(__builtin_floorf(f32(q))) : T(__builtin_floor(f64(q)));
    return q - down > T(0.5) ? down + 1 : down;
  } else {
    T q = trunc_div(a, b);
    if (b != 0 && fmod(a, b) != 0 && (a < 0) != (b < 0)) q = T(q - 1);
    return q;
  }
}

#define PG_DEFINE_SCALAR_COMPARISON(NAME, OP) \
  template <class T> PG_INLINE bool NAME(T a, T b) { return a OP b; }
PG_DEFINE_SCALAR_COMPARISON(lt, <)
PG_DEFINE_SCALAR_COMPARISON(le, <=)
PG_DEFINE_SCALAR_COMPARISON(gt, >)
PG_DEFINE_SCALAR_COMPARISON(ge, >=)
PG_DEFINE_SCALAR_COMPARISON(eq, ==)
PG_DEFINE_SCALAR_COMPARISON(ne, !=)

PG_INLINE bool logical_and(bool a, bool b) { return a && b; }
PG_INLINE bool logical_or(bool a, bool b) { return a || b; }
PG_INLINE bool logical_xor(bool a, bool b) { return a != b; }
PG_INLINE bool logical_not(bool a) { return !a; }
template <class T> PG_INLINE T select(bool mask, T a, T b) { return mask ? a : b; }

// ---- casts -------------------------------------------------------------------------------------------------------------

// What cast<T> returns is what T computes in: bool for b8, f32 (rounded to T) for f16 and bf16.
template <class To> struct scalar_cast {
  template <class From> static PG_INLINE value_of<To> from(From x) { return value_of<To>(x); }
};
// Out of u8's range a float's low byte is kept, as NumPy on x86 does, by way of i32.
template <> template <> PG_INLINE u8 scalar_cast<u8>::from<f32>(f32 x) { return u8(i32(x)); }
template <> template <> PG_INLINE u8 scalar_cast<u8>::from<f64>(f64 x) { return u8(i32(x)); }
template <> struct scalar_cast<b8> {
  template <class From> static PG_INLINE bool from(From x) { return x != From(0); }
};
template <> struct scalar_cast<f16> {
  template <class From> static PG_INLINE f32 from(From x) { return f32(f16(f32(x))); }
};
template <> struct scalar_cast<bf16> {
  template <class From> static PG_INLINE f32 from(From x) { return f32(bf16(f32(x))); }
};

template <class To, class From> PG_INLINE value_of<To> cast(From x) { return scalar_cast<To>::from(x); }

// ---- elementary functions ----------------------------------------------------------------------------------------------

#define PG_DEFINE_SCALAR_1(NAME, F32, F64)                                                                         \
  PG_INLINE f32 NAME(f32 x) { return F32(x); }                                                                     \
  PG_INLINE f64 NAME(f64 x) { return F64(x); }
PG_DEFINE_SCALAR_1(exp, __builtin_expf, __builtin_exp)
PG_DEFINE_SCALAR_1(expm1, __builtin_expm1f, __builtin_expm1)
PG_DEFINE_SCALAR_1(log, __builtin_logf, __builtin_log)
PG_DEFINE_SCALAR_1(log1p, __builtin_log1pf, __builtin_log1p)
PG_DEFINE_SCALAR_1(sqrt, __builtin_sqrtf, __builtin_sqrt)
PG_DEFINE_SCALAR_1(sin, __builtin_sinf, __builtin_sin)
PG_DEFINE_SCALAR_1(cos, __builtin_cosf, __builtin_cos)
PG_DEFINE_SCALAR_1(tanh, __builtin_tanhf, __builtin_tanh)
PG_DEFINE_SCALAR_1(erf, __builtin_erff, __builtin_erf)
PG_DEFINE_SCALAR_1(floor, __builtin_floorf, __builtin_floor)
PG_DEFINE_SCALAR_1(ceil, __builtin_ceilf, __builtin_ceil)
PG_DEFINE_SCALAR_1(round, __builtin_rintf, __builtin_rint)
PG_DEFINE_SCALAR_1(trunc, __builtin_truncf, __builtin_trunc)
PG_INLINE f32 pow(f32 x, f32 y) { return __builtin_powf(x, y); }
PG_INLINE f64 pow(f64 x, f64 y) { return __builtin_pow(x, y); }

// Integer power as NumPy computes it; a negative exponent gives 0 unless the base is 1 or -1.
PG_INLINE i64 pow(i64 x, i64 y) {
  if (y < 0) return x == 1 ? 1 : x == -1 ? (y & 1 ? -1 : 1) : 0;
  u64 r = 1, square_ = u64(x);
  for (; y; y >>= 1, square_ *= square_)
    if (y & 1) r *= square_;
  return i64(r);
}
PG_INLINE i32 pow(i32 x, i32 y) { return i32(pow(i64(x), i64(y))); }
PG_INLINE u8 pow(u8 x, u8 y) { return u8(pow(i64(x), i64(y))); }

template <class T> PG_INLINE T reciprocal(T x) { return T(1) / x; }
template <class T> PG_INLINE T rsqrt(T x) { return T(1) / sqrt(x); }
template <class T> PG_INLINE T square(T x) { return T(x * x); }
template <class T> PG_INLINE bool isnan(T x) { return x != x; }
template <class T> PG_INLINE bool isinf(T x) { return x == x && x - x != x - x; }
template <class T> PG_INLINE bool isfinite(T x) { return x - x == x - x; }
template <class T> PG_INLINE T abs(T x) {
  if constexpr (is_float<T>) return sizeof(T) == 4 ? T(__builtin_fabsf(f32(x))) : T(__builtin_fabs(f64(x)));
  else return x < 0 ? T(0 - u64(x)) : x;
}
template <class T> PG_INLINE T sign(T x) { return x != x ? x : T(T(x > 0) - T(x < 0)); }
// exp(-|x|) does not overflow.
template <class T> PG_INLINE T sigmoid(T x) {
  const T e = exp(-abs(x));
  return (x >= 0 ? T(1) : e) / (T(1) + e);
}
template <class T> PG_INLINE T softplus(T x) { return (x > 0 ? x : T(0)) + log1p(exp(-abs(x))); }
template <class T> PG_INLINE T maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> PG_INLINE T minimum(T a, T b) { return a < b || a != a ? a : b; }

// The signed integer as wide as a float.
template <class T> struct bits_type { typedef i32 type; };
template <> struct bits_type<f64> { typedef i64 type; };
template <class T> using bits_of = typename bits_type<T>::type;

// ---- reductions --------------------------------------------------------------------------------------------------------

template <class T> PG_INLINE constexpr T highest_value() {
  if constexpr (is_float<T>) return T(__builtin_inff());
  else return T(-1) < T(0) ? T(~(T(1) << (sizeof(T) * 8 - 1))) : T(~T(0));
}
template <class T> PG_INLINE constexpr T lowest_value() {
  if constexpr (is_float<T>) return -T(__builtin_inff());
  else return T(-1) < T(0) ? T(T(1) << (sizeof(T) * 8 - 1)) : T(0);
}

// The best value so far and where it was; index -1 while nothing has been seen.
template <class T> struct best {
  T value;
  i64 index;
};

// Whether (value, index) beats the other: NaN beats numbers, then the value, then the lower index.
template <class T> PG_INLINE bool beats_max(best<T> a, best<T> b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.index < b.index);
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
template <class T> PG_INLINE bool beats_min(best<T> a, best<T> b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.index < b.index);
  return a.value < b.value || (a.value == b.value && a.index < b.index);
}
template <class T> PG_INLINE best<T> argmax_combine(best<T> a, best<T> b) { return beats_max(b, a) ? b : a; }
template <class T> PG_INLINE best<T> argmin_combine(best<T> a, best<T> b) { return beats_min(b, a) ? b : a; }

}  // namespace pg
