// Sorting along the middle of (outer, extent, inner), in the memory of the results.
//
// Invariant: equal elements keep their order, since a place decides between them; NaN is greater than all else.
#pragma once
#include "phases.h"

namespace pg {

// Values and the places that they came from, `step` elements apart.
template <bool Descending, class T> struct sorted_column {
  T* values;
  i64* places;
  long step;

  // An element taken out of its column.
  struct element {
    T value;
    i64 place;
  };
  PG_INLINE element at(long i) const { return {values[i * step], places[i * step]}; }
  PG_INLINE void put(long i, const element& e) const {
    values[i * step] = e.value;
    places[i * step] = e.place;
  }
  PG_INLINE void exchange(long i, long j) const {
    const element first = at(i);
    put(i, at(j));
    put(j, first);
  }

  static PG_INLINE bool is_before(const element& a, const element& b) {
    const value_of<T> x = value_of<T>(a.value), y = value_of<T>(b.value);
    const bool is_less = x < y || (y != y && x == x), is_greater = y < x || (x != x && y == y);
    if (is_less || is_greater) return Descending ? is_greater : is_less;
    return a.place < b.place;
  }

  // A few elements: each goes down to where it belongs among those before it.
  void insert_all(long begin, long end) const {
    for (long i = begin + 1; i < end; ++i) {
      const element e = at(i);
      long to = i;
      for (; to > begin && is_before(e, at(to - 1)); --to) put(to, at(to - 1));
      put(to, e);
    }
  }

  // Heapsort, for what parts badly.
  void sift(long begin, long root, long count) const {
    const element e = at(begin + root);
    for (long child; (child = 2 * root + 1) < count; root = child) {
      if (child + 1 < count && is_before(at(begin + child), at(begin + child + 1))) ++child;
      if (!is_before(e, at(begin + child))) break;
      put(begin + root, at(begin + child));
    }
    put(begin + root, e);
  }
  void heap(long begin, long end) const {
    const long count = end - begin;
    for (long root = count / 2; root-- > 0;) sift(begin, root, count);
    for (long last = count; --last > 0;) {
      exchange(begin, begin + last);
      sift(begin, 0, last);
    }
  }

  // Quicksort about the median of three; `depth` partings may be bad ones.
  void sort(long begin, long end, int depth) const {
    while (end - begin > 24) {
      if (depth-- == 0) return heap(begin, end);
      const long middle = begin + (end - begin) / 2, last = end - 1;
      if (is_before(at(middle), at(begin))) exchange(middle, begin);
      if (is_before(at(last), at(begin))) exchange(last, begin);
      if (is_before(at(last), at(middle))) exchange(last, middle);
      const element pivot = at(middle);
      long low = begin, high = last;
      for (;;) {
        while (is_before(at(++low), pivot)) {}
        while (is_before(pivot, at(--high))) {}
        if (low >= high) break;
        exchange(low, high);
      }
      // The smaller side by recursion, the larger one by going on.
      if (low - begin < end - low) {
        sort(begin, low, depth);
        begin = low;
      } else {
        sort(low, end, depth);
        end = low;
      }
    }
    insert_all(begin, end);
  }
};

// values[o][·][r] = source[o][·][r] in order, and places[o][·][r] where in the source each lies.
template <bool Descending, class T>
void sort_columns(const step_context& step, long outer, long extent, long inner, const T* source, T* values, i64* places, int worker) {
  long begin, end;
  share(outer * inner, 1, worker, step.workers, begin, end);
  for (long unit = begin; unit < end; ++unit) {
    const long at = unit / inner * extent * inner + unit % inner;
    const sorted_column<Descending, T> column = {values + at, places + at, inner};
    int depth = 4;
    for (long n = extent; n > 1; n /= 2) depth += 2;
    for (long e = 0; e < extent; ++e) column.put(e, {source[at + e * inner], e});
    column.sort(0, extent, depth);
  }
}

}  // namespace pg
