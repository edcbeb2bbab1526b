// What conv_vectors.h computes, for filters of 3 by 3 that move by single steps, with fewer products: Winograd's F(2x2, 3x3)
// (Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, 2015), 16 in place of 36 for each 2 by 2 results.
//
// How: of the 4 by 4 places that a tile of 2 by 2 results reads, sums and differences are made, 16 "points", and of each filter
// likewise; each point is then a product over the channels, of all tiles of a block at once, and sums and differences of the
// products are the results. The gradient of the weight is the same the other way round: products of points over all tiles,
// added up, from which the filter's nine are made at the end of each chunk. One row of points is made at a time.
//
// Invariants: as in conv.h. A result whose tile reads an infinity or a NaN, or whose products overflow, is computed anew
// without points: those would carry it to its neighbours.
#pragma once
#include "conv_vectors.h"

namespace pg {

// Bytes of points that a block of tiles keeps at a time, and that leave room in L2 for the filters' beside them.
constexpr long conv2d_winograd_bytes = PG_L2_KIB >= 1024 ? 524288 : 131072;

// A convolution, or its input's gradient, seen as a forward one, and how its results are cut: rows of tiles, of them blocks of
// at most `widest` tiles, of `span` of the lanes. A block keeps `kept` rows of points, `row` elements apart.
template <class T> struct conv2d_winograd_plan {
  conv2d_shape s;
  conv2d_sum m;
  long pad_h, pad_w, tiles_h, tiles_w, span, widest, blocks_w, spans, row;

  PG_INLINE conv2d_winograd_plan(const conv2d_shape& shape, bool is_forward, long kept)
      : s(shape), m(conv2d_sum_of(shape, is_forward)), pad_h(is_forward ? s.pad_h : 2 - s.pad_h), pad_w(is_forward ? s.pad_w : 2 - s.pad_w),
        tiles_h((m.out_h + 1) / 2), tiles_w((m.out_w + 1) / 2), span(PG_LANES) {
    const long fit = conv2d_winograd_bytes / long(sizeof(T)) / kept;
    for (long parts = s.lanes / PG_LANES; parts > 0; --parts)
      if (s.lanes / PG_LANES % parts == 0 && s.lanes / parts <= fit) span = s.lanes / parts;
    widest = fit > span ? fit / span : 1;
    blocks_w = (tiles_w + widest - 1) / widest;
    if (blocks_w > 0) widest = (tiles_w + blocks_w - 1) / blocks_w;
    spans = s.lanes / span;
    row = conv2d_odd_lines(widest * span, sizeof(T));
  }
  // Blocks of a row of tiles.
  PG_INLINE long blocks() const { return spans * blocks_w; }
};

// One block: tiles first … first + count - 1 of a row of tiles, of sample n, group g and the lanes from `lane` on.
struct conv2d_winograd_block {
  long n, g, lane, row, first, count;
};

template <class T> PG_INLINE conv2d_winograd_block conv2d_winograd_block_of(const conv2d_winograd_plan<T>& plan, long unit) {
  const long block = unit % plan.blocks_w, part = unit / plan.blocks_w, row = part / plan.spans, sample = row / plan.tiles_h;
  const long first = even_cut(plan.tiles_w, plan.blocks_w, block);
  return {sample % plan.s.N, sample / plan.s.N, part % plan.spans * plan.span, row % plan.tiles_h, first,
          even_cut(plan.tiles_w, plan.blocks_w, block + 1) - first};
}

// Two rows of an image, or one and zeros: the sum or difference of their columns, zero outside of 0 … width - 1.
template <class T> struct conv2d_winograd_rows {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  const T *a, *b;
  long a_step, b_step, width;

  template <bool IS_SUM> PG_INLINE native at(long column, long lane) const {
    if ((unsigned long)column >= (unsigned long)width) return native{};
    const native first = *reinterpret_cast<const unaligned*>(a + column * a_step + lane);
    const native second = *reinterpret_cast<const unaligned*>(b + column * b_step + lane);
    return IS_SUM ? first + second : first - second;
  }
};

template <class T>
PG_INLINE conv2d_winograd_rows<T> conv2d_winograd_rows_of(const T* plane, const T* zeros, long first, long second, long height,
                                                          long width, long lanes) {
  const bool has_first = first >= 0 && first < height, has_second = second >= 0 && second < height;
  return {has_first ? plane + first * width * lanes : zeros, has_second ? plane + second * width * lanes : zeros, has_first ? lanes : 0,
          has_second ? lanes : 0, width};
}

// Row i of the points of all tiles of a block, of one channel's image: to[j * point + place]. Meanwhile comes row i of the next
// channel's tiles, which begins at `ahead`, where that is not null: channels are often a power of two apart, and push each
// other's rows out of the caches.
template <class T, bool IS_SUM>
PG_INLINE void conv2d_winograd_input(const conv2d_winograd_rows<T>& rows, const T* ahead, long lanes_of_place, long column, long count,
                                     long span, T* to, long point) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  for (long lane = 0; lane < span; lane += lanes<T>::count) {
    native c0 = rows.template at<IS_SUM>(column, lane), c1 = rows.template at<IS_SUM>(column + 1, lane);
    T* out = to + lane;
    for (long t = 0; t < count; ++t, out += span) {
      const native c2 = rows.template at<IS_SUM>(column + 2 * t + 2, lane), c3 = rows.template at<IS_SUM>(column + 2 * t + 3, lane);
      if (ahead) {
        __builtin_prefetch(ahead + (2 * t + 2) * lanes_of_place + lane, 0, 2);
        __builtin_prefetch(ahead + (2 * t + 3) * lanes_of_place + lane, 0, 2);
      }
      *reinterpret_cast<unaligned*>(out) = c0 - c2;
      *reinterpret_cast<unaligned*>(out + point) = c1 + c2;
      *reinterpret_cast<unaligned*>(out + 2 * point) = c2 - c1;
      *reinterpret_cast<unaligned*>(out + 3 * point) = c1 - c3;
      c0 = c2, c1 = c3;
    }
  }
}

