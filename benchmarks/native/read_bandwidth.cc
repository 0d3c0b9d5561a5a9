// How fast this machine reads memory. A line "read THREADS SECONDS" reads a buffer of 256 MiB over and over, each thread its
// own part, and answers {"rate": bytes a second}. Each thread reads four places of its part at a time: one place after the
// other is up to a third slower.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <thread>
#include <vector>

namespace {

constexpr size_t kWords = (256u << 20) / 8, kStreams = 4;

uint64_t sum(const uint64_t *data, size_t count) {
  const size_t part = count / kStreams;
  uint64_t sums[8] = {};
  for (size_t i = 0; i < part; i += 8) {
    for (size_t s = 0; s < kStreams; ++s) {
      for (size_t j = 0; j < 8; ++j) sums[j] += data[s * part + i + j];
    }
  }
  uint64_t total = 0;
  for (uint64_t value : sums) total += value;
  return total;
}

}  // namespace

int main() {
  std::vector<uint64_t> buffer(kWords, 1);
  std::printf("{}\n");
  std::fflush(stdout);
  std::string verb;
  double seconds;
  for (size_t threads; std::cin >> verb >> threads >> seconds;) {
    std::vector<uint64_t> sums(threads);
    const size_t share = kWords / threads / 64 * 64;
    auto begin = std::chrono::steady_clock::now();
    double taken = 0, bytes = 0;
    while (taken < seconds) {
      std::vector<std::thread> running;
      for (size_t t = 1; t < threads; ++t) running.emplace_back([&, t] { sums[t] += sum(buffer.data() + t * share, share); });
      sums[0] += sum(buffer.data(), share);
      for (std::thread &thread : running) thread.join();
      bytes += 8.0 * share * threads;
      taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    uint64_t total = 0;
    for (uint64_t value : sums) total += value;  // used, so that it is computed
    std::printf("{\"rate\": %.0f, \"sum\": %llu}\n", bytes / taken, static_cast<unsigned long long>(total));
    std::fflush(stdout);
  }
}
