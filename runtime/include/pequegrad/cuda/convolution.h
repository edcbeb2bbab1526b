// 2-D convolution and its two gradients, NCHW, with groups, stride, padding and dilation.
//
// How: products whose operands are read out of the images in place, so that nothing is unfolded. Result columns (forward,
// gradient of the input) are positions of all samples side by side, neighbours on neighbouring threads. The gradient of
// the input takes one product for each phase of the stride, in which only the taps that reach it are summed. The gradient
// of the weight sums over all samples' positions, in chunks. Where a group has few channels, the direct forms do.
//
// Invariants: as in product.h. What may not reach 2^31: N * OH * OW, N * H * W, and the taps of one sum.
//
// Which form: direct where both C / groups and O / groups are at most 8 (depthwise, 1 -> 8), else products, with a tile
// of product.h by m = O / groups (forward, gradient of the weight) or C / groups (gradient of the input).
#pragma once
#include "product.h"
#include "reduce.h"

namespace pg {

// x (N, C, H, W), w (O, C / groups, KH, KW), y (N, O, OH, OW).
struct conv2d_shape {
  long N, C, H, W, O, KH, KW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups, OH, OW;
};

__host__ __device__ __forceinline__ constexpr long conv2d_sum_length(const conv2d_shape& s) { return s.C / s.groups * s.KH * s.KW; }

// ---- operands --------------------------------------------------------------------------------------------------------

// A position of the result of all samples, side by side.
struct conv2d_position {
  int n, row, column;
};
__device__ __forceinline__ conv2d_position conv2d_position_of(long index, long rows, long columns) {
  const unsigned at = unsigned(index), plane = unsigned(rows * columns);
  return {int(at / plane), int(at % plane / unsigned(columns)), int(at % unsigned(columns))};
}
struct conv2d_tap {
  int channel, kh, kw;
};
__device__ __forceinline__ conv2d_tap conv2d_tap_of(long index, long KH, long KW) {
  const unsigned at = unsigned(index), taps = unsigned(KH * KW);
  return {int(at / taps), int(at % taps / unsigned(KW)), int(at % unsigned(KW))};
}

template <class T> __device__ __forceinline__ value_of<T> load_inside(const T* plane, int h, int w, int H, int W) {
  if (unsigned(h) < unsigned(H) && unsigned(w) < unsigned(W)) return load(plane + long(h) * W + w);
  return value_of<T>(0);
}

// x as seen by the filter: lines are positions of the output, k the taps (channel, kh, kw) of the group.
template <class T> struct conv2d_patches {
  typedef T storage;
  enum { along_k = false, width = 1, has_address = false };
  const conv2d_shape& s;
  const T* x;
  struct line {
    const T* start;
    int h, w;
  };
  __device__ __forceinline__ line line_of(long group, long index) const {
    const conv2d_position p = conv2d_position_of(index, s.OH, s.OW);
    return {x + (p.n * s.C + group * (s.C / s.groups)) * s.H * s.W, int(p.row * s.stride_h - s.pad_h), int(p.column * s.stride_w - s.pad_w)};
  }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    const conv2d_tap t = conv2d_tap_of(k, s.KH, s.KW);
    to[0] = load_inside(from.start + t.channel * s.H * s.W, from.h + t.kh * int(s.dil_h), from.w + t.kw * int(s.dil_w), int(s.H), int(s.W));
  }
};

// The same, turned: lines are taps, k the positions of all samples.
template <class T> struct conv2d_taps {
  typedef T storage;
  enum { along_k = true, width = 1, has_address = false };
  const conv2d_shape& s;
  const T* x;
  struct line {
    const T* start;
    int h, w;
  };
  __device__ __forceinline__ line line_of(long group, long index) const {
    const conv2d_tap t = conv2d_tap_of(index, s.KH, s.KW);
    return {x + (group * (s.C / s.groups) + t.channel) * s.H * s.W, int(t.kh * s.dil_h - s.pad_h), int(t.kw * s.dil_w - s.pad_w)};
  }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    const conv2d_position p = conv2d_position_of(k, s.OH, s.OW);
    to[0] = load_inside(from.start + p.n * s.C * s.H * s.W, from.h + p.row * int(s.stride_h), from.w + p.column * int(s.stride_w), int(s.H),
                        int(s.W));
  }
};

