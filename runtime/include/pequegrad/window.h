// Max and average pooling over the planes of an (…, H, W) array, and their gradients.
//
// Invariants: workers own whole planes and walk them in a fixed order; padding never wins a maximum and adds nothing;
// of equal values the first in row-major order wins, and of NaN, which beats all numbers, the last (as in torch). An index of type u8 is the
// tap within the window (kh * KW + kw), any wider one the flat position within the plane, h * W + w, as in torch.
// A place of a plane may hold `lanes` elements side by side, such as samples, each a plane of its own.
#pragma once
#include "cut.h"
#include "reduce.h"

namespace pg {

struct pool2d_shape {
  long planes, H, W, KH, KW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, OH, OW;
  long lanes = 1;
};

PG_INLINE bool is_halving(const pool2d_shape& s) {
  return s.KH == 2 && s.KW == 2 && s.stride_h == 2 && s.stride_w == 2 && s.pad_h == 0 && s.pad_w == 0 && s.dil_h == 1 &&
         s.dil_w == 1 && 2 * s.OH <= s.H && 2 * s.OW <= s.W;
}

// Whether neighbouring elements can be paired and parted within registers.
template <class T> constexpr bool pairs_in_registers =
#if PG_LANES > 1 && defined(PG_HAS_SHUFFLEVECTOR)
    sizeof(T) == 4;
#else
    false;
#endif

#if PG_LANES > 1 && defined(PG_HAS_SHUFFLEVECTOR)
template <class T> struct vector_pair {
  vec<T> first, second;
};

// Even and odd elements of 2 * lanes neighbours, of which `count` exist.
template <class T> PG_INLINE vector_pair<T> load_pairs(const T* p, long count) {
  vec<T> a = load_plain(p, count), b = load_plain(p + PG_LANES, count > PG_LANES ? count - PG_LANES : 0);
#define PG_EVEN(l) (2 * (l))
#define PG_ODD(l) (2 * (l) + 1)
  vector_pair<T> r;
  r.first.part[0] = __builtin_shufflevector(a.part[0], b.part[0], PG_LIST_FULL(PG_EVEN));
  r.second.part[0] = __builtin_shufflevector(a.part[0], b.part[0], PG_LIST_FULL(PG_ODD));
  return r;
}

template <class T> PG_INLINE void store_pairs(T* p, vec<T> even, vec<T> odd, long count) {
#define PG_WEAVE_LOW(l) ((l) % 2 * PG_LANES + (l) / 2)
#define PG_WEAVE_HIGH(l) ((l) % 2 * PG_LANES + PG_LANES / 2 + (l) / 2)
  vec<T> a, b;
  a.part[0] = __builtin_shufflevector(even.part[0], odd.part[0], PG_LIST_FULL(PG_WEAVE_LOW));
  b.part[0] = __builtin_shufflevector(even.part[0], odd.part[0], PG_LIST_FULL(PG_WEAVE_HIGH));
  store_plain(p, a, count);
  store_plain(p + PG_LANES, b, count > PG_LANES ? count - PG_LANES : 0);
}

template <class T, class Index> PG_NOINLINE void max_pool2d_halving_row(const T* x, long W, long row, long OW, T* y, Index* index) {
  for (long j = 0; j < OW; j += PG_LANES) {
    const long count = OW - j < PG_LANES ? OW - j : PG_LANES;
    vector_pair<T> top = load_pairs(x + 2 * j, 2 * count), low = load_pairs(x + W + 2 * j, 2 * count);
    vec<T> value = top.first;
    vec<i32> tap{};
    auto meet = [&](vec<T> next, i32 number) {
      vec<b8> better = gt(next, value) | ne(next, next);
      value = select(better, next, value);
      tap = select(better, number, tap);
    };
    meet(top.second, 1);
    meet(low.first, 2);
    meet(low.second, 3);
    store_plain(y + j, value, count);
    if (!index) continue;
    if constexpr (sizeof(Index) == 1) {
      store_plain(index + j, convert<u8>(tap), count);
    } else {
      vec<Index> column = iota<Index>(Index(row * W + 2 * j)) + iota<Index>(0);
      store_plain(index + j, column + convert<Index>((tap & 1) + (tap >> 1) * i32(W)), count);
    }
  }
}

template <class T, class Index>
PG_NOINLINE void max_pool2d_halving_row_grad(const T* dy, const Index* index, long W, long row, long OW, T* dx) {
  for (long j = 0; j < OW; j += PG_LANES) {
    const long count = OW - j < PG_LANES ? OW - j : PG_LANES;
    vec<T> g = load_plain(dy + j, count), none{};
    vec<i32> tap;
    if constexpr (sizeof(Index) == 1) {
      tap = convert<i32>(load_plain(index + j, count));
    } else {
      vec<Index> column = iota<Index>(Index(row * W + 2 * j)) + iota<Index>(0);
      vec<i32> distance = convert<i32>(load_plain(index + j, count) - column);
      tap = select(ge(distance, i32(W)), distance - i32(W) + 2, distance);
    }
    store_pairs(dx + 2 * j, select(eq(tap, 0), g, none), select(eq(tap, 1), g, none), 2 * count);
    store_pairs(dx + W + 2 * j, select(eq(tap, 2), g, none), select(eq(tap, 3), g, none), 2 * count);
  }
}
#endif

// ---- elements side by side --------------------------------------------------------------------------------------------

// Calls run(tap, h * W + w) for the taps of window (i, j) that lie in the plane, in order.
template <class F> PG_INLINE void pool2d_each_tap(const pool2d_shape& s, long i, long j, F run) {
  for (long kh = 0; kh < s.KH; ++kh) {
    const long h = i * s.stride_h - s.pad_h + kh * s.dil_h;
    if (h < 0 || h >= s.H) continue;
    for (long kw = 0; kw < s.KW; ++kw) {
      const long w = j * s.stride_w - s.pad_w + kw * s.dil_w;
      if (w >= 0 && w < s.W) run(kh * s.KW + kw, h * s.W + w);
    }
  }
}

// Calls run(plane, i, j, first lane, lanes of this vector) for every vector of the windows of a worker's planes.
template <class F> PG_INLINE void pool2d_each_vector(const pool2d_shape& s, int worker, int workers, F run) {
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane)
    for (long i = 0; i < s.OH; ++i)
      for (long j = 0; j < s.OW; ++j)
        for (long l = 0; l < s.lanes; l += PG_LANES) run(plane, i, j, l, s.lanes - l < PG_LANES ? s.lanes - l : long(PG_LANES));
}

