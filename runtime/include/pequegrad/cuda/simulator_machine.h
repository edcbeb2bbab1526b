// The simulated multiprocessor: threads, meetings (barriers and warp collectives), the scheduler.
//
// Invariants: one launch runs at a time (the caller holds Machine::lock); a thread runs until it meets others, makes a
// noted access of global memory that the seed chose, or ends; whoever is ready may be next, by the seed. A kernel that
// breaks a rule is abandoned at once: fail() writes the report and leaves every fibre for good.
#pragma once
#include <cstdarg>
#include <mutex>

#include "simulator_memory.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The places of pg_sim_statistics, in this order.
enum pg_sim_statistic {
  PG_SIM_LAUNCHES,        // kernels launched one by one, cooperative ones included
  PG_SIM_GRAPH_LAUNCHES,  // graphs launched
  PG_SIM_KERNELS,         // kernels executed, those of graphs included
  PG_SIM_COPIES_TO_DEVICE,
  PG_SIM_BYTES_TO_DEVICE,
  PG_SIM_COPIES_TO_HOST,
  PG_SIM_BYTES_TO_HOST,
  PG_SIM_COPIES_ON_DEVICE,
  PG_SIM_BYTES_ON_DEVICE,
  PG_SIM_MEMSETS,
  PG_SIM_LOADS,         // noted loads, one per warp
  PG_SIM_LOAD_SECTORS,  // 32-byte sectors that they touch
  PG_SIM_STORES,
  PG_SIM_STORE_SECTORS,
  PG_SIM_SHARED_ACCESSES,  // accesses through a PG_SHARED array, one per warp
  PG_SIM_BANK_CONFLICTS,   // extra passes that they need
  PG_SIM_BARRIERS,         // block barriers completed
  PG_SIM_GRID_BARRIERS,
  PG_SIM_SYNCHRONIZATIONS,  // of a stream, an event or the device, by the host
  PG_SIM_ALLOCATED,         // bytes of device memory in use; not reset
  PG_SIM_PEAK_ALLOCATED,    // reset to what is in use
  PG_SIM_SWITCHES,          // from thread to thread
  PG_SIM_STATISTICS
};

