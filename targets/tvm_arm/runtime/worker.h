// A thread that runs what it is given, one after the other: calls of a handle that come at once wait for each other, and the
// app's threads stay as they are.
#pragma once
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace pocketphi_runtime {

class Worker {
 public:
  Worker() : thread_([this] { loop(); }) {}
  ~Worker() {
    run(nullptr);
    thread_.join();
  }

  // Returns once `job` did. It must not throw.
  void run(std::function<void()> job) {
    std::lock_guard<std::mutex> turn(turn_);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = std::move(job);
    pending_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !pending_; });
  }

 private:
  void loop() {
    for (bool open = true; open;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return pending_; });
      open = static_cast<bool>(job_);
      if (open) job_();
      pending_ = false;
      changed_.notify_all();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  bool pending_ = false;
  std::thread thread_;
};

}  // namespace pocketphi_runtime
