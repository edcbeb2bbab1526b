// The runtime API as a step's host side uses it. Each function notes the answers it got, as names.
#include <pequegrad/cuda/platform.h>
#if defined(__CUDACC__)
#define EXPORT extern "C"
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

static int* codes;
static int noted;
static cudaError_t note(cudaError_t error) {
  codes[noted++] = error;
  return error;
}
EXPORT const char* error_name(int code) { return cudaGetErrorName(static_cast<cudaError_t>(code)); }
EXPORT const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
#define SCENARIO(name)                         \
  static void name(float* out);                \
  EXPORT int run_##name(int* to, float* out) { \
    codes = to;                                \
    noted = 0;                                 \
    name(out);                                 \
    return noted;                              \
  }                                            \
  static void name(float* out)

static __global__ void add(float* p, float v) { p[threadIdx.x] += v; }
static __global__ void times(float* p, float v) { p[threadIdx.x] *= v; }
static __global__ void trap(float*) { __trap(); }

SCENARIO(memory) {
  float *a = nullptr, *b = nullptr;
  size_t available = 0, total = 0;
  note(cudaMalloc(&a, 1 << 20));
  note(cudaMemGetInfo(&available, &total));
  out[0] = (float)(total - available);
  note(cudaMalloc(&b, total));  // more than is left
  note(cudaPeekAtLastError());
  note(cudaGetLastError());
  note(cudaGetLastError());
  note(cudaMemcpy(a, out, (1 << 20) + 4, cudaMemcpyHostToDevice));  // one element too many
  note(cudaMemcpy(out, a, 4, cudaMemcpyHostToDevice));              // the wrong way
  note(cudaMemset(out, 0, 4));                                      // host memory
  note(cudaFree(a + 1));
  note(cudaFree(a));
  note(cudaFree(a));
  note(cudaFree(nullptr));
  note(cudaMalloc(&a, 0));
  cudaGetLastError();
}