template <class T>
PG_NOINLINE void conv2d_winograd_image(const conv2d_winograd_plan<T>& plan, const conv2d_winograd_block& block, int i, const T* plane,
                                       bool has_next, const T* zeros, T* to, long point) {
  const long top = 2 * block.row - plan.pad_h, column = 2 * block.first - plan.pad_w;
  const long first = i == 0 ? 0 : i == 2 ? 2 : 1, second = i == 3 ? 3 : i == 2 ? 1 : 2;
  const auto rows = conv2d_winograd_rows_of(plane + block.lane, zeros, top + first, top + second, plan.m.in_h, plan.m.in_w, plan.s.lanes);
  const long row = plan.m.in_w * plan.s.lanes, size = plan.m.in_h * row;
  const bool is_far = plan.m.in_channels * size * long(sizeof(T)) > conv2d_resident_bytes;
  const bool is_inside = top + i >= 0 && top + i < plan.m.in_h;
  const T* const ahead = is_far && has_next && is_inside ? plane + size + (top + i) * row + column * plan.s.lanes + block.lane : nullptr;
  if (i == 1) conv2d_winograd_input<T, true>(rows, ahead, plan.s.lanes, column, block.count, plan.span, to, point);
  else conv2d_winograd_input<T, false>(rows, ahead, plan.s.lanes, column, block.count, plan.span, to, point);
}

// ---- forward, and gradient of the input -----------------------------------------------------------------------------------

// packed[point][result's channel][operand's channel] of group g's filters.
template <class T> PG_NOINLINE void conv2d_winograd_pack(const conv2d_winograd_plan<T>& plan, const T* w, long g, T* packed) {
  const conv2d_sum& m = plan.m;
  const long size = m.out_channels * m.in_channels, channels = plan.s.C / plan.s.groups, per_group = plan.s.O / plan.s.groups;
  const long step = m.is_forward ? 9 : channels * 9;
  for (long r = 0; r < m.out_channels; ++r)
    for (long i = 0; i < m.in_channels; i += PG_LANES) {
      const long count = m.in_channels - i < PG_LANES ? m.in_channels - i : long(PG_LANES);
      const T* const from = w + (g * per_group * channels + (m.is_forward ? r * channels + i : i * channels + r)) * 9;
      const auto combine = [](vec<T> t0, vec<T> t1, vec<T> t2, vec<T>* to, int apart) {
        const vec<T> even = (t0 + t2) * T(0.5), odd = t1 * T(0.5);
        to[0] = t0, to[apart] = even + odd, to[2 * apart] = even - odd, to[3 * apart] = t2;
      };
      vec<T> half[12], point[16];
      PG_UNROLL for (int kw = 0; kw < 3; ++kw) {
        const auto tap = [&](int kh) { return load_strided(from + (m.is_forward ? kh * 3 + kw : 8 - kh * 3 - kw), step, count); };
        combine(tap(0), tap(1), tap(2), half + kw, 3);
      }
      PG_UNROLL for (int p = 0; p < 4; ++p) combine(half[3 * p], half[3 * p + 1], half[3 * p + 2], point + 4 * p, 1);
      PG_UNROLL for (int p = 0; p < 16; ++p) store_plain(packed + p * size + r * m.in_channels + i, point[p], count);
    }
}

