// The simulator: runs the text of a CUDA step on the CPU, for tests and for "is it my kernel or my GPU".
//
// simulator_fibre.h     stacks and their switch, sanitizers
// simulator_memory.h    poisoned memory between guard zones
// simulator_machine.h   threads, meetings, the scheduler, reports
// simulator_traffic.h   sectors and bank conflicts; checks of noted accesses
// simulator_launch.h    one launch from start to checks
// simulator_device.h    the names of device code
// simulator_tensor.h    cp.async, ldmatrix, mma.sync, the grid barrier
// simulator_errors.h    error codes and other constants
// simulator_stream.h    queues, how they run, launches
// simulator_runtime.h   the runtime API: devices, memory, streams, events
// simulator_graph.h     the runtime API: capture, graphs
//
// Not simulated: wgmma, TMA, clusters, the weak order of memory, occupancy, registers; a loop that waits for another
// thread without a barrier or __nanosleep never ends.
#pragma once
#include "simulator_graph.h"

#pragma GCC visibility push(hidden)
#define PG_SIM_EXPORT __attribute__((visibility("default"), used)) inline
extern "C" {
// Writes the first `count` statistics, in the order of pg_sim_statistic; then sets them to 0 if asked.
PG_SIM_EXPORT void pg_sim_statistics(long* out, int count, int reset) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  long* statistics = pg_sim::machine.statistics;
  for (int i = 0; i < count; ++i) out[i] = i < PG_SIM_STATISTICS ? statistics[i] : 0;
  if (!reset) return;
  for (int i = 0; i < PG_SIM_STATISTICS; ++i)
    if (i != PG_SIM_ALLOCATED) statistics[i] = i == PG_SIM_PEAK_ALLOCATED ? statistics[PG_SIM_ALLOCATED] : 0;
}
// Sets the seed of every order, whether traffic is counted, the device memory's size (0: as it is), and forgets a
// failure.
PG_SIM_EXPORT void pg_sim_configure(unsigned long seed, int count_traffic, long memory_bytes) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  pg_sim::machine.random_state = (seed + 1) * 0x9e3779b97f4a7c15u | 1;
  for (int i = 0; i < 8; ++i) pg_sim::random_below(2);
  pg_sim::running.count_traffic = count_traffic != 0;
  if (memory_bytes > 0) pg_sim::machine.memory_bytes = static_cast<std::size_t>(memory_bytes);
  pg_sim::scheduler.sticky = pg_sim::last_error = cudaSuccess;
  pg_sim::machine.report[0] = 0;
}
// What the last broken rule was; empty if none was since pg_sim_configure.
PG_SIM_EXPORT const char* pg_sim_last_report() { return pg_sim::machine.report; }
}
#undef PG_SIM_EXPORT
#pragma GCC visibility pop