#pragma GCC visibility push(hidden)
namespace pg_sim {

// Where a thread waits, for reports.
struct Place {
  const char* what;
  const char* file;
  int line;
};
#define PG_SIM_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct Thread;

// Threads wait here until `needed` have come. `votes` and `result` serve __syncthreads_or, _and and _count.
struct Meeting {
  unsigned needed = 0, arrived = 0, generation = 0;
  unsigned votes = 0, result[2] = {0, 0};
  Thread* waiting = nullptr;  // the last to arrive, and by Thread::next those before it
  char token[2];              // ThreadSanitizer orders by its address
  void reset(unsigned needed_) {
    needed = needed_;
    arrived = votes = 0;
    waiting = nullptr;
  }
};

// The lanes of one mask exchange values. Two sets of slots: a lane may be one meeting ahead of the others.
struct Collective {
  unsigned mask = 0;
  Meeting meeting;
  alignas(16) unsigned char slot[2][32][32];
};

struct Warp {
  unsigned alive = 0;
  unsigned first = 0, lanes = 0;    // its threads, side by side in the pool
  Collective whole;                 // for the first mask that is used, in general all lanes
  std::vector<Collective*> others;  // one per further mask
};

struct Access {
  std::uintptr_t address;
  unsigned bytes;
};

struct Block {
  uint3 index{};
  Meeting barrier;
  std::vector<Warp*> warps;
  std::vector<Allocation> shared;  // by the site of its PG_SHARED; 0 is the dynamic one
  std::size_t static_bytes = 0;
};

struct AsyncCopy {
  void* to;
  const void* from;
  unsigned bytes, source_bytes, group;
};

struct Thread : Fibre {
  Thread* next = nullptr;  // in the list of a meeting
  Place place{};
  Block* block = nullptr;
  Warp* warp = nullptr;
  uint3 index{};
  unsigned lane = 0;
  bool done = false;
  std::vector<AsyncCopy> copies;
  std::size_t landed = 0;  // copies done
  unsigned groups = 0;     // groups committed
  std::vector<Access> loads, stores, shared;
};

// What a kernel's own code reads: plain data, initialised before anything runs.
struct Running {
  Thread* thread = nullptr;
  dim3 grid_size{}, block_size{};
  bool count_traffic = false;
  unsigned until_preemption = 1;
};
inline Running running;

// Calls the kernel with the arguments of a launch.
struct Launch {
  const char* text = "";  // the launch as written: kernel, grid, …
  dim3 grid{}, block{};
  std::size_t shared_bytes = 0;
  bool cooperative = false;
  virtual void run() const = 0;
  virtual ~Launch() {}
};

constexpr unsigned multiprocessors = 4;  // few, so that a cooperative grid stays small
constexpr unsigned threads_per_multiprocessor = 1024;
constexpr std::size_t static_shared_limit = 48 << 10, shared_limit = 227 << 10;
constexpr std::size_t shared_zone = 128, global_zone = 1024;

struct Machine {
  std::recursive_mutex lock;
  std::uint64_t random_state = 0x9e3779b97f4a7c15u;
  long statistics[PG_SIM_STATISTICS] = {};
  char report[4096] = "";
  bool failed = false;  // the launch that runs broke a rule
  const Launch* launch = nullptr;
  Fibre host;
  std::vector<Thread*> threads;  // the pool; the first `active` belong to the blocks that run
  unsigned active = 0, active_blocks = 0;
  std::vector<Block*> blocks;
  std::vector<Thread*> ready;  // the first `ready_count`; as long as the pool
  std::uint32_t ready_count = 0;
  Meeting grid_barrier;
  AllocationTable device, pinned;
  std::size_t memory_bytes = std::size_t(4) << 30;
  const Allocation* recent[64] = {};  // by page: the allocation that an access found last
  int sites = 0;                      // PG_SHARED arrays seen
  char launched, ended;               // tokens for ThreadSanitizer
};
// Never destroyed: a module may free its memory while the process ends.
inline Machine& machine = *new Machine;

PG_SIM_NO_TSAN inline std::uint32_t random_below(std::uint32_t count) {
  // Knuth's linear congruential generator (MMIX), of which the high half is good enough.
  machine.random_state = machine.random_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<std::uint32_t>((machine.random_state >> 32) * count >> 32);
}
inline void count(pg_sim_statistic which, long amount = 1) { machine.statistics[which] += amount; }

// The kernel's name: the launch's text up to the first comma outside brackets.
inline int name_length(const char* text) {
  int depth = 0, n = 0;
  for (; text[n]; ++n) {
    const char c = text[n];
    if (c == '(' || c == '<' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == '>' || c == ']' || c == '}') --depth;
    if (c == ',' && depth <= 0) break;
  }
  return n;
}

// Adds to the report of this launch. The first line counts; later ones rarely matter.
__attribute__((format(printf, 1, 2))) inline void report(const char* format, ...) {
  const std::size_t used = std::strlen(machine.report);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(machine.report + used, sizeof machine.report - used, format, arguments);
  va_end(arguments);
}
inline void begin_report() {
  machine.failed = true;
  const char* text = machine.launch ? machine.launch->text : "";
  machine.report[0] = 0;
  report("kernel `%.*s`", name_length(text), text);
}

// Ends the launch with a report: "kernel `k`, block (0, 0, 0), thread (5, 0, 0): ...".
[[noreturn]] __attribute__((format(printf, 1, 2), noinline)) inline void fail(const char* format, ...) {
  Thread& self = *running.thread;
  {
    const Quiet quiet;
    begin_report();
    const uint3 b = self.block->index, t = self.index;
    report(", block (%u, %u, %u), thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
    const std::size_t used = std::strlen(machine.report);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(machine.report + used, sizeof machine.report - used, format, arguments);
    va_end(arguments);
    machine.ready_count = 0;
  }
  end_quiet();
  switch_fibre(self, machine.host, true);
  abort();
}

PG_SIM_NO_TSAN inline Thread* take_ready() {
  Machine& m = machine;
  Thread** ready = m.ready.data();
  Thread*& chosen = ready[random_below(m.ready_count)];
  Thread* next = chosen;
  chosen = ready[--m.ready_count];
  return next;
}

// No Quiet may be open when a fibre is left: it may be for good, and ThreadSanitizer wants the ends of both.
// Gives way to any ready thread; to the host where none is. Returns when somebody chooses this thread again.
PG_SIM_NO_TSAN inline void give_way(Thread& self, bool for_good) {
  Machine& m = machine;
  if (m.ready_count == 0) return switch_fibre(self, m.host, for_good);
  Thread* next = take_ready();
  if (next == &self) return;
  ++m.statistics[PG_SIM_SWITCHES];
  running.thread = next;
  switch_fibre(self, *next, for_good);
}

PG_SIM_NO_TSAN inline void yield() {
  Thread& self = *running.thread;
  machine.ready[machine.ready_count++] = &self;
  give_way(self, false);
}

inline void release(Meeting& meeting) {
  meeting.result[meeting.generation & 1] = meeting.votes;
  ++meeting.generation;
  meeting.arrived = meeting.votes = 0;
  Machine& m = machine;
  Thread** end = m.ready.data() + m.ready_count;
  for (Thread* t = meeting.waiting; t; t = t->next) *end++ = t;
  m.ready_count = static_cast<std::uint32_t>(end - m.ready.data());
  meeting.waiting = nullptr;
}

void flush_traffic(Warp& warp);
inline void complete_barrier(Block& block) {
  ++machine.statistics[PG_SIM_BARRIERS];
  if (!running.count_traffic) return;
  for (Warp* warp : block.warps) flush_traffic(*warp);
}

[[noreturn]] __attribute__((noinline)) inline void fail_divergent(const Meeting& meeting, const Place& place) {
  const Place& other = meeting.waiting->place;
  fail("divergent barrier: it has come to %s (%s:%d), but %u threads wait at %s (%s:%d)", place.what, place.file,
       place.line, meeting.arrived, other.what, other.file, other.line);
}

// Waits for the others. `orders` says that memory accesses before it come before those after it. Returns the parity of
// the meeting.
inline unsigned arrive(Meeting& meeting, const Place& place, bool orders, unsigned vote = 0) {
  Thread& self = *running.thread;
  const unsigned parity = meeting.generation & 1;
  if (meeting.waiting && (meeting.waiting->place.line != place.line || meeting.waiting->place.what != place.what))
    fail_divergent(meeting, place);
  if (orders) happens_before(&meeting.token[parity]);
  {
    const Quiet quiet;
    self.place.what = place.what;
    self.place.file = place.file;
    self.place.line = place.line;
    meeting.votes += vote;
    self.next = meeting.waiting;
    meeting.waiting = &self;
    if (++meeting.arrived == meeting.needed) {
      if (&meeting == &self.block->barrier) complete_barrier(*self.block);
      release(meeting);
    }
  }
  give_way(self, false);
  if (orders) happens_after(&meeting.token[parity]);
  return parity;
}

inline Collective& collective(unsigned mask, const Place& place) {
  const Quiet quiet;
  Thread& self = *running.thread;
  Warp& warp = *self.warp;
  if (!(mask >> self.lane & 1))
    fail("%s (%s:%d): lane %u is not in its own mask %08x", place.what, place.file, place.line, self.lane, mask);
  Collective* found = &warp.whole;
  if (warp.whole.mask != mask) {
    found = nullptr;
    if (warp.whole.mask == 0) found = &warp.whole;
    for (Collective* other : warp.others)
      if (other->mask == mask || (!found && other->mask == 0)) found = other;
    if (!found) warp.others.push_back(found = new Collective);
    found->mask = mask;
  }
  if (found->meeting.arrived == 0) found->meeting.needed = static_cast<unsigned>(__builtin_popcount(mask & warp.alive));
  return *found;
}

// Every lane of the mask brings `bytes`; returns the 32 slots once all have come. Slots of lanes that are not in the
// mask hold 0xff.
using Slots = unsigned char (*)[32];
inline Slots exchange(unsigned mask, const void* value, std::size_t bytes, const Place& place) {
  Collective& c = collective(mask, place);
  const unsigned parity = c.meeting.generation & 1;
  {
    const Quiet quiet;
    if (c.meeting.arrived == 0 && c.meeting.needed < 32) std::memset(c.slot[parity], 0xff, sizeof c.slot[parity]);
    std::memcpy(c.slot[parity][running.thread->lane], value, bytes);
  }
  arrive(c.meeting, place, false);
  return c.slot[parity];
}

// The end of a thread: lanes that are left need not wait for it, a block's barrier does.
inline void end_thread(Thread& self) {
  const Quiet quiet;
  self.done = true;
  Warp& warp = *self.warp;
  warp.alive &= ~(1u << self.lane);
  if (warp.alive == 0 && running.count_traffic) flush_traffic(warp);
  const auto without = [&](Collective& c) {
    c.meeting.needed = static_cast<unsigned>(__builtin_popcount(c.mask & warp.alive));
    if (c.meeting.arrived && c.meeting.arrived >= c.meeting.needed) release(c.meeting);
  };
  without(warp.whole);
  for (Collective* c : warp.others) without(*c);
}
PG_SIM_NO_TSAN inline void thread_entry() {
  entered_fibre();
  happens_after(&machine.launched);
  machine.launch->run();
  happens_before(&machine.ended);
  Thread& self = *running.thread;
  end_thread(self);
  give_way(self, true);
  abort();
}

}  // namespace pg_sim
#pragma GCC visibility pop