// The two rows of results of one channel from the sums of its points; whether all are finite. Rows of `to`: `row` apart.
template <class T>
PG_NOINLINE bool conv2d_winograd_results(const T* sums, long point, long count, long span, T* to, long row) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  const native none{};
  native bad[2] = {none, none};
  for (long t = 0; t < count; ++t)
    for (long lane = 0; lane < span; lane += lanes<T>::count) {
      native high[4], low[4];
      PG_UNROLL for (int j = 0; j < 4; ++j) {
        const T* const from = sums + j * point + t * span + lane;
        const native p0 = *reinterpret_cast<const unaligned*>(from), p1 = *reinterpret_cast<const unaligned*>(from + 4 * point);
        const native p2 = *reinterpret_cast<const unaligned*>(from + 8 * point);
        const native p3 = *reinterpret_cast<const unaligned*>(from + 12 * point);
        high[j] = p0 + p1 + p2;
        low[j] = p1 - p2 - p3;
      }
      T* const out = to + 2 * t * span + lane;
      const native y[4] = {high[0] + high[1] + high[2], high[1] - high[2] - high[3], low[0] + low[1] + low[2], low[1] - low[2] - low[3]};
      PG_UNROLL for (int i = 0; i < 4; ++i) {
        *reinterpret_cast<unaligned*>(out + i / 2 * row + i % 2 * span) = y[i];
        bad[i % 2] += y[i] * none;  // zero, or NaN
      }
    }
  vec<T> sum{};
  sum.part[0] = bad[0] + bad[1];
  return reduce_add(sum) == T(0);
}

// The same rows by the formula: `image` begins with the group's first channel.
template <class T>
PG_NOINLINE void conv2d_winograd_plain(const conv2d_winograd_plan<T>& plan, const conv2d_winograd_block& block, const T* image, const T* w,
                                       long channel, T* to, long row) {
  const conv2d_shape& s = plan.s;
  const conv2d_sum& m = plan.m;
  const long channels = s.C / s.groups, per_group = s.O / s.groups;
  for (long i = 0; i < 2; ++i)
    for (long column = 2 * block.first; column < 2 * (block.first + block.count); ++column)
      for (long lane = 0; lane < plan.span; lane += PG_LANES) {
        vec<T> sum{};
        for (long tap = 0; tap < 9; ++tap) {
          const long h = 2 * block.row + i - plan.pad_h + tap / 3, v = column - plan.pad_w + tap % 3;
          if (h < 0 || h >= m.in_h || v < 0 || v >= m.in_w) continue;
          for (long c = 0; c < m.in_channels; ++c) {
            const long o = block.g * per_group + (m.is_forward ? channel : c), place = (c * m.in_h + h) * m.in_w + v;
            const T weight = w[(o * channels + (m.is_forward ? c : channel)) * 9 + (m.is_forward ? tap : 8 - tap)];
            sum += load_plain(image + place * s.lanes + block.lane + lane) * weight;
          }
        }
        store_plain(to + i * row + (column - 2 * block.first) * plan.span + lane, sum);
      }
}

