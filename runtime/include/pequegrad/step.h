// All that a generated step includes, and the plain C interface that it offers.
//
// Invariant: neither this header nor any that it includes pulls in a standard header.
#pragma once
#include "conv.h"
#include "gemm.h"
#include "math.h"
#include "philox.h"
#include "reduce.h"
#include "vec.h"
#include "window.h"

extern "C" {

// A thread pool as a step sees it; pool.h makes one.
struct pg_pool {
  void* self;
  int (*size)(void* self);
  void (*run)(void* self, int workers, void (*task)(void* context, int worker), void* context);
  void (*barrier)(void* self, int worker, int workers);
};

// What went wrong in a step: code 0 nothing, 1 index out of range.
struct pg_failure {
  int code;
  int kernel;
  long value;
  long bound;
};

__attribute__((visibility("default"))) int pg_step_run(void* const* arguments, unsigned char* arena, const pg_pool* pool,
                                                      int workers, pg_failure* failure);
}
