// The three convolution entry points on one shape, of conv.h, of conv_vectors.h (lanes > 1) or of conv_winograd.h
// (PROBE_WINOGRAD), each run by `workers` workers in turn; `arrays`: whether what the epilogues write is asked for ahead.
#include "pequegrad/step.h"
#include "pequegrad/conv_winograd.h"
using namespace pg;

#if defined(PROBE_WINOGRAD)
#define BESIDE(name) conv2d_winograd_##name
#else
#define BESIDE(name) conv2d_vectors_##name
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

template <class T> static long scratch_of(const conv2d_shape& s) {
  const bool vectors = s.lanes > 1;
  const long a = vectors ? BESIDE(forward_scratch)<T>(s) : conv2d_forward_scratch<T>(s);
  const long b = vectors ? BESIDE(grad_input_scratch)<T>(s) : conv2d_grad_input_scratch<T>(s);
  const long c = vectors ? BESIDE(grad_weight_scratch)<T>(s) : conv2d_grad_weight_scratch<T>(s);
  return a > b ? (a > c ? a : c) : (b > c ? b : c);
}

// `touched` counts how often the epilogue saw each element.
template <class T>
static void run(const conv2d_shape& s, const T* x, const T* w, const T* dy, T* y, T* dx, T* dw, T* partials, T* scratch, int workers,
                int* touched, int arrays) {
  const bool vectors = s.lanes > 1;
  const long places_of_y = s.OH * s.OW * s.lanes, places_of_x = s.H * s.W * s.lanes;
  const auto put_y = [&](long n, long o, long p, vec<T> v, long count) {
    store(y + (n * s.O + o) * places_of_y + p, v, count);
    for (long i = 0; i < count; ++i) ++touched[(n * s.O + o) * places_of_y + p + i];
  };
  const auto put_dx = [&](long n, long c, long p, vec<T> v, long count) { store(dx + (n * s.C + c) * places_of_x + p, v, count); };
  const long size = long(sizeof(T)), count = long(sizeof(int));
  const conv2d_array of_y[] = {{y, s.O * places_of_y * size, places_of_y * size, size},
                               {touched, s.O * places_of_y * count, places_of_y * count, count}};
  const conv2d_array of_dx[] = {{dx, s.C * places_of_x * size, places_of_x * size, size}};
  for (int worker = 0; worker < workers; ++worker) {
    if (vectors) {
      BESIDE(forward)(s, x, w, scratch, worker, workers, put_y, of_y, arrays ? 2 : 0);
      BESIDE(grad_input)(s, dy, w, scratch, worker, workers, put_dx, of_dx, arrays ? 1 : 0);
      BESIDE(grad_weight)(s, x, dy, partials, scratch, worker, workers);
    } else {
      conv2d_forward(s, x, w, scratch, worker, workers, put_y);
      conv2d_grad_input(s, dy, w, scratch, worker, workers, put_dx);
      conv2d_grad_weight(s, x, dy, partials, scratch, worker, workers);
    }
  }
  const long K = conv2d_sum_length(s);
  for (int worker = 0; worker < workers; ++worker)
    conv2d_combine_weight(s, static_cast<const T*>(partials), K, worker, workers, [&](long row, long i, vec<T> v, long count) { store(dw + row * K + i, v, count); });
}

EXPORT long conv_scratch_f32(const conv2d_shape* s) { return scratch_of<f32>(*s); }
EXPORT long conv_scratch_f64(const conv2d_shape* s) { return scratch_of<f64>(*s); }
EXPORT long conv_partials(const conv2d_shape* s) { return conv2d_weight_partials(*s); }
EXPORT void conv_f32(const conv2d_shape* s, const f32* x, const f32* w, const f32* dy, f32* y, f32* dx, f32* dw, f32* partials,
                     f32* scratch, int workers, int* touched, int arrays) {
  run(*s, x, w, dy, y, dx, dw, partials, scratch, workers, touched, arrays);
}
EXPORT void conv_f64(const conv2d_shape* s, const f64* x, const f64* w, const f64* dy, f64* y, f64* dx, f64* dw, f64* partials,
                     f64* scratch, int workers, int* touched, int arrays) {
  run(*s, x, w, dy, y, dx, dw, partials, scratch, workers, touched, arrays);
}