// sums[point][row][place] of `rows` channels from `first_row` on. What `ahead` names comes meanwhile.
template <class T>
PG_NOINLINE void conv2d_winograd_products(const conv2d_winograd_plan<T>& plan, const conv2d_winograd_block& block, const T* packed,
                                          const T* points, long first_row, long rows, T* sums, const conv2d_ahead& ahead) {
  const conv2d_sum& m = plan.m;
  const long columns = plan.row, vectors = block.count * plan.span / PG_LANES;
  const conv2d_parts parts(vectors, gemm_tile<T>::vectors);
  const gemm_kernel_function<T> kernels[2] = {gemm_kernel_for<T, false>(int(rows), int(parts.base)),
                                              gemm_kernel_for<T, false>(int(rows), int(parts.base) + 1)};
  for (long p = 0; p < 16; ++p) {
    const T* const a = packed + (p * m.out_channels + first_row) * m.in_channels;
    for (long i = 0; i < parts.count; ++i) {
      const long first = parts.first(i) * PG_LANES;
      kernels[i < parts.extra](m.in_channels, a, m.in_channels, 1, points + p * m.in_channels * columns + first, columns, nullptr,
                               sums + p * gemm_tile<T>::rows * columns + first, columns, false);
    }
    if (ahead.count == 0) continue;
    // Both rows of results, an eighth at a time.
    const long begin = even_cut(2 * vectors, 8, p % 8), length = even_cut(2 * vectors, 8, p % 8 + 1) - begin;
    conv2d_ahead row = ahead;
    row.position += p / 8 * m.out_w * plan.s.lanes;
    conv2d_vectors_ask<T>(row, plan.span, plan.s.lanes, begin, length, rows);
  }
}

template <class T> PG_INLINE conv2d_winograd_plan<T> conv2d_winograd_sum_plan(const conv2d_shape& s, bool is_forward) {
  return {s, is_forward, 16 * (conv2d_sum_of(s, is_forward).in_channels + gemm_tile<T>::rows)};
}

template <class T> PG_NOINLINE long conv2d_winograd_scratch(const conv2d_shape& s, bool is_forward) {
  const auto plan = conv2d_winograd_sum_plan<T>(s, is_forward);
  const conv2d_sum& m = plan.m;
  const long columns = plan.row, rows = gemm_tile<T>::rows, size = long(sizeof(T));
  return round_up(plan.span * size, 64) + round_up(16 * m.out_channels * m.in_channels * size, 64) +
         round_up(16 * m.in_channels * columns * size, 64) + round_up(16 * rows * columns * size, 64) + round_up(4 * columns * size, 64);
}
template <class T> inline long conv2d_winograd_forward_scratch(const conv2d_shape& s) { return conv2d_winograd_scratch<T>(s, true); }
template <class T> inline long conv2d_winograd_grad_input_scratch(const conv2d_shape& s) { return conv2d_winograd_scratch<T>(s, false); }

// The walk over one worker's blocks of tiles; after result(), two rows of results of one channel lie at `results`.
template <class T> struct conv2d_winograd_walk {
  const conv2d_winograd_plan<T> plan;
  const T *in, *w;
  const conv2d_array* arrays;
  int count;
  const conv2d_parts down;
  long begin, end;
  T *zeros, *packed, *points, *sums, *results;
  long packed_group;
  conv2d_winograd_block block;
  const T* image;
  long first_row, rows, columns;  // of the tile of channels, and the columns of results of the block

  PG_NOINLINE conv2d_winograd_walk(const conv2d_shape& s, bool is_forward, const T* in, const T* w, T* scratch, int worker, int workers,
                                   const conv2d_array* arrays, int count)
      : plan(conv2d_winograd_sum_plan<T>(s, is_forward)), in(in), w(w), arrays(arrays), count(count),
        down(plan.m.out_channels, gemm_tile<T>::rows), packed_group(-1) {
    share(s.N * s.groups * plan.tiles_h * plan.blocks(), 1, worker, workers, begin, end);
    if (begin >= end) return;
    scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
    zeros = cursor.take<T>(plan.span);
    packed = cursor.take<T>(16 * plan.m.out_channels * plan.m.in_channels);
    points = cursor.take<T>(16 * plan.m.in_channels * plan.row);
    sums = cursor.take<T>(16 * gemm_tile<T>::rows * plan.row);
    results = cursor.take<T>(4 * plan.row);
    __builtin_memset(zeros, 0, plan.span * sizeof(T));
  }

  PG_NOINLINE void enter(long unit) {
    const long channels = plan.m.in_channels, plane = plan.m.in_h * plan.m.in_w * plan.s.lanes, point = channels * plan.row;
    block = conv2d_winograd_block_of(plan, unit);
    const long first = 2 * block.first, past = first + 2 * block.count;
    columns = (past < plan.m.out_w ? past : plan.m.out_w) - first;
    image = in + (block.n * plan.s.groups + block.g) * channels * plane;
    if (block.g != packed_group) conv2d_winograd_pack(plan, w, block.g, packed);
    packed_group = block.g;
    for (long c = 0; c < channels; ++c)
      for (int i = 0; i < 4; ++i)
        conv2d_winograd_image(plan, block, i, image + c * plane, c + 1 < channels, zeros, points + 4 * i * point + c * plan.row,
                              point);
  }

  // Where row `i` of the block's results begins in a channel's plane.
  PG_INLINE long position(long i) const {
    return ((2 * block.row + i) * plan.m.out_w + 2 * block.first) * plan.s.lanes + block.lane;
  }
  PG_INLINE long channel(long r) const { return block.g * plan.m.out_channels + first_row + r; }
  PG_INLINE long rows_of_results() const { return plan.m.out_h - 2 * block.row < 2 ? plan.m.out_h - 2 * block.row : 2; }

  PG_NOINLINE void tile(long t) {
    first_row = down.first(t), rows = down.length(t);
    const conv2d_ahead ahead = {arrays, count, block.n, channel(0), position(0)};
    conv2d_winograd_products(plan, block, packed, points, first_row, rows, sums, ahead);
  }

  // Channel r of the tile: row i begins at results + i * 2 * plan.row.
  PG_NOINLINE void result(long r) {
    const long row = plan.row;
    if (!conv2d_winograd_results(sums + r * row, gemm_tile<T>::rows * row, block.count, plan.span, results, 2 * row))
      conv2d_winograd_plain(plan, block, image, w, first_row + r, results, 2 * row);
  }
};