// What an index says of a place: the tap, or the flat position.
template <class Index> PG_INLINE long pool2d_name(long tap, long at) { return sizeof(Index) == 1 ? tap : at; }
template <class Index, int BYTES = sizeof(Index)> struct pool2d_numbers {
  typedef Index type;
};
template <class Index> struct pool2d_numbers<Index, 1> {
  typedef i32 type;
};
template <class Index> using pool2d_number = typename pool2d_numbers<Index>::type;

// Calls run(first window, first of the four places, lanes of this vector) for every vector of a worker's halving windows.
template <class F> PG_INLINE void pool2d_each_halving_vector(const pool2d_shape& s, int worker, int workers, F run) {
  long begin, end;
  share(s.planes * s.OH, 1, worker, workers, begin, end);
  for (long row = begin; row < end; ++row) {
    const long at = (row / s.OH * s.H + row % s.OH * 2) * s.W * s.lanes, out = row * s.OW * s.lanes;
    for (long j = 0; j < s.OW; ++j)
      for (long l = 0; l < s.lanes; l += PG_LANES)
        run(out + j * s.lanes + l, at + 2 * j * s.lanes + l, s.lanes - l < PG_LANES ? s.lanes - l : long(PG_LANES));
  }
}

template <class T, class Index>
PG_NOINLINE void max_pool2d_halving_lanes(const pool2d_shape& s, const T* x, T* y, Index* index, int worker, int workers) {
  const long places[4] = {0, s.lanes, s.W * s.lanes, (s.W + 1) * s.lanes};
  pool2d_each_halving_vector(s, worker, workers, [&](long out, long at, long count) {
    vec<T> value = load_plain(x + at, count);
    vec<i32> tap{};
    PG_UNROLL for (int t = 1; t < 4; ++t) {
      const vec<T> next = load_plain(x + at + places[t], count);
      const vec<b8> better = gt(next, value) | ne(next, next);
      value = select(better, next, value);
      tap = select(better, i32(t), tap);
    }
    store_plain(y + out, value, count);
    store_plain(index + out, convert<Index>(tap), count);
  });
}

