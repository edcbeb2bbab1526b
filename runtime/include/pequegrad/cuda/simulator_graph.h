// The runtime API: stream capture and graphs; the reset of the device.
#pragma once
#include "simulator_runtime.h"

#pragma GCC visibility push(hidden)
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (pg_sim::scheduler.sticky != cudaSuccess) return pg_sim::answer(pg_sim::scheduler.sticky);
  if (!pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  if (!stream) return pg_sim::answer(cudaErrorStreamCaptureUnsupported);
  if (stream->capture) return pg_sim::answer(cudaErrorInvalidValue);
  stream->capture =
      new pg_sim::Capture{++pg_sim::scheduler.captured, mode, std::this_thread::get_id(), stream, true, {}};
  stream->after.clear();
  pg_sim::scheduler.captures.push_back(stream->capture);
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  const pg_sim::Capture* capture = pg_sim::resolve(stream)->capture;
  *status = !capture         ? cudaStreamCaptureStatusNone
            : capture->valid ? cudaStreamCaptureStatusActive
                             : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!pg_sim::known(stream)) return pg_sim::answer(cudaErrorInvalidResourceHandle);
  *graph = nullptr;
  pg_sim::Capture* capture = stream ? stream->capture : nullptr;
  if (!capture) return pg_sim::answer(cudaErrorInvalidValue);
  if (capture->origin != stream) return pg_sim::answer(cudaErrorStreamCaptureUnmatched);
  if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != std::this_thread::get_id())
    return pg_sim::answer(cudaErrorStreamCaptureWrongThread);
  // What the origin's last nodes follow, directly or not; everything else was never joined.
  std::vector<bool> joined(capture->graph.nodes.size());
  for (int last : stream->after) joined[static_cast<std::size_t>(last)] = true;
  for (std::size_t i = capture->graph.nodes.size(); i-- > 0;)
    if (joined[i])
      for (int before : capture->graph.nodes[i].after) joined[static_cast<std::size_t>(before)] = true;
  cudaError_t error = capture->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
  if (error == cudaSuccess && std::find(joined.begin(), joined.end(), false) != joined.end())
    error = cudaErrorStreamCaptureUnjoined;
  if (error == cudaSuccess) *graph = new pg_sim_graph(std::move(capture->graph));
  for (cudaStream_t s : pg_sim::scheduler.streams)
    if (s->capture == capture) {
      s->capture = nullptr;
      s->after.clear();
    }
  auto& captures = pg_sim::scheduler.captures;
  captures.erase(std::find(captures.begin(), captures.end(), capture));
  delete capture;
  return pg_sim::answer(error);
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (nodes)
    for (std::size_t i = 0; i < std::min(*count, graph->nodes.size()); ++i) nodes[i] = &graph->nodes[i];
  *count = graph->nodes.size();
  return cudaSuccess;
}
inline cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->kind == pg_sim_kind::kernel   ? cudaGraphNodeTypeKernel
          : node->kind == pg_sim_kind::copy   ? cudaGraphNodeTypeMemcpy
          : node->kind == pg_sim_kind::memset ? cudaGraphNodeTypeMemset
                                              : cudaGraphNodeTypeHost;
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long = 0) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!executable || !graph) return pg_sim::answer(cudaErrorInvalidValue);
  *executable = new pg_sim_graph_exec{*graph};
  return pg_sim::answer(pg_sim::scheduler.sticky);
}
inline cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t graph,
                                       cudaGraphExecUpdateResultInfo* info) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  *info = {cudaGraphExecUpdateSuccess, nullptr, nullptr};
  const auto& old = executable->graph.nodes;
  if (old.size() != graph->nodes.size()) info->result = cudaGraphExecUpdateErrorTopologyChanged;
  for (std::size_t i = 0; i < old.size() && info->result == cudaGraphExecUpdateSuccess; ++i) {
    const pg_sim_operation& node = graph->nodes[i];
    if (old[i].after != node.after) info->result = cudaGraphExecUpdateErrorTopologyChanged;
    else if (old[i].kind != node.kind) info->result = cudaGraphExecUpdateErrorNodeTypeChanged;
    else if (old[i].function != node.function) info->result = cudaGraphExecUpdateErrorFunctionChanged;
  }
  if (info->result != cudaGraphExecUpdateSuccess) return pg_sim::answer(cudaErrorGraphExecUpdateFailure);
  executable->graph = *graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  if (!executable) return pg_sim::answer(cudaErrorInvalidValue);
  pg_sim_operation operation;
  operation.kind = pg_sim_kind::graph;
  auto graph = std::make_shared<pg_sim_graph>(executable->graph);  // an update does not reach launches in flight
  operation.run = [graph] { return pg_sim::run_graph(*graph); };
  pg_sim::count(PG_SIM_GRAPH_LAUNCHES);
  return pg_sim::answer(pg_sim::enqueue(stream, std::move(operation)));
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

// Frees everything and forgets errors.
inline cudaError_t cudaDeviceReset() {
  const pg_sim::Lock lock(pg_sim::machine.lock);
  for (cudaStream_t stream : pg_sim::scheduler.streams) stream->queue.clear();
  pg_sim::scheduler.sticky = pg_sim::last_error = cudaSuccess;
  while (!pg_sim::machine.device.entries().empty()) cudaFree(pg_sim::machine.device.entries().back().data);
  while (!pg_sim::machine.pinned.entries().empty()) cudaFreeHost(pg_sim::machine.pinned.entries().back().data);
  return cudaSuccess;
}
#pragma GCC visibility pop