// A copy from pageable memory has read it when the call returns, one from pinned memory has not.
SCENARIO(copies) {
  float *device = nullptr, *pinned = nullptr, pageable = 1.0f;
  cudaStream_t stream;
  note(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  note(cudaMalloc(&device, 8));
  note(cudaMallocHost(&pinned, 8));
  *pinned = 1.0f;
  note(cudaMemcpyAsync(device, &pageable, 4, cudaMemcpyHostToDevice, stream));
  note(cudaMemcpyAsync(device + 1, pinned, 4, cudaMemcpyHostToDevice, stream));
  pageable = *pinned = 2.0f;
  note(cudaStreamSynchronize(stream));
  note(cudaMemcpy(out, device, 8, cudaMemcpyDeviceToHost));
  pinned[0] = pinned[1] = -1.0f;
  note(cudaMemcpyAsync(pinned, device, 8, cudaMemcpyDefault, stream));
  out[2] = pinned[0];  // too early: the stream was not waited for
  note(cudaStreamQuery(stream));
  note(cudaStreamQuery(stream));
  out[3] = pinned[0];
  cudaFree(device);
  cudaFreeHost(pinned);
  cudaStreamDestroy(stream);
}

// Two streams, ordered by an event; without it any order may be seen.
static void two_streams(float* out, bool ordered) {
  float* p = nullptr;
  cudaStream_t first, second;
  cudaEvent_t event, end;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreate(&event);
  cudaEventCreate(&end);
  cudaMalloc(&p, 4);
  cudaMemset(p, 0, 4);
  cudaDeviceSynchronize();
  note(pg_launch(add, 1, 1, 0, first, p, 3.0f));
  note(cudaEventRecord(event, first));
  if (ordered) note(cudaStreamWaitEvent(second, event, 0));
  note(pg_launch(times, 1, 1, 0, second, p, 5.0f));
  note(cudaEventRecord(end, second));
  note(cudaEventSynchronize(end));
  note(cudaDeviceSynchronize());
  float elapsed = -1.0f;
  note(cudaEventElapsedTime(&elapsed, event, end));
  cudaMemcpy(out, p, 4, cudaMemcpyDeviceToHost);
  cudaFree(p);
  cudaEventDestroy(event);
  cudaEventDestroy(end);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
}
SCENARIO(ordered_streams) { two_streams(out, true); }
SCENARIO(unordered_streams) { two_streams(out, false); }

// The legacy default stream waits for the others that block, and they for it.
SCENARIO(legacy_stream) {
  float* p = nullptr;
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  cudaMalloc(&p, 4);
  note(cudaMemset(p, 0, 4));
  note(pg_launch(add, 1, 1, 0, stream, p, 2.0f));
  note(pg_launch(times, 1, 1, 0, 0, p, 3.0f));
  note(pg_launch(add, 1, 1, 0, stream, p, 1.0f));
  note(cudaMemcpy(out, p, 4, cudaMemcpyDeviceToHost));
  cudaFree(p);
  cudaStreamDestroy(stream);
}

// A graph: memset, copy, two kernels on a forked stream and back; replayed, updated, replayed.
static cudaGraph_t capture(cudaStream_t stream, cudaStream_t side, float* p, float* pinned, float v) {
  cudaGraph_t graph = nullptr;
  cudaEvent_t fork, join;
  cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
  note(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  note(cudaMemsetAsync(p + 1, 0, 4, stream));
  note(cudaMemcpyAsync(p, pinned, 4, cudaMemcpyHostToDevice, stream));
  note(cudaEventRecord(fork, stream));
  note(cudaStreamWaitEvent(side, fork, 0));
  note(pg_launch(add, 1, 1, 0, side, p, v));
  note(pg_launch(add, 1, 1, 0, stream, p + 1, 7.0f));
  note(cudaEventRecord(join, side));
  note(cudaStreamWaitEvent(stream, join, 0));
  note(pg_launch(times, 1, 2, 0, stream, p, 2.0f));
  note(cudaStreamEndCapture(stream, &graph));
  cudaEventDestroy(fork);
  cudaEventDestroy(join);
  return graph;
}
SCENARIO(graph) {
  float *p = nullptr, *pinned = nullptr;
  cudaStream_t stream, side;
  cudaGraphExec_t executable = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaMalloc(&p, 8);
  cudaMallocHost(&pinned, 4);
  *pinned = 1.0f;
  cudaGraph_t graph = capture(stream, side, p, pinned, 10.0f);
  size_t nodes = 0;
  note(cudaGraphGetNodes(graph, nullptr, &nodes));
  out[0] = (float)nodes;
  note(cudaGraphInstantiate(&executable, graph, 0));
  note(cudaGraphLaunch(executable, stream));
  note(cudaStreamSynchronize(stream));
  note(cudaMemcpy(out + 1, p, 8, cudaMemcpyDeviceToHost));
  cudaGraphDestroy(graph);
  graph = capture(stream, side, p, pinned, 20.0f);
  cudaGraphExecUpdateResultInfo info;
  note(cudaGraphExecUpdate(executable, graph, &info));
  *pinned = 2.0f;
  note(cudaGraphLaunch(executable, stream));
  note(cudaStreamSynchronize(stream));
  note(cudaMemcpy(out + 3, p, 8, cudaMemcpyDeviceToHost));
  cudaGraphDestroy(graph);
  // Another graph does not fit.
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  cudaMemsetAsync(p, 0, 4, stream);
  cudaStreamEndCapture(stream, &graph);
  note(cudaGraphExecUpdate(executable, graph, &info));
  out[5] = (float)info.result;
  cudaGetLastError();
  cudaGraphDestroy(graph);
  cudaGraphExecDestroy(executable);
  cudaFree(p);
  cudaFreeHost(pinned);
  cudaStreamDestroy(stream);
  cudaStreamDestroy(side);
}

// What a capture forbids: each call breaks it, and its end says so.
SCENARIO(forbidden) {
  float *p = nullptr, *q = nullptr;
  cudaStream_t stream, side;
  cudaGraph_t graph = nullptr;
  cudaEvent_t event;
  cudaStreamCreate(&stream);
  cudaStreamCreate(&side);
  cudaEventCreate(&event);
  cudaMalloc(&p, 4);
  for (int which = 0; which < 4; ++which) {
    note(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (which == 0) note(cudaMalloc(&q, 4));
    if (which == 1) note(cudaStreamSynchronize(stream));
    if (which == 2) note(cudaMemcpy(out, p, 4, cudaMemcpyDeviceToHost));
    if (which == 3) note(cudaDeviceSynchronize());
    note(cudaMemsetAsync(p, 0, 4, stream));
    note(cudaStreamEndCapture(stream, &graph));
  }
  note(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal));
  note(cudaStreamEndCapture(stream, &graph));
  // A forked stream that is not joined.
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  cudaEventRecord(event, stream);
  cudaStreamWaitEvent(side, event, 0);
  cudaMemsetAsync(p, 0, 4, side);
  note(cudaStreamEndCapture(stream, &graph));
  // A relaxed capture lets others allocate.
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
  note(cudaMalloc(&q, 4));
  note(cudaStreamEndCapture(stream, &graph));
  cudaGraphDestroy(graph);
  cudaGetLastError();
  cudaFree(p);
  cudaFree(q);
  cudaEventDestroy(event);
  cudaStreamDestroy(stream);
  cudaStreamDestroy(side);
}

// After a broken rule everything fails until the device is reset.
SCENARIO(sticky) {
  float* p = nullptr;
  cudaMalloc(&p, 4);
  note(pg_launch(trap, 1, 1, 0, 0, p));
  note(cudaDeviceSynchronize());
  note(cudaGetLastError());
  note(cudaGetLastError());
  note(cudaMemset(p, 0, 4));
  note(cudaMalloc(&p, 4));
  note(cudaDeviceReset());
  note(cudaMalloc(&p, 4));
  note(pg_launch(add, 1, 1, 0, 0, p, 1.0f));
  note(cudaDeviceSynchronize());
  note(cudaFree(p));
  out[0] = 0.0f;
}

SCENARIO(device) {
  int value = 0;
  note(cudaGetDeviceCount(&value));
  out[0] = (float)value;
  note(cudaSetDevice(0));
  note(cudaSetDevice(1));
  cudaGetLastError();
  note(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
  out[1] = (float)value;
  note(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  out[2] = (float)value;
  note(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, add, 256, 0));
  out[3] = (float)value;
  note(cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024));
}

// Launches from threads that Python owns.
EXPORT int run_many(float* out, int launches) {
  float* p = nullptr;
  cudaStream_t stream;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (cudaMalloc(&p, 32 * 4) != cudaSuccess) return -1;
  cudaMemsetAsync(p, 0, 32 * 4, stream);
  for (int i = 0; i < launches; ++i) pg_launch(add, 1, 32, 0, stream, p, 1.0f);
  const int status = cudaMemcpyAsync(out, p, 32 * 4, cudaMemcpyDeviceToHost, stream);
  cudaStreamSynchronize(stream);
  cudaFree(p);
  cudaStreamDestroy(stream);
  return status;
}