template <class T, class Index>
PG_NOINLINE void max_pool2d_halving_lanes_grad(const pool2d_shape& s, const T* dy, const Index* index, T* dx, int worker, int workers) {
  const long places[4] = {0, s.lanes, s.W * s.lanes, (s.W + 1) * s.lanes};
  pool2d_each_halving_vector(s, worker, workers, [&](long out, long at, long count) {
    const vec<T> g = load_plain(dy + out, count), none{};
    const vec<i32> tap = convert<i32>(load_plain(index + out, count));
    PG_UNROLL for (int t = 0; t < 4; ++t) store_plain(dx + at + places[t], select(eq(tap, i32(t)), g, none), count);
  });
  // What no window covers.
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane) {
    T* const to = dx + plane * s.H * s.W * s.lanes;
    for (long i = 0; 2 * s.OW < s.W && i < 2 * s.OH; ++i)
      __builtin_memset(to + (i * s.W + 2 * s.OW) * s.lanes, 0, (s.W - 2 * s.OW) * s.lanes * sizeof(T));
    __builtin_memset(to + 2 * s.OH * s.W * s.lanes, 0, (s.H - 2 * s.OH) * s.W * s.lanes * sizeof(T));
  }
}

template <class T, class Index>
PG_NOINLINE void max_pool2d_lanes(const pool2d_shape& s, const T* x, T* y, Index* index, int worker, int workers) {
  typedef pool2d_number<Index> number;
  pool2d_each_vector(s, worker, workers, [&](long plane, long i, long j, long l, long count) {
    const T* from = x + plane * s.H * s.W * s.lanes + l;
    vec<T> value = splat<T>(lowest_value<T>());
    vec<number> where = splat<number>(0);
    bool is_first = true;
    pool2d_each_tap(s, i, j, [&](long tap, long at) {
      const vec<T> next = load_plain(from + at * s.lanes, count);
      const number name = number(pool2d_name<Index>(tap, at));
      const vec<b8> better = gt(next, value) | ne(next, next);
      value = is_first ? next : select(better, next, value);
      where = is_first ? splat<number>(name) : select(better, name, where);
      is_first = false;
    });
    const long out = ((plane * s.OH + i) * s.OW + j) * s.lanes + l;
    store_plain(y + out, value, count);
    if (index) store_plain(index + out, convert<Index>(where), count);
  });
}

template <class T, class Index>
PG_NOINLINE void max_pool2d_grad_lanes(const pool2d_shape& s, const T* dy, const Index* index, T* dx, int worker, int workers) {
  typedef pool2d_number<Index> number;
  const long plane_size = s.H * s.W * s.lanes;
  // Where windows do not meet, each place has at most one, and need not be read.
  const bool is_apart = s.stride_h > s.dil_h * (s.KH - 1) && s.stride_w > s.dil_w * (s.KW - 1);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  if (!is_apart || s.OH * s.KH != s.H || s.OW * s.KW != s.W || s.pad_h > 0 || s.pad_w > 0)
    __builtin_memset(dx + begin * plane_size, 0, (end - begin) * plane_size * sizeof(T));
  pool2d_each_vector(s, worker, workers, [&](long plane, long i, long j, long l, long count) {
    const long out = ((plane * s.OH + i) * s.OW + j) * s.lanes + l;
    const vec<T> g = load_plain(dy + out, count), none{};
    const vec<number> where = convert<number>(load_plain(index + out, count));
    pool2d_each_tap(s, i, j, [&](long tap, long at) {
      T* to = dx + plane * plane_size + at * s.lanes + l;
      const vec<T> part = select(eq(where, number(pool2d_name<Index>(tap, at))), g, none);
      store_plain(to, is_apart ? part : load_plain(to, count) + part, count);
    });
  });
}

template <class T, class Index>
PG_NOINLINE void window_take_lanes(const pool2d_shape& s, const T* x, const Index* index, T* y, int worker, int workers) {
  typedef pool2d_number<Index> number;
  pool2d_each_vector(s, worker, workers, [&](long plane, long i, long j, long l, long count) {
    const long out = ((plane * s.OH + i) * s.OW + j) * s.lanes + l;
    const vec<number> where = convert<number>(load_plain(index + out, count));
    vec<T> value{};
    pool2d_each_tap(s, i, j, [&](long tap, long at) {
      const vec<T> found = load_plain(x + (plane * s.H * s.W + at) * s.lanes + l, count);
      value = select(eq(where, number(pool2d_name<Index>(tap, at))), found, value);
    });
    store_plain(y + out, value, count);
  });
}

