// Fibres: a stack of its own each, switched in user space in a few nanoseconds.
//
// Invariants: all fibres of a launch run on the host thread that executes it; a fibre that is left "for good" is never
// resumed, its stack is reused as it is (kernels own nothing that needs a destructor). Sanitizers are told of every
// switch; what the simulator itself reads and writes is hidden from ThreadSanitizer by Quiet.
#pragma once
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(PG_SIM_UCONTEXT)
#define PG_SIM_UCONTEXT
#endif
#ifdef PG_SIM_UCONTEXT
#include <ucontext.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PG_SIM_ASAN
#endif
#if __has_feature(thread_sanitizer)
#define PG_SIM_TSAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(PG_SIM_ASAN)
#define PG_SIM_ASAN
#endif
#if defined(__SANITIZE_THREAD__) && !defined(PG_SIM_TSAN)
#define PG_SIM_TSAN
#endif

extern "C" {
#ifdef PG_SIM_ASAN
void __sanitizer_start_switch_fiber(void**, const void*, std::size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*);
void __asan_poison_memory_region(const volatile void*, std::size_t);
void __asan_unpoison_memory_region(const volatile void*, std::size_t);
#endif
#ifdef PG_SIM_TSAN
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
#endif
}

// Hidden: every module (a step is one) has a simulator of its own, also when dlopen would merge equal names.
#pragma GCC visibility push(hidden)

#ifndef PG_SIM_UCONTEXT
extern "C" void pg_sim_switch(void** from, void* to);
// Saves the callee-saved registers on the stack that is left and restores those of the other. A COMDAT section, since
// the header may be included by several files of one module.
#if defined(__x86_64__)
asm(R"(
.pushsection .text.pg_sim_switch,"axG",@progbits,pg_sim_switch,comdat
.weak pg_sim_switch
.hidden pg_sim_switch
.type pg_sim_switch,@function
pg_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pg_sim_switch,.-pg_sim_switch
.popsection
)");
#else
asm(R"(
.pushsection .text.pg_sim_switch,"axG",@progbits,pg_sim_switch,comdat
.weak pg_sim_switch
.hidden pg_sim_switch
.type pg_sim_switch,%function
pg_sim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size pg_sim_switch,.-pg_sim_switch
.popsection
)");
#endif
#endif

