// Runs one launch: blocks in random order, a few at a time (all of a cooperative grid), then the checks.
#pragma once
#include "simulator_traffic.h"

#pragma GCC visibility push(hidden)
namespace pg_sim {

inline void start_block(Block& block, unsigned number, unsigned first_thread) {
  Machine& m = machine;
  const dim3 grid = m.launch->grid, size = m.launch->block;
  const unsigned threads = size.x * size.y * size.z;
  block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block.barrier.reset(threads);
  block.static_bytes = 0;
  while (block.warps.size() < (threads + 31) / 32) block.warps.push_back(new Warp);
  for (Warp* warp : block.warps) {
    warp->alive = warp->lanes = 0;
    warp->whole.mask = 0;
    warp->whole.meeting.reset(0);
    for (Collective* c : warp->others) {
      c->mask = 0;
      c->meeting.reset(0);
    }
  }
  if (m.launch->shared_bytes) {
    if (block.shared.empty()) block.shared.resize(1);
    block.shared[0] = allocate_guarded(m.launch->shared_bytes, 1024);
  }
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = *m.threads[first_thread + i];
    t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    t.lane = i % 32;
    t.block = &block;
    t.warp = block.warps[i / 32];
    t.warp->alive |= 1u << t.lane;
    if (t.warp->lanes++ == 0) t.warp->first = first_thread + i;
    t.place = {"the start", "", 0};
    t.done = false;
    t.copies.clear();
    t.landed = t.groups = 0;
    t.loads.clear();
    t.stores.clear();
    t.shared.clear();
    prepare_fibre(t, thread_entry, first_thread + i);
    m.ready[m.ready_count++] = &t;
  }
}

// "deadlock: of block (0, 0, 0), 17 threads wait at __syncthreads (step.cu:7), 15 have returned"
inline void report_deadlock(unsigned blocks, unsigned threads) {
  begin_report();
  report(": deadlock (divergent barrier)");
  int lines = 0;
  for (unsigned b = 0; b < blocks && lines < 8; ++b) {
    std::vector<Thread*> left(machine.threads.begin() + b * threads, machine.threads.begin() + (b + 1) * threads);
    std::size_t returned = 0;
    for (Thread* t : left) returned += t->done;
    if (returned == threads) continue;
    const uint3 index = left[0]->block->index;
    report("; block (%u, %u, %u):", index.x, index.y, index.z);
    while (!left.empty() && ++lines < 16) {
      const Thread* first = left[0];
      const auto same = [&](const Thread* t) {
        return t->done == first->done &&
               (t->done || (t->place.line == first->place.line && t->place.what == first->place.what));
      };
      const long n = std::count_if(left.begin(), left.end(), same);
      if (first->done) report(" %ld have returned,", n);
      else
        report(" %ld of %u threads wait at %s (%s:%d),", n, threads, first->place.what, first->place.file,
               first->place.line);
      std::vector<Thread*> rest;
      for (Thread* t : left)
        if (!same(t)) rest.push_back(t);
      left = rest;
    }
    machine.report[std::strlen(machine.report) - 1] = 0;
  }
}

inline void end_block(Block& block) {
  for (std::size_t site = 0; site < block.shared.size(); ++site) {
    Allocation& a = block.shared[site];
    if (!a.data) continue;
    const long offset = overwritten(a);
    if (offset && !machine.failed) {
      begin_report();
      const uint3 b = block.index;
      report(", block (%u, %u, %u): wrote out of bounds of %s shared memory of %zu bytes, at byte %ld", b.x, b.y, b.z,
             site ? "static" : "dynamic", a.bytes, offset);
    }
    free_guarded(a);
  }
}

inline void check_global_memory() {
  for (const AllocationTable* table : {&machine.device, &machine.pinned})
    for (const Allocation& a : table->entries())
      if (const long offset = overwritten(a)) {
        repair_zones(a);
        if (machine.failed) continue;
        begin_report();
        report(": wrote out of bounds of %s memory of %zu bytes, at byte %ld",
               table == &machine.device ? "global" : "pinned host", a.bytes, offset);
      }
}

// Executes a launch whose sizes were checked. False if the kernel broke a rule: machine.report says which.
PG_SIM_NO_TSAN inline bool execute(const Launch& launch) {
  const Quiet quiet;
  Machine& m = machine;
  const dim3 grid = launch.grid, size = launch.block;
  const unsigned threads = size.x * size.y * size.z, blocks = grid.x * grid.y * grid.z;
  m.failed = false;
  m.launch = &launch;
  running.grid_size = grid;
  running.block_size = size;
  running.until_preemption = 1 + random_below(512);
  m.grid_barrier.reset(threads * blocks);
  prepare_host(m.host);
  happens_before(&m.launched);
  count(PG_SIM_KERNELS);

  // Blocks that run side by side show races between blocks; all of them at once would only cost cache.
  const unsigned together = launch.cooperative ? blocks : std::min(blocks, 1 + random_below(3));
  while (m.threads.size() < std::size_t(threads) * together) m.threads.push_back(new Thread);
  if (m.ready.size() < m.threads.size()) m.ready.resize(m.threads.size());
  while (m.blocks.size() < together) m.blocks.push_back(new Block);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  for (unsigned i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);

  for (unsigned first = 0; first < blocks && !m.failed; first += together) {
    const unsigned count = std::min(together, blocks - first);
    m.active = count * threads;
    m.active_blocks = count;
    for (unsigned b = 0; b < count; ++b) start_block(*m.blocks[b], order[first + b], b * threads);
    running.thread = take_ready();
    {
      const HostQuiet aside;
      switch_fibre(m.host, *running.thread, false);
    }
    running.thread = nullptr;
    m.ready_count = 0;
    if (!m.failed)
      for (unsigned i = 0; i < m.active && !m.failed; ++i)
        if (!m.threads[i]->done) report_deadlock(count, threads);
    for (unsigned i = 0; i < m.active; ++i)
      if (has_overflowed(*m.threads[i]) && !m.failed) {
        begin_report();
        report(": a thread needed more than %zu bytes of stack", stack_bytes);
      }
    for (unsigned b = 0; b < count; ++b) end_block(*m.blocks[b]);
  }
  happens_after(&m.ended);
  check_global_memory();
  m.launch = nullptr;
  return !m.failed;
}

}  // namespace pg_sim
#pragma GCC visibility pop
