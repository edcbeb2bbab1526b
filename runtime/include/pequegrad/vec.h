// Loads, stores, arithmetic, comparisons and casts of vec<T>, under the names that scalar.h has for scalars.
//
// Invariants: a partial access (count < PG_LANES) never touches memory beyond count, and its other lanes read zero;
// integers wrap; integer division by zero gives 0.
#pragma once
#include "scalar.h"
#include "types.h"

#define PG_EACH_PART(T) PG_UNROLL for (int p = 0; p < lanes<T>::parts; ++p)

#if PG_LANES == 16
#define PG_LIST_FULL(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15)
#define PG_LIST_LOW(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)
#elif PG_LANES == 8
#define PG_LIST_FULL(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)
#define PG_LIST_LOW(F) F(0), F(1), F(2), F(3)
#elif PG_LANES == 4
#define PG_LIST_FULL(F) F(0), F(1), F(2), F(3)
#define PG_LIST_LOW(F) F(0), F(1)
#else
#define PG_LIST_FULL(F) F(0)
#define PG_LIST_LOW(F) F(0)
#endif

namespace pg {

// ---- splat, iota -------------------------------------------------------------------------------------------------

template <class T> PG_INLINE vector_of<T> splat(value_of<T> value) {
  typedef typename vector_of<T>::native native;
  typedef typename vector_of<T>::element element;
  vector_of<T> r;
  PG_UNROLL for (int p = 0; p < vector_of<T>::parts; ++p) r.part[p] = element(value) - native{};  // a sum would turn -0 into 0
  return r;
}
template <> PG_INLINE vec<b8> splat<b8>(bool value) {
  vec<b8> r;
  r.part[0] = lanes<b8>::native{} - i32(value);
  return r;
}
template <class T> PG_INLINE vector_of<T> zero() { return vector_of<T>{}; }

// Lane i is start + i.
template <class T> PG_INLINE vec<T> iota(not_deduced<T> start) {
#define PG_IDENTITY(i) (i)
  const typename lanes<u8>::native full = {PG_LIST_FULL(PG_IDENTITY)};
  vec<T> r;
  PG_EACH_PART(T)
    PG_UNROLL for (int l = 0; l < lanes<T>::count; ++l)
      r.part[p][l] = T(full[p * lanes<T>::count + l]);
  PG_EACH_PART(T) r.part[p] = r.part[p] + start;
  return r;
}

// ---- halves of a native vector: how 4-byte lanes meet 8-byte lanes ----------------------------------------------------

template <class T> PG_INLINE typename lanes<T>::half half_of(typename lanes<T>::native v, int which) {
#if PG_LANES > 1 && defined(PG_HAS_SHUFFLEVECTOR)
#define PG_UPPER(i) ((i) + PG_LANES / 2)
  return which ? __builtin_shufflevector(v, v, PG_LIST_LOW(PG_UPPER)) : __builtin_shufflevector(v, v, PG_LIST_LOW(PG_IDENTITY));
#else
  typename lanes<T>::half r;
  __builtin_memcpy(&r, reinterpret_cast<const char*>(&v) + (PG_LANES > 1 ? which : 0) * sizeof r, sizeof r);
  return r;
#endif
}

template <class T> PG_INLINE typename lanes<T>::native join_halves(typename lanes<T>::half low, typename lanes<T>::half high) {
#if PG_LANES > 1 && defined(PG_HAS_SHUFFLEVECTOR)
  return __builtin_shufflevector(low, high, PG_LIST_FULL(PG_IDENTITY));
#else
  typename lanes<T>::native r;
  __builtin_memcpy(&r, &low, sizeof low);
  if (PG_LANES > 1) __builtin_memcpy(reinterpret_cast<char*>(&r) + sizeof low, &high, sizeof high);
  return r;
#endif
}

// Numeric conversion with C's meaning, lane by lane.
template <class To, class From> PG_INLINE vec<To> convert(vec<From> x) {
  typedef lanes<To> to;
  typedef lanes<From> from;
  vec<To> r;
  if constexpr (sizeof(typename from::element) == 1 && sizeof(typename to::element) >= 4) {
    // By steps of one instruction each: as one conversion, GCC 12 takes bytes lane by lane.
    typedef u16 halfway __attribute__((vector_size(2 * PG_LANES)));
    vec<i32> widened;
    widened.part[0] = __builtin_convertvector(__builtin_convertvector(x.part[0], halfway), lanes<i32>::native);
    return convert<To>(widened);
#if !defined(__AVX512F__)
  } else if constexpr (!is_float<From> && sizeof(typename from::element) == 4 && sizeof(typename to::element) == 1) {
    // The same downwards, but where one instruction does it all.
    typedef u16 halfway __attribute__((vector_size(2 * PG_LANES)));
    r.part[0] = __builtin_convertvector(__builtin_convertvector(x.part[0], halfway), typename to::native);
#endif
  } else if constexpr (int(to::parts) == int(from::parts)) {
    PG_EACH_PART(To) r.part[p] = __builtin_convertvector(x.part[p], typename to::native);
  } else if constexpr (to::parts == 2) {
    PG_EACH_PART(To) r.part[p] = __builtin_convertvector(half_of<From>(x.part[0], p), typename to::native);
  } else {
    r.part[0] = join_halves<To>(__builtin_convertvector(x.part[0], typename to::half),
                                __builtin_convertvector(x.part[1], typename to::half));
  }
  return r;
}

template <class To, class From> PG_INLINE vec<To> bit_cast_lanes(vec<From> x) {
  static_assert(sizeof(vec<To>) == sizeof(vec<From>), "bit_cast_lanes needs equal sizes");
  vec<To> r;
  PG_EACH_PART(To) r.part[p] = (typename lanes<To>::native)x.part[p];
  return r;
}

// The mask as lanes of T's own width, for part p: 0 or all ones.
template <class T> PG_INLINE auto widen_mask(vec<b8> mask, int p) {
  if constexpr (sizeof(typename lanes<T>::element) == 8) {
    typedef typename lanes<i64>::native wide;
    return __builtin_convertvector(half_of<b8>(mask.part[0], p), wide);
  } else if constexpr (sizeof(typename lanes<T>::element) == 4) {
    return mask.part[0];
  } else {
    typedef signed char narrow __attribute__((vector_size(PG_LANES)));
    return __builtin_convertvector(mask.part[0], narrow);
  }
}

// ---- lane counts and masks -------------------------------------------------------------------------------------------

PG_INLINE vec<b8> lane_mask(long count) {
  vec<b8> r;
  r.part[0] = iota<i32>(0).part[0] < i32(count < PG_LANES ? count : PG_LANES);
  return r;
}

PG_INLINE u32 low_bits(long count) { return count >= PG_LANES ? (u32(1) << PG_LANES) - 1 : (u32(1) << count) - 1; }

// Bit i is lane i of the mask.
PG_INLINE u32 mask_bits(vec<b8> mask) {
#if PG_LANES == 16 && defined(__AVX512DQ__)
  return u16(__builtin_ia32_cvtd2mask512(mask.part[0]));
#elif PG_LANES == 8 && defined(__AVX__)
  return u32(__builtin_ia32_movmskps256((lanes<f32>::native)mask.part[0]));
#elif PG_LANES == 4 && defined(__SSE2__)
  return u32(__builtin_ia32_movmskps((lanes<f32>::native)mask.part[0]));
#else
  u32 bits = 0;
  for (int l = 0; l < PG_LANES; ++l) bits |= u32(mask.part[0][l] & 1) << l;
  return bits;
#endif
}

PG_INLINE bool any(vec<b8> mask, long count = PG_LANES) { return (mask_bits(mask) & low_bits(count)) != 0; }
PG_INLINE bool all(vec<b8> mask, long count = PG_LANES) { return (~mask_bits(mask) & low_bits(count)) == 0; }
PG_INLINE bool any(bool value) { return value; }
PG_INLINE bool all(bool value) { return value; }

// ---- loads -------------------------------------------------------------------------------------------------------------

template <class T> PG_INLINE vec<T> load_plain(const T* p) {
  typedef typename lanes<T>::unaligned unaligned;
  vec<T> r;
  PG_UNROLL for (int i = 0; i < lanes<T>::parts; ++i) r.part[i] = *reinterpret_cast<const unaligned*>(p + i * lanes<T>::count);
  return r;
}

template <class T> PG_INLINE void store_plain(T* p, vec<T> v) {
  typedef typename lanes<T>::unaligned unaligned;
  PG_UNROLL for (int i = 0; i < lanes<T>::parts; ++i) *reinterpret_cast<unaligned*>(p + i * lanes<T>::count) = v.part[i];
}

template <class T> PG_NOINLINE void copy_elements(T* to, const T* from, long count) {
  for (long i = 0; i < count; ++i) to[i] = from[i];
}

template <class T> PG_INLINE vec<T> load_plain(const T* p, long count) {
#if PG_LANES == 16 && defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    vec<T> r;
    r.part[0] = (typename lanes<T>::native)__builtin_ia32_loadups512_mask(reinterpret_cast<const f32*>(p), lanes<f32>::native{}, u16(low_bits(count)));
    return r;
  } else if constexpr (sizeof(T) == 8) {
    u32 bits = low_bits(count);
    vec<T> r;
    PG_UNROLL for (int i = 0; i < 2; ++i)
      r.part[i] = (typename lanes<T>::native)__builtin_ia32_loadupd512_mask(reinterpret_cast<const f64*>(p + 8 * i), lanes<f64>::native{}, u8(bits >> (8 * i)));
    return r;
  }
#endif
  if (count >= PG_LANES) return load_plain(p);
  T lane_values[PG_LANES] = {};
  copy_elements(lane_values, p, count);
  return load_plain(static_cast<const T*>(lane_values));
}

