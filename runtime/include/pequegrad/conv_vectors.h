// 2-D convolution and its two gradients where each place of an image has `lanes` elements side by side, such as samples, each
// an image of its own; lanes is a multiple of PG_LANES. x is (N, C, H, W, lanes), y is (N, O, OH, OW, lanes), and a position
// of the epilogues counts the elements of a plane. One element a place: conv.h, whose functions these stand in for.
//
// How: a result's vector is a sum over taps and channels of vectors of the operand, each times one weight. Rows are parted
// where the taps that they have change, so that no border is ever multiplied; along a run of columns with the same taps a
// tile is `vectors` neighbouring vectors. Weights are packed so that the taps of a run follow each other.
//
// Invariants: as in conv.h.
#pragma once
#include "conv.h"

namespace pg {

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

// Columns of results from `column` on with the same taps first … last - 1 of a row of the filter.
struct conv2d_columns {
  long column, width, first, last;
};

inline long conv2d_fill_columns(const conv2d_shape& s, const conv2d_sum& m, conv2d_columns* found) {
  long count = 0;
  for (long column = 0; column < m.out_w; ++column) {
    long first = 0, last = 0;
    for (long kw = 0; kw < s.KW; ++kw)
      if (conv2d_place(m.is_forward, column, kw, s.stride_w, s.dil_w, s.pad_w, m.in_w) >= 0) {
        if (last == 0) first = kw;
        last = kw + 1;
      }
    if (count > 0 && s.stride_w == 1 && found[count - 1].first == first && found[count - 1].last == last) ++found[count - 1].width;
    else found[count++] = {column, 1, first, last};
  }
  return count;
}

// Packs the filter of group g as [result's channel][kh][kw][operand's channel], and how far apart what they meet lies.
template <class T>
PG_NOINLINE void conv2d_vectors_pack(const conv2d_shape& s, const conv2d_sum& m, const T* w, long g, T* packed, long* offsets) {
  const long channels = s.C / s.groups, per_group = s.O / s.groups, taps = s.KH * s.KW, K = taps * m.in_channels;
  for (long tap = 0; tap < taps; ++tap) {
    const long apart = (tap / s.KW * s.dil_h * m.in_w + tap % s.KW * s.dil_w) * s.lanes;
    for (long i = 0; i < m.in_channels; ++i) {
      offsets[tap * m.in_channels + i] = i * m.in_h * m.in_w * s.lanes + (m.is_forward ? apart : -apart);
      for (long r = 0; r < m.out_channels; ++r) {
        const long o = g * per_group + (m.is_forward ? r : i), c = m.is_forward ? i : r;
        packed[r * K + tap * m.in_channels + i] = w[(o * channels + c) * taps + tap];
      }
    }
  }
}

// Vectors of a row that are summed before the epilogue sees them, so that it walks each array by more than a few.
enum { conv2d_strip = 32 };

template <class T> inline long conv2d_vectors_scratch(const conv2d_shape& s, bool is_forward) {
  const conv2d_sum m = conv2d_sum_of(s, is_forward);
  const long K = m.in_channels * s.KH * s.KW;
  return round_up(gemm_tile<T>::rows * conv2d_strip * PG_LANES * long(sizeof(T)), 64) + round_up(K * long(sizeof(long)), 64) +
         round_up(m.out_w * long(sizeof(conv2d_columns)), 64) + round_up(m.out_channels * K * long(sizeof(T)), 64);
}
template <class T> inline long conv2d_vectors_forward_scratch(const conv2d_shape& s) { return conv2d_vectors_scratch<T>(s, true); }
template <class T> inline long conv2d_vectors_grad_input_scratch(const conv2d_shape& s) { return conv2d_vectors_scratch<T>(s, false); }

// The sums of one row of results in the making: which row h of which operand `from`, and the taps top … bottom - 1 of it.
template <class T> struct conv2d_row {
  conv2d_shape s;
  conv2d_sum m;
  const T *from, *packed;
  const long* offsets;
  long h, top, bottom;

  PG_INLINE long row_of(long kh) const { return conv2d_place(m.is_forward, h, kh, s.stride_h, s.dil_h, s.pad_h, m.in_h); }
  PG_INLINE long column_of(long column, long kw) const {
    return conv2d_place(m.is_forward, column, kw, s.stride_w, s.dil_w, s.pad_w, m.in_w);
  }
};

// sums[r][v] of `rows` channels from first_row on, for `length` vectors from `strip` on of a run of columns; rows of sums are
// a whole strip apart.
template <class T>
PG_NOINLINE void conv2d_vectors_strip(const conv2d_row<T>& row, const conv2d_columns& here, long strip, long length, long first_row,
                                      long rows, T* sums) {
  const conv2d_shape& s = row.s;
  const conv2d_sum& m = row.m;
  const long channels = m.in_channels, K = s.KH * s.KW * channels;
  // Whether the taps of a column, or row, follow each other at equal distances.
  const bool rows_merge = m.is_forward || s.stride_h == 1, columns_merge = m.is_forward || s.stride_w == 1;
  const bool is_whole = rows_merge && columns_merge && here.first == 0 && here.last == s.KW;
  const conv2d_parts across(length, gemm_tile<T>::vectors);
  const gemm_kernel_function<T> kernels[2] = {gemm_kernel_for<T, true>(int(rows), int(across.base)),
                                              gemm_kernel_for<T, true>(int(rows), int(across.base) + 1)};
  for (long p = 0; p < across.count; ++p) {
    const long first = across.first(p) * PG_LANES;
    bool is_first = true;
    // Adds `count` taps from (kh, kw) on.
    const auto run = [&](long kh, long kw, long count) {
      const long tap = (kh * s.KW + kw) * channels;
      const T* const there = row.from + (row.row_of(kh) * m.in_w + row.column_of(here.column, kw)) * s.lanes + strip * PG_LANES + first;
      kernels[p < across.extra](count * channels, row.packed + first_row * K + tap, K, 1, there - row.offsets[tap], 0, row.offsets + tap,
                                sums + first, conv2d_strip * PG_LANES, !is_first);
      is_first = false;
    };
    if (is_whole && row.top < row.bottom) {
      run(row.top, 0, (row.bottom - row.top) * s.KW);
      continue;
    }
    for (long kh = row.top; kh < row.bottom && here.first < here.last; ++kh) {
      if (row.row_of(kh) < 0) continue;
      if (columns_merge) run(kh, here.first, here.last - here.first);
      else
        for (long kw = here.first; kw < here.last; ++kw)
          if (row.column_of(here.column, kw) >= 0) run(kh, kw, 1);
    }
    for (long r = 0; r < rows && is_first; ++r)
      for (long v = 0; v < across.length(p); ++v) store_plain(sums + (r * conv2d_strip + v) * PG_LANES + first, vec<T>{});
  }
}

template <class T, class Epilogue>
PG_INLINE void conv2d_vectors_sum(const conv2d_shape& s, bool is_forward, const T* in, const T* w, T* scratch, int worker, int workers,
                                  Epilogue&& epilogue) {
  const conv2d_sum m = conv2d_sum_of(s, is_forward);
  const long K = s.KH * s.KW * m.in_channels;
  const conv2d_parts down(m.out_channels, gemm_tile<T>::rows);
  long begin, end;
  share(s.N * s.groups * m.out_h, 1, worker, workers, begin, end);
  if (begin >= end || m.out_w <= 0) return;
  scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
  T* const sums = cursor.take<T>(gemm_tile<T>::rows * conv2d_strip * PG_LANES);
  long* const offsets = cursor.take<long>(K);
  conv2d_columns* const columns = cursor.take<conv2d_columns>(m.out_w);
  T* const packed = cursor.take<T>(m.out_channels * K);
  const long groups_of_columns = conv2d_fill_columns(s, m, columns);
  conv2d_row<T> row = {s, m, in, packed, offsets, 0, 0, 0};
  long packed_group = -1;
  for (long unit = begin; unit < end; ++unit) {
    const long sample = unit / m.out_h, n = sample % s.N, g = sample / s.N;
    if (g != packed_group) conv2d_vectors_pack(s, m, w, g, packed, offsets);
    packed_group = g;
    row.h = unit % m.out_h;
    row.from = in + (n * s.groups + g) * m.in_channels * m.in_h * m.in_w * s.lanes;
    row.top = 0, row.bottom = s.KH;
    while (row.top < row.bottom && row.row_of(row.top) < 0) ++row.top;
    while (row.bottom > row.top && row.row_of(row.bottom - 1) < 0) --row.bottom;
    for (long i = 0; i < groups_of_columns; ++i) {
      const long vectors = columns[i].width * s.lanes / PG_LANES;
      for (long strip = 0; strip < vectors; strip += conv2d_strip) {
        const long length = vectors - strip < conv2d_strip ? vectors - strip : long(conv2d_strip);
        const long position = (row.h * m.out_w + columns[i].column) * s.lanes + strip * PG_LANES;
        for (long t = 0; t < down.count; ++t) {
          const long first_row = down.first(t), rows = down.length(t);
          conv2d_vectors_strip(row, columns[i], strip, length, first_row, rows, sums);
          for (long r = 0; r < rows; ++r)
            for (long v = 0; v < length; ++v)
              epilogue(n, g * m.out_channels + first_row + r, position + v * PG_LANES,
                       load_plain(sums + (r * conv2d_strip + v) * PG_LANES, PG_LANES), long(PG_LANES));
        }
      }
    }
  }
}

// y = conv(x, w), handed over as epilogue(n, output channel, position, vec<T>, count).
template <class T, class Epilogue>
void conv2d_vectors_forward(const conv2d_shape& s, const T* x, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue) {
  conv2d_vectors_sum(s, true, x, w, scratch, worker, workers, epilogue);
}

// dx, handed over as epilogue(n, input channel, position, vec<T>, count).
template <class T, class Epilogue>
void conv2d_vectors_grad_input(const conv2d_shape& s, const T* dy, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue) {
  conv2d_vectors_sum(s, false, dy, w, scratch, worker, workers, epilogue);
}

// ---- gradient of the weight ---------------------------------------------------------------------------------------------

template <class T> inline long conv2d_vectors_grad_weight_scratch(const conv2d_shape& s) {
  return round_up(conv2d_sum_length(s) * long(sizeof(long)), 64);
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
void conv2d_vectors_grad_weight(const conv2d_shape& s, const T* x, const T* dy, T* partials, T* scratch, int worker, int workers) {
  const long K = conv2d_sum_length(s), channels = s.C / s.groups, per_group = s.O / s.groups, chunks = s.weight_chunks;
  const long plane = s.H * s.W * s.lanes, most = conv2d_vectors_rows<T>(s);
  long begin, end;
  share(chunks * s.groups, 1, worker, workers, begin, end);
  if (begin >= end || K == 0) return;
  // Where all taps see the same, they are (channel, kh, kw); else one tap of all channels at a time.
  long* offsets = reinterpret_cast<long*>(scratch);
  const bool has_border = s.pad_h > 0 || s.pad_w > 0;
  for (long c = 0; c < channels; ++c) {
    if (has_border) *offsets++ = c * plane;
    for (long tap = 0; !has_border && tap < s.KH * s.KW; ++tap)
      *offsets++ = c * plane + (tap / s.KW * s.dil_h * s.W + tap % s.KW * s.dil_w) * s.lanes;
  }
  for (long item = begin; item < end; ++item) {
    const long chunk = item / s.groups, g = item % s.groups;
    T* const sums = partials + (chunk * s.O + g * per_group) * K;
    __builtin_memset(sums, 0, per_group * K * sizeof(T));
    const long last = even_cut(s.N * s.OH, chunks, chunk + 1);
    for (long unit = even_cut(s.N * s.OH, chunks, chunk), count; unit < last; unit += count) {
      const long n = unit / s.OH, oh = unit % s.OH, left = last - unit < s.OH - oh ? last - unit : s.OH - oh;
      count = left < most ? left : most;
      conv2d_vectors_weight_rows<T>(s, x + (n * s.C + g * channels) * plane, dy + (n * s.O + g * per_group) * s.OH * s.OW * s.lanes, oh,
                                    count, reinterpret_cast<const long*>(scratch), sums);
    }
  }
}

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_CONV_VECTORS_PARTS(PART)                                                                                         \
  PART void conv2d_vectors_pack<float>(const conv2d_shape&, const conv2d_sum&, const float*, long, float*, long*);          \
  PART void conv2d_vectors_strip<float>(const conv2d_row<float>&, const conv2d_columns&, long, long, long, long, float*);   \
  PART void conv2d_vectors_weight_rows<float>(const conv2d_shape&, const float*, const float*, long, long, const long*, float*);
#if defined(PG_PARTS_APART)
PG_CONV_VECTORS_PARTS(extern template)
#endif

}  // namespace pg
