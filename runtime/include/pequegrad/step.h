// All that a generated step includes.
//
// Invariant: neither this header nor any that it includes pulls in a standard header: a step compiles in a tenth of a
// second plus its own kernels.
#pragma once
#include "conv.h"
#include "gemm.h"
#include "interface.h"
#include "math.h"
#include "philox.h"
#include "reduce.h"
#include "types.h"
#include "vec.h"
#include "window.h"
