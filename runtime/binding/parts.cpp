// The parts of a step that depend on no graph, compiled once for all steps of one compiler, processor and set of flags.
//
// Invariant: the flags are those of the steps that are linked with it; a step without it is the same, only slower to compile.
#include "pequegrad/attention.h"
#include "pequegrad/conv_winograd.h"
#include "pequegrad/window.h"

namespace pg {

PG_TRANSPOSE_PARTS(template)
PG_GEMM_PARTS(template)
PG_ATTENTION_PARTS(template)
PG_CONV_PARTS(template)
PG_CONV_VECTORS_PARTS(template)
PG_CONV_WINOGRAD_PARTS(template)
PG_WINDOW_PARTS(template)

}  // namespace pg