// dy: lines are output channels, k the positions of all samples.
template <class T> struct conv2d_gradient_rows {
  typedef T storage;
  enum { along_k = true, width = 1, has_address = false };
  const conv2d_shape& s;
  const T* dy;
  struct line {
    const T* start;
  };
  __device__ __forceinline__ line line_of(long group, long index) const { return {dy + (group * (s.O / s.groups) + index) * s.OH * s.OW}; }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    const unsigned at = unsigned(k), plane = unsigned(s.OH * s.OW);
    to[0] = load(from.start + long(at / plane) * s.O * s.OH * s.OW + at % plane);
  }
};

// One dimension of one phase of the input: coordinates u = coordinate + pad with u % stride == phase, `count` of them from
// u / stride == first; and the taps that reach them, those with tap * dilation % stride == phase: first_tap + i * tap_step.
struct conv2d_phase {
  int phase, first, count, taps, first_tap, tap_step;
};
__device__ __forceinline__ conv2d_phase conv2d_phase_of(long phase, long extent, long pad, long stride, long dilation, long size) {
  conv2d_phase f;
  f.phase = int(phase);
  f.first = int(pad > phase ? (pad - phase + stride - 1) / stride : 0);
  f.count = int(pad + extent - 1 < phase ? 0 : (pad + extent - 1 - phase) / stride + 1 - f.first);
  f.taps = 0;
  f.first_tap = 0;
  f.tap_step = 1;
  for (int tap = 0; tap < int(size); ++tap) {
    if (tap * dilation % stride != phase) continue;
    if (f.taps == 0) f.first_tap = tap;
    if (f.taps == 1) f.tap_step = tap - f.first_tap;
    ++f.taps;
  }
  return f;
}

// dy as one phase of the input sees it: lines are the phase's positions, k the taps (output channel, kh, kw) that reach it.
template <class T> struct conv2d_gradient_patches {
  typedef T storage;
  enum { along_k = false, width = 1, has_address = false };
  const conv2d_shape& s;
  const T* dy;
  const conv2d_phase &tall, &broad;
  struct line {
    const T* start;
    int h, w;
  };
  __device__ __forceinline__ line line_of(long group, long index) const {
    const conv2d_position p = conv2d_position_of(index, tall.count, broad.count);
    return {dy + (p.n * s.O + group * (s.O / s.groups)) * s.OH * s.OW, p.row + tall.first, p.column + broad.first};
  }
  template <int W> __device__ __forceinline__ void read(const line& from, long k, value_of<T> (&to)[W]) const {
    const conv2d_tap t = conv2d_tap_of(k, tall.taps, broad.taps);
    const int kh = tall.first_tap + t.kh * tall.tap_step, kw = broad.first_tap + t.kw * broad.tap_step;
    to[0] = load_inside(from.start + t.channel * s.OH * s.OW, from.h - (kh * int(s.dil_h) - tall.phase) / int(s.stride_h),
                        from.w - (kw * int(s.dil_w) - broad.phase) / int(s.stride_w), int(s.OH), int(s.OW));
  }
};

// ---- by products -----------------------------------------------------------------------------------------------------

// y = conv(x, w), handed over as epilogue(n, output channel, position = oh * OW + ow, value).
// Units: groups * tiles of (O / groups) x (N * OH * OW). Width: neighbours of w read as one, a divisor of its sums' length.
template <class T, class Tile, int Width, class Epilogue>
__device__ __forceinline__ void conv2d_forward(const part& part, const conv2d_shape& s, const T* x, const T* w, Epilogue&& epilogue) {
  const long per_group = s.O / s.groups, K = conv2d_sum_length(s), plane = s.OH * s.OW;
  product<T, Tile>(part, s.groups, per_group, s.N * plane, K,
                   strided<T, true, Width>([=](long group) { return w + group * per_group * K; }, K, 1), conv2d_patches<T>{s, x},
                   [&](long group, long row, long column, value_of<T> value) {
                     const unsigned at = unsigned(column), size = unsigned(plane);
                     epilogue(long(at / size), group * per_group + row, long(at % size), value);
                   });
}

