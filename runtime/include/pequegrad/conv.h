// 2-D convolution and its two gradients, NCHW, with groups, stride, padding and dilation.
//
// How: one sample's input is copied with its zero border into scratch, split by stride into phases (columns 0, s, 2s, …
// side by side, then 1, s+1, …), so that any convolution reads it at stride 1. Output positions are then walked over
// whole padded rows ("wide" positions: row * pitch + column): every tap of the filter is one constant offset, the
// product needs no im2col, and the few columns between rows are computed and dropped.
//
// Invariants: every output element is one sum in a fixed order; the weight's gradient is summed in a given number of
// chunks, combined in rising order: the bits do not depend on the number of workers.
// Every worker brings its own scratch, aligned to 64 bytes. Where the fast way would multiply zeros that the formula does
// not have (borders of dy, columns between rows) by an infinity or a NaN, the sums are made in a plain way instead.
#pragma once
#include "gemm.h"
#include "reduce.h"

namespace pg {

// x (N, C, H, W), w (O, C / groups, KH, KW), y (N, O, OH, OW). The weight's gradient is summed in `weight_chunks` chunks
// of samples, at least one; the plan decides how many. `lanes`: of conv_vectors.h alone.
struct conv2d_shape {
  long N, C, H, W, O, KH, KW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups, OH, OW;
  long weight_chunks = 1;
  long lanes = 1;
};

template <class T> PG_INLINE void copy_contiguous(T* to, const T* from, long count) {
  for (long i = 0; i < count; i += PG_LANES) store_plain(to + i, load_plain(from + i, count - i), count - i);
}

PG_INLINE long round_up(long n, long step) { return (n + step - 1) / step * step; }

// ---- geometry -----------------------------------------------------------------------------------------------------------

// The copied input of one sample and group: [channel][phase_h][phase_w][rows][pitch], and the wide positions over it.
struct conv2d_image {
  long rows, pitch, channel, positions;
};

PG_INLINE conv2d_image conv2d_image_of(const conv2d_shape& s) {
  conv2d_image m;
  m.rows = s.OH + s.dil_h * (s.KH - 1) / s.stride_h;
  m.pitch = s.OW + s.dil_w * (s.KW - 1) / s.stride_w;
  m.channel = s.stride_h * s.stride_w * m.rows * m.pitch;
  m.positions = (s.OH - 1) * m.pitch + s.OW;
  return m;
}

// The copied output gradient of one sample and group, with a border of reach_h and reach_w: [channel][rows][pitch].
struct conv2d_border {
  long reach_h, reach_w, rows, pitch, channel, positions;
};

PG_INLINE conv2d_border conv2d_border_of(const conv2d_shape& s) {
  conv2d_border m;
  m.reach_h = s.dil_h * (s.KH - 1) / s.stride_h;
  m.reach_w = s.dil_w * (s.KW - 1) / s.stride_w;
  m.rows = (s.pad_h + s.H - 1) / s.stride_h + m.reach_h + 1;
  m.pitch = (s.pad_w + s.W - 1) / s.stride_w + m.reach_w + 1;
  m.channel = m.rows * m.pitch;
  m.positions = (s.pad_h + s.H - 1) / s.stride_h * m.pitch + (s.pad_w + s.W - 1) / s.stride_w + 1;
  return m;
}

// Taps and channels of one sum, and where each lies in the image.
PG_INLINE long conv2d_sum_length(const conv2d_shape& s) { return s.C / s.groups * s.KH * s.KW; }

inline void conv2d_fill_offsets(const conv2d_shape& s, const conv2d_image& m, long* offsets) {
  for (long c = 0; c < s.C / s.groups; ++c)
    for (long kh = 0; kh < s.KH; ++kh)
      for (long kw = 0; kw < s.KW; ++kw) {
        const long h = kh * s.dil_h, w = kw * s.dil_w;
        const long phase = (h % s.stride_h) * s.stride_w + w % s.stride_w;
        *offsets++ = c * m.channel + phase * m.rows * m.pitch + h / s.stride_h * m.pitch + w / s.stride_w;
      }
}

// Copies one sample's channels into the image. The border was zeroed before and is not touched.
template <class T>
PG_NOINLINE void conv2d_copy_image(const conv2d_shape& s, const conv2d_image& m, const T* x, T* image) {
  const long channels = s.C / s.groups;
  if (s.stride_h == 1 && s.stride_w == 1 && s.pad_h == 0 && s.pad_w == 0 && m.rows == s.H && m.pitch == s.W)
    return copy_contiguous(image, x, channels * s.H * s.W);
  for (long c = 0; c < channels; ++c)
    for (long a = 0; a < s.stride_h; ++a)
      for (long i = 0; i < m.rows; ++i) {
        const long h = i * s.stride_h + a - s.pad_h;
        if (h < 0 || h >= s.H) continue;
        const T* from = x + (c * s.H + h) * s.W;
        for (long b = 0; b < s.stride_w; ++b) {
          T* to = image + c * m.channel + ((a * s.stride_w + b) * m.rows + i) * m.pitch;
          // The first and last j with 0 <= j * stride + b - pad < W.
          const long first = s.pad_w > b ? (s.pad_w - b + s.stride_w - 1) / s.stride_w : 0;
          long last = (s.W - 1 + s.pad_w - b);
          last = last < 0 ? 0 : last / s.stride_w + 1;
          if (last > m.pitch) last = m.pitch;
          const T* source = from + first * s.stride_w + b - s.pad_w;
          if (s.stride_w == 1) copy_contiguous(to + first, source, last - first);
          else for (long j = first; j < last; ++j) to[j] = source[(j - first) * s.stride_w];
        }
      }
}

// Calls run(position, pointer, length) for each run of wide positions that are real ones.
template <class F> PG_INLINE void conv2d_each_row(long rows, long columns, long pitch, F run) {
  if (pitch == columns) return run(0, 0, rows * columns);
  for (long i = 0; i < rows; ++i) run(i * columns, i * pitch, columns);
}

// stage[r][q] = sum over k of a[r * a_row + k] * image[q + offsets[k]], q < positions.
template <class T>
PG_NOINLINE void conv2d_product(long rows, long positions, long K, const T* a, long a_row, const T* image, const long* offsets,
                                T* stage, long stage_row) {
  const long vectors = (positions + PG_LANES - 1) / PG_LANES, panels = (vectors + gemm_tile<T>::vectors - 1) / gemm_tile<T>::vectors;
  for (long p = 0; p < panels; ++p) {
    const long first = even_cut(vectors, panels, p), count = even_cut(vectors, panels, p + 1) - first;
    gemm_kernel_for<T, true>(int(rows), int(count))(K, a, a_row, 1, image + first * PG_LANES, 0, offsets,
                                                    stage + first * PG_LANES, stage_row, false);
  }
}

// Cuts scratch into arrays aligned to 64 bytes.
struct scratch_cursor {
  char* next;
  template <class U> PG_INLINE U* take(long count) {
    U* r = reinterpret_cast<U*>(next);
    next += round_up(count * long(sizeof(U)), 64);
    return r;
  }
};

// Whether all of `count` elements are finite: v - v is zero or NaN.
template <class T> PG_NOINLINE bool all_finite(const T* p, long count) {
  vec<T> bad = splat<T>(T(0));
  for (long i = 0; i < count; i += PG_LANES) {
    const vec<T> v = load_plain(p + i, count - i);
    bad += v - v;
  }
  return reduce_add(bad) == T(0);
}

// ---- forward ------------------------------------------------------------------------------------------------------------

// Bytes, with K = C/groups*KH*KW, image as above, P = positions rounded up to lanes, each term rounded up to 64:
//   8 K + sizeof(T) (C/groups * channel + 64) + sizeof(T) * tile_rows * P
template <class T> inline long conv2d_forward_scratch(const conv2d_shape& s) {
  const conv2d_image m = conv2d_image_of(s);
  return round_up(conv2d_sum_length(s) * long(sizeof(long)), 64) + round_up((s.C / s.groups * m.channel + 64) * long(sizeof(T)), 64) +
         round_up(gemm_tile<T>::rows * round_up(m.positions, PG_LANES) * long(sizeof(T)), 64);
}

// y = conv(x, w), handed over as epilogue(n, output channel, position = oh * OW + ow, vec<T>, count).
template <class T, class Epilogue>
void conv2d_forward(const conv2d_shape& s, const T* x, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue) {
  typedef gemm_tile<T> tile;
  const conv2d_image m = conv2d_image_of(s);
  const long K = conv2d_sum_length(s), per_group = s.O / s.groups, channels = s.C / s.groups;
  const long row_tiles = (per_group + tile::rows - 1) / tile::rows, stage_row = round_up(m.positions, PG_LANES);
  long begin, end;
  share(s.N * s.groups * row_tiles, 1, worker, workers, begin, end);
  if (begin >= end || s.OH <= 0 || s.OW <= 0) return;
  scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
  long* offsets = cursor.take<long>(K);
  T* image = cursor.take<T>(channels * m.channel + 64);
  T* stage = cursor.take<T>(tile::rows * stage_row);
  conv2d_fill_offsets(s, m, offsets);
  __builtin_memset(image, 0, (channels * m.channel + 64) * sizeof(T));
  long copied = -1;
  for (long unit = begin; unit < end; ++unit) {
    const long sample = unit / row_tiles, n = sample % s.N, g = sample / s.N, t = unit % row_tiles;
    if (sample != copied) conv2d_copy_image(s, m, x + (n * s.C + g * channels) * s.H * s.W, image);
    copied = sample;
    const long row = even_cut(per_group, row_tiles, t), rows = even_cut(per_group, row_tiles, t + 1) - row;
    const long o = g * per_group + row;
    conv2d_product(rows, m.positions, K, w + o * K, K, static_cast<const T*>(image), offsets, stage, stage_row);
    for (long r = 0; r < rows; ++r)
      conv2d_each_row(s.OH, s.OW, m.pitch, [&](long position, long wide, long length) {
        const T* from = stage + r * stage_row + wide;
        for (long i = 0; i < length; i += PG_LANES)
          epilogue(n, o + r, position + i, load_plain(from + i, length - i), length - i < PG_LANES ? length - i : long(PG_LANES));
      });
  }
}

// ---- gradient of the input ----------------------------------------------------------------------------------------------

// Bytes, with K = O/groups*KH*KW, border as above, P = its positions rounded up to lanes, each term rounded up to 64:
//   8 K + sizeof(T) (C/groups * K) + sizeof(T) (O/groups * channel + 64) + sizeof(T) tile_rows P + sizeof(T) tile_rows H W
template <class T> inline long conv2d_grad_input_scratch(const conv2d_shape& s) {
  const conv2d_border m = conv2d_border_of(s);
  const long K = s.O / s.groups * s.KH * s.KW, size = long(sizeof(T));
  return round_up(K * long(sizeof(long)), 64) + round_up(s.C / s.groups * K * size, 64) + round_up((s.O / s.groups * m.channel + 64) * size, 64) +
         round_up(gemm_tile<T>::rows * round_up(m.positions, PG_LANES) * size, 64) + round_up(gemm_tile<T>::rows * s.H * s.W * size, 64);
}

// One phase of the input: rows u = h + pad with u % stride == a, columns likewise with b; how many of them there are, the
// first (in units of the stride), and the taps that reach them: those with kh * dil % stride == a. With i = u / stride,
// such a tap reads output row i - (kh * dil - a) / stride.
struct conv2d_phase {
  long a, b, first_h, first_w, tall, broad, taps;
};

inline conv2d_phase conv2d_phase_of(const conv2d_shape& s, long phase) {
  conv2d_phase f;
  f.a = phase / s.stride_w;
  f.b = phase % s.stride_w;
  f.first_h = s.pad_h > f.a ? (s.pad_h - f.a + s.stride_h - 1) / s.stride_h : 0;
  f.first_w = s.pad_w > f.b ? (s.pad_w - f.b + s.stride_w - 1) / s.stride_w : 0;
  f.tall = s.pad_h + s.H - 1 < f.a ? 0 : (s.pad_h + s.H - 1 - f.a) / s.stride_h + 1 - f.first_h;
  f.broad = s.pad_w + s.W - 1 < f.b ? 0 : (s.pad_w + s.W - 1 - f.b) / s.stride_w + 1 - f.first_w;
  long taps_h = 0, taps_w = 0;
  for (long kh = 0; kh < s.KH; ++kh) taps_h += kh * s.dil_h % s.stride_h == f.a;
  for (long kw = 0; kw < s.KW; ++kw) taps_w += kw * s.dil_w % s.stride_w == f.b;
  f.taps = taps_h * taps_w;
  return f;
}

// Packs the filter of group g as [phase][c][o][tap of the phase] and the offsets as [phase][o][tap].
template <class T>
PG_NOINLINE void conv2d_pack_phases(const conv2d_shape& s, const conv2d_border& m, const T* w, long g, T* packed, long* offsets) {
  const long channels = s.C / s.groups, per_group = s.O / s.groups;
  for (long phase = 0; phase < s.stride_h * s.stride_w; ++phase) {
    const conv2d_phase f = conv2d_phase_of(s, phase);
    const long length = f.taps * per_group;
    long k = 0;
    for (long o = 0; o < per_group; ++o)
      for (long kh = 0; kh < s.KH; ++kh)
        for (long kw = 0; kw < s.KW; ++kw) {
          if (kh * s.dil_h % s.stride_h != f.a || kw * s.dil_w % s.stride_w != f.b) continue;
          offsets[k] = o * m.channel + (f.first_h + m.reach_h - (kh * s.dil_h - f.a) / s.stride_h) * m.pitch + f.first_w + m.reach_w -
                       (kw * s.dil_w - f.b) / s.stride_w;
          for (long c = 0; c < channels; ++c)
            packed[c * length + k] = w[(((g * per_group + o) * channels + c) * s.KH + kh) * s.KW + kw];
          ++k;
        }
    offsets += length;
    packed += channels * length;
  }
}

// dx of input channels c to c + rows of group g, from one sample's dy, element by element into out[row][h][w].
template <class T>
PG_NOINLINE void conv2d_grad_input_plain(const conv2d_shape& s, const T* dy, const T* w, long g, long c, long rows, T* out) {
  const long channels = s.C / s.groups, per_group = s.O / s.groups;
  for (long r = 0; r < rows; ++r)
    for (long h = 0; h < s.H; ++h)
      for (long column = 0; column < s.W; ++column) {
        T sum = 0;
        for (long o = g * per_group; o < (g + 1) * per_group; ++o)
          for (long kh = 0; kh < s.KH; ++kh)
            for (long kw = 0; kw < s.KW; ++kw) {
              const long u = h + s.pad_h - kh * s.dil_h, v = column + s.pad_w - kw * s.dil_w;
              if (u < 0 || v < 0 || u % s.stride_h || v % s.stride_w || u / s.stride_h >= s.OH || v / s.stride_w >= s.OW) continue;
              sum += dy[(o * s.OH + u / s.stride_h) * s.OW + v / s.stride_w] * w[((o * channels + c + r) * s.KH + kh) * s.KW + kw];
            }
        out[(r * s.H + h) * s.W + column] = sum;
      }
}

// dx, handed over as epilogue(n, input channel, position = h * W + w, vec<T>, count).
template <class T, class Epilogue>
void conv2d_grad_input(const conv2d_shape& s, const T* dy, const T* w, T* scratch, int worker, int workers, Epilogue&& epilogue) {
  typedef gemm_tile<T> tile;
  const conv2d_border m = conv2d_border_of(s);
  const long channels = s.C / s.groups, per_group = s.O / s.groups, most = per_group * s.KH * s.KW;
  const long row_tiles = (channels + tile::rows - 1) / tile::rows, stage_row = round_up(m.positions, PG_LANES);
  const long phases = s.stride_h * s.stride_w, plane = s.H * s.W;
  long begin, end;
  share(s.N * s.groups * row_tiles, 1, worker, workers, begin, end);
  if (begin >= end || plane <= 0) return;
  scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
  long* offsets = cursor.take<long>(most);
  T* packed = cursor.take<T>(channels * most);
  T* image = cursor.take<T>(per_group * m.channel + 64);
  T* stage = cursor.take<T>(tile::rows * stage_row);
  T* gathered = cursor.take<T>(tile::rows * plane);
  __builtin_memset(image, 0, (per_group * m.channel + 64) * sizeof(T));
  long copied = -1, packed_group = -1;
  bool is_plain = false;
  for (long unit = begin; unit < end; ++unit) {
    const long sample = unit / row_tiles, n = sample % s.N, g = sample / s.N, t = unit % row_tiles;
    if (sample != copied)
      for (long o = 0; o < per_group; ++o)
        for (long i = 0; i < s.OH && i + m.reach_h < m.rows; ++i) {
          const long room = m.pitch - m.reach_w;
          copy_contiguous(image + o * m.channel + (i + m.reach_h) * m.pitch + m.reach_w,
                          dy + ((n * s.O + g * per_group + o) * s.OH + i) * s.OW, s.OW < room ? s.OW : room);
        }
    copied = sample;
    const long row = even_cut(channels, row_tiles, t), rows = even_cut(channels, row_tiles, t + 1) - row;
    if (packed_group != g) {
      conv2d_pack_phases(s, m, w, g, packed, offsets);
      is_plain = !all_finite(w + g * channels * most, channels * most);
    }
    packed_group = g;
    if (is_plain) conv2d_grad_input_plain(s, dy + n * s.O * s.OH * s.OW, w, g, row, rows, gathered);
    long start = 0;
    for (long phase = 0; phase < phases && !is_plain; ++phase) {
      const conv2d_phase f = conv2d_phase_of(s, phase);
      const long K = f.taps * per_group;
      if (f.tall > 0 && f.broad > 0)
        conv2d_product(rows, (f.tall - 1) * m.pitch + f.broad, K, static_cast<const T*>(packed + channels * start + row * K), K,
                       static_cast<const T*>(image), offsets + start, stage, stage_row);
      start += K;
      if (phases == 1) break;
      for (long r = 0; r < rows; ++r)
        for (long i = 0; i < f.tall; ++i) {
          const T* from = stage + r * stage_row + i * m.pitch;
          T* to = gathered + r * plane + ((f.first_h + i) * s.stride_h + f.a - s.pad_h) * s.W + f.first_w * s.stride_w + f.b - s.pad_w;
          for (long j = 0; j < f.broad; ++j) to[j * s.stride_w] = from[j];
        }
    }
    const bool is_staged = phases == 1 && !is_plain;
    const T* result = is_staged ? stage : gathered;
    const long result_row = is_staged ? stage_row : plane, pitch = is_staged ? m.pitch : s.W;
    for (long r = 0; r < rows; ++r)
      conv2d_each_row(s.H, s.W, pitch, [&](long position, long wide, long length) {
        const T* from = result + r * result_row + wide;
        for (long i = 0; i < length; i += PG_LANES)
          epilogue(n, g * channels + row + r, position + i, load_plain(from + i, length - i), length - i < PG_LANES ? length - i : long(PG_LANES));
      });
  }
}

// ---- gradient of the weight ---------------------------------------------------------------------------------------------

// The tile of the weight's gradient: output channels by taps, each a vector of partial sums over positions.
template <class T> struct conv2d_weight_tile {
#if PG_LANES == 16 || (PG_LANES == 4 && defined(__aarch64__))
  enum { rows = 4, taps = 6, fewer_taps = 4 };
#else
  enum { rows = 4, taps = 3, fewer_taps = 3 };
#endif
};

// Samples that one pass takes together: as many as keep image and gradient within 256 KiB, at most a chunk.
template <class T> inline long conv2d_weight_samples(const conv2d_shape& s) {
  const conv2d_image m = conv2d_image_of(s);
  const long chunks = s.weight_chunks, chunk = (s.N + chunks - 1) / chunks;
  const long bytes = (s.C / s.groups * m.channel + 64 + s.O / s.groups * round_up(m.positions, PG_LANES)) * long(sizeof(T));
  const long fit = 262144 / (bytes > 0 ? bytes : 1);
  return fit < 1 ? 1 : fit < chunk ? fit : (chunk > 0 ? chunk : 1);
}

// Bytes: 8 K + samples * sizeof(T) * (C/groups * channel + 64 + O/groups * P), each term rounded up to 64.
template <class T> inline long conv2d_grad_weight_scratch(const conv2d_shape& s) {
  const conv2d_image m = conv2d_image_of(s);
  const long samples = conv2d_weight_samples<T>(s);
  return round_up((conv2d_sum_length(s) + 8) * long(sizeof(long)), 64) + round_up(samples * (s.C / s.groups * m.channel + 64) * long(sizeof(T)), 64) +
         round_up(samples * s.O / s.groups * round_up(m.positions, PG_LANES) * long(sizeof(T)), 64);
}

// Elements of T in the array of partial sums: chunks * O * C/groups * KH * KW.
inline long conv2d_weight_partials(const conv2d_shape& s) { return s.weight_chunks * s.O * conv2d_sum_length(s); }

// Runs of positions that a weight's gradient sums over: `length` neighbours each, `runs` of them in each of `samples`
// rows or samples, and how far apart these lie in dy and in the image. Without `runs` in a sample: 1, 0, 0.
struct conv2d_runs {
  long samples, dy_sample, image_sample, runs, dy_run, image_run, length;
};

// out[r * out_row + j * out_tap] += sum over positions of dy[r][q] * image[q + offsets[j]], j < taps.
template <class T, int ROWS, int TAPS>
PG_NOINLINE void conv2d_weight_kernel(const conv2d_runs& over, const T* __restrict dy, long dy_row, const T* __restrict image,
                                      const long* __restrict offsets, long taps, T* __restrict out, long out_row, long out_tap) {
  typedef typename lanes<T>::native native;
  typedef typename lanes<T>::unaligned unaligned;
  constexpr int L = lanes<T>::count;
  native sum[ROWS * TAPS];
  PG_UNROLL for (int i = 0; i < ROWS * TAPS; ++i) sum[i] = native{};
  for (long n = 0; n < over.samples; ++n)
    for (long i = 0; i < over.runs; ++i) {
      const T* const first = image + n * over.image_sample + i * over.image_run;
      const T* tap[TAPS];
      PG_UNROLL for (int j = 0; j < TAPS; ++j) tap[j] = first + offsets[j < taps ? j : taps - 1];
      const T* gradient = dy + n * over.dy_sample + i * over.dy_run;
      for (long q = 0; q < over.length; q += L) {
        native v[TAPS];
        PG_UNROLL for (int j = 0; j < TAPS; ++j) {
          v[j] = *reinterpret_cast<const unaligned*>(tap[j] + q);
          PG_KEEP_IN_REGISTER(v[j]);
        }
        PG_UNROLL for (int r = 0; r < ROWS; ++r) {
          native g = *reinterpret_cast<const unaligned*>(gradient + r * dy_row + q);
          PG_KEEP_IN_REGISTER(g);
          PG_UNROLL for (int j = 0; j < TAPS; ++j) sum[r * TAPS + j] += g * v[j];
        }
      }
    }
  T flat[ROWS * TAPS];
  reduce_add_each<T, ROWS * TAPS>(sum, flat);
  for (int r = 0; r < ROWS; ++r)
    for (long j = 0; j < TAPS && j < taps; ++j) out[r * out_row + j * out_tap] += flat[r * TAPS + j];
}

template <class T, int TAPS>
PG_INLINE void conv2d_weight_rows(long rows, const conv2d_runs& over, const T* dy, long dy_row, const T* image, const long* offsets,
                                  long taps, T* out, long out_row, long out_tap) {
  if (rows == 4) conv2d_weight_kernel<T, 4, TAPS>(over, dy, dy_row, image, offsets, taps, out, out_row, out_tap);
  else if (rows == 2) conv2d_weight_kernel<T, 2, TAPS>(over, dy, dy_row, image, offsets, taps, out, out_row, out_tap);
  else conv2d_weight_kernel<T, 1, TAPS>(over, dy, dy_row, image, offsets, taps, out, out_row, out_tap);
}

// The same for all of `rows` and all K taps, tile by tile.
template <class T>
PG_NOINLINE void conv2d_weight_tiles(long rows, long K, const conv2d_runs& over, const T* dy, long dy_row, const T* image,
                                     const long* offsets, T* out, long out_row, long out_tap) {
  typedef conv2d_weight_tile<T> tile;
  for (long k = 0, used; k < K; k += used) {
    // 4, 7 and 8 are cut into 4 and 3.
    const long left = K - k, taps = left <= 3 ? 3 : left == 4 || left == 7 || left == 8 ? long(tile::fewer_taps) : long(tile::taps);
    used = left < taps ? left : taps;
    for (long r = 0, count; r < rows; r += count) {
      count = rows - r >= 4 ? 4 : rows - r >= 2 ? 2 : 1;
      const auto run = taps == 3 ? conv2d_weight_rows<T, 3> : taps == 4 ? conv2d_weight_rows<T, tile::fewer_taps> : conv2d_weight_rows<T, tile::taps>;
      run(count, over, dy + r * dy_row, dy_row, image, offsets + k, used, out + r * out_row + k * out_tap, out_row, out_tap);
    }
  }
}

// The same sums for all of `rows` and `K` taps, over the OH x OW real positions alone.
template <class T>
PG_NOINLINE void conv2d_weight_plain(const conv2d_shape& s, long pitch, long samples, long rows, const T* dy, long dy_sample,
                                     long dy_row, const T* image, long image_sample, const long* offsets, T* out) {
  const long K = conv2d_sum_length(s);
  for (long r = 0; r < rows; ++r)
    for (long k = 0; k < K; ++k) {
      vec<T> sum = splat<T>(T(0));
      for (long n = 0; n < samples; ++n)
        for (long i = 0; i < s.OH; ++i) {
          const T *from = dy + n * dy_sample + r * dy_row + i * pitch, *seen = image + n * image_sample + offsets[k] + i * pitch;
          for (long j = 0; j < s.OW; j += PG_LANES) sum += load_plain(from + j, s.OW - j) * load_plain(seen + j, s.OW - j);
        }
      out[r * K + k] += reduce_add(sum);
    }
}

// Fills this worker's part of `partials` (conv2d_weight_partials(s) elements). After a barrier, conv2d_combine_weight
// adds the chunks up.
template <class T>
PG_NOINLINE void conv2d_grad_weight(const conv2d_shape& s, const T* x, const T* dy, T* partials, T* scratch, int worker, int workers) {
  typedef conv2d_weight_tile<T> tile;
  const conv2d_image m = conv2d_image_of(s);
  const long K = conv2d_sum_length(s), channels = s.C / s.groups, per_group = s.O / s.groups;
  const long chunks = s.weight_chunks, most = conv2d_weight_samples<T>(s);
  const long length = round_up(m.positions, PG_LANES), image_size = channels * m.channel + 64;
  // With few chunks the output channels are parted too, so that 16 workers find work.
  const long row_tiles = (per_group + tile::rows - 1) / tile::rows, wanted = (16 + chunks * s.groups - 1) / (chunks * s.groups);
  const long parts = wanted < row_tiles ? wanted : row_tiles;
  long begin, end;
  share(chunks * s.groups * parts, 1, worker, workers, begin, end);
  if (begin >= end || K == 0) return;
  scratch_cursor cursor = {reinterpret_cast<char*>(scratch)};
  long* offsets = cursor.take<long>(K + 8);
  T* images = cursor.take<T>(most * image_size);
  T* gradients = cursor.take<T>(most * per_group * length);
  conv2d_fill_offsets(s, m, offsets);
  __builtin_memset(images, 0, most * image_size * sizeof(T));
  __builtin_memset(gradients, 0, most * per_group * length * sizeof(T));
  for (long item = begin; item < end; ++item) {
    const long chunk = item / parts / s.groups, g = item / parts % s.groups, part = item % parts;
    const long o_begin = even_cut(row_tiles, parts, part) * tile::rows;
    long o_end = even_cut(row_tiles, parts, part + 1) * tile::rows;
    if (o_end > per_group) o_end = per_group;
    T* const sums = partials + (chunk * s.O + g * per_group) * K;
    const long last = s.OH > 0 && s.OW > 0 ? even_cut(s.N, chunks, chunk + 1) : 0;
    bool is_plain = false;
    do {
      __builtin_memset(sums + o_begin * K, 0, (o_end - o_begin) * K * sizeof(T));
      for (long n = even_cut(s.N, chunks, chunk); n < last; n += most) {
        const long samples = last - n < most ? last - n : most;
        for (long i = 0; i < samples; ++i) {
          conv2d_copy_image(s, m, x + ((n + i) * s.C + g * channels) * s.H * s.W, images + i * image_size);
          for (long o = o_begin; o < o_end; ++o) {
            const T* from = dy + ((n + i) * s.O + g * per_group + o) * s.OH * s.OW;
            T* to = gradients + (i * per_group + o) * length;
            conv2d_each_row(s.OH, s.OW, m.pitch, [&](long position, long wide, long count) { copy_contiguous(to + wide, from + position, count); });
          }
        }
        if (is_plain) {
          conv2d_weight_plain<T>(s, m.pitch, samples, o_end - o_begin, gradients + o_begin * length, per_group * length, length, images,
                                 image_size, offsets, sums + o_begin * K);
          continue;
        }
        const conv2d_runs over = {samples, per_group * length, image_size, 1, 0, 0, length};
        conv2d_weight_tiles<T>(o_end - o_begin, K, over, gradients + o_begin * length, length, images, offsets, sums + o_begin * K, K, 1);
      }
      is_plain = !is_plain && !all_finite(sums + o_begin * K, (o_end - o_begin) * K);
    } while (is_plain);
  }
}

// dw, flat in (O, C / groups, KH, KW), seen as rows of `run` elements and handed over as epilogue(row, column, vec<T>, count),
// each worker its share. No hand-over crosses a row.
template <class T, class Epilogue>
void conv2d_combine_weight(const conv2d_shape& s, const T* partials, long run, int worker, int workers, Epilogue&& epilogue) {
  const long elements = s.O * conv2d_sum_length(s), chunks = s.weight_chunks;
  long begin, end;
  share(elements, PG_LANES, worker, workers, begin, end);
  for (long i = begin, count; i < end; i += count) {
    const long column = i % run, left = end - i < run - column ? end - i : run - column;
    count = left < PG_LANES ? left : long(PG_LANES);
    vec<T> sum = load_plain(partials + i, count);
    for (long chunk = 1; chunk < chunks; ++chunk) sum += load_plain(partials + chunk * elements + i, count);
    epilogue(i / run, column, sum, count);
  }
}

// ---- compiled once (see gemm.h) -----------------------------------------------------------------------------------------

#define PG_CONV_PARTS(PART)                                                                                                 \
  PART void conv2d_product<float>(long, long, long, const float*, long, const float*, const long*, float*, long);           \
  PART void conv2d_weight_tiles<float>(long, long, const conv2d_runs&, const float*, long, const float*, const long*, float*, long, long); \
  PART void conv2d_grad_weight<float>(const conv2d_shape&, const float*, const float*, float*, float*, int, int);
#if defined(PG_PARTS_APART)
PG_CONV_PARTS(extern template)
#endif

}  // namespace pg
