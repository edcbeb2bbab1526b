// cp.async, ldmatrix, mma.sync and the grid barrier, with the layouts of the PTX manual.
#pragma once
#include "simulator_device.h"

#pragma GCC visibility push(hidden)
namespace pg_sim {

inline void issue_copy(void* to, const void* from, unsigned bytes, unsigned source_bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes || reinterpret_cast<std::uintptr_t>(from) % bytes)
    fail("misaligned cp.async of %u bytes from %p to %p", bytes, from, to);
  if (source_bytes) pg_sim_note_load(from, static_cast<int>(source_bytes));
  if (running.count_traffic) note_shared(to, bytes);
  std::memset(to, 0xff, bytes);
  const Quiet quiet;
  Thread& self = *running.thread;
  self.copies.push_back({to, from, bytes, source_bytes, self.groups});
}
inline void commit_copies() {
  const Quiet quiet;
  ++running.thread->groups;
}
inline void land_copies(unsigned pending) {
  Thread& self = *running.thread;
  const auto next = [&]() -> const AsyncCopy* {
    const Quiet quiet;
    const bool due = self.landed < self.copies.size() && self.copies[self.landed].group + pending < self.groups;
    return due ? &self.copies[self.landed++] : nullptr;
  };
  while (const AsyncCopy* c = next()) {
    std::memcpy(c->to, c->from, c->source_bytes);
    std::memset(static_cast<char*>(c->to) + c->source_bytes, 0, c->bytes - c->source_bytes);
  }
  const Quiet quiet;
  if (self.landed == self.copies.size()) {
    self.copies.clear();
    self.landed = 0;
  }
}

inline float bf16_half(unsigned pair, unsigned which) {
  return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}
inline unsigned bf16_bits(float x) {
  const unsigned u = __float_as_uint(x);
  return x != x ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
}

// Shows all lanes each other's fragments: words 0-3 are A's, 4 and 5 B's.
inline const unsigned (*exchange_fragments(const unsigned* a, const unsigned* b, const Place& place))[8] {
  const unsigned words[8] = {a[0], a[1], a[2], a[3], b[0], b[1], 0, 0};
  return reinterpret_cast<const unsigned (*)[8]>(exchange(~0u, words, sizeof words, place));
}

}  // namespace pg_sim

inline void pg_cp_async16(void* shared, const void* global, int source_bytes = 16) {
  pg_sim::issue_copy(shared, global, 16, static_cast<unsigned>(source_bytes));
}
inline void pg_cp_async4(void* shared, const void* global, int source_bytes = 4) {
  pg_sim::issue_copy(shared, global, 4, static_cast<unsigned>(source_bytes));
}
inline void pg_cp_commit() { pg_sim::commit_copies(); }
template <int N> inline void pg_cp_wait() { pg_sim::land_copies(N); }

inline void pg_ldmatrix_x4(unsigned* fragment, const void* row, PG_SIM_CALLER) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16)
    pg_sim::fail("ldmatrix: the address of a row, %p, is not a multiple of 16", row);
  if (pg_sim::running.count_traffic) pg_sim::note_shared(row, 16);
  const pg_sim::Slots slots = pg_sim::exchange(~0u, &row, sizeof row, {"ldmatrix", file, line});
  const unsigned lane = pg_sim::lane();
  for (unsigned i = 0; i < 4; ++i) {
    const char* source;
    {
      const pg_sim::Quiet quiet;
      std::memcpy(&source, slots[i * 8 + lane / 4], sizeof source);
    }
    std::memcpy(&fragment[i], source + lane % 4 * 4, 4);
  }
}

// A: register r holds row g + 8 (r & 1), columns 2t + 8 (r >> 1) and the next; B: register r holds rows 2t + 8r and the
// next of column g; C: register r holds row g + 8 (r >> 1), column 2t + (r & 1); g = lane / 4, t = lane % 4.
inline void pg_mma_bf16(float* c, const unsigned* a, const unsigned* b, PG_SIM_CALLER) {
  const auto lanes = pg_sim::exchange_fragments(a, b, {"mma.sync", file, line});
  const pg_sim::Quiet quiet;
  const unsigned g = pg_sim::lane() / 4, t = pg_sim::lane() % 4;
  for (unsigned r = 0; r < 4; ++r) {
    const unsigned high = r >> 1, column = 2 * t + (r & 1);
    double sum = c[r];
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned half = k >> 3, owner = k % 8 / 2;
      sum += double(pg_sim::bf16_half(lanes[g * 4 + owner][high + 2 * half], k & 1)) *
             double(pg_sim::bf16_half(lanes[column * 4 + owner][4 + half], k & 1));
    }
    c[r] = static_cast<float>(sum);
  }
}

// A: register r holds row g + 8 (r & 1), column t + 4 (r >> 1); B: register r holds row t + 4r of column g; C as above.
// The low 13 bits of an operand are ignored.
inline void pg_mma_tf32(float* c, const unsigned* a, const unsigned* b, PG_SIM_CALLER) {
  const auto lanes = pg_sim::exchange_fragments(a, b, {"mma.sync", file, line});
  const pg_sim::Quiet quiet;
  const unsigned g = pg_sim::lane() / 4, t = pg_sim::lane() % 4;
  for (unsigned r = 0; r < 4; ++r) {
    const unsigned high = r >> 1, column = 2 * t + (r & 1);
    double sum = c[r];
    for (unsigned k = 0; k < 8; ++k)
      sum += double(__uint_as_float(lanes[g * 4 + k % 4][high + 2 * (k >> 2)] & 0xffffe000u)) *
             double(__uint_as_float(lanes[column * 4 + k % 4][4 + (k >> 2)] & 0xffffe000u));
    c[r] = static_cast<float>(sum);
  }
}
inline unsigned pg_pack_bf16(float low, float high) { return pg_sim::bf16_bits(low) | pg_sim::bf16_bits(high) << 16; }
// To nearest, ties away from zero; NaN becomes the canonical one.
inline unsigned pg_to_tf32(float x) { return x != x ? 0x7fffffffu : (__float_as_uint(x) + 0x1000u) & 0xffffe000u; }

// The counter must start at 0 (its low 31 bits are 0 between barriers), as the real one needs.
inline void pg_grid_barrier(unsigned* counter, PG_SIM_CALLER) {
  const pg_sim::Place place{"pg_grid_barrier", file, line};
  {
    const pg_sim::Quiet quiet;
    pg_sim::Machine& m = pg_sim::machine;
    if (!m.launch->cooperative) pg_sim::fail("pg_grid_barrier (%s:%d) in a launch that is not cooperative", file, line);
    if (m.grid_barrier.arrived == 0 && (*counter & 0x7fffffffu))
      pg_sim::fail("pg_grid_barrier (%s:%d): the counter holds %u, it must start at 0", file, line, *counter);
    if (m.grid_barrier.arrived + 1 == m.grid_barrier.needed) {
      *counter += 0x80000000u;
      pg_sim::count(PG_SIM_GRID_BARRIERS);
      if (pg_sim::running.count_traffic)
        for (unsigned i = 0; i < m.active_blocks; ++i)
          for (pg_sim::Warp* warp : m.blocks[i]->warps) pg_sim::flush_traffic(*warp);
    }
  }
  pg_sim::arrive(pg_sim::machine.grid_barrier, place, true);
}
#pragma GCC visibility pop
