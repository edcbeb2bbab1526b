// Element types as they are stored, and the types that one element of each is computed in.
//
// Invariant: plain C++ that host and device compilers read alike. Includes no standard header: each costs a step
// 0.5 s or more of compile time.
#pragma once

#if defined(__CUDACC__)
#define PG_INLINE __host__ __device__ __forceinline__
#define PG_NOINLINE __host__ __device__ __attribute__((noinline))
#else
#define PG_INLINE inline __attribute__((always_inline))
#define PG_NOINLINE __attribute__((noinline))
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
  PG_INLINE constexpr b8(bool v) : value(v ? 1 : 0) {}
  PG_INLINE constexpr operator bool() const { return value != 0; }
};

// The 16-bit float storages: they only convert, arithmetic is f32. Rounding is to nearest even.
struct f16 {
  u16 bits;
  f16() = default;
  PG_INLINE explicit f16(f32 value);
  PG_INLINE operator f32() const;
};

struct bf16 {
  u16 bits;
  bf16() = default;
  PG_INLINE explicit bf16(f32 value);
  PG_INLINE operator f32() const;
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

// A parameter of this type takes no part in deduction, so that `vec<f32> * 2` converts the 2.
template <class T> struct not_deduced_type { typedef T type; };
template <class T> using not_deduced = typename not_deduced_type<T>::type;

}  // namespace pg
