// The clock of a step that is profiled; included by no other.
//
// Invariant: no standard header, as for all that a step includes.
#pragma once

struct timespec;
extern "C" int clock_gettime(int clock, timespec* time) noexcept;

namespace pg {

#if defined(__APPLE__)
constexpr int monotonic_clock = 6;
#else
constexpr int monotonic_clock = 1;
#endif

// Nanoseconds since some moment.
inline long now() {
  long time[2] = {0, 0};  // a timespec: seconds, nanoseconds
  clock_gettime(monotonic_clock, reinterpret_cast<timespec*>(time));
  return time[0] * 1000000000 + time[1];
}

// Adds the time since `lap` to `spent`, and begins the next lap.
inline void add_lap(long& spent, long& lap) {
  const long at = now();
  spent += at - lap;
  lap = at;
}

}  // namespace pg