template <class T> PG_INLINE void store_plain(T* p, vec<T> v, long count) {
#if PG_LANES == 16 && defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __builtin_ia32_storeups512_mask(reinterpret_cast<f32*>(p), (lanes<f32>::native)v.part[0], u16(low_bits(count)));
    return;
  } else if constexpr (sizeof(T) == 8) {
    u32 bits = low_bits(count);
    PG_UNROLL for (int i = 0; i < 2; ++i)
      __builtin_ia32_storeupd512_mask(reinterpret_cast<f64*>(p + 8 * i), (lanes<f64>::native)v.part[i], u8(bits >> (8 * i)));
    return;
  }
#endif
  if (count >= PG_LANES) return store_plain(p, v);
  T lane_values[PG_LANES];
  store_plain(lane_values, v);
  copy_elements(p, static_cast<const T*>(lane_values), count);
}

// Storage of 16 bits and of bools to and from what they compute as.
PG_INLINE vec<f32> decode_f16(vec<u16> stored) {
  vec<u32> x = convert<u32>(stored), r;
  auto bits = x.part[0];
  auto a = bits & 0x7fffu;
  auto finite = (lanes<u32>::native)((lanes<f32>::native)(a << 13) * 0x1p112f);
  r.part[0] = (a >= 0x7c00u ? ((a << 13) | 0x7f800000u) : finite) | (bits & 0x8000u) << 16;
  return bit_cast_lanes<f32>(r);
}

