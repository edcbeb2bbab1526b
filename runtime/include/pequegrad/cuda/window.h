// Max and average pooling over the planes of an (…, H, W) array, and their gradients: one thread an output.
//
// Invariants: no thread writes what another does: gradients gather, in output order; padding never wins a maximum and adds
// nothing; of equal values the first in row-major order wins, and of NaN, which beats all numbers, the last (as in torch).
// An index of type u8 is the tap within the window (kh * KW + kw), any wider one the flat position within the plane,
// h * W + w, as in torch; a gradient takes it to lie in its own window.
#pragma once
#include "scalar.h"

namespace pg {

struct pool2d_shape {
  long planes, H, W, KH, KW, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, OH, OW;
};

// Position `at` of planes of `tall` rows of `broad` elements.
struct plane_position {
  long plane, row, column;
};
__device__ __forceinline__ plane_position plane_position_of(long at, long tall, long broad) {
  return {at / (tall * broad), at / broad % tall, at % broad};
}

// The windows, first … last, that reach coordinate `at` along one dimension; no windows if last < first.
struct window_range {
  long first, last;
};
__device__ __forceinline__ window_range windows_over(long at, long reach, long stride, long pad, long count) {
  const long low = at + pad - reach + 1, high = (at + pad) / stride;
  return {low <= 0 ? 0 : (low + stride - 1) / stride, high < count ? high : count - 1};
}

// y (planes, OH, OW) and, unless null, index of the same shape.
template <class T, class Index>
__device__ __forceinline__ void max_pool2d(const part& part, const pool2d_shape& s, const T* x, T* y, Index* index) {
  for (long out = part.thread(); out < s.planes * s.OH * s.OW; out += part.threads()) {
    const plane_position p = plane_position_of(out, s.OH, s.OW);
    const T* const from = x + p.plane * s.H * s.W;
    value_of<T> value = lowest_value<value_of<T>>();
    long at = -1, tap_at = 0;
    for (long kh = 0; kh < s.KH; ++kh) {
      const long h = p.row * s.stride_h - s.pad_h + kh * s.dil_h;
      if (h < 0 || h >= s.H) continue;
      for (long kw = 0; kw < s.KW; ++kw) {
        const long w = p.column * s.stride_w - s.pad_w + kw * s.dil_w;
        if (w < 0 || w >= s.W) continue;
        const value_of<T> next = load(from + h * s.W + w);
        if (at < 0 || next > value || next != next) {
          value = next;
          at = h * s.W + w;
          tap_at = kh * s.KW + kw;
        }
      }
    }
    store(y + out, value);
    if (index) store(index + out, Index(sizeof(Index) == 1 ? tap_at : at));
  }
}

// dx = for each output, dy put at its index; where windows overlap, the sum in output order.
template <class T, class Index>
__device__ __forceinline__ void max_pool2d_grad(const part& part, const pool2d_shape& s, const T* dy, const Index* index, T* dx) {
  for (long in = part.thread(); in < s.planes * s.H * s.W; in += part.threads()) {
    const plane_position p = plane_position_of(in, s.H, s.W);
    const window_range rows = windows_over(p.row, (s.KH - 1) * s.dil_h + 1, s.stride_h, s.pad_h, s.OH);
    const window_range columns = windows_over(p.column, (s.KW - 1) * s.dil_w + 1, s.stride_w, s.pad_w, s.OW);
    value_of<T> sum = value_of<T>(0);
    for (long i = rows.first; i <= rows.last; ++i) {
      const long down = p.row + s.pad_h - i * s.stride_h;
      if (down % s.dil_h != 0) continue;
      for (long j = columns.first; j <= columns.last; ++j) {
        const long across = p.column + s.pad_w - j * s.stride_w;
        if (across % s.dil_w != 0) continue;
        const long out = (p.plane * s.OH + i) * s.OW + j;
        const long mine = sizeof(Index) == 1 ? down / s.dil_h * s.KW + across / s.dil_w : p.row * s.W + p.column;
        if (long(load(index + out)) == mine) sum = value_of<T>(sum + load(dy + out));
      }
    }
    store(dx + in, sum);
  }
}

// y = what lies at each index: the transpose of max_pool2d_grad.
template <class T, class Index>
__device__ __forceinline__ void window_take(const part& part, const pool2d_shape& s, const T* x, const Index* index, T* y) {
  for (long out = part.thread(); out < s.planes * s.OH * s.OW; out += part.threads()) {
    const plane_position p = plane_position_of(out, s.OH, s.OW);
    long at = long(load(index + out));
    if (sizeof(Index) == 1)
      at = (p.row * s.stride_h - s.pad_h + at / s.KW * s.dil_h) * s.W + p.column * s.stride_w - s.pad_w + at % s.KW * s.dil_w;
    store(y + out, load(x + p.plane * s.H * s.W + at));
  }
}

// One window of an average: its valid rows and columns, and what its sum is divided by.
struct pool2d_window {
  long top, bottom, left, right, divisor;
};

__device__ __forceinline__ pool2d_window pool2d_window_at(const pool2d_shape& s, bool count_include_pad, long i, long j) {
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

// Averages over windows (dilation is not looked at), divided by the window's size with or without the padding in it.
template <class T>
__device__ __forceinline__ void avg_pool2d(const part& part, const pool2d_shape& s, bool count_include_pad, const T* x, T* y) {
  for (long out = part.thread(); out < s.planes * s.OH * s.OW; out += part.threads()) {
    const plane_position p = plane_position_of(out, s.OH, s.OW);
    const pool2d_window v = pool2d_window_at(s, count_include_pad, p.row, p.column);
    value_of<T> sum = value_of<T>(0);
    for (long h = v.top; h < v.bottom; ++h)
      for (long w = v.left; w < v.right; ++w) sum = value_of<T>(sum + load(x + (p.plane * s.H + h) * s.W + w));
    store(y + out, value_of<T>(sum / value_of<T>(v.divisor)));
  }
}

template <class T>
__device__ __forceinline__ void avg_pool2d_grad(const part& part, const pool2d_shape& s, bool count_include_pad, const T* dy, T* dx) {
  for (long in = part.thread(); in < s.planes * s.H * s.W; in += part.threads()) {
    const plane_position p = plane_position_of(in, s.H, s.W);
    const window_range rows = windows_over(p.row, s.KH, s.stride_h, s.pad_h, s.OH);
    const window_range columns = windows_over(p.column, s.KW, s.stride_w, s.pad_w, s.OW);
    value_of<T> sum = value_of<T>(0);
    for (long i = rows.first; i <= rows.last; ++i)
      for (long j = columns.first; j <= columns.last; ++j) {
        const value_of<T> g = load(dy + (p.plane * s.OH + i) * s.OW + j);
        sum = value_of<T>(sum + g / value_of<T>(pool2d_window_at(s, count_include_pad, i, j).divisor));
      }
    store(dx + in, sum);
  }
}

}  // namespace pg
