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
// simulator_stream.h    streams, events, graphs
// simulator_runtime.h   the rest of the runtime API
#pragma once
#include "simulator_runtime.h"
