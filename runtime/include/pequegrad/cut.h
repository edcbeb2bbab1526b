// How a range is cut into parts of even length. Plain C++ that host and device compilers read alike.
#pragma once
#include "element.h"

namespace pg {

// Where part i of `count` parts of n begins; all parts are within one of each other.
PG_INLINE long even_cut(long n, long count, long i) { return n / count * i + (i < n % count ? i : n % count); }

// Splits 0 … total into `workers` shares of whole grains, as even as they come; the last grain may be cut short.
PG_INLINE void share(long total, long grain, int worker, int workers, long& begin, long& end) {
  long grains = (total + grain - 1) / grain, base = grains / workers, extra = grains % workers;
  begin = (worker * base + (worker < extra ? worker : extra)) * grain;
  end = begin + (base + (worker < extra)) * grain;
  begin = begin < total ? begin : total;
  end = end < total ? end : total;
}

}  // namespace pg
