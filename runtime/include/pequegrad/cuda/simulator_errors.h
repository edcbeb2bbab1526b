// The runtime API's constants, with CUDA's own values.
#pragma once

#define PG_SIM_ERRORS(X)                                                                                             \
  X(Success, 0, "no error")                                                                                          \
  X(ErrorInvalidValue, 1, "invalid argument")                                                                        \
  X(ErrorMemoryAllocation, 2, "out of memory")                                                                       \
  X(ErrorInitializationError, 3, "initialization error")                                                             \
  X(ErrorInvalidConfiguration, 9, "invalid configuration argument")                                                  \
  X(ErrorInvalidDevicePointer, 17, "invalid device pointer")                                                         \
  X(ErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")                                            \
  X(ErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")                     \
  X(ErrorInvalidDeviceFunction, 98, "invalid device function")                                                       \
  X(ErrorNoDevice, 100, "no CUDA-capable device is detected")                                                        \
  X(ErrorInvalidDevice, 101, "invalid device ordinal")                                                               \
  X(ErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")                    \
  X(ErrorInvalidResourceHandle, 400, "invalid resource handle")                                                      \
  X(ErrorNotReady, 600, "device not ready")                                                                          \
  X(ErrorIllegalAddress, 700, "an illegal memory access was encountered")                                            \
  X(ErrorLaunchOutOfResources, 701, "too many resources requested for launch")                                       \
  X(ErrorHostMemoryNotRegistered, 713, "pointer does not correspond to a registered memory region")                  \
  X(ErrorMisalignedAddress, 716, "misaligned address")                                                               \
  X(ErrorLaunchFailure, 719, "unspecified launch failure")                                                           \
  X(ErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")                                    \
  X(ErrorNotSupported, 801, "operation not supported")                                                               \
  X(ErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")                          \
  X(ErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")                   \
  X(ErrorStreamCaptureMerge, 902, "operation would result in a merge of separate capture sequences")                 \
  X(ErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")                        \
  X(ErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                                           \
  X(ErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")                     \
  X(ErrorStreamCaptureImplicit, 906, "operation would make the legacy stream depend on a capturing blocking stream") \
  X(ErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream")              \
  X(ErrorStreamCaptureWrongThread, 908, "attempt to terminate a thread-local capture sequence from another thread")  \
  X(ErrorGraphExecUpdateFailure, 910,                                                                                \
    "the graph update was not performed because it included changes which violated "                                 \
    "constraints specific to instantiated graph update")                                                             \
  X(ErrorUnknown, 999, "unknown error")

enum cudaError {
#define PG_SIM_ERROR(name, value, text) cuda##name = value,
  PG_SIM_ERRORS(PG_SIM_ERROR)
#undef PG_SIM_ERROR
};
typedef cudaError cudaError_t;

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define PG_SIM_ERROR(name, value, text) \
  case cuda##name: return "cuda" #name;
    PG_SIM_ERRORS(PG_SIM_ERROR)
#undef PG_SIM_ERROR
  }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define PG_SIM_ERROR(name, value, text) \
  case cuda##name: return text;
    PG_SIM_ERRORS(PG_SIM_ERROR)
#undef PG_SIM_ERROR
  }
  return "unrecognized error code";
}

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2,
  cudaMemoryTypeManaged = 3
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
  void* devicePointer;
  void* hostPointer;
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};
enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};
enum cudaGraphExecUpdateResult {
  cudaGraphExecUpdateSuccess = 0,
  cudaGraphExecUpdateError = 1,
  cudaGraphExecUpdateErrorTopologyChanged = 2,
  cudaGraphExecUpdateErrorNodeTypeChanged = 3,
  cudaGraphExecUpdateErrorFunctionChanged = 4
};
enum cudaGraphNodeType {
  cudaGraphNodeTypeKernel = 0,
  cudaGraphNodeTypeMemcpy = 1,
  cudaGraphNodeTypeMemset = 2,
  cudaGraphNodeTypeHost = 3
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMaxRegistersPerBlock = 12,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrUnifiedAddressing = 41,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;
constexpr unsigned cudaEventRecordDefault = 0, cudaEventWaitDefault = 0;

typedef struct pg_sim_stream* cudaStream_t;
typedef struct pg_sim_event* cudaEvent_t;
typedef struct pg_sim_graph* cudaGraph_t;
typedef struct pg_sim_graph_exec* cudaGraphExec_t;
typedef struct pg_sim_operation* cudaGraphNode_t;
typedef void (*cudaHostFn_t)(void*);
struct cudaGraphExecUpdateResultInfo {
  cudaGraphExecUpdateResult result;
  cudaGraphNode_t errorNode, errorFromNode;
};
#define cudaStreamLegacy (static_cast<cudaStream_t>(nullptr))
#define CUDART_VERSION 13000
