// Element types and the lane vectors that hold them.
//
// Invariant: vec<T> has PG_LANES lanes for every T. A 4-byte type fills one native vector; an 8-byte type takes two
// of half as many lanes, so that no type is wider than a register. Includes no standard header: each costs a step
// 0.5 s or more of compile time.
#pragma once

#ifndef PG_LANES
#define PG_LANES 4
#endif
#if PG_LANES != 1 && PG_LANES != 4 && PG_LANES != 8 && PG_LANES != 16
#error "PG_LANES must be 1, 4, 8 or 16"
#endif

#define PG_INLINE inline __attribute__((always_inline))
#define PG_NOINLINE __attribute__((noinline))
#define PG_UNROLL _Pragma("GCC unroll 16")

// Stops the compiler from loading an unaligned value again for every use of it.
#if defined(__x86_64__) && PG_LANES > 1
#define PG_KEEP_IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__) && PG_LANES > 1
#define PG_KEEP_IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define PG_KEEP_IN_REGISTER(value) (void)0
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PG_HAS_SHUFFLEVECTOR 1
#endif
#if __has_builtin(__builtin_elementwise_sqrt)  // clang
#define PG_HAS_ELEMENTWISE_SQRT 1
#endif
#endif

namespace pg {

typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long i64;
typedef unsigned long u64;
typedef float f32;
typedef double f64;
static_assert(sizeof(i64) == 8, "long must have 64 bits");

template <class To, class From>
PG_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Storage of a bool: one byte, any non-zero value reads as true, true is written as 1.
struct b8 {
  u8 value;
  b8() = default;
  constexpr b8(bool v) : value(v ? 1 : 0) {}
  constexpr operator bool() const { return value != 0; }
};

// The 16-bit float storages: they only convert, arithmetic is f32. Rounding is to nearest even.
struct f16 {
  u16 bits;
  f16() = default;
  explicit f16(f32 value);
  operator f32() const;
};

struct bf16 {
  u16 bits;
  bf16() = default;
  explicit bf16(f32 value);
  operator f32() const;
};

PG_INLINE bf16::bf16(f32 value) {
  u32 x = bit_cast<u32>(value);
  bits = value != value ? u16((x >> 16 & 0x8000u) | 0x7fc0u) : u16((x + 0x7fffu + (x >> 16 & 1u)) >> 16);
}

PG_INLINE bf16::operator f32() const { return bit_cast<f32>(u32(bits) << 16); }

PG_INLINE f16::f16(f32 value) {
  u32 x = bit_cast<u32>(value), sign = x >> 16 & 0x8000u, a = x & 0x7fffffffu, r;
  if (a > 0x7f800000u) r = 0x7e00u;
  else if (a >= 0x477ff000u) r = 0x7c00u;  // 65520 and above round to infinity
  else if (a < 0x38800000u) r = bit_cast<u32>(bit_cast<f32>(a) + 0.5f) - 0x3f000000u;  // subnormal: the adder rounds
  else r = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
  bits = u16(sign | r);
}

PG_INLINE f16::operator f32() const {
  u32 a = bits & 0x7fffu;
  u32 magnitude = a >= 0x7c00u ? (a << 13) | 0x7f800000u : bit_cast<u32>(bit_cast<f32>(a << 13) * 0x1p112f);
  return bit_cast<f32>(magnitude | u32(bits & 0x8000u) << 16);
}

// The type in which one element of a storage type is computed.
template <class T> struct value_type { typedef T type; };
template <> struct value_type<b8> { typedef bool type; };
template <> struct value_type<f16> { typedef f32 type; };
template <> struct value_type<bf16> { typedef f32 type; };
template <class T> using value_of = typename value_type<T>::type;

// `element`: what a native vector is made of; `wrapping`: the unsigned twin, in which integer overflow is defined.
template <class T> struct lanes;

#define PG_DEFINE_LANES(T, ELEMENT, WRAPPING, PARTS)                                                               \
  template <> struct lanes<T> {                                                                                    \
    typedef ELEMENT element;                                                                                       \
    enum { parts = PARTS, count = PG_LANES / PARTS };                                                              \
    typedef ELEMENT native __attribute__((vector_size(sizeof(ELEMENT) * count)));                                  \
    typedef ELEMENT unaligned __attribute__((vector_size(sizeof(ELEMENT) * count), aligned(sizeof(ELEMENT)),       \
                                             may_alias));                                                          \
    typedef WRAPPING wrapping __attribute__((vector_size(sizeof(ELEMENT) * count)));                               \
    typedef ELEMENT half __attribute__((vector_size(sizeof(ELEMENT) * (count > 1 ? count / 2 : 1))));              \
  };

#define PG_PARTS_OF_8_BYTES (PG_LANES > 1 ? 2 : 1)
PG_DEFINE_LANES(u8, u8, u8, 1)
PG_DEFINE_LANES(u16, u16, u16, 1)
PG_DEFINE_LANES(i32, i32, u32, 1)
PG_DEFINE_LANES(u32, u32, u32, 1)
PG_DEFINE_LANES(f32, f32, f32, 1)
PG_DEFINE_LANES(i64, i64, u64, PG_PARTS_OF_8_BYTES)
PG_DEFINE_LANES(u64, u64, u64, PG_PARTS_OF_8_BYTES)
PG_DEFINE_LANES(f64, f64, f64, PG_PARTS_OF_8_BYTES)
PG_DEFINE_LANES(b8, i32, i32, 1)  // a mask: lanes are 0 or -1

// PG_LANES elements. For b8 it is a mask. f16 and bf16 have none: they load as vec<f32>.
template <class T> struct vec {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::element element;
  enum { parts = lanes<T>::parts, part_lanes = lanes<T>::count };
  native part[parts];
  PG_INLINE element lane(long i) const { return part[parts == 1 ? 0 : i / part_lanes][i % part_lanes]; }
  PG_INLINE void set_lane(long i, element value) { part[parts == 1 ? 0 : i / part_lanes][i % part_lanes] = value; }
};
template <> struct vec<f16>;
template <> struct vec<bf16>;

// The vector type that holds elements of storage T while computing.
template <class T> struct vector_type { typedef vec<T> type; };
template <> struct vector_type<f16> { typedef vec<f32> type; };
template <> struct vector_type<bf16> { typedef vec<f32> type; };
template <class T> using vector_of = typename vector_type<T>::type;

// A parameter of this type takes no part in deduction, so that `vec<f32> * 2` converts the 2.
template <class T> struct not_deduced_type { typedef T type; };
template <class T> using not_deduced = typename not_deduced_type<T>::type;

}  // namespace pg
