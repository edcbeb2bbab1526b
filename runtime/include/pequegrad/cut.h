// How a range is cut into parts of even length. Plain C++ that host and device compilers read alike.
#pragma once
#include "element.h"

namespace pg {

// Where part i of `count` parts of n begins; all parts are within one of each other.
PG_INLINE long even_cut(long n, long count, long i) { return n / count * i + (i < n % count ? i : n % count); }

}  // namespace pg
