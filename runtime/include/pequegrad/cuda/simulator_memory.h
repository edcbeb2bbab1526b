// Memory with guard zones: every allocation lies alone between two zones of a known pattern.
//
// Invariant: fresh memory is all 0xff, a NaN in every float type. Without AddressSanitizer a changed zone tells of a
// write out of bounds, with it the zones are poisoned and the first access stops the program.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "simulator_fibre.h"

#pragma GCC visibility push(hidden)
namespace pg_sim {

constexpr unsigned char canary = 0xa5;

struct Allocation {
  char* data = nullptr;
  std::size_t bytes = 0;
  std::size_t zone = 0;  // bytes of either guard zone

  std::size_t tail() const { return zone + (16 - bytes % 16) % 16; }
  bool contains(const void* pointer, std::size_t count) const {
    const char* p = static_cast<const char*>(pointer);
    return p >= data && p <= data + bytes && count <= static_cast<std::size_t>(data + bytes - p);
  }
};

inline Allocation allocate_guarded(std::size_t bytes, std::size_t zone) {
  const Quiet quiet;
  Allocation a;
  a.bytes = bytes;
  a.zone = zone;
  void* raw = nullptr;
  if (posix_memalign(&raw, zone, zone + bytes + a.tail()) != 0) return a;
  a.data = static_cast<char*>(raw) + zone;
  std::memset(raw, canary, zone);
  std::memset(a.data, 0xff, bytes);
  std::memset(a.data + bytes, canary, a.tail());
#ifdef PG_SIM_ASAN
  __asan_poison_memory_region(raw, zone);
  __asan_poison_memory_region(a.data + bytes, a.tail());
#endif
  return a;
}

// Offset of the first overwritten byte of the zones, relative to the allocation; 0 says that none is (an offset of a
// zone is below 0 or at least `bytes`, and an allocation of 0 bytes has no zones to speak of).
inline long overwritten(const Allocation& a) {
#ifndef PG_SIM_ASAN
  const Quiet quiet;
  auto changed = [&](const char* p, std::size_t count) -> const char* {
    // The pattern is constant, so a zone equals itself moved by one byte.
    if (static_cast<unsigned char>(*p) == canary && std::memcmp(p, p + 1, count - 1) == 0) return nullptr;
    while (static_cast<unsigned char>(*p) == canary) ++p;
    return p;
  };
  if (a.bytes == 0) return 0;
  if (const char* p = changed(a.data + a.bytes, a.tail())) return p - a.data;
  if (const char* p = changed(a.data - a.zone, a.zone)) {
    while (p + 1 < a.data && static_cast<unsigned char>(p[1]) != canary) ++p;  // the byte nearest to the allocation
    return p - a.data;
  }
#else
  (void)a;
#endif
  return 0;
}

// Mends the zones, so that one write is reported once.
inline void repair_zones(const Allocation& a) {
#ifndef PG_SIM_ASAN
  const Quiet quiet;
  std::memset(a.data - a.zone, canary, a.zone);
  std::memset(a.data + a.bytes, canary, a.tail());
#else
  (void)a;
#endif
}

inline void free_guarded(Allocation& a) {
  const Quiet quiet;
  if (!a.data) return;
#ifdef PG_SIM_ASAN
  __asan_unpoison_memory_region(a.data - a.zone, a.zone + a.bytes + a.tail());
#else
  std::memset(a.data, 0xff, a.bytes);  // what is read after it was freed is NaN too
#endif
  std::free(a.data - a.zone);
  a.data = nullptr;
}

// Allocations ordered by address.
class AllocationTable {
 public:
  void insert(const Allocation& a) {
    entries_.insert(std::lower_bound(entries_.begin(), entries_.end(), a, before), a);
  }
  bool erase(const void* pointer) {
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i].data == pointer) {
        entries_.erase(entries_.begin() + static_cast<long>(i));
        return true;
      }
    return false;
  }
  // The allocation whose bytes or guard zones hold the pointer.
  const Allocation* find(const void* pointer) const {
    const char* p = static_cast<const char*>(pointer);
    auto next = std::upper_bound(entries_.begin(), entries_.end(), p,
                                 [](const char* q, const Allocation& a) { return q < a.data - a.zone; });
    if (next == entries_.begin()) return nullptr;
    const Allocation& a = *--next;
    return p < a.data + a.bytes + a.tail() ? &a : nullptr;
  }
  // The allocation that lies nearest to a pointer that none holds; null where there is none at all.
  const Allocation* nearest(const void* pointer) const {
    const char* p = static_cast<const char*>(pointer);
    const auto distance = [&](const Allocation& a) { return p < a.data ? a.data - p : p - a.data - static_cast<long>(a.bytes); };
    const auto found = std::min_element(entries_.begin(), entries_.end(),
                                        [&](const Allocation& a, const Allocation& b) { return distance(a) < distance(b); });
    return found == entries_.end() ? nullptr : &*found;
  }
  const std::vector<Allocation>& entries() const { return entries_; }

 private:
  static bool before(const Allocation& a, const Allocation& b) { return a.data < b.data; }
  std::vector<Allocation> entries_;
};

}  // namespace pg_sim
#pragma GCC visibility pop
