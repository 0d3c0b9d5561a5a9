// How many threads share the work. On a busy CPU a program gets a part of it for each of its threads: more threads than were asked
// for then get what other programs leave, and on a free one they would only be in each other's way.
#pragma once

namespace pocketphi_runtime {

class Crew {
 public:
  // The clock's steps are short beside this, and a token of a small model takes a tenth of it: seconds.
  static constexpr double kWindow = 0.01;
  static constexpr int kMost = 2;  // times the threads that were asked for

  explicit Crew(int asked) : asked_(asked), now_(asked) {}

  int now() const { return now_; }

  // Work took so many seconds, in which all threads together ran for `cpu` seconds.
  void worked(double wall, double cpu) {
    wall_ += wall;
    cpu_ += cpu;
    if (wall_ < kWindow) return;
    double cores = cpu_ / wall_;
    wall_ = cpu_ = 0;
    if (asked_ == 1) return;  // is meant so
    if (cores < kBusy * asked_) now_ = kMost * asked_;
    if (cores > kFree * asked_) now_ = asked_;
  }

 private:
  // Parts of the cores that the threads asked for would have alone. Half way between, nothing changes; what is not divided among
  // threads takes some of it on a free CPU too.
  static constexpr double kBusy = 0.6, kFree = 0.9;

  int asked_, now_;
  double wall_ = 0, cpu_ = 0;
};

}  // namespace pocketphi_runtime