// dx, handed over as epilogue(n, input channel, position = h * W + w, value).
// Units: about groups * tiles of (C / groups) x (N * H * W).
template <class T, class Tile, class Epilogue>
__device__ __forceinline__ void conv2d_grad_input(const part& part, const conv2d_shape& s, const T* dy, const T* w, Epilogue&& epilogue) {
  const long channels = s.C / s.groups, per_group = s.O / s.groups;
  long units = 0;
#pragma unroll 1
  for (long phase = 0; phase < s.stride_h * s.stride_w; ++phase) {
    const conv2d_phase tall = conv2d_phase_of(phase / s.stride_w, s.H, s.pad_h, s.stride_h, s.dil_h, s.KH);
    const conv2d_phase broad = conv2d_phase_of(phase % s.stride_w, s.W, s.pad_w, s.stride_w, s.dil_w, s.KW);
    if (tall.count <= 0 || broad.count <= 0) continue;
    const long positions = s.N * tall.count * broad.count;
    const auto filter = by_element<T, true>([&](long group, long channel, long k) {
      const conv2d_tap t = conv2d_tap_of(k, tall.taps, broad.taps);
      const int kh = tall.first_tap + t.kh * tall.tap_step, kw = broad.first_tap + t.kw * broad.tap_step;
      return load(w + (((group * per_group + t.channel) * channels + channel) * s.KH + kh) * s.KW + kw);
    });
    product<T, Tile>(part.after(int(units % part.blocks)), s.groups, channels, positions, per_group * tall.taps * broad.taps, filter,
                     conv2d_gradient_patches<T>{s, dy, tall, broad}, [&](long group, long row, long column, value_of<T> value) {
                       const conv2d_position p = conv2d_position_of(column, tall.count, broad.count);
                       const long h = (p.row + tall.first) * s.stride_h + tall.phase - s.pad_h;
                       const long v = (p.column + broad.first) * s.stride_w + broad.phase - s.pad_w;
                       epilogue(long(p.n), group * channels + row, h * s.W + v, value);
                     });
    units += s.groups * tiles_of(channels, Tile::rows) * tiles_of(positions, Tile::columns);
  }
}

// dw, flat in (O, C / groups, KH, KW), seen as rows of `run` elements: epilogue(row, column, value).
// Units: groups * tiles of (O / groups) x (C / groups * KH * KW).
template <class T, class Tile, class Epilogue>
__device__ __forceinline__ void conv2d_grad_weight(const part& part, const conv2d_shape& s, const T* x, const T* dy, long run, Epilogue&& epilogue) {
  const long K = conv2d_sum_length(s), per_group = s.O / s.groups;
  product<T, Tile>(part, s.groups, per_group, K, s.N * s.OH * s.OW, conv2d_gradient_rows<T>{s, dy}, conv2d_taps<T>{s, x},
                   [&](long group, long row, long column, value_of<T> value) {
                     const long at = (group * per_group + row) * K + column;
                     epilogue(at / run, at % run, value);
                   });
}

// The sums of each of `chunks` parts of all samples' positions, into partials[chunk][O][C / groups][KH][KW].
// Units: chunks * groups * tiles of (O / groups) x (C / groups * KH * KW). Then conv2d_combine_weight, a body of its own.
template <class T, class Tile>
__device__ __forceinline__ void conv2d_grad_weight_chunks(const part& part, const conv2d_shape& s, long chunks, const T* x, const T* dy,
                                                          value_of<T>* partials) {
  product_chunks<T, Tile>(part, s.groups, s.O / s.groups, conv2d_sum_length(s), s.N * s.OH * s.OW, chunks, conv2d_gradient_rows<T>{s, dy},
                          conv2d_taps<T>{s, x}, partials);
}

// dw, flat in (O, C / groups, KH, KW), seen as rows of `run` elements: epilogue(row, column, value), chunks in rising order.
// Units: elements / PG_BLOCK.
template <class T, class Epilogue>
__device__ __forceinline__ void conv2d_combine_weight(const part& part, const conv2d_shape& s, long chunks, const value_of<T>* partials, long run,
                                                      Epilogue&& epilogue) {
  const long elements = s.O * conv2d_sum_length(s);
  product_combine<T>(part, 1, elements / (run > 0 ? run : 1), run, chunks, partials,
                     [&](long, long row, long column, value_of<T> value) { epilogue(row, column, value); });
}

// ---- direct ----------------------------------------------------------------------------------------------------------

enum { conv2d_tile_rows = 8, conv2d_tile_columns = 32 };