template <class T, class Epilogue>
PG_INLINE void conv2d_winograd_sum(const conv2d_shape& s, bool is_forward, const T* in, const T* w, T* scratch, int worker, int workers,
                                   Epilogue&& epilogue, const conv2d_array* arrays, int count) {
  conv2d_winograd_walk<T> walk(s, is_forward, in, w, scratch, worker, workers, arrays, count);
  for (long unit = walk.begin; unit < walk.end; ++unit) {
    walk.enter(unit);
    for (long t = 0; t < walk.down.count; ++t) {
      walk.tile(t);
      for (long r = 0; r < walk.rows; ++r) {
        walk.result(r);
        // Copies: the epilogue's stores could change what lies in the walk.
        const long n = walk.block.n, channel = walk.channel(r), columns = walk.columns, span = walk.plan.span;
        const long leap = walk.plan.s.lanes - span;
        for (long i = 0; i < walk.rows_of_results(); ++i) {
          const T* result = walk.results + i * 2 * walk.plan.row;
          long position = walk.position(i);
          for (long column = 0; column < columns; ++column, position += leap)
            for (long lane = 0; lane < span; lane += PG_LANES, result += PG_LANES, position += PG_LANES)
              epilogue(n, channel, position, load_plain(result), long(PG_LANES));
        }
      }
    }
  }
}

// y = conv(x, w), handed over as epilogue(n, output channel, position, vec<T>, count); `arrays` as in conv_vectors.h.
template <class T, class Epilogue>
void conv2d_winograd_forward(const conv2d_shape& s, const T* x, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue,
                             const conv2d_array* arrays = nullptr, int count = 0) {
  conv2d_winograd_sum(s, true, x, w, scratch, worker, workers, epilogue, arrays, count);
}

// dx, handed over as epilogue(n, input channel, position, vec<T>, count); `arrays` as above.
template <class T, class Epilogue>
void conv2d_winograd_grad_input(const conv2d_shape& s, const T* dy, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue,
                                const conv2d_array* arrays = nullptr, int count = 0) {
  conv2d_winograd_sum(s, false, dy, w, scratch, worker, workers, epilogue, arrays, count);
}

// ---- gradient of the weight ---------------------------------------------------------------------------------------------