namespace pg_sim {

#ifdef PG_SIM_TSAN
#define PG_SIM_NO_TSAN __attribute__((no_sanitize("thread"), noinline))
inline int quiet_depth = 0;  // of the fibre that runs; none is open where a thread of a kernel gives way
struct Quiet {
  PG_SIM_NO_TSAN Quiet() {
    ++quiet_depth;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  PG_SIM_NO_TSAN ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    --quiet_depth;
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};
// Before a fibre is left for good.
PG_SIM_NO_TSAN inline void end_quiet() {
  for (; quiet_depth > 0; --quiet_depth) {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
}
// The host's own depth, put aside while threads run.
struct HostQuiet {
  int depth = quiet_depth;
  PG_SIM_NO_TSAN HostQuiet() { quiet_depth = 0; }
  PG_SIM_NO_TSAN ~HostQuiet() { quiet_depth = depth; }
};
inline void happens_before(char* token) { __tsan_release(token); }
inline void happens_after(char* token) { __tsan_acquire(token); }
#else
struct Quiet {
  ~Quiet() {}  // not trivial, so that a Quiet is never an unused variable
};
struct HostQuiet {
  ~HostQuiet() {}
};
inline void end_quiet() {}
#define PG_SIM_NO_TSAN
inline void happens_before(char*) {}
inline void happens_after(char*) {}
#endif

// Sanitizers widen frames, and want a guard page below each stack. Without them there is none: each would be a mapping of
// its own, of which Linux lets a process have 65,530, and a grid barrier keeps thousands of threads alive. A word at the
// lowest end tells of an overflow instead.
#if defined(PG_SIM_ASAN) || defined(PG_SIM_TSAN)
constexpr std::size_t stack_bytes = 256 << 10;
constexpr bool has_guard_page = true;
#else
constexpr std::size_t stack_bytes = 64 << 10;
constexpr bool has_guard_page = false;
#endif
constexpr unsigned long lowest_word = 0xa5a5a5a5a5a5a5a5u;

struct Fibre {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // the lowest usable byte
  std::size_t stack_size = 0;
#ifdef PG_SIM_UCONTEXT
  ucontext_t context;
#endif
#ifdef PG_SIM_ASAN
  void* fake_stack = nullptr;
#endif
#ifdef PG_SIM_TSAN
  void* tsan = nullptr;
#endif
};

PG_SIM_NO_TSAN inline void switch_fibre(Fibre& from, Fibre& to, bool for_good) {
  (void)for_good;
#ifdef PG_SIM_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_size);
#endif
#ifdef PG_SIM_TSAN
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: a switch orders nothing
#endif
#ifdef PG_SIM_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  pg_sim_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef PG_SIM_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first act of a new fibre.
inline void entered_fibre() {
#ifdef PG_SIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

inline void map_stack(Fibre& fibre) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t size = (stack_bytes + page - 1) / page * page;
  const std::size_t guard = has_guard_page ? page : 0;
  void* mapped = mmap(nullptr, size + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) abort();
  if (guard) mprotect(mapped, guard, PROT_NONE);
  fibre.stack = static_cast<char*>(mapped) + guard;
  fibre.stack_size = size;
  *reinterpret_cast<unsigned long*>(fibre.stack) = lowest_word;
}
// Whether the stack was too small since the last time that this was asked.
inline bool has_overflowed(Fibre& fibre) {
  if (has_guard_page || !fibre.stack) return false;
  unsigned long& word = *reinterpret_cast<unsigned long*>(fibre.stack);
  const bool is_changed = word != lowest_word;
  word = lowest_word;
  return is_changed;
}
inline void unmap_stack(Fibre& fibre) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t guard = has_guard_page ? page : 0;
  munmap(fibre.stack - guard, fibre.stack_size + guard);
  fibre.stack = nullptr;
}

// Makes the next switch to `fibre` call entry(), which must not return. `color` staggers the first frames: equal
// offsets in all stacks would meet in the same cache sets.
inline void prepare_fibre(Fibre& fibre, void (*entry)(), unsigned color) {
#ifdef PG_SIM_TSAN
  if (fibre.stack) unmap_stack(fibre);  // a new mapping has a new shadow: reuse of a stack is no race
  if (fibre.tsan) __tsan_destroy_fiber(fibre.tsan);
  fibre.tsan = __tsan_create_fiber(0);
#endif
  if (!fibre.stack) map_stack(fibre);
#ifdef PG_SIM_ASAN
  __asan_unpoison_memory_region(fibre.stack, fibre.stack_size);
  fibre.fake_stack = nullptr;
#endif
  const std::size_t size = fibre.stack_size - color % 61 * 128;
#ifdef PG_SIM_UCONTEXT
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack;
  fibre.context.uc_stack.ss_size = size;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, entry, 0);
#else
  void** top = reinterpret_cast<void**>(fibre.stack + size);
#if defined(__x86_64__)
  *--top = nullptr;  // a return address that ends a backtrace
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  fibre.stack_pointer = top;
#endif
}

// The host thread as a fibre to come back to.
inline void prepare_host(Fibre& host) {
  (void)host;
#ifdef PG_SIM_ASAN
  pthread_attr_t attributes;
  void* low = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &low, &host.stack_size);
    pthread_attr_destroy(&attributes);
  }
  host.stack = static_cast<char*>(low);
#endif
#ifdef PG_SIM_TSAN
  host.tsan = __tsan_get_current_fiber();
#endif
}

}  // namespace pg_sim

#pragma GCC visibility pop
