// Products and convolutions of the runtime beside the FMA peak measured in the same run, one thread.
//
//   g++ -std=c++17 -O2 -march=native -fno-math-errno -fno-trapping-math -ffp-contract=fast -DPG_LANES=16
//       -Iruntime/include benchmarks/kernels.cpp -o kernels && ./kernels
//
// PG_LANES=8 for AVX2. Times are the best of 25 runs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "pequegrad/step.h"

using namespace pg;

template <class F> static double seconds(F run) {
  double least = 1e9;
  for (int i = 0; i < 25; ++i) {
    auto begin = std::chrono::steady_clock::now();
    run();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return least;
}

static f32* allocate(long count) {
  f32* p = static_cast<f32*>(std::aligned_alloc(64, size_t(round_up(count * 4, 64) + 64)));
  if (!p) std::abort();
  for (long i = 0; i < count; ++i) p[i] = f32(i * 2654435761u % 17 / 8.0 - 1.0);
  return p;
}

// Independent chains of register-only multiply-adds, as many as registers allow beside factor and term.
static double measure_peak() {
  constexpr int chains = PG_LANES >= 16 ? 16 : 12;
  typedef lanes<f32>::native native;
  native factor = native{} + 0.999f, term = native{} + 0.001f;
  PG_KEEP_IN_REGISTER(factor);  // its value unknown, or the compiler finds the chain's fixed point
  const long rounds = 1000000;
  volatile f32 kept = 0;  // without a reader the loop would be no work at all
  double time = seconds([&] {
    native sum[chains];
    PG_UNROLL for (int j = 0; j < chains; ++j) sum[j] = native{} + f32(j);  // equal chains would be merged
    for (long i = 0; i < rounds; ++i) PG_UNROLL for (int j = 0; j < chains; ++j) sum[j] = sum[j] * factor + term;
    PG_UNROLL for (int j = 0; j < chains; ++j) kept = kept + sum[j][0];
  });
  return 2.0 * chains * PG_LANES * double(rounds) / time;
}

static void product(double peak, long M, long N, long K, bool a_transposed, bool b_transposed) {
  f32 *a = allocate(M * K), *b = allocate(N * K), *c = allocate(M * N), *scratch = allocate(gemm_scratch<f32>(M, K) / 4);
  double time = seconds([&] {
    gemm<f32>(M, N, K, a, a_transposed ? 1 : K, a_transposed ? M : 1, b, b_transposed ? 1 : N, b_transposed ? K : 1, scratch,
              0, M, 0, N, [&](long row, long col, vec<f32> sum, long count) { store(c + row * N + col, sum, count); });
  });
  double rate = 2.0 * double(M) * double(N) * double(K) / time;
  std::printf("product %4ld x %4ld x %4ld %c%c  %8.1f us  %6.1f GFLOPS  %3.0f %%\n", M, N, K, a_transposed ? 'T' : '.',
              b_transposed ? 'T' : '.', time * 1e6, rate * 1e-9, 100 * rate / peak);
  std::free(a), std::free(b), std::free(c), std::free(scratch);
}

static void convolution(double peak, const conv2d_shape& s) {
  const long P = s.OH * s.OW, planes = s.H * s.W;
  f32 *x = allocate(s.N * s.C * planes), *dx = allocate(s.N * s.C * planes), *y = allocate(s.N * s.O * P), *dy = allocate(s.N * s.O * P);
  f32 *w = allocate(s.O * conv2d_sum_length(s)), *dw = allocate(s.O * conv2d_sum_length(s)), *partials = allocate(conv2d_weight_partials(s));
  f32* scratch = allocate((conv2d_forward_scratch<f32>(s) + conv2d_grad_input_scratch<f32>(s) + conv2d_grad_weight_scratch<f32>(s)) / 4);
  double times[3] = {seconds([&] {
                       conv2d_forward(s, x, w, scratch, 0, 1, [&](long n, long o, long p, vec<f32> v, long count) {
                         store(y + (n * s.O + o) * P + p, v, count);
                       });
                     }),
                     seconds([&] {
                       conv2d_grad_input(s, dy, w, scratch, 0, 1, [&](long n, long c, long p, vec<f32> v, long count) {
                         store(dx + (n * s.C + c) * planes + p, v, count);
                       });
                     }),
                     seconds([&] {
                       conv2d_grad_weight(s, x, dy, partials, scratch, 0, 1);
                       conv2d_combine_weight(s, static_cast<const f32*>(partials), s.O * conv2d_sum_length(s), 0, 1,
                                             [&](long, long i, vec<f32> v, long count) { store(dw + i, v, count); });
                     })};
  const double flops = 2.0 * double(s.N * s.O * P) * double(conv2d_sum_length(s));
  const char* names[3] = {"forward", "input", "weight"};
  for (int i = 0; i < 3; ++i)
    std::printf("conv %ld -> %ld, %ld x %ld, N %ld: %-8s %8.1f us  %6.1f GFLOPS  %3.0f %%\n", s.C, s.O, s.H, s.W, s.N, names[i],
                times[i] * 1e6, flops / times[i] * 1e-9, 100 * flops / times[i] / peak);
  for (f32* p : {x, dx, y, dy, w, dw, partials, scratch}) std::free(p);
}

int main() {
  const double peak = measure_peak();
  std::printf("FMA peak %.1f GFLOPS\n", peak * 1e-9);
  product(peak, 128, 200, 784, false, true);
  product(peak, 784, 200, 128, true, false);
  product(peak, 128, 10, 200, false, true);
  product(peak, 1024, 1024, 1024, false, false);
  product(peak, 1024, 1024, 1024, false, true);
  product(peak, 256, 256, 4096, false, true);
  convolution(peak, {512, 1, 28, 28, 8, 3, 3, 1, 1, 0, 0, 1, 1, 1, 26, 26, 16});
  convolution(peak, {512, 8, 13, 13, 16, 3, 3, 1, 1, 0, 0, 1, 1, 1, 11, 11, 16});
  convolution(peak, {16, 64, 32, 32, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 32, 32, 16});
}