// Row i of the points of all tiles of a block, of one channel's gradient. The last row and column have the other sign.
template <class T>
PG_NOINLINE void conv2d_winograd_gradient(const conv2d_winograd_plan<T>& plan, const conv2d_winograd_block& block, int i, const T* plane,
                                          const T* zeros, T* to, long point) {
  typedef typename lanes<T>::unaligned unaligned;
  const long top = 2 * block.row, none = plan.m.out_h;
  const long first = i == 3 ? top + 1 : top, second = i == 1 || i == 2 ? top + 1 : none;
  const auto rows = conv2d_winograd_rows_of(plane + block.lane, zeros, first, second, plan.m.out_h, plan.m.out_w, plan.s.lanes);
  for (long t = 0; t < block.count; ++t)
    for (long lane = 0; lane < plan.span; lane += lanes<T>::count) {
      const long column = 2 * (block.first + t);
      const auto a = i == 2 ? rows.template at<false>(column, lane) : rows.template at<true>(column, lane);
      const auto b = i == 2 ? rows.template at<false>(column + 1, lane) : rows.template at<true>(column + 1, lane);
      T* const out = to + t * plan.span + lane;
      *reinterpret_cast<unaligned*>(out) = a;
      *reinterpret_cast<unaligned*>(out + point) = a + b;
      *reinterpret_cast<unaligned*>(out + 2 * point) = a - b;
      *reinterpret_cast<unaligned*>(out + 3 * point) = b;
    }
}

// to[pair * 9 + tap] from sums[point][pair], `pairs` of channels.
template <class T> PG_NOINLINE void conv2d_winograd_taps(const T* sums, long pairs, T* to) {
  for (long pair = 0; pair < pairs; pair += PG_LANES) {
    const long left = pairs - pair < PG_LANES ? pairs - pair : long(PG_LANES);
    vec<T> half[3][4], tap[9];
    const auto combine = [](vec<T> p0, vec<T> p1, vec<T> p2, vec<T> p3, vec<T>& t0, vec<T>& t1, vec<T>& t2) {
      const vec<T> even = (p1 + p2) * T(0.5);
      t0 = p0 + even, t1 = (p1 - p2) * T(0.5), t2 = even - p3;
    };
    PG_UNROLL for (int j = 0; j < 4; ++j) {
      const auto at = [&](int i) { return load_plain(sums + (4 * i + j) * pairs + pair, left); };
      combine(at(0), at(1), at(2), at(3), half[0][j], half[1][j], half[2][j]);
    }
    PG_UNROLL for (int k = 0; k < 3; ++k)
      combine(half[k][0], half[k][1], half[k][2], half[k][3], tap[3 * k], tap[3 * k + 1], tap[3 * k + 2]);
    T beside[9][PG_LANES];
    PG_UNROLL for (int k = 0; k < 9; ++k) store_plain(beside[k], tap[k]);
    for (long l = 0; l < left; ++l)
      for (int k = 0; k < 9; ++k) to[(pair + l) * 9 + k] = beside[k][l];
  }
}

template <class T> PG_INLINE conv2d_winograd_plan<T> conv2d_winograd_weight_plan(const conv2d_shape& s) {
  return {s, true, 4 * (s.C / s.groups + s.O / s.groups)};
}

// Blocks whose points are kept together, so that sums over them are long.
template <class T> PG_INLINE long conv2d_winograd_joined(const conv2d_winograd_plan<T>& plan) {
  const long places = conv2d_winograd_bytes / long(sizeof(T)) / (4 * (plan.m.in_channels + plan.m.out_channels));
  const long fit = places / (plan.widest > 0 ? plan.widest * plan.span : 1);
  return fit > 1 ? fit : 1;
}

template <class T> PG_NOINLINE long conv2d_winograd_grad_weight_scratch(const conv2d_shape& s) {
  const auto plan = conv2d_winograd_weight_plan<T>(s);
  const long in = plan.m.in_channels, out = plan.m.out_channels, size = long(sizeof(T));
  const long places = conv2d_odd_lines(conv2d_winograd_joined(plan) * plan.widest * plan.span, size);
  return round_up(in * long(sizeof(long)), 64) + conv2d_vectors_grad_weight_scratch<T>(s) + round_up(plan.span * size, 64) +
         round_up(16 * in * out * size, 64) +
         round_up(4 * in * places * size, 64) + round_up(4 * out * places * size, 64);
}

