// Per-thread working memory of kernels that pack their operands: grows to the largest request and is kept.
//
// Invariant: 64-byte aligned; contents mean nothing between calls.
#pragma once
#include "types.h"

namespace pg {

PG_NOINLINE inline void* thread_scratch(long bytes) {
  static thread_local char* memory = nullptr;
  static thread_local long capacity = 0;
  if (bytes > capacity) {
    __builtin_free(memory);
    capacity = (bytes + 4095) / 4096 * 4096;
    memory = static_cast<char*>(__builtin_malloc(capacity + 64));
    if (!memory) __builtin_trap();
  }
  return memory + (64 - reinterpret_cast<unsigned long>(memory) % 64) % 64;
}

}  // namespace pg
