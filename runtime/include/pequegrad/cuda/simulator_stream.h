// Streams, events and graphs. Work is queued and runs as late as it may: when the host waits for it.
//
// Invariants: a queue runs in order; across queues the seed decides, within what events and the legacy default stream
// order; a graph runs in any order that its dependencies allow. After a kernel broke a rule every call fails, as on a
// GPU, until cudaDeviceReset or pg_sim_configure.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "simulator_errors.h"
#include "simulator_launch.h"

enum class pg_sim_kind { kernel, copy, memset, host, graph, record, wait };

// One piece of queued work, or one node of a graph.
struct pg_sim_operation {
  pg_sim_kind kind = pg_sim_kind::host;
  std::function<bool()> run;       // false: a kernel broke a rule
  const void* function = nullptr;  // of a kernel
  unsigned long order = 0;         // of enqueueing, over all streams
  cudaEvent_t event = nullptr;     // recorded or waited for
  unsigned long number = 0;        // of the event's record
  std::vector<int> after;          // in a graph: the nodes that come first
};
struct pg_sim_event {
  unsigned long recorded = 0, done = 0;
  std::chrono::steady_clock::time_point time;
  unsigned long capture = 0;  // the capture that it was recorded in, and where
  std::vector<int> after;
};
struct pg_sim_graph {
  std::vector<pg_sim_operation> nodes;
};
struct pg_sim_graph_exec {
  pg_sim_graph graph;
};

struct pg_sim_capture {
  unsigned long number;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  cudaStream_t origin;
  bool valid;
  pg_sim_graph graph;
};
struct pg_sim_stream {
  bool blocking = true;
  std::deque<pg_sim_operation> queue;
  pg_sim_capture* capture = nullptr;
  std::vector<int> after;  // the nodes that the next captured one follows
};

#pragma GCC visibility push(hidden)
namespace pg_sim {

using Capture = pg_sim_capture;

struct Scheduler {
  pg_sim_stream legacy;
  std::vector<cudaStream_t> streams{&legacy};
  std::vector<Capture*> captures;
  std::vector<cudaEvent_t> events;
  unsigned long order = 0, captured = 0;
  cudaError_t sticky = cudaSuccess;
};
inline Scheduler& scheduler = *new Scheduler;
inline thread_local cudaError_t last_error = cudaSuccess;
constexpr std::size_t longest_queue = 1024;  // a full queue makes the host wait, as on a GPU

// Held through every call of the API.
using Lock = std::lock_guard<std::recursive_mutex>;

inline cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}
inline cudaStream_t resolve(cudaStream_t stream) { return stream ? stream : &scheduler.legacy; }
inline bool known(cudaStream_t stream) {
  const auto& all = scheduler.streams;
  return std::find(all.begin(), all.end(), resolve(stream)) != all.end();
}
inline bool known(cudaEvent_t event) {
  const auto& all = scheduler.events;
  return std::find(all.begin(), all.end(), event) != all.end();
}

inline bool may_run(cudaStream_t stream) {
  if (stream->queue.empty()) return false;
  const pg_sim_operation& head = stream->queue.front();
  if (head.kind == pg_sim_kind::wait && known(head.event) && head.event->done < head.number) return false;
  const auto earlier = [&](cudaStream_t other) {
    return !other->queue.empty() && other->queue.front().order < head.order;
  };
  if (stream != &scheduler.legacy) return !stream->blocking || !earlier(&scheduler.legacy);
  for (cudaStream_t other : scheduler.streams)
    if (other->blocking && other != stream && earlier(other)) return false;
  return true;
}

inline void run_head(cudaStream_t stream) {
  pg_sim_operation head = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (head.kind == pg_sim_kind::record) {
    if (!known(head.event)) return;
    head.event->done = std::max(head.event->done, head.number);
    head.event->time = std::chrono::steady_clock::now();
  }
  if (head.run && scheduler.sticky == cudaSuccess && !head.run()) scheduler.sticky = cudaErrorLaunchFailure;
}

// Runs work, of any stream, until `finished` holds.
template <class F> void run_until(F finished) {
  while (!finished()) {
    std::vector<cudaStream_t> able;
    for (cudaStream_t stream : scheduler.streams)
      if (may_run(stream)) able.push_back(stream);
    if (able.empty()) return;
    run_head(able[random_below(static_cast<std::uint32_t>(able.size()))]);
  }
}
inline void run_stream(cudaStream_t stream) {
  run_until([stream] { return stream->queue.empty(); });
}
inline void run_all() {
  run_until([] { return false; });
}

