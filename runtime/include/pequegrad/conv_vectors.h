// 2-D convolution and its two gradients where each place of an image has `lanes` elements side by side, such as samples, each
// an image of its own; lanes is a multiple of PG_LANES. x is (N, C, H, W, lanes), y is (N, O, OH, OW, lanes), and a position
// of the epilogues counts the elements of a plane. One element a place: conv.h, whose functions these stand in for.
//
// How: a result's vector is a sum over taps and channels of vectors of the operand, each times one weight. Rows are parted
// where the taps that they have change, so that no border is ever multiplied; along a run of columns with the same taps a
// tile is `vectors` neighbouring vectors. Weights are packed so that the taps of a run follow each other, with a stride also
// those of the gradient, where a result has every stride-th tap. Rows of a large operand are copied first, a few lanes of
// each place, to where they do not push each other out of the caches.
//
// Invariants: as in conv.h.
#pragma once
#include "conv.h"

namespace pg {

// Bytes of an operand that stays in L2 by itself, and of copied rows that leave room in it for what lies beside them: weights
// and results. With 1 MiB, 16 channels of 32 by 32 and 64 samples, 387 KiB of copies of all lanes were 5 to 15 % faster than
// 98 KiB of a quarter of them.
constexpr long conv2d_resident_bytes = 262144;
constexpr long conv2d_staged_bytes = PG_L2_KIB >= 1024 ? 458752 : 131072;

// A length cut into the fewest parts of at most `most`, all within one of each other.
struct conv2d_parts {
  long count, base, extra;
  PG_INLINE conv2d_parts(long length, long most) : count((length + most - 1) / most), base(0), extra(0) {
    if (count > 0) base = length / count, extra = length % count;
  }
  PG_INLINE long first(long i) const { return i * base + (i < extra ? i : extra); }
  PG_INLINE long length(long i) const { return base + (i < extra); }
};

// ---- forward, and gradient of the input -----------------------------------------------------------------------------------

// Both are sums over taps of what an operand has at the tap's place; `is_forward` tells which place that is.
struct conv2d_sum {
  bool is_forward;
  long out_channels, out_h, out_w, in_channels, in_h, in_w;  // channels of a group
};

PG_INLINE conv2d_sum conv2d_sum_of(const conv2d_shape& s, bool is_forward) {
  const long c = s.C / s.groups, o = s.O / s.groups;
  return is_forward ? conv2d_sum{true, o, s.OH, s.OW, c, s.H, s.W} : conv2d_sum{false, c, s.H, s.W, o, s.OH, s.OW};
}

// Where along one dimension tap k of result `at` reads, or -1: nowhere.
PG_INLINE long conv2d_place(bool is_forward, long at, long k, long stride, long dil, long pad, long extent) {
  long place = is_forward ? at * stride + k * dil - pad : at + pad - k * dil;
  if (!is_forward && stride > 1) place = place % stride == 0 ? place / stride : -1;
  return place >= 0 && place < extent ? place : -1;
}

// The taps along one dimension in classes of every `step`-th: one result has taps of one class only, and of those a range.
struct conv2d_classes {
  long taps, step;
  PG_INLINE long count(long c) const { return (taps - c + step - 1) / step; }
  PG_INLINE long before(long c) const {
    long sum = 0;
    for (long i = 0; i < c; ++i) sum += count(i);
    return sum;
  }
};

PG_INLINE conv2d_classes conv2d_classes_of(bool is_forward, long taps, long stride, long dil) {
  long a = dil, b = is_forward ? 1 : stride;
  const long whole = b;
  while (b) {
    const long rest = a % b;
    a = b, b = rest;
  }
  const long step = whole / a;
  return {taps, step < taps ? step : taps};
}

// How the operand is read: where it lies, or from copies of the rows that a row of results needs, of `span` of the lanes at a
// time. Copies lie so that they do not fall into the same few sets of a cache, as rows of a power of two do, and so that
// neighbouring results read neighbours: with a stride, forward, columns of one remainder are side by side.
struct conv2d_staging {
  bool is_copied;
  long span, rows, row, channel;  // rows kept of each channel; elements between rows, and between channels
  long bytes;
};

PG_INLINE long conv2d_odd_lines(long elements, long size) {
  const long line = 64 / size, lines = (elements + line - 1) / line;
  return (lines | 1) * line;
}

template <class T> inline conv2d_staging conv2d_staging_of(const conv2d_shape& s, const conv2d_sum& m) {
  const long size = long(sizeof(T)), plane = m.in_h * m.in_w * s.lanes, reach = (s.KH - 1) * s.dil_h;
  const long rows = (m.is_forward ? reach : reach / s.stride_h) + 1;
  const long columns = m.is_forward ? (m.in_w + s.stride_w - 1) / s.stride_w * s.stride_w : m.in_w;
  // Two tiles of the results' channels pay for a copy, unless the whole operand stays in L2 by itself.
  const bool is_shared = m.out_channels >= 2 * gemm_tile<T>::rows && m.in_channels * s.KH * s.KW > 64;
  conv2d_staging r = {false, s.lanes, m.in_h, m.in_w * s.lanes, plane, 0};
  if (!is_shared || m.in_channels * plane * size <= conv2d_resident_bytes) return r;
  for (long parts = 1; parts * PG_LANES <= s.lanes; ++parts) {
    if (s.lanes % (parts * PG_LANES)) continue;
    const long span = s.lanes / parts, row = conv2d_odd_lines(columns * span, size), channel = conv2d_odd_lines(rows * row, size);
    const long bytes = m.in_channels * channel * size;
    if (bytes <= conv2d_staged_bytes) return {true, span, rows, row, channel, bytes};
  }
  return r;
}

// Results in columns column, column + step … that have the same taps first … last - 1 of class `part`; `index`: where the
// first of them reads, but for the tap's own shift.
struct conv2d_columns {
  long column, index, width, part, first, last;
};

template <class T> struct conv2d_plan {
  conv2d_shape s;
  conv2d_sum m;
  conv2d_staging at;
  conv2d_classes down, across;
  long K;

  PG_INLINE conv2d_plan(const conv2d_shape& shape, bool is_forward)
      : s(shape), m(conv2d_sum_of(shape, is_forward)), at(conv2d_staging_of<T>(shape, m)),
        down(conv2d_classes_of(is_forward, shape.KH, shape.stride_h, shape.dil_h)),
        across(conv2d_classes_of(is_forward, shape.KW, shape.stride_w, shape.dil_w)), K(shape.KH * shape.KW * m.in_channels) {}

  PG_INLINE long row_of(long h, long kh) const { return conv2d_place(m.is_forward, h, kh, s.stride_h, s.dil_h, s.pad_h, m.in_h); }
  PG_INLINE long column_of(long column, long kw) const {
    return conv2d_place(m.is_forward, column, kw, s.stride_w, s.dil_w, s.pad_w, m.in_w);
  }
  // Where the taps of two classes begin in the order in which weights are packed.
  PG_INLINE long first_tap(long class_h, long class_w) const {
    return s.KW * down.before(class_h) + down.count(class_h) * across.before(class_w);
  }
  // Whether neighbouring results of a class read neighbours.
  PG_INLINE bool are_neighbours() const { return !m.is_forward || s.stride_w == 1 || at.is_copied; }
  PG_INLINE long step() const { return m.is_forward ? 1 : s.stride_w; }
  // How many places from a result's index tap kw reads.
  PG_INLINE long shift(long kw) const {
    const long distance = kw * s.dil_w - s.pad_w;
    if (!are_neighbours()) return distance;
    long quotient = distance / s.stride_w, rest = distance % s.stride_w;
    if (rest < 0) --quotient, rest += s.stride_w;
    if (!m.is_forward) return -quotient;
    return rest * ((m.in_w + s.stride_w - 1) / s.stride_w) + quotient;
  }
};

template <class T> inline long conv2d_fill_columns(const conv2d_plan<T>& plan, conv2d_columns* found) {
  long count = 0;
  const long step = plan.step(), apart = plan.are_neighbours() ? 1 : plan.s.stride_w;
  for (long start = 0; start < step; ++start) {
    const long from = count;
    for (long column = start; column < plan.m.out_w; column += step) {
      conv2d_columns here = {column, column / step * apart, 1, 0, 0, 0};
      for (long kw = 0; kw < plan.s.KW; ++kw)
        if (plan.column_of(column, kw) >= 0) {
          here.part = kw % plan.across.step;
          if (here.last == 0) here.first = kw / plan.across.step;
          here.last = kw / plan.across.step + 1;
        }
      if (count > from && apart == 1 && found[count - 1].part == here.part && found[count - 1].first == here.first &&
          found[count - 1].last == here.last)
        ++found[count - 1].width;
      else found[count++] = here;
    }
  }
  return count;
}

// Packs the filter of group g as [result's channel][tap, by classes][operand's channel].
template <class T> PG_NOINLINE void conv2d_vectors_pack(const conv2d_plan<T>& plan, const T* w, long g, T* packed) {
  const conv2d_shape& s = plan.s;
  const conv2d_sum& m = plan.m;
  const long channels = s.C / s.groups, per_group = s.O / s.groups, taps = s.KH * s.KW;
  for (long tap = 0; tap < taps; ++tap) {
    const long kh = tap / s.KW, kw = tap % s.KW, class_w = kw % plan.across.step;
    const long place = plan.first_tap(kh % plan.down.step, class_w) + kh / plan.down.step * plan.across.count(class_w) + kw / plan.across.step;
    for (long r = 0; r < m.out_channels; ++r)
      for (long i = 0; i < m.in_channels; ++i) {
        const long o = g * per_group + (m.is_forward ? r : i), c = m.is_forward ? i : r;
        packed[r * plan.K + place * m.in_channels + i] = w[(o * channels + c) * taps + tap];
      }
  }
}

// Copies row `row` of all channels, `span` lanes of each place.
template <class T> PG_NOINLINE void conv2d_vectors_stage(const conv2d_plan<T>& plan, const T* in, long row, T* staged) {
  const conv2d_staging& at = plan.at;
  const long stride = plan.m.is_forward ? plan.s.stride_w : 1, part = (plan.m.in_w + stride - 1) / stride;
  for (long i = 0; i < plan.m.in_channels; ++i) {
    const T* const from = in + (i * plan.m.in_h + row) * plan.m.in_w * plan.s.lanes;
    T* const to = staged + i * at.channel + row % at.rows * at.row;
    for (long remainder = 0; remainder < stride; ++remainder)
      for (long column = remainder, place = remainder * part; column < plan.m.in_w; column += stride, ++place)
        for (long l = 0; l < at.span; l += PG_LANES)
          store_plain(to + place * at.span + l, load_plain(from + column * plan.s.lanes + l));
  }
}

// An array that an epilogue reads or writes at each result: element (n, channel, position) lies `size` bytes long at
// start + n * image + channel * plane + position * size.
struct conv2d_array {
  const void* start;
  long image, plane, size;
};

// Those that are too large to be near, for the results from `position` of image n on, of channels from `channel` on.
struct conv2d_ahead {
  const conv2d_array* arrays;
  int count;
  long n, channel, position;
};

// Asks for the lines of `rows` channels under vectors first … first + length - 1 of a run of columns that are `step` apart, of
// `span` lanes each. Not inlined, it would be taken for what has no effect, and left out.
template <class T>
PG_INLINE void conv2d_vectors_ask(const conv2d_ahead& ahead, long span, long step, long first, long length, long rows) {
  for (int i = 0; i < ahead.count; ++i) {
    const conv2d_array& array = ahead.arrays[i];
    const char* const start = static_cast<const char*>(array.start) + ahead.n * array.image + ahead.channel * array.plane;
    for (long v = first; v < first + length; ++v) {
      const long lane = v * PG_LANES, place = lane / span * step + lane % span;
      const char* line = start + (ahead.position + place) * array.size;
      // Of the vectors in a line the first one asks.
      if (reinterpret_cast<unsigned long>(line) % 64 >= (unsigned long)(PG_LANES * array.size)) continue;
      for (long r = 0; r < rows; ++r, line += array.plane) __builtin_prefetch(line, 1, 2);
    }
  }
}

// Vectors of a row that are summed before the epilogue sees them, so that it walks each array by more than a few.
enum { conv2d_strip = 32 };

template <class T> PG_NOINLINE long conv2d_vectors_scratch(const conv2d_shape& s, bool is_forward) {
  const conv2d_plan<T> plan(s, is_forward);
  const long K = plan.K;
  return round_up(gemm_tile<T>::rows * conv2d_strip * PG_LANES * long(sizeof(T)), 64) + round_up(K * long(sizeof(long)), 64) +
         round_up(plan.m.out_w * long(sizeof(conv2d_columns)), 64) + round_up(plan.m.out_channels * K * long(sizeof(T)), 64) +
         round_up(plan.at.bytes, 64);
}
template <class T> inline long conv2d_vectors_forward_scratch(const conv2d_shape& s) { return conv2d_vectors_scratch<T>(s, true); }
template <class T> inline long conv2d_vectors_grad_input_scratch(const conv2d_shape& s) { return conv2d_vectors_scratch<T>(s, false); }

// One row of results in the making: the operand's first element, and the taps top … bottom - 1 of class `part` that it has.
template <class T> struct conv2d_row {
  const T *from, *packed;
  const long* offsets;
  long part, top, bottom;
};

// Finds the taps of row h, and writes how far from a result's index they read.
template <class T> PG_NOINLINE void conv2d_vectors_row(const conv2d_plan<T>& plan, long h, conv2d_row<T>& row, long* offsets) {
  const conv2d_sum& m = plan.m;
  row.part = row.top = row.bottom = 0;
  for (long kh = 0; kh < plan.s.KH; ++kh) {
    const long place = plan.row_of(h, kh);
    if (place < 0) continue;
    row.part = kh % plan.down.step;
    if (row.bottom == 0) row.top = kh / plan.down.step;
    row.bottom = kh / plan.down.step + 1;
    const long begin = place % plan.at.rows * plan.at.row;
    for (long kw = 0; kw < plan.s.KW; ++kw) {
      const long class_w = kw % plan.across.step;
      const long tap = plan.first_tap(row.part, class_w) + kh / plan.down.step * plan.across.count(class_w) + kw / plan.across.step;
      long* const to = offsets + tap * m.in_channels;
      const long shift = begin + plan.shift(kw) * plan.at.span;
      for (long i = 0; i < m.in_channels; ++i) to[i] = shift + i * plan.at.channel;
    }
  }
}

// sums[r][v] of `rows` channels from first_row on, for `length` vectors from `strip` on of a run of columns; rows of sums are
// a whole strip apart. What `ahead` names comes meanwhile.
template <class T>
PG_NOINLINE void conv2d_vectors_strip(const conv2d_plan<T>& plan, const conv2d_row<T>& row, const conv2d_columns& here, long strip,
                                      long length, long first_row, long rows, T* sums, const conv2d_ahead& ahead) {
  const long channels = plan.m.in_channels, wide = plan.across.count(here.part), begin = plan.first_tap(row.part, here.part);
  const bool is_empty = row.top >= row.bottom || here.first >= here.last, is_whole = here.first == 0 && here.last == wide;
  const conv2d_parts parts(length, gemm_tile<T>::vectors);
  const gemm_kernel_function<T> kernels[2] = {gemm_kernel_for<T, true>(int(rows), int(parts.base)),
                                              gemm_kernel_for<T, true>(int(rows), int(parts.base) + 1)};
  for (long p = 0; p < parts.count; ++p) {
    const long first = parts.first(p) * PG_LANES;
    if (ahead.count > 0) conv2d_vectors_ask<T>(ahead, plan.at.span, plan.step() * plan.s.lanes, strip + parts.first(p), parts.length(p), rows);
    if (is_empty) {
      for (long r = 0; r < rows; ++r)
        for (long v = 0; v < parts.length(p); ++v) store_plain(sums + (r * conv2d_strip + v) * PG_LANES + first, vec<T>{});
      continue;
    }
    // Rows of taps that follow each other are one run.
    const long runs = is_whole ? 1 : row.bottom - row.top;
    const long count = (is_whole ? (row.bottom - row.top) * wide : here.last - here.first) * channels;
    for (long i = 0; i < runs; ++i) {
      const long k = (begin + (row.top + i) * wide + here.first) * channels;
      kernels[p < parts.extra](count, row.packed + first_row * plan.K + k, plan.K, 1,
                               row.from + here.index * plan.at.span + strip * PG_LANES + first, 0, row.offsets + k, sums + first,
                               conv2d_strip * PG_LANES, i > 0);
    }
  }
}

// The walk over one worker's rows of results; after strip(), sums of neighbouring results of some channels lie at `sums`.
template <class T> struct conv2d_vectors_walk {
  const conv2d_plan<T> plan;
  const T *in, *w;
  const conv2d_array* arrays;
  int count;
  const conv2d_parts down;
  const long blocks;
  long begin, end;
  T *sums, *packed, *staged;
  long* offsets;
  conv2d_columns* columns;
  long groups_of_columns;
  conv2d_row<T> row;
  long packed_group, read, next;
  long n, g, h, lane;                                   // of the row: sample, group, and the first of its lanes
  long channel, rows, position, length, left, leap;  // of the strip: see strip()

  PG_NOINLINE conv2d_vectors_walk(const conv2d_shape& s, bool is_forward, const T* in, const T* w, T* scratch, int worker, int workers,
                                  const conv2d_array* arrays, int count)
      : plan(s, is_forward), in(in), w(w), arrays(arrays), count(count), down(plan.m.out_channels, gemm_tile<T>::rows),
        blocks(s.lanes / plan.at.span), packed_group(-1), read(-1), next(0) {
    share(s.N * s.groups * blocks * plan.m.out_h, 1, worker, workers, begin, end);
    if (plan.m.out_w <= 0) end = begin;
    if (begin >= end) return;
    scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
    sums = cursor.take<T>(gemm_tile<T>::rows * conv2d_strip * PG_LANES);
    offsets = cursor.take<long>(plan.K);
    columns = cursor.take<conv2d_columns>(plan.m.out_w);
    packed = cursor.take<T>(plan.m.out_channels * plan.K);
    staged = cursor.take<T>(plan.at.bytes / long(sizeof(T)));
    groups_of_columns = conv2d_fill_columns(plan, columns);
    row = {staged, packed, offsets, 0, 0, 0};
  }

  PG_NOINLINE void enter(long unit) {
    const conv2d_shape& s = plan.s;
    const conv2d_sum& m = plan.m;
    const long image_number = unit / m.out_h, sample = image_number / blocks;
    h = unit % m.out_h, lane = image_number % blocks * plan.at.span, n = sample % s.N, g = sample / s.N;
    if (g != packed_group) conv2d_vectors_pack(plan, w, g, packed);
    packed_group = g;
    const T* const image = in + (n * s.groups + g) * m.in_channels * m.in_h * m.in_w * s.lanes + lane;
    if (!plan.at.is_copied) row.from = image;
    if (image_number != read) next = 0;
    read = image_number;
    conv2d_vectors_row(plan, h, row, offsets);
    if (!plan.at.is_copied) return;
    // Bounds that rise with h, unlike the rows that the taps of one class read.
    const long reach = (s.KH - 1) * s.dil_h, last = m.is_forward ? h * s.stride_h - s.pad_h + reach : (h + s.pad_h) / s.stride_h;
    const long from = m.is_forward ? h * s.stride_h - s.pad_h : (h + s.pad_h - reach + s.stride_h - 1) / s.stride_h;
    for (next = next < from ? from : next; next <= last && next < m.in_h; ++next) conv2d_vectors_stage(plan, image, next, staged);
  }

  PG_INLINE long vectors(long i) const { return columns[i].width * plan.at.span / PG_LANES; }

  // Sums `rows` channels from `channel` on, tile t of them, for `length` vectors from `first` on of run i of columns. The first
  // vector is for `position`; each follows the one before or, after `left` lanes and then after every `span`, lies `leap` further on.
  PG_NOINLINE void strip(long i, long first, long t) {
    const long span = plan.at.span, all = vectors(i), lanes = plan.s.lanes, step = plan.step() * lanes;
    length = all - first < conv2d_strip ? all - first : long(conv2d_strip);
    rows = down.length(t), channel = g * plan.m.out_channels + down.first(t);
    const long start = (h * plan.m.out_w + columns[i].column) * lanes + lane, within = first * PG_LANES % span;
    position = start + first * PG_LANES / span * step + within, left = span - within, leap = step - span;
    const conv2d_ahead ahead = {arrays, count, n, channel, start};
    conv2d_vectors_strip(plan, row, columns[i], first, length, down.first(t), rows, sums, ahead);
  }
};

template <class T, class Epilogue>
PG_INLINE void conv2d_vectors_sum(const conv2d_shape& s, bool is_forward, const T* in, const T* w, T* scratch, int worker, int workers,
                                  Epilogue&& epilogue, const conv2d_array* arrays, int count) {
  conv2d_vectors_walk<T> walk(s, is_forward, in, w, scratch, worker, workers, arrays, count);
  for (long unit = walk.begin; unit < walk.end; ++unit) {
    walk.enter(unit);
    for (long i = 0; i < walk.groups_of_columns; ++i)
      for (long first = 0; first < walk.vectors(i); first += conv2d_strip)
        for (long t = 0; t < walk.down.count; ++t) {
          walk.strip(i, first, t);
          // Copies: the epilogue's stores could change what lies in the walk.
          const T* const sums = walk.sums;
          const long n = walk.n, channel = walk.channel, rows = walk.rows, length = walk.length, span = walk.plan.at.span, leap = walk.leap;
          for (long r = 0; r < rows; ++r) {
            long position = walk.position, left = walk.left;
            for (long v = 0; v < length; ++v, position += PG_LANES, left -= PG_LANES) {
              if (left == 0) left = span, position += leap;
              epilogue(n, channel + r, position, load_plain(sums + (r * conv2d_strip + v) * PG_LANES), long(PG_LANES));
            }
          }
        }
  }
}

// y = conv(x, w), handed over as epilogue(n, output channel, position, vec<T>, count). `arrays`: what the epilogue reads and
// writes where that is too large to be near.
template <class T, class Epilogue>
void conv2d_vectors_forward(const conv2d_shape& s, const T* x, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue,
                            const conv2d_array* arrays = nullptr, int count = 0) {
  conv2d_vectors_sum(s, true, x, w, scratch, worker, workers, epilogue, arrays, count);
}

// dx, handed over as epilogue(n, input channel, position, vec<T>, count); `arrays` as above.
template <class T, class Epilogue>
void conv2d_vectors_grad_input(const conv2d_shape& s, const T* dy, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue,
                               const conv2d_array* arrays = nullptr, int count = 0) {
  conv2d_vectors_sum(s, false, dy, w, scratch, worker, workers, epilogue, arrays, count);
}

// ---- gradient of the weight ---------------------------------------------------------------------------------------------

template <class T> inline long conv2d_vectors_grad_weight_scratch(const conv2d_shape& s) {
  return round_up(conv2d_sum_length(s) * long(sizeof(long)), 64);
}

// Where the taps lie from the first on that all see the same: (channel, kh, kw) without a border, else one tap of all channels.
inline void conv2d_vectors_weight_offsets(const conv2d_shape& s, long* offsets) {
  const bool has_border = s.pad_h > 0 || s.pad_w > 0;
  for (long c = 0; c < s.C / s.groups; ++c) {
    const long start = c * s.H * s.W * s.lanes;
    if (has_border) *offsets++ = start;
    for (long tap = 0; !has_border && tap < s.KH * s.KW; ++tap)
      *offsets++ = start + (tap / s.KW * s.dil_h * s.W + tap % s.KW * s.dil_w) * s.lanes;
  }
}

// Rows of dy that one pass takes: as few as keep them within 128 KiB, for the sake of the input's rows beside them.
template <class T> inline long conv2d_vectors_rows(const conv2d_shape& s) {
  const long bytes = s.O / s.groups * s.OW * s.lanes * long(sizeof(T)), fit = 131072 / (bytes > 0 ? bytes : 1);
  return fit > 1 ? fit : 1;
}

// Results first … last - 1 of `extent` whose tap k lies within an operand of `size`.
struct conv2d_span {
  long first, last;
};

PG_INLINE conv2d_span conv2d_span_of(long k, long stride, long dil, long pad, long size, long extent) {
  conv2d_span r = {0, extent};
  while (r.first < r.last && conv2d_place(true, r.first, k, stride, dil, pad, size) < 0) ++r.first;
  while (r.last > r.first && conv2d_place(true, r.last - 1, k, stride, dil, pad, size) < 0) --r.last;
  return r;
}

// Adds what rows oh … oh + count - 1 of one sample and group give to the sums of taps that all see the same columns: from
// (kh, kw) on, `taps` of them, for the channels that offsets[taps * channels] tell.
template <class T>
PG_NOINLINE void conv2d_vectors_weight_rows(const conv2d_shape& s, const T* x, const T* dy, long oh, long count, const long* offsets, T* sums) {
  const long K = conv2d_sum_length(s), channels = s.C / s.groups, per_group = s.O / s.groups, taps = s.KH * s.KW;
  const long row = s.OW * s.lanes, in_row = s.W * s.lanes;
  const bool is_row = s.stride_w == 1;
  const auto add = [&](conv2d_span rows, conv2d_span columns, long h, long w, long length, const long* at, T* out, long out_tap) {
    rows.first = rows.first > oh ? rows.first : oh;
    rows.last = rows.last < oh + count ? rows.last : oh + count;
    if (rows.first >= rows.last || columns.first >= columns.last) return;
    const long wide = (columns.last - columns.first) * s.lanes;
    const conv2d_runs over = {rows.last - rows.first, row, s.stride_h * in_row, is_row ? 1 : columns.last - columns.first,
                              s.lanes, s.stride_w * s.lanes, is_row ? wide : s.lanes};
    const T* const image = x + (rows.first * s.stride_h + h) * in_row + (columns.first * s.stride_w + w) * s.lanes;
    conv2d_weight_tiles<T>(per_group, length, over, dy + rows.first * row + columns.first * s.lanes, s.OH * row, image, at, out, K, out_tap);
  };
  if (s.pad_h == 0 && s.pad_w == 0) return add({0, s.OH}, {0, s.OW}, 0, 0, K, offsets, sums, 1);
  for (long tap = 0; tap < taps; ++tap) {
    const long kh = tap / s.KW, kw = tap % s.KW;
    add(conv2d_span_of(kh, s.stride_h, s.dil_h, s.pad_h, s.H, s.OH), conv2d_span_of(kw, s.stride_w, s.dil_w, s.pad_w, s.W, s.OW),
        kh * s.dil_h - s.pad_h, kw * s.dil_w - s.pad_w, channels, offsets, sums + tap, taps);
  }
}

// Fills this worker's part of `partials` (conv2d_weight_partials(s) elements); a chunk is of output rows of all samples.
// After a barrier, conv2d_combine_weight adds the chunks up.
template <class T>
PG_NOINLINE void conv2d_vectors_grad_weight(const conv2d_shape& s, const T* x, const T* dy, T* partials, T* scratch, int worker, int workers) {
  const long K = conv2d_sum_length(s), channels = s.C / s.groups, per_group = s.O / s.groups, chunks = s.weight_chunks;
  const long plane = s.H * s.W * s.lanes, most = conv2d_vectors_rows<T>(s);
  long begin, end;
  share(chunks * s.groups, 1, worker, workers, begin, end);
  if (begin >= end || K == 0) return;
  long* const offsets = reinterpret_cast<long*>(scratch);
  conv2d_vectors_weight_offsets(s, offsets);
  for (long item = begin; item < end; ++item) {
    const long chunk = item / s.groups, g = item % s.groups;
    T* const sums = partials + (chunk * s.O + g * per_group) * K;
    __builtin_memset(sums, 0, per_group * K * sizeof(T));
    const long last = even_cut(s.N * s.OH, chunks, chunk + 1);
    for (long unit = even_cut(s.N * s.OH, chunks, chunk), count; unit < last; unit += count) {
      const long n = unit / s.OH, oh = unit % s.OH, left = last - unit < s.OH - oh ? last - unit : s.OH - oh;
      count = left < most ? left : most;
      conv2d_vectors_weight_rows<T>(s, x + (n * s.C + g * channels) * plane, dy + (n * s.O + g * per_group) * s.OH * s.OW * s.lanes, oh,
                                    count, offsets, sums);
    }
  }
}

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_CONV_VECTORS_PARTS(PART)                                                                                         \
  PART conv2d_vectors_walk<float>::conv2d_vectors_walk(const conv2d_shape&, bool, const float*, const float*, float*, int, int, \
                                                       const conv2d_array*, int);                                          \
  PART void conv2d_vectors_walk<float>::enter(long);                                                                       \
  PART void conv2d_vectors_walk<float>::strip(long, long, long);                                                           \
  PART long conv2d_vectors_scratch<float>(const conv2d_shape&, bool);                                                       \
  PART void conv2d_vectors_grad_weight<float>(const conv2d_shape&, const float*, const float*, float*, float*, int, int);
#if defined(PG_PARTS_APART)
PG_CONV_VECTORS_PARTS(extern template)
#endif

}  // namespace pg