// The piece of one input plane that a tile of outputs reads.
__host__ __device__ __forceinline__ constexpr long conv2d_piece_rows(const conv2d_shape& s) {
  return (conv2d_tile_rows - 1) * s.stride_h + (s.KH - 1) * s.dil_h + 1;
}
__host__ __device__ __forceinline__ constexpr long conv2d_piece_columns(const conv2d_shape& s) {
  return (conv2d_tile_columns - 1) * s.stride_w + (s.KW - 1) * s.dil_w + 1;
}

// Bytes of dynamic shared memory for conv2d_forward_direct: the filters of Channels outputs and a piece of the group's input.
template <class T, int Channels> constexpr long conv2d_direct_shared(const conv2d_shape& s) {
  return long(sizeof(value_of<T>)) * (conv2d_sum_length(s) * Channels + s.C / s.groups * conv2d_piece_rows(s) * conv2d_piece_columns(s));
}

// conv2d_forward where a group has few channels: a thread sums Channels (1, 2, 4 or 8) output channels of one position, out
// of a piece of the input in shared memory. Units: N * groups * ceil(O / groups / Channels) * tiles of 8 x 32 positions.
template <class T, int Channels, class Epilogue>
__device__ __forceinline__ void conv2d_forward_direct(const part& part, const conv2d_shape& s, const T* x, const T* w, Epilogue&& epilogue) {
  typedef value_of<T> value;
  constexpr int V = least(Channels, 16 / int(sizeof(value)));
  PG_DYNAMIC_SHARED(value, shared);
  const int K = int(conv2d_sum_length(s)), channels = int(s.C / s.groups), per_group = int(s.O / s.groups), taps = int(s.KH * s.KW);
  const int piece_rows = int(conv2d_piece_rows(s)), piece_columns = int(conv2d_piece_columns(s)), piece = K * Channels;
  const long tiles_h = tiles_of(s.OH, conv2d_tile_rows), tiles_w = tiles_of(s.OW, conv2d_tile_columns), parts = tiles_of(per_group, Channels);
  const int i = threadIdx.x / conv2d_tile_columns, j = threadIdx.x % conv2d_tile_columns;
  for (long unit = part.block; unit < s.N * s.groups * parts * tiles_h * tiles_w; unit += part.blocks) {
    const long left = unit % tiles_w * conv2d_tile_columns, top = unit / tiles_w % tiles_h * conv2d_tile_rows;
    const long outputs = unit / (tiles_w * tiles_h), first = outputs % parts * Channels, group = outputs / parts % s.groups;
    const long n = outputs / parts / s.groups;
    for (int at = threadIdx.x; at < piece; at += PG_BLOCK) {
      const int o = at % Channels, k = at / Channels;
      shared[at] = first + o < per_group ? load(w + (group * per_group + first + o) * K + k) : value(0);
    }
    const T* const from = x + (n * s.C + group * channels) * s.H * s.W;
    for (int at = threadIdx.x; at < channels * piece_rows * piece_columns; at += PG_BLOCK) {
      const int column = at % piece_columns, row = at / piece_columns % piece_rows, c = at / piece_columns / piece_rows;
      shared[piece + at] = load_inside(from + c * s.H * s.W, int(top * s.stride_h - s.pad_h) + row, int(left * s.stride_w - s.pad_w) + column,
                                       int(s.H), int(s.W));
    }
    __syncthreads();
    value sum[Channels];
#pragma unroll
    for (int o = 0; o < Channels; ++o) sum[o] = value(0);
    for (int c = 0; c < channels; ++c)
      for (int kh = 0; kh < s.KH; ++kh)
        for (int kw = 0; kw < s.KW; ++kw) {
          const value v = shared[piece + (c * piece_rows + i * s.stride_h + kh * s.dil_h) * piece_columns + j * s.stride_w + kw * s.dil_w];
          const int filter = (c * taps + kh * int(s.KW) + kw) * Channels;
#pragma unroll
          for (int o = 0; o < Channels; o += V) {
            value factor[V];
            read_shared<V>(shared, filter + o, factor);
#pragma unroll
            for (int r = 0; r < V; ++r) sum[o + r] = multiply_add(v, factor[r], sum[o + r]);
          }
        }
    if (top + i < s.OH && left + j < s.OW) {
#pragma unroll
      for (int o = 0; o < Channels; ++o)
        if (first + o < per_group) epilogue(n, group * per_group + first + o, (top + i) * s.OW + left + j, sum[o]);
    }
    __syncthreads();
  }
}

