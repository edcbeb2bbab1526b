// The thread pool behind pg_pool. Compiled into the binding only: a step sees just the interface.
//
// Invariants: one region at a time, a second caller waits for the first; worker 0 is the calling thread; a waiting thread
// pauses, then yields, then sleeps, so that it never keeps a core from another process for a scheduler's tick; a forked
// child begins without threads and starts its own at its first region. A task must not open a region of its own and
// must not throw.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "interface.h"

namespace pg {

// Waiting: about 20 µs of pauses, then about 5 ms of yields, then (where the waiter may) sleep.
class Backoff {
 public:
  bool wants_sleep() const { return count_ >= 11000; }
  void pause() {
    if (++count_ <= 1000) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ volatile("yield");
#endif
    } else {
      sched_yield();
    }
  }

 private:
  int count_ = 0;
};

class ThreadPool {
 public:
  explicit ThreadPool(int workers) {
    interface_.self = this;
    interface_.size = [](void* self) { return static_cast<ThreadPool*>(self)->size(); };
    interface_.run = [](void* self, int count, void (*task)(void*, int), void* context) {
      static_cast<ThreadPool*>(self)->run(count, task, context);
    };
    interface_.barrier = [](void* self, int, int count) { static_cast<ThreadPool*>(self)->barrier(count); };
    state_ = new State;
    size_ = workers < 1 ? 1 : workers;
    try {
      start_threads(size_);
    } catch (...) {
      stop_threads();
      delete state_;
      throw;
    }
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    stop_threads();
    delete state_;
  }

  pg_pool* interface() { return &interface_; }
  int size() const { return size_; }

  void run(int workers, void (*task)(void*, int), void* context) {
    if (workers <= 1) return task(context, 0);
    State& s = *state_;
    const std::lock_guard<std::mutex> one_region(s.region);
    if (workers > size_) size_ = workers;
    start_threads(workers);
    s.task = task;
    s.context = context;
    s.remaining.store(workers - 1, std::memory_order_relaxed);
    // The number of workers travels with the region's number: a thread that has no part in the region reads no more.
    const std::uint64_t number = (s.ticket.load(std::memory_order_relaxed) >> 16) + 1;
    s.ticket.store(number << 16 | static_cast<std::uint64_t>(workers), std::memory_order_seq_cst);
    if (s.sleepers.load(std::memory_order_seq_cst) > 0) {
      const std::lock_guard<std::mutex> guard(s.sleep);
      s.wake.notify_all();
    }
    task(context, 0);
    for (Backoff backoff; s.remaining.load(std::memory_order_acquire) != 0;) backoff.pause();
  }

  void barrier(int workers) {
    if (workers <= 1) return;
    State& s = *state_;
    const unsigned phase = s.phase.load(std::memory_order_acquire);
    if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
      s.arrived.store(0, std::memory_order_relaxed);
      s.phase.store(phase + 1, std::memory_order_release);
    } else {
      for (Backoff backoff; s.phase.load(std::memory_order_acquire) == phase;) backoff.pause();
    }
  }

  // In a forked child: the threads are gone and the locks may be held by nobody. The old state is left behind, since
  // destroying it would wait for them.
  void forget_threads() { state_ = new State; }

 private:
  struct State {
    alignas(64) std::atomic<std::uint64_t> ticket{0};
    alignas(64) std::atomic<int> remaining{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> phase{0};
    alignas(64) std::atomic<int> sleepers{0};
    std::atomic<bool> stop{false};
    void (*task)(void*, int) = nullptr;
    void* context = nullptr;
    std::mutex region, sleep;
    std::condition_variable wake;
    std::vector<std::thread> threads;
  };

  void start_threads(int workers) {
    State* s = state_;
    while (static_cast<int>(s->threads.size()) < workers - 1) {
      const int worker = static_cast<int>(s->threads.size()) + 1;
      const std::uint64_t seen = s->ticket.load(std::memory_order_relaxed);
      s->threads.emplace_back([s, worker, seen] { work(*s, worker, seen); });
    }
  }

  static void work(State& s, int worker, std::uint64_t seen) {
    for (;;) {
      std::uint64_t ticket;
      for (Backoff backoff; (ticket = s.ticket.load(std::memory_order_acquire)) == seen && !s.stop.load(std::memory_order_relaxed);) {
        if (!backoff.wants_sleep()) {
          backoff.pause();
          continue;
        }
        std::unique_lock<std::mutex> guard(s.sleep);
        s.sleepers.fetch_add(1, std::memory_order_seq_cst);
        s.wake.wait(guard, [&] { return s.ticket.load(std::memory_order_seq_cst) != seen || s.stop.load(std::memory_order_relaxed); });
        s.sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      if (ticket == seen) return;
      seen = ticket;
      if (worker >= static_cast<int>(ticket & 0xffff)) continue;
      s.task(s.context, worker);
      s.remaining.fetch_sub(1, std::memory_order_release);
    }
  }

  void stop_threads() {
    {
      const std::lock_guard<std::mutex> guard(state_->sleep);
      state_->stop.store(true, std::memory_order_relaxed);
      state_->wake.notify_all();
    }
    for (std::thread& thread : state_->threads) thread.join();
    state_->threads.clear();
  }

  pg_pool interface_;
  State* state_;
  int size_;
};

// All pools of the process, so that a fork can reset them and the end of the process join their threads.
class PoolRegistry {
 public:
  static PoolRegistry& instance() {
    static PoolRegistry registry;
    return registry;
  }
  void add(ThreadPool* pool) {
    const std::lock_guard<std::mutex> guard(lock_);
    pools_.push_back(pool);
  }
  void destroy(ThreadPool* pool) {
    {
      const std::lock_guard<std::mutex> guard(lock_);
      for (std::size_t i = 0; i < pools_.size(); ++i)
        if (pools_[i] == pool) pools_.erase(pools_.begin() + static_cast<std::ptrdiff_t>(i--));
    }
    delete pool;
  }

 private:
  PoolRegistry() {
    pthread_atfork([] { instance().lock_.lock(); }, [] { instance().lock_.unlock(); },
                   [] {
                     for (ThreadPool* pool : instance().pools_) pool->forget_threads();
                     instance().lock_.unlock();
                   });
  }
  ~PoolRegistry() {
    for (ThreadPool* pool : pools_) delete pool;
  }

  std::mutex lock_;
  std::vector<ThreadPool*> pools_;
};

}  // namespace pg

// A pool of `workers` threads, the caller's own counted; null if they cannot be started. It lives until
// pg_pool_destroy or the end of the process.
inline pg_pool* pg_pool_create(int workers) {
  try {
    pg::PoolRegistry& registry = pg::PoolRegistry::instance();
    pg::ThreadPool* pool = new pg::ThreadPool(workers);
    registry.add(pool);
    return pool->interface();
  } catch (const std::system_error&) {
    return nullptr;
  }
}

// No region of the pool may be running.
inline void pg_pool_destroy(pg_pool* pool) {
  if (pool) pg::PoolRegistry::instance().destroy(static_cast<pg::ThreadPool*>(pool->self));
}
