// The host side of a step on a device: where arguments lie, the arena, launches, and what went wrong.
//
// Invariants: a step that fails before its launch has changed nothing; every CUDA call is checked; a graph is captured
// once and replayed as long as the state on the device stays where it is. Calls are serialised by a lock. The stream
// waits for the legacy default stream and makes it wait, so that what else works on the device's arrays is in order.
#pragma once
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "control.h"
#include "loop.h"

namespace pg {

// One argument of the step: its size, and which way it is copied where the step has a place of its own for it: of all that
// lies on the host, and of batches and results, which come from new places each time. State on the device is used as it lies.
struct slot {
  long bytes;
  bool is_read, is_written, is_state;
  const char* name;
};

// What the simulator knows of an error beyond its name.
inline const char* device_report() {
#if defined(__CUDACC__)
  return "";
#else
  return pg_sim_last_report();
#endif
}

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr long at_most(long value, long limit) { return value < limit ? value : limit; }

// Nodes of the graph of many steps: making one takes about a microsecond each.
constexpr int most_nodes = 2048;

// Device memory as a phase's arguments see it; a cooperative kernel takes it by value.
template <int Slots> struct step_pointers {
  void* slots[Slots + 1];
  unsigned char* arena;
  template <class T> __host__ __device__ T* argument(int number) const { return static_cast<T*>(slots[number]); }
  template <class T> __host__ __device__ T* at(long offset) const { return reinterpret_cast<T*>(arena + offset); }
};

// How a step is launched: a graph with one node a phase, or one cooperative kernel with a barrier between phases.
enum class launch_form { graph, cooperative };

template <int Slots, launch_form Form> class device_step {
 public:
  typedef step_pointers<Slots> pointers;
  typedef void (*enqueue_function)(device_step& device, const pointers& step);

  device_step(const slot* slots, long arena_bytes, bool can_fail, const char* const* phase_names, enqueue_function enqueue)
      : slots_(slots), arena_bytes_(arena_bytes), can_fail_(can_fail), phase_names_(phase_names), enqueue_(enqueue) {
    pthread_mutex_init(&lock_, nullptr);
  }

  // Runs the step on arguments that lie on the host or on the device; returns failure->code.
  int run(void* const* arguments, pg_failure* failure) {
    pthread_mutex_lock(&lock_);
    failure_ = failure;
    if (is_lost_) {
      refuse("the device's context was lost by an earlier error", cudaErrorUnknown);
    } else if (open() && take_report() && place(arguments) && copy_in(arguments) && launch() && copy_out(arguments)) {
      if (must_wait_ && check("waiting for the step", cudaStreamSynchronize(stream_))) take_report();
    }
    pthread_mutex_unlock(&lock_);
    return failure->code;
  }

  // Runs many steps on datasets and an order of rows that lie on the host or on the device; returns failure->code.
  int run_many(void* const* arguments, const pg_loop& loop, pg_failure* failure) {
    pthread_mutex_lock(&lock_);
    failure_ = failure;
    repeat_ = &loop;
    if (is_lost_) {
      refuse("the device's context was lost by an earlier error", cudaErrorUnknown);
    } else if (open() && take_report() && place(arguments) && copy_in(arguments)) {
      const bool is_done = prepare_loop(arguments) && launch_loop() && copy_out(arguments) && copy_results(arguments);
      // What the loop used is freed only when the device has done with it.
      if (check("waiting for the steps", cudaStreamSynchronize(stream_)) && is_done) take_report();
    }
    for (int i = 0; i < borrowed_count_; ++i) cudaFree(borrowed_[i]);
    borrowed_count_ = 0;
    repeat_ = nullptr;
    pthread_mutex_unlock(&lock_);
    return failure->code;
  }

  // For the emitted code: what a phase is told, and whether its launch went well.
  control phase(int number) {
    phase_ = number;
    return {device_failure_, const_cast<volatile int*>(progress_), number};
  }
  cudaStream_t stream() const { return stream_; }
  bool check(cudaError_t status) { return check("launching a phase", status); }

  // The largest grid of which all blocks run at the same time, as a grid barrier needs; 0 where it is refused.
  template <class Kernel> unsigned resident_blocks(Kernel kernel, int shared, int wanted) {
    if (resident_ == 0) {
      int device = 0, processors = 0, can_meet = 0, each = 0;
      if (!check("asking for the device", cudaGetDevice(&device))) return 0;
      if (!check("asking for its size", cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))) return 0;
      if (!check("asking what it can do", cudaDeviceGetAttribute(&can_meet, cudaDevAttrCooperativeLaunch, device))) return 0;
      if (!check("asking for shared memory", cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))) return 0;
      if (!check("asking for occupancy", cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, PG_BLOCK, size_t(shared)))) return 0;
      resident_ = can_meet ? processors * each : 0;
    }
    if (resident_ == 0) check("fitting the step as one kernel (PEQUEGRAD_CUDA_LAUNCH=graph avoids that)", cudaErrorLaunchOutOfResources);
    return unsigned(resident_ < wanted ? resident_ : wanted);
  }
  unsigned* barrier_counter() const { return barrier_; }

 private:
  const slot* slots_;
  long arena_bytes_;
  bool can_fail_;
  const char* const* phase_names_;
  enqueue_function enqueue_;
  pthread_mutex_t lock_;

  pg_failure* failure_ = nullptr;  // the caller's, for the time of a call
  const pg_loop* repeat_ = nullptr;  // likewise, of many steps
  long chunk_ = 0;  // steps of chunk_graph_
  loop_state* loop_ = nullptr;
  moved* moves_ = nullptr;
  cudaGraphExec_t chunk_graph_ = nullptr;
  void* borrowed_[2 * Slots + 1] = {};  // the device's memory, for the time of a call
  int borrowed_count_ = 0;
  bool is_open_ = false, is_lost_ = false, must_wait_ = false;
  int phase_ = -1, resident_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
  unsigned char* arena_ = nullptr;
  pg_failure* device_failure_ = nullptr;
  unsigned* barrier_ = nullptr;
  pg_failure* report_ = nullptr;  // pinned: the device's report of the last step
  int* progress_ = nullptr;       // pinned and written by the device
  void* seen_[Slots + 1] = {};    // what the caller passed last
  void* at_[Slots + 1] = {};      // where that lies on the device
  void* staging_[Slots + 1] = {};
  bool is_placed_[Slots + 1] = {};  // else seen_ and at_ are those of an earlier call
  bool is_host_[Slots + 1] = {};    // then it is waited for
  bool is_staged_[Slots + 1] = {};  // then it is copied

  void refuse(const char* what, cudaError_t status) {
    failure_->code = 2;
    failure_->kernel = phase_;
    const char* name = phase_ >= 0 ? phase_names_[phase_] : "";
    snprintf(failure_->text, sizeof failure_->text, "%s%s%s: %s (%s)", what, *name ? ", " : "", name, cudaGetErrorString(status),
             cudaGetErrorName(status));
  }

  // An error that stays after it was taken has lost the context: nothing on the device can be read any more.
  bool check(const char* what, cudaError_t status) {
    if (status == cudaSuccess) return true;
    cudaGetLastError();
    is_lost_ = cudaPeekAtLastError() != cudaSuccess || status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure;
    if (is_lost_ && progress_) phase_ = *static_cast<volatile int*>(progress_);
    refuse(what, status);
    if (is_lost_) {
      const size_t length = strlen(failure_->text);
      const char* const text = device_report();
      snprintf(failure_->text + length, sizeof failure_->text - length,
               ". The device's context is lost: tensors on it cannot be read any more; those on the CPU are whole%s%s",
               *text ? ". " : "", text);
    }
    phase_ = -1;
    return false;
  }

  bool allocate(void** memory, long bytes, const char* what) {
    const cudaError_t status = cudaMalloc(memory, size_t(bytes));
    if (status == cudaSuccess) return true;
    if (status != cudaErrorMemoryAllocation) return check(what, status);
    cudaGetLastError();
    size_t available = 0, total = 0;
    cudaMemGetInfo(&available, &total);
    failure_->code = 3;
    failure_->kernel = -1;
    failure_->value = bytes;
    failure_->bound = long(available);
    long staged = 0, reachable = long(available) + (arena_ ? arena_bytes_ : 0);
    int largest = -1;
    for (int i = 0; i < Slots; ++i) {
      if (!is_staged_[i]) continue;
      staged += slots_[i].bytes;
      if (staging_[i]) reachable += slots_[i].bytes;
      if (largest < 0 || slots_[i].bytes > slots_[largest].bytes) largest = i;
    }
    int length =
        snprintf(failure_->text, sizeof failure_->text,
                 "%s: %ld bytes asked, %zu of %zu bytes free. The step takes %ld bytes: its arena %ld, copies of arguments %ld", what, bytes,
                 available, total, arena_bytes_ + staged, arena_bytes_, staged);
    const auto add = [&](const char* format, auto... values) {
      if (length < int(sizeof failure_->text))
        length += snprintf(failure_->text + length, sizeof failure_->text - size_t(length), format, values...);
    };
    if (largest >= 0) add(" (%s %ld)", slots_[largest].name, slots_[largest].bytes);
    const long needed = arena_bytes_ + staged;
    if (reachable < needed) add("; what it can have is %ld %% of that", 100 * reachable / needed);
    return false;
  }

  bool open() {
    if (is_open_) return true;
    void *device_failure = nullptr, *barrier = nullptr, *report = nullptr, *progress = nullptr;
    if (!check("creating a stream", cudaStreamCreate(&stream_))) return false;
    if (!allocate(&device_failure, sizeof(pg_failure), "the report of the step")) return close();
    device_failure_ = static_cast<pg_failure*>(device_failure);
    if (!allocate(&barrier, sizeof(unsigned), "the barrier of the step")) return close();
    barrier_ = static_cast<unsigned*>(barrier);
    if (!check("pinning memory", cudaMallocHost(&report, sizeof(pg_failure)))) return close();
    report_ = static_cast<pg_failure*>(report);
    if (!check("pinning memory", cudaMallocHost(&progress, sizeof(int)))) return close();
    progress_ = static_cast<int*>(progress);
    memset(report_, 0, sizeof *report_);
    *progress_ = -1;
    if (!check("clearing memory", cudaMemsetAsync(device_failure_, 0, sizeof(pg_failure), stream_))) return close();
    if (!check("clearing memory", cudaMemsetAsync(barrier_, 0, sizeof(unsigned), stream_))) return close();
    return is_open_ = true;
  }

  // Gives back what a failed opening had taken, so that the next call begins anew.
  bool close() {
    if (device_failure_) cudaFree(device_failure_);
    if (barrier_) cudaFree(barrier_);
    if (report_) cudaFreeHost(report_);
    if (progress_) cudaFreeHost(progress_);
    if (stream_) cudaStreamDestroy(stream_);
    device_failure_ = nullptr, barrier_ = nullptr, report_ = nullptr, progress_ = nullptr, stream_ = nullptr;
    return false;
  }

  // Hands on what the device has reported so far; from then on the step works again.
  bool take_report() {
    if (report_->code == 0) return true;
    char text[sizeof failure_->text];
    memcpy(text, failure_->text, sizeof text);
    *failure_ = *report_;
    memcpy(failure_->text, text, sizeof text);
    report_->code = 0;
    const int found = failure_->code;
    if (check("clearing the report", cudaMemsetAsync(device_failure_, 0, sizeof(pg_failure), stream_)))
      if (check("clearing the report", cudaStreamSynchronize(stream_))) failure_->code = found;
    report_->code = 0;
    return false;
  }

  // Finds where each argument lies, then takes the memory that the step lacks. Only an argument that moved is looked at, and
  // only state on the device voids the graph.
  bool place(void* const* arguments) {
    must_wait_ = false;
    for (int i = 0; i < Slots; ++i) {
      if (arguments[i] != seen_[i] || !is_placed_[i]) {
        is_placed_[i] = false;
        cudaPointerAttributes found;
        if (!check("asking where an argument lies", cudaPointerGetAttributes(&found, arguments[i]))) return false;
        is_host_[i] = found.type != cudaMemoryTypeDevice && found.type != cudaMemoryTypeManaged;
        is_staged_[i] = is_host_[i] || !slots_[i].is_state;
      }
      must_wait_ = must_wait_ || (is_host_[i] && slots_[i].is_written);
    }
    void* arena = arena_;
    if (!arena && arena_bytes_ > 0 && !allocate(&arena, arena_bytes_, "the arena of the step")) return false;
    arena_ = static_cast<unsigned char*>(arena);
    for (int i = 0; i < Slots; ++i) {
      if (is_placed_[i]) continue;
      if (is_staged_[i] && !staging_[i] && !allocate(&staging_[i], slots_[i].bytes > 0 ? slots_[i].bytes : 1, slots_[i].name)) return false;
      void* const now = is_staged_[i] ? staging_[i] : arguments[i];
      if (now != at_[i] && !(forget(graph_) && forget(chunk_graph_))) return false;
      seen_[i] = arguments[i];
      at_[i] = now;
      is_placed_[i] = true;
    }
    return true;
  }

  bool is_batch(int slot) const {
    for (int i = 0; repeat_ && i < repeat_->batch_count; ++i)
      if (repeat_->batches[i].slot == slot) return true;
    return false;
  }
  bool is_stacked(int slot) const {
    for (int i = 0; repeat_ && i < repeat_->result_count; ++i)
      if (repeat_->results[i] == slot) return true;
    return false;
  }

  // Memory on the device that holds `bytes` of an argument, or will; the argument's own where it lies there.
  void* borrow(void* argument, bool is_host, long bytes, bool is_read, const char* what) {
    if (!is_host) return argument;
    void* memory = nullptr;
    if (!allocate(&memory, bytes > 0 ? bytes : 1, what)) return nullptr;
    borrowed_[borrowed_count_++] = memory;
    if (is_read && !check("copying a dataset to the device", cudaMemcpyAsync(memory, argument, size_t(bytes), cudaMemcpyDefault, stream_)))
      return nullptr;
    return memory;
  }

  bool prepare_loop(void* const* arguments) {
    const pg_loop& loop = *repeat_;
    void *state = loop_, *moves = moves_;
    if (!state && !allocate(&state, sizeof(loop_state), "the count of steps")) return false;
    loop_ = static_cast<loop_state*>(state);
    if (!moves && !allocate(&moves, long(sizeof(moved)) * (Slots + 1), "the places of batches")) return false;
    moves_ = static_cast<moved*>(moves);
    void* const order = borrow(const_cast<long*>(loop.order), true, loop.steps * loop.rows * long(sizeof(long)), true, "the order of rows");
    if (!order) return false;
    loop_state now = {0, loop.rows, static_cast<const long*>(order), loop.batch_count, loop.result_count};
    moved all[Slots + 1];
    int count = 0;
    for (int i = 0; i < loop.batch_count; ++i) {
      const int slot = loop.batches[i].slot;
      void* const data = borrow(arguments[slot], is_host_[slot], loop.dataset_bytes[i], true, slots_[slot].name);
      if (!data) return false;
      all[count++] = {static_cast<unsigned char*>(data), static_cast<unsigned char*>(at_[slot]), loop.batches[i].row_bytes};
    }
    for (int i = 0; i < loop.result_count; ++i) {
      const int slot = loop.results[i];
      void* const kept = borrow(arguments[slot], is_host_[slot], loop.steps * slots_[slot].bytes, false, slots_[slot].name);
      if (!kept) return false;
      all[count++] = {static_cast<unsigned char*>(kept), static_cast<unsigned char*>(at_[slot]), slots_[slot].bytes};
    }
    return check("telling the device of the steps", cudaMemcpyAsync(loop_, &now, sizeof now, cudaMemcpyDefault, stream_)) &&
           check("telling the device of the steps", cudaMemcpyAsync(moves_, all, sizeof(moved) * size_t(count), cudaMemcpyDefault, stream_)) &&
           check("telling the device of the steps", cudaStreamSynchronize(stream_));  // they are this function's own
  }

  // One step of many: its batch, its phases, its results.
  bool enqueue_one() {
    const unsigned blocks = unsigned(repeat_->rows / (PG_BLOCK / 32) + 1);
    if (repeat_->batch_count > 0 &&
        !check("launching the batch", pg_launch(launch_take_batch<loop_state>, dim3(blocks < 1024 ? blocks : 1024), dim3(PG_BLOCK), 0, stream_, loop_, moves_)))
      return false;
    enqueue_(*this, pointers_now());
    phase_ = -1;
    return failure_->code == 0 && check("launching the results", pg_launch(launch_keep_results<loop_state>, dim3(1), dim3(PG_BLOCK), 0, stream_, loop_, moves_));
  }

  // As one graph, or as few as hold so many nodes.
  bool launch_loop() {
    int nodes = Form == launch_form::cooperative ? 3 : 2;
    for (int phase = 0; Form == launch_form::graph && *phase_names_[phase]; ++phase) ++nodes;
    const long steps = repeat_->steps, chunk = at_most(steps, nodes < most_nodes ? most_nodes / nodes : 1);
    if (chunk != chunk_ && !forget(chunk_graph_)) return false;
    if (!chunk_graph_) {
      const auto enqueue = [&] {
        for (long i = 0; i < chunk; ++i)
          if (!enqueue_one()) return;
      };
      if (!capture(chunk_graph_, enqueue)) return false;
      chunk_ = chunk;
    }
    long done = 0;
    for (; done + chunk <= steps; done += chunk)
      if (!check("launching the steps", cudaGraphLaunch(chunk_graph_, stream_))) return false;
    for (; done < steps; ++done)
      if (!enqueue_one()) return false;
    return true;
  }

  bool copy_results(void* const* arguments) {
    int borrowed = 1;  // after the order, as `prepare_loop` has borrowed them
    for (int i = 0; i < repeat_->batch_count; ++i) borrowed += is_host_[repeat_->batches[i].slot];
    for (int i = 0; i < repeat_->result_count; ++i) {
      const int slot = repeat_->results[i];
      if (!is_host_[slot] || !slots_[slot].bytes) continue;
      const size_t bytes = size_t(repeat_->steps * slots_[slot].bytes);
      const cudaError_t status = cudaMemcpyAsync(arguments[slot], borrowed_[borrowed], bytes, cudaMemcpyDefault, stream_);
      if (!check("copying results from the device", status)) return false;
      ++borrowed;
    }
    return true;
  }

  bool copy_in(void* const* arguments) {
    for (int i = 0; i < Slots; ++i) {
      if (is_batch(i) || !is_staged_[i] || !slots_[i].is_read || !slots_[i].bytes) continue;
      const cudaError_t status = cudaMemcpyAsync(at_[i], arguments[i], size_t(slots_[i].bytes), cudaMemcpyDefault, stream_);
      if (!check("copying an argument to the device", status)) return false;
    }
    return true;
  }

  bool copy_out(void* const* arguments) {
    for (int i = 0; i < Slots; ++i) {
      if (is_stacked(i) || !is_staged_[i] || !slots_[i].is_written || !slots_[i].bytes) continue;
      const cudaError_t status = cudaMemcpyAsync(arguments[i], at_[i], size_t(slots_[i].bytes), cudaMemcpyDefault, stream_);
      if (!check("copying a result from the device", status)) return false;
    }
    if (!can_fail_) return true;
    const cudaError_t status = cudaMemcpyAsync(report_, device_failure_, sizeof(pg_failure), cudaMemcpyDeviceToHost, stream_);
    return check("copying the report from the device", status);
  }

  bool forget(cudaGraphExec_t& graph) {
    if (!graph) return true;
    cudaGraphExec_t old = graph;
    graph = nullptr;
    return check("dropping a graph", cudaGraphExecDestroy(old));
  }

  bool launch() {
    if constexpr (Form == launch_form::cooperative) {
      enqueue_(*this, pointers_now());
      phase_ = -1;
      return failure_->code == 0;
    } else {
      if (!graph_ && !capture(graph_, [&] { enqueue_(*this, pointers_now()); })) return false;
      return check("launching the step", cudaGraphLaunch(graph_, stream_));
    }
  }

  pointers pointers_now() const {
    pointers now;
    memcpy(now.slots, at_, sizeof now.slots);
    now.arena = arena_;
    return now;
  }

  template <class Enqueue> bool capture(cudaGraphExec_t& made, const Enqueue& enqueue) {
    if (!check("capturing the step", cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal))) return false;
    enqueue();
    phase_ = -1;
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    bool is_made = failure_->code == 0;  // else a phase was refused, and said why
    is_made = is_made && check("capturing the step", ended) &&
              check("instantiating the step's graph", cudaGraphInstantiate(&made, graph, 0));
    if (graph) cudaGraphDestroy(graph);
    return is_made;
  }
};

}  // namespace pg