inline cudaError_t enqueue(cudaStream_t stream, pg_sim_operation operation) {
  stream = resolve(stream);
  if (scheduler.sticky != cudaSuccess) return scheduler.sticky;
  if (!known(stream)) return cudaErrorInvalidResourceHandle;
  if (Capture* capture = stream->capture) {
    if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
    operation.after = stream->after;
    stream->after = {static_cast<int>(capture->graph.nodes.size())};
    capture->graph.nodes.push_back(std::move(operation));
    return cudaSuccess;
  }
  if (stream == &scheduler.legacy)
    for (Capture* capture : scheduler.captures)
      if (capture->origin->blocking && capture->mode != cudaStreamCaptureModeRelaxed) {
        capture->valid = false;
        return cudaErrorStreamCaptureImplicit;
      }
  operation.order = ++scheduler.order;
  stream->queue.push_back(std::move(operation));
  if (stream->queue.size() > longest_queue) run_stream(stream);
  return cudaSuccess;
}

// For calls that a capture forbids: allocation, and waiting for the device.
inline cudaError_t forbidden_by_capture() {
  for (Capture* capture : scheduler.captures)
    if (capture->mode == cudaStreamCaptureModeGlobal ||
        (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread == std::this_thread::get_id())) {
      capture->valid = false;
      return cudaErrorStreamCaptureUnsupported;
    }
  return scheduler.sticky;
}

inline bool run_graph(const pg_sim_graph& graph) {
  std::vector<bool> done(graph.nodes.size());
  for (std::size_t left = graph.nodes.size(); left--;) {
    std::vector<std::size_t> able;
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
      bool ready = !done[i];
      for (int before : graph.nodes[i].after) ready = ready && done[static_cast<std::size_t>(before)];
      if (ready) able.push_back(i);
    }
    const std::size_t chosen = able[random_below(static_cast<std::uint32_t>(able.size()))];
    done[chosen] = true;
    if (!graph.nodes[chosen].run()) return false;
  }
  return true;
}

template <class F> struct KernelLaunch final : Launch {
  F call;
  explicit KernelLaunch(F call_) : call(std::move(call_)) {}
  void run() const override { call(); }
};

inline cudaError_t check_sizes(const Launch& launch) {
  const dim3 g = launch.grid, b = launch.block;
  const unsigned long threads = 1ul * b.x * b.y * b.z;
  if (threads == 0 || threads > 1024 || b.z > 64) return cudaErrorInvalidConfiguration;
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > shared_limit) return cudaErrorInvalidConfiguration;
  return cudaSuccess;
}
inline unsigned resident_blocks(unsigned threads, std::size_t shared) {
  const unsigned by_threads = std::max(1u, threads_per_multiprocessor / ((threads + 31) / 32 * 32));
  return std::min(by_threads, static_cast<unsigned>((shared_limit + 1024) / (shared + 1024)));
}

template <class... P, class... A> cudaError_t launch(const char* text, bool cooperative, void (*kernel)(P...),
                                                     dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                                                     A... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "a launch needs one argument per parameter of the kernel");
  const Lock lock(machine.lock);
  const Quiet quiet;
  // Captured, not kept in a std::tuple: of two hundred arguments that takes the compiler ten seconds.
  auto call = [kernel, arguments...] { kernel(static_cast<std::decay_t<P>>(arguments)...); };
  auto made = std::make_shared<KernelLaunch<decltype(call)>>(std::move(call));
  made->text = text;
  made->grid = grid;
  made->block = block;
  made->shared_bytes = shared;
  made->cooperative = cooperative;
  if (const cudaError_t error = check_sizes(*made)) return answer(error);
  if (cooperative &&
      1ul * grid.x * grid.y * grid.z > 1ul * multiprocessors * resident_blocks(block.x * block.y * block.z, shared))
    return answer(cudaErrorCooperativeLaunchTooLarge);
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::kernel;
  operation.function = reinterpret_cast<const void*>(kernel);
  operation.run = [made] { return execute(*made); };
  if (!stream || !stream->capture) count(PG_SIM_LAUNCHES);
  return answer(enqueue(stream, std::move(operation)));
}

}  // namespace pg_sim

#define pg_launch(...) pg_sim::launch(#__VA_ARGS__, false, __VA_ARGS__)
#define pg_launch_cooperative(...) pg_sim::launch(#__VA_ARGS__, true, __VA_ARGS__)
#pragma GCC visibility pop
