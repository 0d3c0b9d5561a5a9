// The threads that share a kernel's parallel loop. TVM's own pool spins for each of its workers: on a busy CPU every loop waits
// until the scheduler has been round. Here a loop waits for nobody who has not begun: whoever is free takes what is left.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "abi.h"
#include "raised.h"

namespace pocketphi_runtime {

// Serves the loops of the thread that made it, and ends on that thread.
class Pool {
 public:
  // threads: with the calling one, at least 1; fewer where the system has none to give. cores: that they may run on.
  Pool(int threads, const std::vector<unsigned>& cores);
  ~Pool();
  Pool(const Pool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Run `task` once for each of its parts, whose number `LoopGroup` says. 0, or -1 with the reason raised.
  int run(LoopBody task, void* data);

  // Of the calling thread, or null: loops of other threads, and loops within loops, run where they are called.
  static Pool* current();

 private:
  struct alignas(64) Part {
    std::atomic<uint64_t> taken{0};  // the last loop in which it was
  };

  void help(int first);
  void work(uint64_t loop, int first);
  void run_part(int part);
  void await_others();
  uint64_t await_loop(uint64_t last);

  int count_;
  std::unique_ptr<Part[]> parts_;
  LoopBody task_ = nullptr;
  void* data_ = nullptr;
  LoopGroup group_{nullptr, 0};
  alignas(64) std::atomic<uint64_t> loop_{0};  // counts them; what is written above is that of the last one
  std::atomic<int> asleep_{0};                 // helpers
  std::atomic<bool> caller_asleep_{false}, ended_{false};
  alignas(64) std::atomic<int> unfinished_{0};  // parts of the last loop
  std::mutex mutex_;
  std::condition_variable begun_, finished_;
  bool failed_ = false;  // under the mutex, as its reason
  Reason error_;
  std::vector<std::thread> helpers_;
};

}  // namespace pocketphi_runtime