// y (planes, OH, OW) and, unless null, index of the same shape.
template <class T, class Index>
PG_NOINLINE void max_pool2d(const pool2d_shape& s, const T* x, T* y, Index* index, int worker, int workers) {
  if constexpr (sizeof(Index) == 1)
    if (s.lanes > 1 && index && is_halving(s)) return max_pool2d_halving_lanes(s, x, y, index, worker, workers);
  if (s.lanes > 1) return max_pool2d_lanes(s, x, y, index, worker, workers);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane) {
    const T* from = x + plane * s.H * s.W;
    for (long i = 0; i < s.OH; ++i) {
      const long out = (plane * s.OH + i) * s.OW;
      if constexpr (pairs_in_registers<T>) {
        if (is_halving(s)) {
          max_pool2d_halving_row(from + 2 * i * s.W, s.W, 2 * i, s.OW, y + out, index ? index + out : nullptr);
          continue;
        }
      }
      for (long j = 0; j < s.OW; ++j) {
        T value = lowest_value<T>();
        long at = -1, tap_at = 0;
        for (long kh = 0; kh < s.KH; ++kh) {
          const long h = i * s.stride_h - s.pad_h + kh * s.dil_h;
          if (h < 0 || h >= s.H) continue;
          for (long kw = 0; kw < s.KW; ++kw) {
            const long w = j * s.stride_w - s.pad_w + kw * s.dil_w;
            if (w < 0 || w >= s.W) continue;
            const T next = from[h * s.W + w];
            if (at < 0 || next > value || next != next) {
              value = next;
              at = h * s.W + w;
              tap_at = kh * s.KW + kw;
            }
          }
        }
        y[out + j] = value;
        if (index) index[out + j] = Index(sizeof(Index) == 1 ? tap_at : at);
      }
    }
  }
}

// dx = for each output, dy put at its index; where windows overlap, the sum in output order.
template <class T, class Index>
PG_NOINLINE void max_pool2d_grad(const pool2d_shape& s, const T* dy, const Index* index, T* dx, int worker, int workers) {
  if constexpr (sizeof(Index) == 1)
    if (s.lanes > 1 && is_halving(s)) return max_pool2d_halving_lanes_grad(s, dy, index, dx, worker, workers);
  if (s.lanes > 1) return max_pool2d_grad_lanes(s, dy, index, dx, worker, workers);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane) {
    T* to = dx + plane * s.H * s.W;
    if constexpr (pairs_in_registers<T>) {
      if (is_halving(s)) {
        for (long i = 0; i < s.OH; ++i) {
          const long out = (plane * s.OH + i) * s.OW;
          max_pool2d_halving_row_grad(dy + out, index + out, s.W, 2 * i, s.OW, to + 2 * i * s.W);
          for (long r = 2 * i; r < 2 * i + 2; ++r)
            for (long w = 2 * s.OW; w < s.W; ++w) to[r * s.W + w] = T(0);
        }
        __builtin_memset(to + 2 * s.OH * s.W, 0, (s.H - 2 * s.OH) * s.W * sizeof(T));
        continue;
      }
    }
    __builtin_memset(to, 0, s.H * s.W * sizeof(T));
    for (long i = 0; i < s.OH; ++i)
      for (long j = 0; j < s.OW; ++j) {
        const long out = (plane * s.OH + i) * s.OW + j;
        long at = long(index[out]);
        if constexpr (sizeof(Index) == 1)
          at = (i * s.stride_h - s.pad_h + at / s.KW * s.dil_h) * s.W + j * s.stride_w - s.pad_w + at % s.KW * s.dil_w;
        if (at >= 0 && at < s.H * s.W) to[at] += dy[out];
      }
  }
}

// One window of an average: its valid rows and columns, and what its sum is divided by.
struct pool2d_window {
  long top, bottom, left, right, divisor;
};

PG_INLINE pool2d_window pool2d_window_at(const pool2d_shape& s, bool count_include_pad, long i, long j) {
  pool2d_window v;
  const long top = i * s.stride_h - s.pad_h, left = j * s.stride_w - s.pad_w;
  const long bottom = top + s.KH < s.H + s.pad_h ? top + s.KH : s.H + s.pad_h;
  const long right = left + s.KW < s.W + s.pad_w ? left + s.KW : s.W + s.pad_w;
  v.top = top > 0 ? top : 0;
  v.left = left > 0 ? left : 0;
  v.bottom = bottom < s.H ? bottom : s.H;
  v.right = right < s.W ? right : s.W;
  v.divisor = count_include_pad ? (bottom - top) * (right - left) : (v.bottom - v.top) * (v.right - v.left);
  return v;
}

template <class T>
PG_NOINLINE void avg_pool2d_lanes(const pool2d_shape& s, bool count_include_pad, const T* x, T* y, int worker, int workers) {
  pool2d_each_vector(s, worker, workers, [&](long plane, long i, long j, long l, long count) {
    const pool2d_window v = pool2d_window_at(s, count_include_pad, i, j);
    vec<T> sum{};
    for (long h = v.top; h < v.bottom; ++h)
      for (long w = v.left; w < v.right; ++w) sum += load_plain(x + ((plane * s.H + h) * s.W + w) * s.lanes + l, count);
    store_plain(y + ((plane * s.OH + i) * s.OW + j) * s.lanes + l, sum / splat<T>(T(v.divisor)), count);
  });
}

