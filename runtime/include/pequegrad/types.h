// The lane vectors that hold elements.
//
// Invariant: vec<T> has PG_LANES lanes for every T. A 4-byte type fills one native vector; an 8-byte type takes two
// of half as many lanes, so that no type is wider than a register.
#pragma once
#include "element.h"

#ifndef PG_LANES
#define PG_LANES 4
#endif
#if PG_LANES != 1 && PG_LANES != 4 && PG_LANES != 8 && PG_LANES != 16
#error "PG_LANES must be 1, 4, 8 or 16"
#endif

// L1's data cache and the L2 cache of each core: what small processors have, unless the flags know better.
#ifndef PG_L1_KIB
#define PG_L1_KIB 32
#endif
#ifndef PG_L2_KIB
#define PG_L2_KIB 512
#endif

#define PG_UNROLL _Pragma("GCC unroll 16")

// Makes the compiler forget what it knows about a whole number.
#define PG_FORGET(value) __asm__("" : "+r"(value))

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

}  // namespace pg
