#include "pool.h"

#include <time.h>

#include <algorithm>
#include <exception>

#include "cpu.h"

namespace pocketphi_runtime {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the pauses between the loops of one token, shorter than what the scheduler gives a thread at a time.
constexpr auto kPatience = std::chrono::microseconds(50);

// Of a loop for each thread: with more a thread that comes late still finds work, and the parts of small loops cost more.
constexpr int kParts = 2;

thread_local Pool* pool_of_thread = nullptr;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` takes no time at all on these
#endif
}

// Whether `done` came true before patience ended.
template <typename Test>
bool spin(Test done) {
  for (auto end = Clock::now() + kPatience; Clock::now() < end;) {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  }
  return done();
}

// That this process has run for.
double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec + 1e-9 * time.tv_nsec;
}

}  // namespace

Pool::Pool(int threads, const std::vector<unsigned>& cores)
    : asked_(threads),
      crew_(threads),
      cores_(cores),
      count_(Crew::kMost * threads * kParts),
      parts_(new Part[count_]) {
  stay_on(cores);
  have(threads);
  pool_of_thread = this;
}

Pool::~Pool() {
  pool_of_thread = nullptr;
  ended_ = true;
  { std::lock_guard<std::mutex> lock(mutex_); }
  for (Asleep& these : asleep_) these.begun.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void Pool::have(int threads) {
  try {
    for (int number = helpers_.size() + 1; number < threads; ++number) {
      helpers_.emplace_back([this, number] {
        stay_on(cores_);
        help(number);
      });
    }
  } catch (const std::exception&) {  // this process gets no more threads, or memory for one: those that there are do the work
  }
  threads_ = std::min<int>(threads, helpers_.size() + 1);
}

Pool* Pool::current() { return pool_of_thread; }

int Pool::run(LoopBody task, void* data) {
  task_ = task;
  data_ = data;
  group_.parts = unfinished_ = threads_ * kParts;
  uint64_t loop = loop_ + 1;
  for (int part = group_.parts; part < count_; ++part) parts_[part].taken = loop;  // there is none of them
  loop_ = loop;
  for (Asleep& these : asleep_) {
    if (these.count == 0 || (&these == &asleep_[1] && threads_ <= asked_)) continue;
    { std::lock_guard<std::mutex> lock(mutex_); }
    these.begun.notify_all();
  }
  pool_of_thread = nullptr;
  work(loop, 0);
  await_others();
  pool_of_thread = this;
  if (!failed_) return 0;
  failed_ = false;
  raise(error_.text);
  return -1;
}

// Take parts from `first` on, round to those before it. A loop that is over has none left: each was taken in it or later.
void Pool::work(uint64_t loop, int first) {
  for (int i = 0; i < count_; ++i) {
    int part = first + i < count_ ? first + i : first + i - count_;
    uint64_t seen = parts_[part].taken.load(std::memory_order_relaxed);
    if (seen < loop && parts_[part].taken.compare_exchange_strong(seen, loop)) run_part(part);
  }
}

void Pool::run_part(int part) {
  if (task_(part, &group_, data_) != 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    failed_ = true;
    error_ = take_raised();
  }
  if (--unfinished_ == 0 && caller_asleep_) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    finished_.notify_one();
  }
}

void Pool::await_others() {
  auto done = [this] { return unfinished_ == 0; };
  if (spin(done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_asleep_ = true;
  finished_.wait(lock, done);
  caller_asleep_ = false;
}

void Pool::help(int number) {
  for (uint64_t loop = 0; loop = await_loop(loop, number), !ended_;) work(loop, number * kParts);
}

uint64_t Pool::await_loop(uint64_t last, int number) {
  auto begun = [this, last, number] { return (loop_ != last && number < threads_) || ended_; };
  if (!spin(begun)) {
    Asleep& mine = asleep_[number >= asked_];
    std::unique_lock<std::mutex> lock(mutex_);
    ++mine.count;
    mine.begun.wait(lock, begun);
    --mine.count;
  }
  return loop_;
}

Pool::Work::Work(Pool* pool) : pool_(pool), begin_(Clock::now()), cpu_(pool ? cpu_seconds() : 0) {}

Pool::Work::~Work() {
  if (!pool_) return;
  pool_->crew_.worked(std::chrono::duration<double>(Clock::now() - begin_).count(), cpu_seconds() - cpu_);
  if (pool_->crew_.now() != pool_->threads_) pool_->have(pool_->crew_.now());
}

}  // namespace pocketphi_runtime

// TVM's kernels call these by name.
extern "C" int TVMBackendParallelLaunch(pocketphi_runtime::LoopBody task, void* data, int) {
  if (auto* pool = pocketphi_runtime::Pool::current(); pool && pool->threads() > 1) return pool->run(task, data);
  pocketphi_runtime::LoopGroup alone{nullptr, 1};
  return task(0, &alone, data);
}

// No kernel of ours has one, and a part that nobody has begun could not be waited for.
extern "C" int TVMBackendParallelBarrier(int, pocketphi_runtime::LoopGroup*) {
  pocketphi_runtime::raise("a kernel with a barrier");
  return -1;
}