template <class T>
PG_NOINLINE void avg_pool2d_grad_lanes(const pool2d_shape& s, bool count_include_pad, const T* dy, T* dx, int worker, int workers) {
  const long plane_size = s.H * s.W * s.lanes;
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  __builtin_memset(dx + begin * plane_size, 0, (end - begin) * plane_size * sizeof(T));
  pool2d_each_vector(s, worker, workers, [&](long plane, long i, long j, long l, long count) {
    const pool2d_window v = pool2d_window_at(s, count_include_pad, i, j);
    const vec<T> g = load_plain(dy + ((plane * s.OH + i) * s.OW + j) * s.lanes + l, count) / splat<T>(T(v.divisor));
    for (long h = v.top; h < v.bottom; ++h)
      for (long w = v.left; w < v.right; ++w) {
        T* to = dx + plane * plane_size + (h * s.W + w) * s.lanes + l;
        store_plain(to, load_plain(to, count) + g, count);
      }
  });
}

// Averages over windows (dilation is not looked at), divided by the window's size with or without the padding in it.
template <class T>
PG_NOINLINE void avg_pool2d(const pool2d_shape& s, bool count_include_pad, const T* x, T* y, int worker, int workers) {
  if (s.lanes > 1) return avg_pool2d_lanes(s, count_include_pad, x, y, worker, workers);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane) {
    const T* from = x + plane * s.H * s.W;
    for (long i = 0; i < s.OH; ++i)
      for (long j = 0; j < s.OW; ++j) {
        const pool2d_window v = pool2d_window_at(s, count_include_pad, i, j);
        T sum = 0;
        for (long h = v.top; h < v.bottom; ++h)
          for (long w = v.left; w < v.right; ++w) sum += from[h * s.W + w];
        y[(plane * s.OH + i) * s.OW + j] = sum / T(v.divisor);
      }
  }
}

template <class T>
PG_NOINLINE void avg_pool2d_grad(const pool2d_shape& s, bool count_include_pad, const T* dy, T* dx, int worker, int workers) {
  if (s.lanes > 1) return avg_pool2d_grad_lanes(s, count_include_pad, dy, dx, worker, workers);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  for (long plane = begin; plane < end; ++plane) {
    T* to = dx + plane * s.H * s.W;
    __builtin_memset(to, 0, s.H * s.W * sizeof(T));
    for (long i = 0; i < s.OH; ++i)
      for (long j = 0; j < s.OW; ++j) {
        const pool2d_window v = pool2d_window_at(s, count_include_pad, i, j);
        const T g = dy[(plane * s.OH + i) * s.OW + j] / T(v.divisor);
        for (long h = v.top; h < v.bottom; ++h)
          for (long w = v.left; w < v.right; ++w) to[h * s.W + w] += g;
      }
  }
}

// y = what lies at each index: the transpose of max_pool2d_grad.
template <class T, class Index>
PG_NOINLINE void window_take(const pool2d_shape& s, const T* x, const Index* index, T* y, int worker, int workers) {
  if (s.lanes > 1) return window_take_lanes(s, x, index, y, worker, workers);
  long begin, end;
  share(s.planes, 1, worker, workers, begin, end);
  const long size = s.OH * s.OW;
  for (long plane = begin; plane < end; ++plane)
    for (long i = 0; i < size; ++i) {
      long at = long(index[plane * size + i]);
      if (sizeof(Index) == 1) {
        const long h = i / s.OW * s.stride_h - s.pad_h + at / s.KW * s.dil_h;
        at = h * s.W + i % s.OW * s.stride_w - s.pad_w + at % s.KW * s.dil_w;
      }
      y[plane * size + i] = x[plane * s.H * s.W + at];
    }
}

// ---- compiled once (see gemm.h) --------------------------------------------------------------------------------------

#define PG_WINDOW_PARTS(PART)                                                                       \
  PART void max_pool2d<float, u8>(const pool2d_shape&, const float*, float*, u8*, int, int);            \
  PART void max_pool2d_grad<float, u8>(const pool2d_shape&, const float*, const u8*, float*, int, int); \
  PART void avg_pool2d<float>(const pool2d_shape&, bool, const float*, float*, int, int);               \
  PART void avg_pool2d_grad<float>(const pool2d_shape&, bool, const float*, float*, int, int);
#if defined(PG_PARTS_APART)
PG_WINDOW_PARTS(extern template)
#endif

}  // namespace pg
