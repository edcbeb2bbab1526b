// The runtime API: devices, memory, copies, streams, events.
#pragma once
#include "simulator_stream.h"
#include "simulator_tensor.h"

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, warpSize;
  std::size_t totalGlobalMem, sharedMemPerBlockOptin;
};

#pragma GCC visibility push(hidden)
namespace pg_sim {

inline bool is_pinned(const void* pointer, std::size_t bytes) {
  const Allocation* a = machine.pinned.find(pointer);
  return a && a->contains(pointer, bytes);
}
inline bool is_device(const void* pointer, std::size_t bytes) {
  const Allocation* a = machine.device.find(pointer);
  return a && a->contains(pointer, bytes);
}

inline cudaError_t resolve_direction(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind& kind) {
  const bool to_device = machine.device.find(to), from_device = machine.device.find(from);
  if (kind == cudaMemcpyDefault) kind = static_cast<cudaMemcpyKind>((from_device ? 2 : 0) + (to_device ? 1 : 0));
  if (kind < 0 || kind > 3) return cudaErrorInvalidMemcpyDirection;
  if (bytes == 0) return cudaSuccess;
  if (((kind & 1) != 0) != to_device || ((kind & 2) != 0) != from_device) return cudaErrorInvalidValue;
  if ((to_device && !is_device(to, bytes)) || (from_device && !is_device(from, bytes))) return cudaErrorInvalidValue;
  return cudaSuccess;
}
inline void count_copy(cudaMemcpyKind kind, std::size_t bytes) {
  const pg_sim_statistic first = kind == cudaMemcpyHostToDevice   ? PG_SIM_COPIES_TO_DEVICE
                                 : kind == cudaMemcpyDeviceToHost ? PG_SIM_COPIES_TO_HOST
                                                                  : PG_SIM_COPIES_ON_DEVICE;
  count(first);
  count(static_cast<pg_sim_statistic>(first + 1), static_cast<long>(bytes));
}

inline cudaError_t allocate(void** pointer, std::size_t bytes, AllocationTable& table) {
  const Lock lock(machine.lock);
  const Quiet quiet;
  if (!pointer) return answer(cudaErrorInvalidValue);
  if (const cudaError_t error = forbidden_by_capture()) return answer(error);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const bool on_device = &table == &machine.device;
  const std::size_t used = static_cast<std::size_t>(machine.statistics[PG_SIM_ALLOCATED]);
  if (on_device && bytes > machine.memory_bytes - std::min(used, machine.memory_bytes))
    return answer(cudaErrorMemoryAllocation);
  const Allocation a = allocate_guarded(bytes, global_zone);
  if (!a.data) return answer(cudaErrorMemoryAllocation);
  table.insert(a);
  std::fill(std::begin(machine.recent), std::end(machine.recent), nullptr);
  if (on_device) {
    count(PG_SIM_ALLOCATED, static_cast<long>(bytes));
    machine.statistics[PG_SIM_PEAK_ALLOCATED] =
        std::max(machine.statistics[PG_SIM_PEAK_ALLOCATED], machine.statistics[PG_SIM_ALLOCATED]);
  }
  *pointer = a.data;
  return cudaSuccess;
}

// Waits for the device first, as CUDA does. After a kernel broke a rule it still frees, and answers with the error. A
// guard zone that the host changed shows here.
inline cudaError_t release_memory(void* pointer, AllocationTable& table) {
  const Lock lock(machine.lock);
  const Quiet quiet;
  if (!pointer) return cudaSuccess;
  if (const cudaError_t error = forbidden_by_capture(); error && error != scheduler.sticky) return answer(error);
  const Allocation* found = table.find(pointer);
  if (!found || found->data != pointer) return answer(cudaErrorInvalidValue);
  run_all();
  Allocation a = *found;
  const long offset = overwritten(a);
  if (&table == &machine.device) count(PG_SIM_ALLOCATED, -static_cast<long>(a.bytes));
  table.erase(pointer);
  std::fill(std::begin(machine.recent), std::end(machine.recent), nullptr);
  free_guarded(a);
  if (offset) {
    machine.report[0] = 0;
    report("free: out of bounds of memory of %zu bytes was written, at byte %ld", a.bytes, offset);
    scheduler.sticky = cudaErrorLaunchFailure;
  }
  return answer(scheduler.sticky);
}

inline cudaError_t wait_for(cudaStream_t stream) {
  const Lock lock(machine.lock);
  stream = resolve(stream);
  if (!known(stream)) return answer(cudaErrorInvalidResourceHandle);
  if (stream->capture) {
    stream->capture->valid = false;
    return answer(cudaErrorStreamCaptureUnsupported);
  }
  count(PG_SIM_SYNCHRONIZATIONS);
  run_stream(stream);
  return answer(scheduler.sticky);
}

}  // namespace pg_sim

