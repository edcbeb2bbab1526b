// What some threads reach together: peak THREADS BYTES prints floating-point operations a second, in multiply-adds from
// registers alone, and bytes a second, read and written, in copies within BYTES of memory. Compiled by benchmarks/peak.py.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

typedef float native __attribute__((vector_size(4 * LANES)));

// Chains enough to fill two units of latency four or five, and, with factor and term, no more than there are registers: 32 of
// AVX-512, else 16. Equal chains would be merged.
constexpr int CHAINS = LANES >= 16 ? 16 : 12;
static float multiply_add(long rounds, float factor_now, float term_now) {
  native factor = native{} + factor_now, term = native{} + term_now, sum[CHAINS];
  for (int j = 0; j < CHAINS; ++j) sum[j] = native{} + float(j);
  for (long i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < CHAINS; ++j) sum[j] = sum[j] * factor + term;
  float total = 0;
  for (int j = 0; j < CHAINS; ++j) total += sum[j][0];
  return total;
}

// Seconds that the slowest of the threads takes for its part, all started together; the least of several runs.
template <class F> static double seconds(int threads, F part) {
  double least = 1e9;
  for (int run = 0; run < 15; ++run) {
    std::vector<std::thread> team;
    std::atomic<int> waiting{threads};
    std::vector<double> taken(static_cast<size_t>(threads));
    for (int t = 0; t < threads; ++t)
      team.emplace_back([&, t] {
        --waiting;
        while (waiting) std::this_thread::yield();
        const auto begin = std::chrono::steady_clock::now();
        part(t);
        taken[size_t(t)] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      });
    for (std::thread& thread : team) thread.join();
    least = std::min(least, *std::max_element(taken.begin(), taken.end()));
  }
  return least;
}

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  const long rounds = 500000;
  volatile float factor = 0.999f, term = 0.001f;  // their values unknown, or the compiler finds the chains' fixed point
  std::vector<float> kept(static_cast<size_t>(threads));
  const double adding = seconds(threads, [&](int t) { kept[size_t(t)] = multiply_add(rounds, factor, term); });

  const size_t half = std::max<size_t>(64, size_t(std::atol(arguments[2])) / size_t(2 * threads));
  const long copies = std::max<long>(1, (32L << 20) / long(half));
  std::vector<std::vector<char>> memory(static_cast<size_t>(threads), std::vector<char>(2 * half, 1));
  const double copying = seconds(threads, [&](int t) {
    char* bytes = memory[size_t(t)].data();
    for (long i = 0; i < copies; ++i) {
      std::memcpy(bytes + (i % 2 ? half : 0), bytes + (i % 2 ? 0 : half), half);
      asm volatile("" ::: "memory");  // or only the last copy would be made
    }
  });
  std::printf("%.6g %.6g\n", 2.0 * CHAINS * LANES * double(rounds) * threads / adding,
              2.0 * double(half) * double(copies) * threads / copying);
}