// conv2d_grad_input where a group has few channels: one thread an element of dx. Units: N * C * H * W / PG_BLOCK.
template <class T, class Epilogue>
__device__ __forceinline__ void conv2d_grad_input_direct(const part& part, const conv2d_shape& s, const T* dy, const T* w, Epilogue&& epilogue) {
  const long channels = s.C / s.groups, per_group = s.O / s.groups, plane = s.H * s.W;
  for (long in = part.thread(); in < s.N * s.C * plane; in += part.threads()) {
    const long n = in / plane / s.C, channel = in / plane % s.C, group = channel / channels;
    const int h = int(in % plane / s.W + s.pad_h), v = int(in % s.W + s.pad_w);
    value_of<T> sum = value_of<T>(0);
    for (long o = group * per_group; o < (group + 1) * per_group; ++o)
      for (int kh = 0; kh < int(s.KH); ++kh) {
        const int down = h - kh * int(s.dil_h);
        if (down < 0 || down % int(s.stride_h) != 0 || down / int(s.stride_h) >= s.OH) continue;
        for (int kw = 0; kw < int(s.KW); ++kw) {
          const int across = v - kw * int(s.dil_w);
          if (across < 0 || across % int(s.stride_w) != 0 || across / int(s.stride_w) >= s.OW) continue;
          const value_of<T> g = load(dy + ((n * s.O + o) * s.OH + down / int(s.stride_h)) * s.OW + across / int(s.stride_w));
          sum = multiply_add(g, load(w + ((o * channels + channel % channels) * s.KH + kh) * s.KW + kw), sum);
        }
      }
    epilogue(n, channel, in % plane, sum);
  }
}

// Sums of one element of dw each, by a block or, with Threads = 32, by each of its warps: each thread every Threads-th
// position, then the threads together; handed over as sum(unit, value) once. Units: chunks * O * C / groups * KH * KW.
template <int Threads, class T, class Sum>
__device__ __forceinline__ void conv2d_weight_sums(const part& part, const conv2d_shape& s, long chunks, const T* x, const T* dy, Sum&& sum) {
  typedef value_of<T> value;
  enum { groups = PG_BLOCK / Threads };
  const long K = conv2d_sum_length(s), elements = s.O * K;
  const conv2d_taps<T> taps = {s, x};
  const conv2d_gradient_rows<T> rows = {s, dy};
  const int thread = threadIdx.x % Threads;
  for (long unit = long(part.block) * groups + threadIdx.x / Threads; unit < chunks * elements; unit += long(part.blocks) * groups) {
    const long chunk = unit / elements, o = unit % elements / K, group = o / (s.O / s.groups);
    const k_range range = k_range_of(s.N * s.OH * s.OW, chunks, chunk, Threads);
    const auto tap = taps.line_of(group, unit % K);
    const auto row = rows.line_of(group, o % (s.O / s.groups));
    auto mine = accumulate_sum<T>::start();
    for (long k = range.begin + thread; k < range.end; k += Threads) {
      value left[1], right[1];
      rows.read(row, k, left);
      taps.read(tap, k, right);
      mine.add(multiply_add(left[0], right[0], value(0)));
    }
    mine = combine_row<Threads>(mine);
    if (thread == 0) sum(unit, mine.finish());
  }
}

// conv2d_grad_weight and conv2d_grad_weight_chunks where a group has few channels.
template <class T, int Threads, class Epilogue>
__device__ __forceinline__ void conv2d_grad_weight_direct(const part& part, const conv2d_shape& s, const T* x, const T* dy, long run,
                                                          Epilogue&& epilogue) {
  conv2d_weight_sums<Threads>(part, s, 1, x, dy, [&](long unit, value_of<T> value) { epilogue(unit / run, unit % run, value); });
}
template <class T>
__device__ __forceinline__ void conv2d_grad_weight_direct_chunks(const part& part, const conv2d_shape& s, long chunks, const T* x, const T* dy,
                                                                 value_of<T>* partials) {
  conv2d_weight_sums<PG_BLOCK>(part, s, chunks, x, dy, [&](long unit, value_of<T> value) { store(partials + unit, value); });
}

}  // namespace pg