// Errors.
inline cudaError_t cudaPeekAtLastError() { return pg_sim::last_error; }
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = pg_sim::last_error;
  pg_sim::last_error = pg_sim::scheduler.sticky;
  return error;
}

// Devices.
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return pg_sim::answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return pg_sim::answer(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; return cudaSuccess;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(pg_sim::static_shared_limit); return cudaSuccess;
    case cudaDevAttrWarpSize: *value = 32; return cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = static_cast<int>(pg_sim::multiprocessors); return cudaSuccess;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = static_cast<int>(pg_sim::threads_per_multiprocessor);
      return cudaSuccess;
    case cudaDevAttrUnifiedAddressing: *value = 1; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(pg_sim::shared_limit) + 1024;
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch: *value = 1; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(pg_sim::shared_limit); return cudaSuccess;
  }
  return pg_sim::answer(cudaErrorInvalidValue);
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return pg_sim::answer(cudaErrorInvalidDevice);
  *properties = {
      "pequegrad simulator", 9, 0, static_cast<int>(pg_sim::multiprocessors), 32, pg_sim::machine.memory_bytes,
      pg_sim::shared_limit};
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (const cudaError_t error = pg_sim::forbidden_by_capture()) return pg_sim::answer(error);
  pg_sim::count(PG_SIM_SYNCHRONIZATIONS);
  pg_sim::run_all();
  return pg_sim::answer(pg_sim::scheduler.sticky);
}
template <class T> cudaError_t cudaFuncSetAttribute(T*, cudaFuncAttribute attribute, int value) {
  const bool fits = attribute != cudaFuncAttributeMaxDynamicSharedMemorySize ||
                    (value >= 0 && static_cast<std::size_t>(value) <= pg_sim::shared_limit);
  return pg_sim::answer(fits ? cudaSuccess : cudaErrorInvalidValue);
}
template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T, int threads, std::size_t shared) {
  if (threads < 1 || threads > 1024) return pg_sim::answer(cudaErrorInvalidValue);
  *blocks = static_cast<int>(
      shared > pg_sim::shared_limit ? 0 : pg_sim::resident_blocks(static_cast<unsigned>(threads), shared));
  return cudaSuccess;
}

// Memory.
template <class T> cudaError_t cudaMalloc(T** pointer, std::size_t bytes) {
  return pg_sim::allocate(reinterpret_cast<void**>(pointer), bytes, pg_sim::machine.device);
}
template <class T> cudaError_t cudaMallocHost(T** pointer, std::size_t bytes, unsigned = cudaHostAllocDefault) {
  return pg_sim::allocate(reinterpret_cast<void**>(pointer), bytes, pg_sim::machine.pinned);
}
template <class T> cudaError_t cudaHostAlloc(T** pointer, std::size_t bytes, unsigned flags) {
  return cudaMallocHost(pointer, bytes, flags);
}
inline cudaError_t cudaFree(void* pointer) { return pg_sim::release_memory(pointer, pg_sim::machine.device); }
inline cudaError_t cudaFreeHost(void* pointer) { return pg_sim::release_memory(pointer, pg_sim::machine.pinned); }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  void* const p = const_cast<void*>(pointer);
  if (pg_sim::machine.device.find(pointer)) *found = {cudaMemoryTypeDevice, 0, p, nullptr};
  else if (pg_sim::machine.pinned.find(pointer)) *found = {cudaMemoryTypeHost, 0, p, p};
  else *found = {cudaMemoryTypeUnregistered, -1, nullptr, p};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  const std::size_t used = static_cast<std::size_t>(pg_sim::machine.statistics[PG_SIM_ALLOCATED]);
  *total = pg_sim::machine.memory_bytes;
  *available = *total - std::min(used, *total);
  return pg_sim::answer(pg_sim::scheduler.sticky);
}

