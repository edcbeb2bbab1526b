// Multiply-adds a second that some threads reach together, from registers alone: peak THREADS prints floating-point
// operations a second. Compiled by benchmarks/peak.py.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

typedef float native __attribute__((vector_size(4 * LANES)));

// Chains enough to fill two units of latency four or five; equal chains would be merged.
static float multiply_add(long rounds, float factor_now, float term_now) {
  native factor = native{} + factor_now, term = native{} + term_now, sum[16];
  for (int j = 0; j < 16; ++j) sum[j] = native{} + float(j);
  for (long i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = sum[j] * factor + term;
  float total = 0;
  for (int j = 0; j < 16; ++j) total += sum[j][0];
  return total;
}

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  const long rounds = 1000000;
  double best = 0;
  volatile float factor = 0.999f, term = 0.001f;  // their values unknown, or the compiler finds the chains' fixed point
  for (int run = 0; run < 15; ++run) {
    std::vector<float> kept(static_cast<size_t>(threads));
    std::vector<std::thread> team;
    std::atomic<int> waiting{threads};
    std::vector<double> seconds(static_cast<size_t>(threads));
    for (int t = 0; t < threads; ++t)
      team.emplace_back([&, t] {
        --waiting;
        while (waiting) std::this_thread::yield();
        const auto begin = std::chrono::steady_clock::now();
        kept[size_t(t)] = multiply_add(rounds, factor, term);
        seconds[size_t(t)] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
    for (std::thread& thread : team) thread.join();
    best = std::max(best, 32.0 * LANES * double(rounds) * threads / *std::max_element(seconds.begin(), seconds.end()));
    term = term + kept[0] * 0;
  }
  std::printf("%.6g\n", best);
}
