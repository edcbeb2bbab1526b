// Elementary functions on vec<f32> (own branch-free polynomials) and vec<f64> (lane by lane).
//
// Invariants: right on infinities, NaN, -0 and subnormals; vec<f32> within 2 ULP (sigmoid 2.5; measured in
// tests/runtime/test_math.py); maximum and minimum return NaN if either side is NaN; sign(NaN) is NaN, as in NumPy.
// Needs -fno-math-errno, and no flag that assumes finite numbers or re-associates.
// The polynomials are weighted minimax fits on the stated ranges, coefficients rounded to f32 from the lowest up.
#pragma once
#include "vec.h"

namespace pg {

// ---- every numeric vector --------------------------------------------------------------------------------------------

// `b > a ? b : a` keeps a NaN of a; the outer choice keeps one of b and folds away where b is a constant.
template <class T> PG_INLINE vec<T> maximum(vec<T> a, vec<T> b) {
  PG_EACH_PART(T) {
    auto m = b.part[p] > a.part[p] ? b.part[p] : a.part[p];
    if constexpr (is_float<T>) m = b.part[p] == b.part[p] ? m : b.part[p];
    a.part[p] = m;
  }
  return a;
}
template <class T> PG_INLINE vec<T> minimum(vec<T> a, vec<T> b) {
  PG_EACH_PART(T) {
    auto m = b.part[p] < a.part[p] ? b.part[p] : a.part[p];
    if constexpr (is_float<T>) m = b.part[p] == b.part[p] ? m : b.part[p];
    a.part[p] = m;
  }
  return a;
}
template <> PG_INLINE vec<b8> maximum<b8>(vec<b8> a, vec<b8> b) { return a | b; }
template <> PG_INLINE vec<b8> minimum<b8>(vec<b8> a, vec<b8> b) { return a & b; }
template <class T> PG_INLINE vec<T> maximum(vec<T> a, value_of<not_deduced<T>> b) { return maximum(a, splat<T>(b)); }
template <class T> PG_INLINE vec<T> maximum(value_of<not_deduced<T>> a, vec<T> b) { return maximum(b, splat<T>(a)); }
template <class T> PG_INLINE vec<T> minimum(vec<T> a, value_of<not_deduced<T>> b) { return minimum(a, splat<T>(b)); }
template <class T> PG_INLINE vec<T> minimum(value_of<not_deduced<T>> a, vec<T> b) { return minimum(b, splat<T>(a)); }

template <class T> PG_INLINE vec<T> abs(vec<T> x) {
  if constexpr (is_float<T>) {
    typedef typename lanes<T>::native native;
    typedef bits_of<T> bits;
    PG_EACH_PART(T) x.part[p] = (native)((typename lanes<bits>::native)x.part[p] & ~(bits(1) << (sizeof(T) * 8 - 1)));
    return x;
  } else {
    return maximum(x, -x);
  }
}
template <> PG_INLINE vec<u8> abs<u8>(vec<u8> x) { return x; }

template <class T> PG_INLINE vec<T> copy_sign(vec<T> magnitude, vec<T> from) {
  typedef typename lanes<T>::native native;
  typedef bits_of<T> bits;
  typedef typename lanes<bits>::native whole;
  const bits top = bits(1) << (sizeof(T) * 8 - 1);
  PG_EACH_PART(T) magnitude.part[p] = (native)(((whole)magnitude.part[p] & ~top) | ((whole)from.part[p] & top));
  return magnitude;
}

// -|x|: the sign bit set.
template <class T> PG_INLINE vec<T> minus_abs(vec<T> x) { return copy_sign(x, splat<T>(T(-1))); }

template <class T> PG_INLINE vec<T> sign(vec<T> x) {
  vec<T> one = splat<T>(T(1)), none{};
  vec<T> r = select(gt(x, none), one, none) - select(lt(x, none), one, none);
  if constexpr (is_float<T>) r = select(ne(x, x), x, r);
  return r;
}
template <class T> PG_INLINE vec<T> square(vec<T> x) { return x * x; }
template <class T> PG_INLINE vec<T> reciprocal(vec<T> x) { return splat<T>(T(1)) / x; }
template <class T> PG_INLINE vec<b8> isnan(vec<T> x) { return ne(x, x); }
template <class T> PG_INLINE vec<b8> isinf(vec<T> x) {
  if constexpr (is_float<T>) return eq(abs(x), splat<T>(T(__builtin_inff())));
  else return vec<b8>{};
}
template <class T> PG_INLINE vec<b8> isfinite(vec<T> x) {
  vec<T> d = x - x;
  return eq(d, d);
}

template <class T> PG_INLINE vec<T> pow(vec<T> x, vec<T> y) {
  return map_lanes(x, y, [](T a, T b) { return pow(a, b); });
}
template <class T> PG_INLINE vec<T> pow(vec<T> x, not_deduced<T> y) { return pow(x, splat<T>(y)); }
template <class T> PG_INLINE vec<T> pow(not_deduced<T> x, vec<T> y) { return pow(splat<T>(x), y); }

// x, or the bound where x is beyond it; a NaN stays. The one instruction that it is, which GCC 12 does not find in the choice.
#if PG_LANES == 16 && defined(__AVX512F__) && !defined(__clang__)
#define PG_BOUNDED(WHICH) __builtin_ia32_##WHICH##ps512_mask(splat<f32>(bound).part[0], x.part[0], x.part[0], u16(0xffff), 4)
#elif PG_LANES == 8 && defined(__AVX__) && !defined(__clang__)
#define PG_BOUNDED(WHICH) __builtin_ia32_##WHICH##ps256(splat<f32>(bound).part[0], x.part[0])
#elif PG_LANES == 4 && defined(__SSE2__) && !defined(__clang__)
#define PG_BOUNDED(WHICH) __builtin_ia32_##WHICH##ps(splat<f32>(bound).part[0], x.part[0])
#endif
#if defined(PG_BOUNDED)
#define PG_DEFINE_BOUND(NAME, WHICH, IS_BEYOND)        \
  PG_INLINE vec<f32> NAME(vec<f32> x, f32 bound) {     \
    x.part[0] = PG_BOUNDED(WHICH);                     \
    return x;                                          \
  }
#else
#define PG_DEFINE_BOUND(NAME, WHICH, IS_BEYOND) \
  PG_INLINE vec<f32> NAME(vec<f32> x, f32 bound) { return select(IS_BEYOND(x, bound), bound, x); }
#endif
PG_DEFINE_BOUND(at_most, min, gt)
PG_DEFINE_BOUND(at_least, max, lt)

// ---- square root and rounding ------------------------------------------------------------------------------------------

PG_INLINE vec<f32> sqrt(vec<f32> x) {
#if defined(PG_HAS_ELEMENTWISE_SQRT)
  x.part[0] = __builtin_elementwise_sqrt(x.part[0]);
  return x;
#elif PG_LANES == 16 && defined(__AVX512F__)
  x.part[0] = __builtin_ia32_sqrtps512_mask(x.part[0], x.part[0], u16(0xffff), 4);
  return x;
#elif PG_LANES == 8 && defined(__AVX__)
  x.part[0] = __builtin_ia32_sqrtps256(x.part[0]);
  return x;
#elif PG_LANES == 4 && defined(__SSE2__)
  x.part[0] = __builtin_ia32_sqrtps(x.part[0]);
  return x;
#else
  return map_lanes(x, [](f32 v) { return sqrt(v); });
#endif
}
PG_INLINE vec<f64> sqrt(vec<f64> x) {
#if defined(PG_HAS_ELEMENTWISE_SQRT)
  PG_EACH_PART(f64) x.part[p] = __builtin_elementwise_sqrt(x.part[p]);
  return x;
#elif PG_LANES == 16 && defined(__AVX512F__)
  PG_EACH_PART(f64) x.part[p] = __builtin_ia32_sqrtpd512_mask(x.part[p], x.part[p], u8(0xff), 4);
  return x;
#else
  return map_lanes(x, [](f64 v) { return sqrt(v); });
#endif
}
template <class T> PG_INLINE vec<T> rsqrt(vec<T> x) { return splat<T>(T(1)) / sqrt(x); }

// Adding and taking away 2^(mantissa bits) leaves the nearest whole number, halves to even.
template <class T> PG_INLINE vec<T> round(vec<T> x) {
  const T magic = sizeof(T) == 4 ? T(0x1p23) : T(0x1p52);
  vec<T> a = abs(x), whole = (a + magic) - magic;
  return copy_sign(select(lt(a, magic), whole, a), x);
}
template <class T> PG_INLINE vec<T> floor(vec<T> x) {
  vec<T> r = round(x);
  return copy_sign(select(gt(r, x), r - T(1), r), x);
}
template <class T> PG_INLINE vec<T> ceil(vec<T> x) {
  vec<T> r = round(x);
  return copy_sign(select(lt(r, x), r + T(1), r), x);
}
template <class T> PG_INLINE vec<T> trunc(vec<T> x) { return copy_sign(floor(abs(x)), x); }

// ---- vec<f32>: exp and its family --------------------------------------------------------------------------------------

// x = n ln2 + r with |r| <= ln2 / 2; ln2 in two parts of which the first has 9 zero bits at its end, so that n times
// it is exact without FMA as well.
struct exp_reduction {
  vec<f32> r, whole;
  vec<i32> n;  // `whole`, as an integer
};

PG_INLINE exp_reduction reduce_exp(vec<f32> x) {
  const f32 magic = 0x1.8p23f;
  vec<f32> t = x * 0x1.715476p0f + magic, n = t - magic;
  vec<f32> r = x - n * 0x1.62e4p-1f;
  r = r - n * 0x1.7f7d1cp-20f;
  return {r, n, bit_cast_lanes<i32>(t) - bit_cast<i32>(magic)};
}

// 2^n for -126 <= n <= 127.
PG_INLINE vec<f32> power_of_two(vec<i32> n) { return bit_cast_lanes<f32>((n + 127) << 23); }

// p 2^n for n from -150 (subnormal) to 128 (infinity): where there is no instruction for it, in two factors.
PG_INLINE vec<f32> scaled(vec<f32> p, exp_reduction e) {
#if PG_LANES == 16 && defined(__AVX512F__) && !defined(__clang__)
  p.part[0] = __builtin_ia32_scalefps512_mask(p.part[0], e.whole.part[0], p.part[0], u16(0xffff), 4);
  return p;
#else
  vec<i32> half = e.n >> 1;
  return p * power_of_two(half) * power_of_two(e.n - half);
#endif
}

// Polynomials are summed by halves where that shortens the chain that the time of a vector hangs on.
PG_INLINE vec<f32> exp_polynomial(vec<f32> r) {
  vec<f32> s = r * r, low = r * 0x1.555486p-3f + 0.5f, high = r * 0x1.1241dp-7f + 0x1.5554d4p-5f;
  return s * ((s * 0x1.6d649ap-10f + high) * s + low) + r;
}

PG_INLINE vec<f32> exp(vec<f32> x) {
  exp_reduction e = reduce_exp(at_least(at_most(x, 89.0f), -104.0f));
  return scaled(exp_polynomial(e.r) + 1.0f, e);
}

// |r| <= 0.56, so that small arguments need no reduction and keep their last bit.
PG_INLINE vec<f32> expm1(vec<f32> x) {
  vec<f32> a = select(gt(x, 89.0f), 89.0f, x);
  a = select(lt(a, -18.0f), -18.0f, a);
  exp_reduction e = reduce_exp(a);
  vec<b8> small = le(abs(x), 0.55f);
  vec<f32> r = select(small, a, e.r);
  vec<i32> n = select(small, 0, e.n);
  vec<f32> p = splat<f32>(0x1.a59f16p-13f);
  p = p * r + 0x1.6f8774p-10f;
  p = p * r + 0x1.110abep-7f;
  p = p * r + 0x1.555158p-5f;
  p = p * r + 0x1.55555ep-3f;
  p = p * r + 0x1.000002p-1f;
  p = r * r * p + r;
  vec<f32> half = power_of_two(n - 1);  // half of 2^n, which alone would overflow at n = 128
  vec<f32> y = half * p + (half - 0.5f);
  y = select(small, p, y + y);
  return copy_sign(y, select(ne(x, x), p, x));
}

#if defined(PG_HAS_LOOK_UP)
// tanh(c + r) = p0 + r p(r) about a center c of each of the intervals in which |x| + 1 has the same first three bits; from 9 on it is 1.
// The centers lie near the middles, where tanh(c) is a float but for 2^-34. Half the instructions of one path for small and one
// for large arguments, and no division.
PG_INLINE vec<f32> tanh(vec<f32> x) {
  typedef lanes<f32>::native table;
  const table center = {0x1.3fac18p0f, 0x1.bf8016p0f, 0x1.202ec8p1f, 0x1.5f7744p1f, 0x1.c068d6p1f, 0x1.20347ap2f,
                        0x1.5fe8bep2f, 0x1.9fef28p2f, 0x1.ff63cp2f, 0x1.2p3f, 0, 0, 0, 0x1.80169p-2f, 0x1.400dfap-1f,
                        0x1.c0129cp-1f};
  const table p0 = {0x1.b2232p-1f, 0x1.e1decep-1f, 0x1.f4c7f6p-1f, 0x1.fbcc22p-1f, 0x1.ff12b2p-1f, 0x1.ffdfdcp-1f,
                    0x1.fffb9cp-1f, 0x1.ffff68p-1f, 0x1.fffff8p-1f, 1, 0, 0, 0, 0x1.6f08e8p-2f, 0x1.1bfe2cp-1f, 0x1.686fb4p-1f};
  const table p1 = {0x1.1fc4dap-2f, 0x1.d3e3e2p-4f, 0x1.631256p-5f, 0x1.0bdcecp-6f, 0x1.da304p-9f, 0x1.011948p-11f,
                    0x1.190054p-14f, 0x1.30017ep-17f, 0x1.ec57ccp-22f, 0, 0, 0, 1, 0x1.be38aep-1f, 0x1.627a08p-1f,
                    0x1.0242d2p-1f};
  const table p2 = {-0x1.e8034ap-3f, -0x1.b85b34p-4f, -0x1.5b4a8ep-5f, -0x1.09aa0cp-6f, -0x1.d95448p-9f, -0x1.010924p-11f,
                    -0x1.18fd5ap-14f, -0x1.300096p-17f, -0x1.432952p-22f, 0, 0, 0, -0x1.26910cp-20f, -0x1.3fe168p-2f,
                    -0x1.893cd6p-2f, -0x1.6b9eaap-2f};
  const table p3 = {0x1.bbf846p-4f, 0x1.0281b8p-4f, 0x1.baa754p-6f, 0x1.5c6154p-7f, 0x1.3a1d64p-9f, 0x1.563044p-12f,
                    0x1.763b0ap-15f, 0x1.94e6cp-18f, 0x1.495a86p-22f, 0, 0, 0, -0x1.5544c8p-2f, -0x1.6da448p-3f,
                    -0x1.235906p-6f, 0x1.4f3bcap-4f};
  const table p4 = {-0x1.9848cp-7f, -0x1.81fd7ep-6f, -0x1.92e084p-7f, -0x1.50da0ap-8f, -0x1.37d4fep-10f, -0x1.55d0dep-13f,
                    -0x1.764586p-16f, -0x1.94fae4p-19f, -0x1.2efd26p-21f, 0, 0, 0, -0x1.36500cp-10f, 0x1.5856a4p-3f,
                    0x1.1a548p-3f, 0x1.f1ba08p-5f};
  const table p5 = {-0x1.44b8f6p-6f, 0x1.c5431ap-9f, 0x1.044354p-8f, 0x1.f98814p-10f, 0x1.fedd9ap-12f, 0x1.1c9096p-14f,
                    0x1.382ff8p-17f, 0x1.51eb16p-20f, 0x1.146ba6p-24f, 0, 0, 0, 0x1.25097p-3f, 0x1.30ec02p-6f, -0x1.bbb4d8p-5f,
                    -0x1.e16ccep-5f};
  const table p6 = {0x1.ef119ep-7f, 0x1.13be1ap-9f, -0x1.774d36p-11f, -0x1.1e9b8cp-11f, -0x1.4a92bp-13f, -0x1.7b3738p-16f,
                    -0x1.9dfa4p-19f, -0x1.c0a47ep-22f, 0x1.0a91a2p-22f, 0, 0, 0, -0x1.2eeaf2p-5f, -0x1.1e3936p-4f,
                    -0x1.80f478p-6f, 0x1.a2778cp-7f};
  const vec<f32> a = abs(x), y = at_most(a, 9.5f);
  const vec<i32> interval = bit_cast_lanes<i32>(y + 1.0f) >> 21;
  const vec<f32> r = y - look_up(center, interval);
  vec<f32> p = look_up(p6, interval);
  p = p * r + look_up(p5, interval);
  p = p * r + look_up(p4, interval);
  p = p * r + look_up(p3, interval);
  p = p * r + look_up(p2, interval);
  p = p * r + look_up(p1, interval);
  p = p * r + look_up(p0, interval);
  const vec<i32> sign = bit_cast_lanes<i32>(x) ^ bit_cast_lanes<i32>(a);
  return bit_cast_lanes<f32>(bit_cast_lanes<i32>(p) ^ sign);
}
#else
// |x| < 0.65: x + x^3 p(x^2); beyond, 1 - 2 / (exp(2|x|) + 1), whose error the subtraction shrinks: so |x| = n ln2 / 2 + r
// with ln2 in one part is enough, and exp(2r) - 1 by its even and odd powers apart, which shortens the chain that the time
// of a vector hangs on.
PG_INLINE vec<f32> tanh(vec<f32> x) {
  vec<f32> a = abs(x), z = a * a;
  vec<f32> p = splat<f32>(-0x1.65a4cep-8f);
  p = p * z + 0x1.4e8366p-6f;
  p = p * z - 0x1.b7aebp-5f;
  p = p * z + 0x1.1102fep-3f;
  p = p * z - 0x1.55552p-2f;
  vec<f32> small = p * z * a + a;
  const f32 magic = 0x1.8p23f;
  vec<f32> y = at_most(a, 9.2f);
  vec<f32> t = y * 0x1.715476p1f + magic, n = t - magic;
  vec<f32> r = y - n * 0x1.62e43p-2f, s = r * r;
  vec<f32> low = r * 0x1.555486p0f + 2.0f, high = r * 0x1.1241dp-2f + 0x1.5554d4p-1f;
  vec<f32> grown = ((s * 0x1.6d649ap-4f + high) * s + low) * s + (r + r);
  vec<f32> power = bit_cast_lanes<f32>((bit_cast_lanes<i32>(t) << 23) + 0x3f800000);  // 2^n: n is t's lowest bits
  vec<f32> large = 1.0f - 2.0f / (grown * power + (power + 1.0f));
  vec<i32> sign = bit_cast_lanes<i32>(x) ^ bit_cast_lanes<i32>(a);
  return bit_cast_lanes<f32>(bit_cast_lanes<i32>(select(lt(a, 0.65f), small, large)) ^ sign);
}
#endif

// |x| < 0.93: x + x p(x^2); beyond, 1 - exp(-x - x q(x)) with q fitted to -log(erfc(x)) / x - 1.
PG_INLINE vec<f32> erf(vec<f32> x) {
  vec<f32> a = abs(x), z = a * a;
  vec<f32> p = splat<f32>(0x1.5c2d7cp-14f);
  p = p * z - 0x1.a9fdb8p-11f;
  p = p * z + 0x1.54be04p-8f;
  p = p * z - 0x1.b80d1ap-6f;
  p = p * z + 0x1.ce2deep-4f;
  p = p * z - 0x1.812742p-2f;
  p = p * z + 0x1.06eba8p-3f;
  vec<f32> small = p * a + a;
  vec<f32> y = at_most(a, 4.0f);
  vec<f32> q = splat<f32>(0x1.59ab0ep-18f);
  q = q * y - 0x1.9459dap-15f;
  q = q * y - 0x1.2e8354p-15f;
  q = q * y + 0x1.7b193p-9f;
  q = q * y - 0x1.72799p-6f;
  q = q * y + 0x1.aee93ap-4f;
  q = q * y + 0x1.4574c6p-1f;
  q = q * y + 0x1.07428cp-3f;
  exp_reduction e = reduce_exp(-(q * y + y));
  vec<f32> large = 1.0f - scaled(exp_polynomial(e.r) + 1.0f, e);
  return copy_sign(select(lt(a, 0.93f), small, large), x);
}

// ---- vec<f32>: logarithms --------------------------------------------------------------------------------------------

// log(1 + f) - f + c for f in [sqrt(1/2) - 1, sqrt(2) - 1]: -f^2/2 + f^3 p(f) + c.
PG_INLINE vec<f32> log1p_polynomial(vec<f32> f, vec<f32> c) {
  vec<f32> z = f * f, even = splat<f32>(0x1.13c8ecp-4f), odd = splat<f32>(-0x1.dd9efap-4f);
  even = even * z + 0x1.e6dbdep-4f;
  odd = odd * z - 0x1.fc3d5ep-4f;
  even = even * z + 0x1.233afap-3f;
  odd = odd * z - 0x1.555b9p-3f;
  even = even * z + 0x1.99a478p-3f;
  odd = odd * z - 0x1.000008p-2f;
  even = even * z + 0x1.555548p-2f;
  vec<f32> y = f * z * (odd * f + even) + c;
  return y - 0.5f * z;
}

// log(u) + c for positive finite u: u = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = log(1 + f), f = m - 1.
PG_INLINE vec<f32> log_finite(vec<f32> u, vec<f32> c) {
  vec<b8> tiny = lt(u, 0x1p-126f);
  u = select(tiny, u * 0x1p23f, u);
  vec<i32> bits = bit_cast_lanes<i32>(u) - 0x3f3504f3;
  vec<i32> exponent = (bits >> 23) - select(tiny, splat<i32>(23), 0);
  vec<f32> f = bit_cast_lanes<f32>((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  vec<f32> e = convert<f32>(exponent);
  return (f + log1p_polynomial(f, e * 0x1.7f7d1cp-20f + c)) + e * 0x1.62e4p-1f;
}

// The values at 0, below 0, at infinity and NaN.
PG_INLINE vec<f32> finish_log(vec<f32> u, vec<f32> y) {
  const f32 infinity = __builtin_inff();
  y = select(eq(u, 0.0f), -infinity, y);
  y = select(lt(u, 0.0f), __builtin_nanf(""), y);
  return select(eq(u, infinity) | ne(u, u), u, y);
}

PG_INLINE vec<f32> log(vec<f32> x) { return finish_log(x, log_finite(x, vec<f32>{})); }

// What 1 + x lost by rounding comes back as c = lost / (1 + x).
PG_INLINE vec<f32> log1p(vec<f32> x) {
  vec<f32> u = 1.0f + x;
  vec<f32> lost = select(gt(x, 1.0f), 1.0f - (u - x), x - (u - 1.0f));
  vec<f32> y = finish_log(u, log_finite(u, lost / u));
  return select(lt(abs(x), 0x1p-24f), x, y);
}

// max(x, 0) + log(1 + e), e = exp(-|x|) in [0, 1]; beyond sqrt(2) - 1, log(1 + e) = ln2 + log(1 + f), f = (e - 1) / 2.
PG_INLINE vec<f32> softplus(vec<f32> x) {
  vec<f32> e = exp(minus_abs(x));
  vec<b8> large = gt(e, 0x1.a82798p-2f);
  vec<f32> f = select(large, 0.5f * e - 0.5f, e);
  vec<f32> y = log1p_polynomial(f, select(large, splat<f32>(0x1.7f7d1cp-20f), 0.0f));
  return (f + y) + (select(large, splat<f32>(0x1.62e4p-1f), 0.0f) + select(gt(x, 0.0f), x, 0.0f));
}

// ---- vec<f32>: sine and cosine -----------------------------------------------------------------------------------------

// r = x - n pi/2 is taken in f64, good for |x| <= 2^20; larger lanes go to the scalar function.
struct angle {
  vec<f32> r;
  vec<i32> n;
};

PG_INLINE angle reduce_angle(vec<f32> x) {
  const f64 magic = 0x1.8p52;
  vec<f64> d = convert<f64>(x), t = d * 0x1.45f306dc9c883p-1 + magic, n = t - magic;
  vec<f64> r = d - n * 0x1.921fb544p0;
  r = r - n * 0x1.0b4611a626331p-34;
  return {convert<f32>(r), convert<i32>(bit_cast_lanes<i64>(t))};
}

PG_INLINE vec<f32> sine_of(angle a, int quarter) {
  vec<f32> z = a.r * a.r;
  vec<f32> s = splat<f32>(0x1.77b00ep-19f);
  s = s * z - 0x1.a04802p-13f;
  s = s * z + 0x1.111164p-7f;
  s = s * z - 0x1.555556p-3f;
  s = s * (z * a.r) + a.r;
  vec<f32> c = splat<f32>(0x1.99e1d6p-16f);
  c = c * z - 0x1.6c0c1cp-10f;
  c = c * z + 0x1.55554ap-5f;
  c = c * (z * z) + (1.0f - 0.5f * z);
  vec<i32> n = a.n + quarter;
  vec<f32> y = select(ne(n & 1, 0), c, s);
  return bit_cast_lanes<f32>(bit_cast_lanes<i32>(y) ^ ((n & 2) << 30));
}

template <class F> PG_NOINLINE vec<f32> by_lane(vec<f32> x, F f) { return map_lanes(x, f); }

PG_INLINE vec<f32> sin(vec<f32> x) {
  if (__builtin_expect(any(gt(abs(x), 0x1p20f)), 0)) return by_lane(x, [](f32 v) { return sin(v); });
  return select(eq(x, 0.0f), x, sine_of(reduce_angle(x), 0));
}
PG_INLINE vec<f32> cos(vec<f32> x) {
  if (__builtin_expect(any(gt(abs(x), 0x1p20f)), 0)) return by_lane(x, [](f32 v) { return cos(v); });
  return sine_of(reduce_angle(x), 1);
}

// ---- vec<f64>: lane by lane ----------------------------------------------------------------------------------------------

#define PG_DEFINE_BY_LANE_1(NAME)                                                                                  \
  PG_INLINE vec<f64> NAME(vec<f64> x) {                                                                            \
    return map_lanes(x, [](f64 v) { return NAME(v); });                                                            \
  }
PG_DEFINE_BY_LANE_1(exp)
PG_DEFINE_BY_LANE_1(expm1)
PG_DEFINE_BY_LANE_1(log)
PG_DEFINE_BY_LANE_1(log1p)
PG_DEFINE_BY_LANE_1(sin)
PG_DEFINE_BY_LANE_1(cos)
PG_DEFINE_BY_LANE_1(tanh)
PG_DEFINE_BY_LANE_1(erf)
PG_INLINE vec<f64> softplus(vec<f64> x) { return maximum(x, 0.0) + log1p(exp(-abs(x))); }

// exp(-|x|) does not overflow, and is there already where softplus of the same x is computed.
template <class T> PG_INLINE vec<T> sigmoid(vec<T> x) {
  vec<T> e = exp(minus_abs(x));
  return select(ge(x, T(0)), T(1), e) / (e + T(1));
}

}  // namespace pg