PG_INLINE vec<u32> encode_f16(vec<f32> value) {
  vec<u32> r;
  auto x = (lanes<u32>::native)value.part[0];
  auto a = x & 0x7fffffffu;
  auto normal = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
  auto subnormal = (lanes<u32>::native)((lanes<f32>::native)a + 0.5f) - 0x3f000000u;
  auto special = a > 0x7f800000u ? (lanes<u32>::native{} + 0x7e00u) : (lanes<u32>::native{} + 0x7c00u);
  r.part[0] = (a >= 0x477ff000u ? special : a < 0x38800000u ? subnormal : normal) | (x >> 16 & 0x8000u);
  return r;
}

PG_INLINE vec<f32> decode_bf16(vec<u16> stored) {
  vec<u32> x = convert<u32>(stored);
  x.part[0] = x.part[0] << 16;
  return bit_cast_lanes<f32>(x);
}

PG_INLINE vec<u32> encode_bf16(vec<f32> value) {
  vec<u32> r;
  auto x = (lanes<u32>::native)value.part[0];
  auto rounded = (x + 0x7fffu + (x >> 16 & 1u)) >> 16;
  auto nan = (x >> 16 & 0x8000u) | 0x7fc0u;
  r.part[0] = (x & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  return r;
}

PG_INLINE vec<b8> decode_b8(vec<u8> stored) {
  vec<i32> x = convert<i32>(stored);
  vec<b8> r;
  r.part[0] = x.part[0] != 0;
  return r;
}

PG_INLINE vec<u8> encode_b8(vec<b8> mask) {
  vec<i32> x;
  x.part[0] = mask.part[0] & 1;
  return convert<u8>(x);
}

// What lies in memory for a storage type, and its two conversions.
template <class T> struct storage {
  typedef T raw;
  static PG_INLINE vec<T> decode(vec<T> v) { return v; }
  static PG_INLINE vec<T> encode(vec<T> v) { return v; }
};
template <> struct storage<b8> {
  typedef u8 raw;
  static PG_INLINE vec<b8> decode(vec<u8> v) { return decode_b8(v); }
  static PG_INLINE vec<u8> encode(vec<b8> v) { return encode_b8(v); }
};
template <> struct storage<f16> {
  typedef u16 raw;
  static PG_INLINE vec<f32> decode(vec<u16> v) { return decode_f16(v); }
  static PG_INLINE vec<u16> encode(vec<f32> v) { return convert<u16>(encode_f16(v)); }
};
template <> struct storage<bf16> {
  typedef u16 raw;
  static PG_INLINE vec<f32> decode(vec<u16> v) { return decode_bf16(v); }
  static PG_INLINE vec<u16> encode(vec<f32> v) { return convert<u16>(encode_bf16(v)); }
};

template <class T> using raw_of = typename storage<T>::raw;

template <class T> PG_INLINE vector_of<T> load(const T* p) {
  return storage<T>::decode(load_plain(reinterpret_cast<const raw_of<T>*>(p)));
}
template <class T> PG_INLINE vector_of<T> load(const T* p, long count) {
  return storage<T>::decode(load_plain(reinterpret_cast<const raw_of<T>*>(p), count));
}
template <class T> PG_INLINE void store(T* p, vector_of<not_deduced<T>> v) {
  store_plain(reinterpret_cast<raw_of<T>*>(p), storage<T>::encode(v));
}
template <class T> PG_INLINE void store(T* p, vector_of<not_deduced<T>> v, long count) {
  store_plain(reinterpret_cast<raw_of<T>*>(p), storage<T>::encode(v), count);
}

// Lane i is p[i * stride]; stride counts elements and may be 0 or negative.
template <class T> PG_INLINE vector_of<T> load_strided(const T* p, long stride, long count = PG_LANES) {
  typedef raw_of<T> raw;
  raw lane_values[PG_LANES] = {};
  const raw* from = reinterpret_cast<const raw*>(p);
  for (long l = 0; l < count && l < PG_LANES; ++l) lane_values[l] = from[l * stride];
  return storage<T>::decode(load_plain(static_cast<const raw*>(lane_values)));
}

template <class T> PG_INLINE void store_strided(T* p, long stride, vector_of<not_deduced<T>> v, long count = PG_LANES) {
  typedef raw_of<T> raw;
  raw lane_values[PG_LANES];
  store_plain(lane_values, storage<T>::encode(v));
  raw* to = reinterpret_cast<raw*>(p);
  for (long l = 0; l < count && l < PG_LANES; ++l) to[l * stride] = lane_values[l];
}

// Lane i is base[offsets[i]]; offsets beyond count are not looked at.
template <class T, class Index> PG_INLINE vector_of<T> gather(const T* base, vec<Index> offsets, long count = PG_LANES) {
  typedef raw_of<T> raw;
  raw lane_values[PG_LANES] = {};
  Index offset_values[PG_LANES];
  store_plain(offset_values, offsets);
  const raw* from = reinterpret_cast<const raw*>(base);
  for (long l = 0; l < count && l < PG_LANES; ++l) lane_values[l] = from[offset_values[l]];
  return storage<T>::decode(load_plain(static_cast<const raw*>(lane_values)));
}

#if PG_LANES == 16 && defined(__AVX512F__)
#define PG_HAS_LOOK_UP 1
// Lane i is table[index[i] mod 16], the table in a register.
PG_INLINE vec<f32> look_up(const lanes<f32>::native& table, vec<i32> index) {
  vec<f32> r;
#if defined(__clang__)
  r.part[0] = __builtin_ia32_permvarsf512(table, index.part[0]);
#else
  r.part[0] = __builtin_shuffle(table, index.part[0]);
#endif
  return r;
}
#endif

// base[offsets[i]] = v[i], lanes in rising order, so that of equal offsets the last wins.
template <class T, class Index> PG_INLINE void scatter(T* base, vec<Index> offsets, vector_of<not_deduced<T>> v, long count = PG_LANES) {
  typedef raw_of<T> raw;
  raw lane_values[PG_LANES];
  Index offset_values[PG_LANES];
  store_plain(lane_values, storage<T>::encode(v));
  store_plain(offset_values, offsets);
  raw* to = reinterpret_cast<raw*>(base);
  for (long l = 0; l < count && l < PG_LANES; ++l) to[offset_values[l]] = lane_values[l];
}

// ---- arithmetic --------------------------------------------------------------------------------------------------------

#define PG_DEFINE_ARITHMETIC(OP)                                                                                   \
  template <class T> PG_INLINE vec<T> operator OP(vec<T> a, vec<T> b) {                                            \
    typedef typename lanes<T>::wrapping wrapping;                                                                  \
    PG_EACH_PART(T) a.part[p] = (typename lanes<T>::native)((wrapping)a.part[p] OP (wrapping)b.part[p]);           \
    return a;                                                                                                      \
  }                                                                                                                \
  template <class T> PG_INLINE vec<T> operator OP(vec<T> a, value_of<not_deduced<T>> b) { return a OP splat<T>(b); } \
  template <class T> PG_INLINE vec<T> operator OP(value_of<not_deduced<T>> a, vec<T> b) { return splat<T>(a) OP b; }

PG_DEFINE_ARITHMETIC(+)
PG_DEFINE_ARITHMETIC(-)
PG_DEFINE_ARITHMETIC(*)
PG_DEFINE_ARITHMETIC(&)
PG_DEFINE_ARITHMETIC(|)
PG_DEFINE_ARITHMETIC(^)

// Of masks a sum is "or" and a product "and": lanes of 0 and -1 would add up to -2.
template <> PG_INLINE vec<b8> operator+(vec<b8> a, vec<b8> b) { return a | b; }
template <> PG_INLINE vec<b8> operator*(vec<b8> a, vec<b8> b) { return a & b; }

template <class T> PG_INLINE vec<T> operator-(vec<T> a) {
  typedef typename lanes<T>::wrapping wrapping;
  PG_EACH_PART(T) a.part[p] = (typename lanes<T>::native)(-(wrapping)a.part[p]);
  return a;
}
template <class T> PG_INLINE vec<T> operator~(vec<T> a) {
  PG_EACH_PART(T) a.part[p] = ~a.part[p];
  return a;
}
template <class T> PG_INLINE vec<T> operator<<(vec<T> a, vec<T> b) {
  typedef typename lanes<T>::wrapping wrapping;
  PG_EACH_PART(T) a.part[p] = (typename lanes<T>::native)((wrapping)a.part[p] << (wrapping)b.part[p]);
  return a;
}
template <class T> PG_INLINE vec<T> operator>>(vec<T> a, vec<T> b) {
  PG_EACH_PART(T) a.part[p] = a.part[p] >> b.part[p];
  return a;
}

template <class T> PG_INLINE vec<T> bitwise_not(vec<T> a) { return ~a; }

template <class T> PG_INLINE vec<T> operator<<(vec<T> a, int bits) { return a << splat<T>(value_of<T>(bits)); }
template <class T> PG_INLINE vec<T> operator>>(vec<T> a, int bits) { return a >> splat<T>(value_of<T>(bits)); }

// A function without a vector form, lane by lane.
template <class T, class F> PG_INLINE vec<T> map_lanes(vec<T> a, F f) {
  typedef typename lanes<T>::element element;
  element values[PG_LANES];
  __builtin_memcpy(values, &a, sizeof values);
  for (int l = 0; l < PG_LANES; ++l) values[l] = f(values[l]);
  __builtin_memcpy(&a, values, sizeof values);
  return a;
}
template <class T, class F> PG_INLINE vec<T> map_lanes(vec<T> a, vec<T> b, F f) {
  typedef typename lanes<T>::element element;
  element values[PG_LANES], others[PG_LANES];
  __builtin_memcpy(values, &a, sizeof values);
  __builtin_memcpy(others, &b, sizeof others);
  for (int l = 0; l < PG_LANES; ++l) values[l] = f(values[l], others[l]);
  __builtin_memcpy(&a, values, sizeof values);
  return a;
}

#define PG_DEFINE_BY_LANE_2(NAME)                                                                                  \
  template <class T> PG_INLINE vec<T> NAME(vec<T> a, vec<T> b) {                                                   \
    return map_lanes(a, b, [](T x, T y) { return NAME(x, y); });                                                   \
  }                                                                                                                \
  template <class T> PG_INLINE vec<T> NAME(vec<T> a, not_deduced<T> b) { return NAME(a, splat<T>(b)); }            \
  template <class T> PG_INLINE vec<T> NAME(not_deduced<T> a, vec<T> b) { return NAME(splat<T>(a), b); }

PG_DEFINE_BY_LANE_2(trunc_div)
PG_DEFINE_BY_LANE_2(fmod)
PG_DEFINE_BY_LANE_2(remainder)
PG_DEFINE_BY_LANE_2(floor_div)
PG_DEFINE_BY_LANE_2(shift_left)
PG_DEFINE_BY_LANE_2(shift_right)

template <class T> PG_INLINE vec<T> operator/(vec<T> a, vec<T> b) {
  if constexpr (is_float<T>) {
    PG_EACH_PART(T) a.part[p] = a.part[p] / b.part[p];
    return a;
  } else {
    return trunc_div(a, b);
  }
}
template <class T> PG_INLINE vec<T> operator/(vec<T> a, not_deduced<T> b) { return a / splat<T>(b); }
template <class T> PG_INLINE vec<T> operator/(not_deduced<T> a, vec<T> b) { return splat<T>(a) / b; }

#define PG_DEFINE_ASSIGNMENT(OP)                                                                                   \
  template <class T> PG_INLINE vec<T>& operator OP##=(vec<T>& a, not_deduced<vec<T>> b) { return a = a OP b; }
PG_DEFINE_ASSIGNMENT(+)
PG_DEFINE_ASSIGNMENT(-)
PG_DEFINE_ASSIGNMENT(*)
PG_DEFINE_ASSIGNMENT(/)
PG_DEFINE_ASSIGNMENT(&)
PG_DEFINE_ASSIGNMENT(|)
PG_DEFINE_ASSIGNMENT(^)

// ---- comparisons, masks, select ------------------------------------------------------------------------------------

// Lanes of a comparison's own width, narrowed or widened to the 32 bits of a mask.
template <class T, class Wide> PG_INLINE vec<b8> mask_from(Wide low, Wide high) {
  vec<b8> r;
  if constexpr (sizeof(typename lanes<T>::element) == 8 && lanes<T>::parts == 2) {
    r.part[0] = join_halves<b8>(__builtin_convertvector(low, lanes<b8>::half), __builtin_convertvector(high, lanes<b8>::half));
  } else {
    r.part[0] = __builtin_convertvector(low, lanes<b8>::native);
  }
  return r;
}

#define PG_DEFINE_COMPARISON(NAME, OP)                                                                             \
  template <class T> PG_INLINE vec<b8> NAME(vec<T> a, vec<T> b) {                                                  \
    return mask_from<T>(a.part[0] OP b.part[0], a.part[lanes<T>::parts - 1] OP b.part[lanes<T>::parts - 1]);       \
  }                                                                                                                \
  template <class T> PG_INLINE vec<b8> NAME(vec<T> a, value_of<not_deduced<T>> b) { return NAME(a, splat<T>(b)); } \
  template <class T> PG_INLINE vec<b8> NAME(value_of<not_deduced<T>> a, vec<T> b) { return NAME(splat<T>(a), b); }

PG_DEFINE_COMPARISON(lt, <)
PG_DEFINE_COMPARISON(le, <=)
PG_DEFINE_COMPARISON(gt, >)
PG_DEFINE_COMPARISON(ge, >=)
PG_DEFINE_COMPARISON(eq, ==)
PG_DEFINE_COMPARISON(ne, !=)

// Masks order as false < true: their lanes are 0 and -1, so the signed order is turned round.
template <> PG_INLINE vec<b8> lt<b8>(vec<b8> a, vec<b8> b) { return b & ~a; }
template <> PG_INLINE vec<b8> gt<b8>(vec<b8> a, vec<b8> b) { return a & ~b; }
template <> PG_INLINE vec<b8> le<b8>(vec<b8> a, vec<b8> b) { return b | ~a; }
template <> PG_INLINE vec<b8> ge<b8>(vec<b8> a, vec<b8> b) { return a | ~b; }

PG_INLINE vec<b8> logical_and(vec<b8> a, vec<b8> b) { return a & b; }
PG_INLINE vec<b8> logical_or(vec<b8> a, vec<b8> b) { return a | b; }
PG_INLINE vec<b8> logical_xor(vec<b8> a, vec<b8> b) { return a ^ b; }
PG_INLINE vec<b8> logical_not(vec<b8> a) { return ~a; }

template <class T> PG_INLINE vec<T> select(vec<b8> mask, vec<T> a, vec<T> b) {
  PG_EACH_PART(T) a.part[p] = widen_mask<T>(mask, p) != 0 ? a.part[p] : b.part[p];
  return a;
}
template <class T> PG_INLINE vec<T> select(vec<b8> mask, vec<T> a, value_of<not_deduced<T>> b) { return select(mask, a, splat<T>(b)); }
template <class T> PG_INLINE vec<T> select(vec<b8> mask, value_of<not_deduced<T>> a, vec<T> b) { return select(mask, splat<T>(a), b); }
template <class T> PG_INLINE vec<T> select(bool mask, vec<T> a, vec<T> b) { return mask ? a : b; }

// ---- casts -------------------------------------------------------------------------------------------------------------

template <class T> struct cast_to {
  template <class From> static PG_INLINE vec<T> from(vec<From> x) { return convert<T>(x); }
  static PG_INLINE vec<T> from(vec<T> x) { return x; }
  static PG_INLINE vec<T> from(vec<b8> x) {
    vec<i32> bit;
    bit.part[0] = x.part[0] & 1;
    return cast_to<T>::from(bit);
  }
};
template <> template <> PG_INLINE vec<u8> cast_to<u8>::from<f32>(vec<f32> x) { return convert<u8>(convert<i32>(x)); }
template <> template <> PG_INLINE vec<u8> cast_to<u8>::from<f64>(vec<f64> x) { return convert<u8>(convert<i32>(x)); }
template <> struct cast_to<b8> {
  template <class From> static PG_INLINE vec<b8> from(vec<From> x) { return ne(x, vec<From>{}); }
  static PG_INLINE vec<b8> from(vec<b8> x) { return x; }
};
template <> struct cast_to<f16> {
  template <class From> static PG_INLINE vec<f32> from(vec<From> x) { return decode_f16(convert<u16>(encode_f16(cast_to<f32>::from(x)))); }
};
template <> struct cast_to<bf16> {
  template <class From> static PG_INLINE vec<f32> from(vec<From> x) { return decode_bf16(convert<u16>(encode_bf16(cast_to<f32>::from(x)))); }
};

template <class To, class From> PG_INLINE vector_of<To> cast(vec<From> x) { return cast_to<To>::from(x); }

}  // namespace pg
