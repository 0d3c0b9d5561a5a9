// The threads that share a kernel's parallel loop. TVM's own pool spins for each of its workers: on a busy CPU every loop waits
// until the scheduler has been round. Here a loop waits for nobody who has not begun: whoever is free takes what is left.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "abi.h"
#include "crew.h"
#include "raised.h"

namespace pocketphi_runtime {

// Serves the loops of the thread that made it, and ends on that thread.
class Pool {
 public:
  // threads: with the calling one, at least 1; fewer where the system has none to give. cores: that they may run on.
  Pool(int threads, const std::vector<unsigned>& cores);
  ~Pool();
  Pool(const Pool&) = delete;

  // Those that share the next loop.
  int threads() const { return threads_; }

  // What is done in a scope, to see whether other programs take the CPU: then more threads share the loops. pool: or null.
  class Work {
   public:
    explicit Work(Pool* pool);
    ~Work();
    Work(const Work&) = delete;

   private:
    Pool* pool_;
    std::chrono::steady_clock::time_point begin_;
    double cpu_;
  };

  // Run `task` once for each of its parts, whose number `LoopGroup` says. 0, or -1 with the reason raised.
  int run(LoopBody task, void* data);

  // Of the calling thread, or null: loops of other threads, and loops within loops, run where they are called.
  static Pool* current();

 private:
  struct alignas(64) Part {
    std::atomic<uint64_t> taken{0};  // the last loop in which it was
  };

  void have(int threads);
  void help(int number);
  void work(uint64_t loop, int first);
  void run_part(int part);
  void await_others();
  uint64_t await_loop(uint64_t last, int number);

  // Helpers that have found nothing to do: those that were asked for, and those of a busy CPU.
  struct Asleep {
    std::atomic<int> count{0};
    std::condition_variable begun;
  };

  const int asked_;
  Crew crew_;
  const std::vector<unsigned> cores_;
  const int count_;  // of parts, at most
  std::unique_ptr<Part[]> parts_;
  std::atomic<int> threads_{1};
  LoopBody task_ = nullptr;
  void* data_ = nullptr;
  LoopGroup group_{nullptr, 0};
  alignas(64) std::atomic<uint64_t> loop_{0};  // counts them; what is written above is that of the last one
  Asleep asleep_[2];
  std::atomic<bool> caller_asleep_{false}, ended_{false};
  alignas(64) std::atomic<int> unfinished_{0};  // parts of the last loop
  std::mutex mutex_;
  std::condition_variable finished_;
  bool failed_ = false;  // under the mutex, as its reason
  Reason error_;
  std::vector<std::thread> helpers_;
};

}  // namespace pocketphi_runtime
