// Philox 4x32-10 counter-based random numbers (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//
// Invariant: a number depends on (seed, stream, index) alone, never on lanes, blocks or workers. Word i of a stream is
// word i % 4 of the block with counter (lo(i/4), hi(i/4), lo(stream), hi(stream)) and key (lo(seed), hi(seed)).
#pragma once
#include "scalar.h"

namespace pg {

struct philox_block {
  u32 word[4];
};

PG_INLINE philox_block philox_rounds(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  for (int round = 0; round < 10; ++round) {
    u64 a = u64(0xD2511F53u) * c0, b = u64(0xCD9E8D57u) * c2;
    c0 = u32(b >> 32) ^ c1 ^ k0;
    c1 = u32(b);
    c2 = u32(a >> 32) ^ c3 ^ k1;
    c3 = u32(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

PG_INLINE philox_block philox_at(u64 seed, u64 stream, u64 counter) {
  return philox_rounds(u32(counter), u32(counter >> 32), u32(stream), u32(stream >> 32), u32(seed), u32(seed >> 32));
}

PG_NOINLINE inline u32 philox_word(u64 seed, u64 stream, u64 index) {
  return philox_at(seed, stream, index / 4).word[index % 4];
}

// The f64 in [0, 1) made of 53 bits of two words.
PG_INLINE f64 unit_f64(u32 a, u32 b) { return (f64(a >> 5) * 67108864.0 + f64(b >> 6)) * 0x1p-53; }

// One element of the streams below, by its index.
template <class T> PG_INLINE T uniform_at(u64 seed, u64 stream, u64 index) {
  if constexpr (sizeof(T) == 4) return f32(philox_word(seed, stream, index) >> 8) * 0x1p-24f;
  else return T(unit_f64(philox_word(seed, stream, 2 * index), philox_word(seed, stream, 2 * index + 1)));
}

// Box-Muller on the open-interval uniforms of words 2(i/2) and 2(i/2)+1, in f64; an even index takes the cosine.
template <class T> PG_NOINLINE T normal_at(u64 seed, u64 stream, u64 index) {
  philox_block block = philox_at(seed, stream, index / 4);
  u64 pair = index % 4 / 2 * 2;
  f64 u1 = (f64(block.word[pair]) + 0.5) * 0x1p-32, u2 = (f64(block.word[pair + 1]) + 0.5) * 0x1p-32;
  f64 radius = sqrt(-2.0 * log(u1)), turn = 6.283185307179586 * u2;
  return T(index % 2 == 0 ? radius * cos(turn) : radius * sin(turn));
}

PG_INLINE i64 randint_at(u64 seed, u64 stream, u64 index, i64 low, u64 range) {
  return low + i64(u64(philox_word(seed, stream, index)) * range >> 32);
}

}  // namespace pg