// Fills this worker's part of `partials` (conv2d_weight_partials(s) elements); a chunk is of blocks of tiles of all samples.
// After a barrier, conv2d_combine_weight adds the chunks up.
template <class T>
PG_NOINLINE void conv2d_winograd_grad_weight(const conv2d_shape& s, const T* x, const T* dy, T* partials, T* scratch, int worker, int workers) {
  const auto plan = conv2d_winograd_weight_plan<T>(s);
  const long in = plan.m.in_channels, out = plan.m.out_channels, pairs = in * out, chunks = s.weight_chunks;
  const long in_plane = s.H * s.W * s.lanes, out_plane = s.OH * s.OW * s.lanes;
  const long joined = conv2d_winograd_joined(plan), places = conv2d_odd_lines(joined * plan.widest * plan.span, sizeof(T));
  const long rows = s.N * plan.tiles_h;
  long begin, end;
  share(chunks * s.groups, 1, worker, workers, begin, end);
  if (begin >= end) return;
  scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
  long* const offsets = cursor.take<long>(in);
  long* const direct_offsets = cursor.take<long>(conv2d_sum_length(s));
  T* const zeros = cursor.take<T>(plan.span);
  T* const sums = cursor.take<T>(16 * pairs);
  T* const images = cursor.take<T>(4 * in * places);
  T* const gradients = cursor.take<T>(4 * out * places);
  for (long c = 0; c < in; ++c) offsets[c] = c * places;
  conv2d_vectors_weight_offsets(s, direct_offsets);
  __builtin_memset(zeros, 0, plan.span * sizeof(T));
  for (long item = begin; item < end; ++item) {
    const long chunk = item / s.groups, g = item % s.groups;
    const long first = even_cut(rows, chunks, chunk), last = even_cut(rows, chunks, chunk + 1), past = (g * rows + last) * plan.blocks();
    __builtin_memset(sums, 0, 16 * pairs * sizeof(T));
    for (long unit = (g * rows + first) * plan.blocks(), next; unit < past; unit = next) {
      next = past - unit < joined ? past : unit + joined;
      for (int i = 0; i < 4; ++i) {
        long filled = 0;
        for (long u = unit; u < next; ++u) {
          const conv2d_winograd_block block = conv2d_winograd_block_of(plan, u);
          for (long c = 0; c < in; ++c)
            conv2d_winograd_image(plan, block, i, x + ((block.n * s.groups + g) * in + c) * in_plane, c + 1 < in, zeros,
                                  images + c * places + filled, in * places);
          for (long o = 0; o < out; ++o)
            conv2d_winograd_gradient(plan, block, i, dy + ((block.n * s.groups + g) * out + o) * out_plane, zeros,
                                     gradients + o * places + filled, out * places);
          filled += block.count * plan.span;
        }
        const conv2d_runs over = {1, 0, 0, 1, 0, 0, filled};
        for (int j = 0; j < 4; ++j)
          conv2d_weight_tiles<T>(out, in, over, gradients + j * out * places, places, images + j * in * places, offsets,
                                 sums + (4 * i + j) * pairs, in, 1);
      }
    }
    T* const taps = partials + (chunk * s.O + g * out) * in * 9;
    conv2d_winograd_taps(sums, pairs, taps);
    if (all_finite(taps, pairs * 9)) continue;
    __builtin_memset(taps, 0, pairs * 9 * sizeof(T));
    for (long row = first; row < last; ++row) {
      const long n = row / plan.tiles_h, oh = row % plan.tiles_h * 2;
      conv2d_vectors_weight_rows<T>(s, x + (n * s.groups + g) * in * in_plane, dy + (n * s.groups + g) * out * out_plane, oh,
                                    s.OH - oh < 2 ? s.OH - oh : 2, direct_offsets, taps);
    }
  }
}

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_CONV_WINOGRAD_PARTS(PART)                                                                                        \
  PART conv2d_winograd_walk<float>::conv2d_winograd_walk(const conv2d_shape&, bool, const float*, const float*, float*, int, int, \
                                                         const conv2d_array*, int);                                        \
  PART void conv2d_winograd_walk<float>::enter(long);                                                                      \
  PART void conv2d_winograd_walk<float>::tile(long);                                                                       \
  PART void conv2d_winograd_walk<float>::result(long);                                                                     \
  PART long conv2d_winograd_scratch<float>(const conv2d_shape&, bool);                                                      \
  PART long conv2d_winograd_grad_weight_scratch<float>(const conv2d_shape&);                                                \
  PART void conv2d_winograd_grad_weight<float>(const conv2d_shape&, const float*, const float*, float*, float*, int, int);
#if defined(PG_PARTS_APART)
PG_CONV_WINOGRAD_PARTS(extern template)
#endif

}  // namespace pg
