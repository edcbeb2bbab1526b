// Philox random numbers, a vector of lanes at a time.
//
// Invariant: a number depends on (seed, stream, index) alone, never on lanes, blocks or workers.
#pragma once
#include "math.h"
#include "philox_scalar.h"

namespace pg {

PG_NOINLINE inline vec<u32> philox_words_by_lane(u64 seed, u64 stream, u64 first_index) {
  u32 words[PG_LANES];
  philox_block block = philox_at(seed, stream, first_index / 4);
  for (int l = 0; l < PG_LANES; ++l) {
    u64 index = first_index + u64(l);
    if (l > 0 && index % 4 == 0) block = philox_at(seed, stream, index / 4);
    words[l] = block.word[index % 4];
  }
  return load_plain(static_cast<const u32*>(words));
}

// Words first_index, first_index + 1, … one a lane. Fast where first_index is a multiple of 4.
PG_INLINE vec<u32> philox_words(u64 seed, u64 stream, i64 first_index) {
#if PG_LANES == 16 && defined(__AVX512F__) && defined(PG_HAS_SHUFFLEVECTOR) && !defined(__clang__)
  // Four blocks at once: 64-bit lanes 0-3 hold word 0 (or 1) of the blocks, lanes 4-7 word 2 (or 3), so that one
  // 32x32 multiplication is a whole round of all four.
  if (__builtin_expect((first_index & 3) == 0, 1)) {
    typedef lanes<u64>::native wide;
    typedef lanes<i32>::native halves;
    typedef long long untouched __attribute__((vector_size(64)));
    u64 counter = u64(first_index) / 4, c[4] = {counter, counter + 1, counter + 2, counter + 3};
    const u64 low = 0xffffffffu;
    wide even = {c[0] & low, c[1] & low, c[2] & low, c[3] & low, stream & low, stream & low, stream & low, stream & low};
    wide odd = {c[0] >> 32, c[1] >> 32, c[2] >> 32, c[3] >> 32, stream >> 32, stream >> 32, stream >> 32, stream >> 32};
    const wide factor = {0xD2511F53u, 0xD2511F53u, 0xD2511F53u, 0xD2511F53u, 0xCD9E8D57u, 0xCD9E8D57u, 0xCD9E8D57u, 0xCD9E8D57u};
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
    PG_UNROLL for (int round = 0; round < 10; ++round) {
      wide key = {k0, k0, k0, k0, k1, k1, k1, k1};
      wide product = (wide)__builtin_ia32_pmuludq512_mask((halves)even, (halves)factor, untouched{}, u8(0xff));
      product = __builtin_shufflevector(product, product, 4, 5, 6, 7, 0, 1, 2, 3);
      even = (product >> 32) ^ odd ^ key;
      odd = product & low;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    wide pairs = even | odd << 32;
    vec<u32> r;
    r.part[0] = (lanes<u32>::native)__builtin_shufflevector(pairs, pairs, 0, 4, 1, 5, 2, 6, 3, 7);
    return r;
  }
#endif
  return philox_words_by_lane(seed, stream, u64(first_index));
}

// Lane l is element first_index + l. uniform: in [0, 1); f32 of one word, f64 of two.
template <class T> PG_INLINE vec<T> uniform(u64 seed, u64 stream, i64 first_index) {
  if constexpr (sizeof(T) == 4) {
    vec<u32> words = philox_words(seed, stream, first_index);
    return convert<f32>(bit_cast_lanes<i32>(words >> 8)) * 0x1p-24f;
  } else {
    u32 words[2 * PG_LANES];
    store_plain(words, philox_words(seed, stream, 2 * first_index));
    store_plain(words + PG_LANES, philox_words(seed, stream, 2 * first_index + PG_LANES));
    vec<T> r;
    for (int l = 0; l < PG_LANES; ++l) r.set_lane(l, unit_f64(words[2 * l], words[2 * l + 1]));
    return r;
  }
}

template <class T> PG_NOINLINE vec<T> normal(u64 seed, u64 stream, i64 first_index) {
  vec<T> r;
  for (int l = 0; l < PG_LANES;) {
    u64 index = u64(first_index) + u64(l);
    philox_block block = philox_at(seed, stream, index / 4);
    u64 pair = index % 4 / 2 * 2;
    f64 u1 = (f64(block.word[pair]) + 0.5) * 0x1p-32, u2 = (f64(block.word[pair + 1]) + 0.5) * 0x1p-32;
    f64 radius = sqrt(-2.0 * log(u1)), turn = 6.283185307179586 * u2;
    if (index % 2 == 0) r.set_lane(l++, T(radius * cos(turn)));
    if (l < PG_LANES) r.set_lane(l++, T(radius * sin(turn)));
  }
  return r;
}

// low + (word * range >> 32), range < 2^32.
PG_INLINE vec<i64> randint(u64 seed, u64 stream, i64 first_index, i64 low, u64 range) {
  vec<u64> wide = convert<u64>(philox_words(seed, stream, first_index));
  return bit_cast_lanes<i64>((wide * range) >> 32) + low;
}

}  // namespace pg
