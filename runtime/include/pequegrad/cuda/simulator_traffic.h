// Memory traffic as a GPU would see it, counted on request (pg_sim_configure).
//
// The k-th noted load of each lane of a warp, counted from the last barrier or warp-wide meeting, is taken for one
// instruction; so are stores and accesses through PG_SHARED arrays. Exact where lanes do not diverge in between.
#pragma once
#include "simulator_machine.h"

#pragma GCC visibility push(hidden)
namespace pg_sim {

// 32-byte sectors that one instruction of a warp touches.
inline long count_sectors(const Access* accesses, unsigned lanes) {
  std::uintptr_t seen[32 * 2];
  unsigned n = 0;
  for (unsigned i = 0; i < lanes; ++i) {
    const std::uintptr_t last = (accesses[i].address + accesses[i].bytes - 1) / 32;
    for (std::uintptr_t sector = accesses[i].address / 32; sector <= last; ++sector) {
      bool known = false;
      for (unsigned k = n; k-- > 0 && !known;) known = seen[k] == sector;
      if (!known && n < 64) seen[n++] = sector;
    }
  }
  return n;
}

// Passes over the 32 banks beyond the ones that the bytes need: a pass serves 128 bytes, that is 32 lanes of up to 4
// bytes, 16 of 8, 8 of 16, and each bank one 4-byte word (which any number of lanes may share).
inline long count_bank_conflicts(const Access* accesses, unsigned lanes) {
  long conflicts = 0;
  const unsigned bytes = accesses[0].bytes < 4 ? 4 : accesses[0].bytes > 16 ? 16 : accesses[0].bytes;
  const unsigned group = 128 / bytes;
  for (unsigned first = 0; first < lanes; first += group) {
    std::uintptr_t words[32][32];
    unsigned filled[32] = {}, passes = 1;
    for (unsigned i = first; i < lanes && i < first + group; ++i) {
      const std::uintptr_t last = (accesses[i].address + accesses[i].bytes - 1) / 4;
      for (std::uintptr_t word = accesses[i].address / 4; word <= last; ++word) {
        const unsigned bank = word % 32;
        bool known = false;
        for (unsigned k = 0; k < filled[bank] && !known; ++k) known = words[bank][k] == word;
        if (!known && filled[bank] < 32) words[bank][filled[bank]++] = word;
        if (filled[bank] > passes) passes = filled[bank];
      }
    }
    conflicts += passes - 1;
  }
  return conflicts;
}

template <class F> void for_each_instruction(const Warp& warp, std::vector<Access> Thread::* list, F use) {
  Thread* const* threads = machine.threads.data() + warp.first;
  Access accesses[32];
  for (std::size_t k = 0;; ++k) {
    unsigned n = 0;
    for (unsigned i = 0; i < warp.lanes; ++i)
      if (k < (threads[i]->*list).size()) accesses[n++] = (threads[i]->*list)[k];
    if (n == 0) break;
    use(accesses, n);
  }
  for (unsigned i = 0; i < warp.lanes; ++i) (threads[i]->*list).clear();
}

// Counts what the warp's lanes noted since the last time.
inline void flush_traffic(Warp& warp) {
  for_each_instruction(warp, &Thread::loads, [](const Access* accesses, unsigned n) {
    count(PG_SIM_LOADS);
    count(PG_SIM_LOAD_SECTORS, count_sectors(accesses, n));
  });
  for_each_instruction(warp, &Thread::stores, [](const Access* accesses, unsigned n) {
    count(PG_SIM_STORES);
    count(PG_SIM_STORE_SECTORS, count_sectors(accesses, n));
  });
  for_each_instruction(warp, &Thread::shared, [](const Access* accesses, unsigned n) {
    count(PG_SIM_SHARED_ACCESSES);
    count(PG_SIM_BANK_CONFLICTS, count_bank_conflicts(accesses, n));
  });
}

inline void note_shared(const void* address, unsigned bytes) {
  const Quiet quiet;
  running.thread->shared.push_back({reinterpret_cast<std::uintptr_t>(address), bytes});
}

// Whether an address lies in the shared memory of the running thread's block.
inline bool is_shared(const void* address) {
  const char* const p = static_cast<const char*>(address);
  for (const Allocation& a : running.thread->block->shared)
    if (a.data && p >= a.data && p < a.data + a.bytes) return true;
  return false;
}

// Fails unless a thread may write where no allocation of the device lies: in pinned and in shared memory, on its own stack.
inline void check_elsewhere(const void* address, unsigned bytes) {
  if (machine.pinned.find(address)) return;
  const Thread& self = *running.thread;
  const char* const p = static_cast<const char*>(address);
  if (p >= self.stack && p < self.stack + self.stack_size) return;
  for (const Allocation& a : self.block->shared)
    if (a.data && p >= a.data - a.zone && p < a.data + a.bytes + a.tail()) return;
  const Allocation* near = machine.device.nearest(address);
  if (!near) fail("store of %u bytes at %p, out of bounds: the device has no memory allocated", bytes, address);
  fail("store of %u bytes at byte %ld of global memory of %zu bytes, which is nearest: out of bounds", bytes,
       static_cast<long>(p - near->data), near->bytes);
}

// Checks one access of global memory: alignment, and that it lies in an allocation. Loads from elsewhere are left alone:
// tables of constants lie in the module's own memory.
inline void check_global(const void* address, unsigned bytes, bool is_store) {
  const char* const what = is_store ? "store" : "load";
  const std::uintptr_t a = reinterpret_cast<std::uintptr_t>(address);
  if (bytes && a % bytes && (bytes & (bytes - 1)) == 0) fail("misaligned %s of %u bytes at %p", what, bytes, address);
  const Allocation*& recent = machine.recent[a >> 12 & 63];
  if (recent && recent->contains(address, bytes)) return;
  const Allocation* found = machine.device.find(address);
  if (!found) {
    if (is_store) check_elsewhere(address, bytes);
    return;
  }
  recent = found;
  if (!found->contains(address, bytes))
    fail("%s of %u bytes at byte %ld of global memory of %zu bytes, out of bounds", what, bytes,
         static_cast<long>(static_cast<const char*>(address) - found->data), found->bytes);
}

PG_SIM_NO_TSAN inline void preempt_sometimes() {
  if (--running.until_preemption) return;
  running.until_preemption = 1 + random_below(512);
  yield();
}

// Counts an access of the device's memory or, where a block of samples keeps what it is to reach, of shared memory.
inline void note_access(std::vector<Access> Thread::* list, const void* address, int bytes) {
  if (!running.count_traffic) return;
  const Access access{reinterpret_cast<std::uintptr_t>(address), static_cast<unsigned>(bytes)};
  (running.thread->*(is_shared(address) ? &Thread::shared : list)).push_back(access);
}

}  // namespace pg_sim

// For accesses of shared memory that do not go through operator[] of a PG_SHARED array, vectors above all.
inline void pg_sim_note_shared(const void* address, int bytes) {
  if (pg_sim::running.count_traffic) pg_sim::note_shared(address, static_cast<unsigned>(bytes));
}
inline void pg_sim_note_load(const void* address, int bytes) {
  {
    const pg_sim::Quiet quiet;
    pg_sim::check_global(address, static_cast<unsigned>(bytes), false);
    pg_sim::note_access(&pg_sim::Thread::loads, address, bytes);
  }
  pg_sim::preempt_sometimes();
}
inline void pg_sim_note_store(const void* address, int bytes) {
  {
    const pg_sim::Quiet quiet;
    pg_sim::check_global(address, static_cast<unsigned>(bytes), true);
    pg_sim::note_access(&pg_sim::Thread::stores, address, bytes);
  }
  pg_sim::preempt_sometimes();
}
#pragma GCC visibility pop