// From pageable memory: read before the call returns; into it: the call returns when it is there. Pinned memory is read
// and written when the stream comes to it.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream = nullptr) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  const pg_sim::Quiet quiet;
  if (const cudaError_t error = pg_sim::resolve_direction(to, from, bytes, kind)) return pg_sim::answer(error);
  const bool capturing = pg_sim::known(stream) && pg_sim::resolve(stream)->capture;
  const bool early = kind == cudaMemcpyHostToDevice && !capturing && !pg_sim::is_pinned(from, bytes);
  std::shared_ptr<std::vector<char>> staged;
  if (early) {
    const char* source = static_cast<const char*>(from);
    staged = std::make_shared<std::vector<char>>(source, source + bytes);
  }
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::copy;
  operation.run = [=] {
    if (bytes) std::memmove(to, staged ? staged->data() : from, bytes);
    pg_sim::count_copy(kind, bytes);
    return true;
  };
  const cudaError_t error = pg_sim::enqueue(stream, std::move(operation));
  if (error == cudaSuccess && kind == cudaMemcpyDeviceToHost && !capturing && !pg_sim::is_pinned(to, bytes)) {
    pg_sim::run_stream(pg_sim::resolve(stream));
    return pg_sim::answer(pg_sim::scheduler.sticky);
  }
  return pg_sim::answer(error);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr)) return error;
  pg_sim::run_stream(&pg_sim::scheduler.legacy);
  return pg_sim::answer(pg_sim::scheduler.sticky);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream = nullptr) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (bytes && !pg_sim::is_device(to, bytes)) return pg_sim::answer(cudaErrorInvalidValue);
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::memset;
  operation.run = [=] {
    const pg_sim::Quiet quiet;
    if (bytes) std::memset(to, value, bytes);
    pg_sim::count(PG_SIM_MEMSETS);
    return true;
  };
  return pg_sim::answer(pg_sim::enqueue(stream, std::move(operation)));
}
inline cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

// Streams.
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (pg_sim::scheduler.sticky != cudaSuccess) return pg_sim::answer(pg_sim::scheduler.sticky);
  *stream = new pg_sim_stream;
  (*stream)->blocking = !(flags & cudaStreamNonBlocking);
  pg_sim::scheduler.streams.push_back(*stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!stream || !pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  pg_sim::run_stream(stream);
  auto& streams = pg_sim::scheduler.streams;
  streams.erase(std::find(streams.begin(), streams.end(), stream));
  delete stream;
  return pg_sim::answer(pg_sim::scheduler.sticky);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return pg_sim::wait_for(stream); }
// Not ready once, so that callers meet that answer; the work is then done.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  stream = pg_sim::resolve(stream);
  if (!pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (stream->capture) return pg_sim::answer(cudaErrorStreamCaptureUnsupported);
  const bool ready = stream->queue.empty();
  pg_sim::run_stream(stream);
  return pg_sim::answer(ready ? pg_sim::scheduler.sticky : cudaErrorNotReady);
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  pg_sim_operation operation;
  operation.run = [=] {
    function(argument);
    return true;
  };
  return pg_sim::answer(pg_sim::enqueue(stream, std::move(operation)));
}

// Events.
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  *event = new pg_sim_event;
  pg_sim::scheduler.events.push_back(*event);
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(event)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  auto& events = pg_sim::scheduler.events;
  events.erase(std::find(events.begin(), events.end(), event));
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(event) || !pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (const cudaStream_t s = pg_sim::resolve(stream); s->capture) {
    event->capture = s->capture->number;
    event->after = s->after;
    return cudaSuccess;
  }
  event->capture = 0;
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::record;
  operation.event = event;
  operation.number = ++event->recorded;
  return pg_sim::answer(pg_sim::enqueue(stream, std::move(operation)));
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = cudaEventWaitDefault) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(event) || !pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  const cudaStream_t s = pg_sim::resolve(stream);
  if (event->capture) {
    pg_sim::Capture* capture = nullptr;
    for (pg_sim::Capture* c : pg_sim::scheduler.captures)
      if (c->number == event->capture) capture = c;
    if (!capture || s == &pg_sim::scheduler.legacy) return pg_sim::answer(cudaErrorStreamCaptureIsolation);
    if (s->capture && s->capture != capture) return pg_sim::answer(cudaErrorStreamCaptureMerge);
    if (!s->capture) s->after.clear();
    s->capture = capture;
    s->after.insert(s->after.end(), event->after.begin(), event->after.end());
    return cudaSuccess;
  }
  if (s->capture) {
    s->capture->valid = false;
    return pg_sim::answer(cudaErrorStreamCaptureIsolation);
  }
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::wait;
  operation.event = event;
  operation.number = event->recorded;
  return pg_sim::answer(pg_sim::enqueue(stream, std::move(operation)));
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(event)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (event->capture) return pg_sim::answer(cudaErrorCapturedEvent);
  pg_sim::count(PG_SIM_SYNCHRONIZATIONS);
  pg_sim::run_until([event] { return event->done >= event->recorded; });
  return pg_sim::answer(pg_sim::scheduler.sticky);
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(event)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (event->capture) return pg_sim::answer(cudaErrorCapturedEvent);
  const bool ready = event->done >= event->recorded;
  pg_sim::run_until([event] { return event->done >= event->recorded; });
  return pg_sim::answer(ready ? pg_sim::scheduler.sticky : cudaErrorNotReady);
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t second) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(first) || !pg_sim::known(second) || !first->recorded || !second->recorded)
    return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (first->done < first->recorded || second->done < second->recorded) return pg_sim::answer(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(second->time - first->time).count();
  return cudaSuccess;
}
#pragma GCC visibility pop
