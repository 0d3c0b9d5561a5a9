#include "cpu.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace pocketphi_runtime {

#if defined(__aarch64__)
const char* const kArch = "aarch64";
#elif defined(__x86_64__)
const char* const kArch = "x86_64";
#else
#error "a CPU that pocketphi has no kernels for"
#endif

#if defined(__ANDROID__)
const char* const kOs = "android";
#elif defined(__APPLE__)
const char* const kOs = "ios";
#else
const char* const kOs = "linux";
#endif

namespace {

using Tests = std::map<std::string, std::function<bool()>>;

#if defined(__APPLE__)
int system_value(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

const Tests& tests() {
  static const Tests all = {
      {"neon", [] { return true; }},
      {"dotprod", [] { return system_value("hw.optional.arm.FEAT_DotProd") != 0; }},
      {"fullfp16", [] { return system_value("hw.optional.arm.FEAT_FP16") != 0; }},
      {"fp16fml", [] { return system_value("hw.optional.arm.FEAT_FHM") != 0; }},
      {"i8mm", [] { return system_value("hw.optional.arm.FEAT_I8MM") != 0; }},
      {"bf16", [] { return system_value("hw.optional.arm.FEAT_BF16") != 0; }},
      {"lse", [] { return system_value("hw.optional.arm.FEAT_LSE") != 0; }},
  };
  return all;
}
#elif defined(__aarch64__)
// Bits of AT_HWCAP and AT_HWCAP2: the kernel's arch/arm64/include/uapi/asm/hwcap.h
bool first(int bit) { return getauxval(AT_HWCAP) >> bit & 1; }
bool second(int bit) { return getauxval(AT_HWCAP2) >> bit & 1; }

const Tests& tests() {
  static const Tests all = {
      {"neon", [] { return first(1); }},
      {"aes", [] { return first(3); }},
      {"sha2", [] { return first(6); }},
      {"crc", [] { return first(7); }},
      {"lse", [] { return first(8); }},
      {"fullfp16", [] { return first(9) && first(10); }},
      {"rdm", [] { return first(12); }},
      {"dotprod", [] { return first(20); }},
      {"sve", [] { return first(22); }},
      {"fp16fml", [] { return first(23); }},
      {"sve2", [] { return second(1); }},
      {"i8mm", [] { return second(13); }},
      {"bf16", [] { return second(14); }},
  };
  return all;
}
#else
#define POCKETPHI_TEST(name) {name, [] { return __builtin_cpu_supports(name) != 0; }}

const Tests& tests() {
  static const Tests all = {
      POCKETPHI_TEST("sse4.2"),       POCKETPHI_TEST("avx"),         POCKETPHI_TEST("avx2"),
      POCKETPHI_TEST("fma"),          POCKETPHI_TEST("f16c"),        POCKETPHI_TEST("bmi"),
      POCKETPHI_TEST("bmi2"),         POCKETPHI_TEST("avxvnni"),     POCKETPHI_TEST("avx512f"),
      POCKETPHI_TEST("avx512bw"),     POCKETPHI_TEST("avx512cd"),    POCKETPHI_TEST("avx512dq"),
      POCKETPHI_TEST("avx512vl"),     POCKETPHI_TEST("avx512vnni"),  POCKETPHI_TEST("avx512vbmi"),
      POCKETPHI_TEST("avx512vbmi2"),  POCKETPHI_TEST("avx512bf16"),  POCKETPHI_TEST("avx512fp16"),
      POCKETPHI_TEST("avx512bitalg"), POCKETPHI_TEST("avx512vpopcntdq"), POCKETPHI_TEST("avx512ifma"),
      POCKETPHI_TEST("amx-int8"),
  };
  return all;
}
#undef POCKETPHI_TEST
#endif

// The first number in a file of /sys, or `otherwise`. A list of siblings ("0,4" or "0-1") starts with its lowest core.
long number(const std::string& path, long otherwise) {
  std::ifstream file(path);
  long value;
  return file >> value ? value : otherwise;
}

std::string files_of(unsigned core) { return "/sys/devices/system/cpu/cpu" + std::to_string(core); }

}  // namespace

std::vector<std::string> missing_features(const std::vector<std::string>& features) {
  std::vector<std::string> missing;
  for (const std::string& name : features) {
    auto test = tests().find(name);
    if (test == tests().end() || !test->second()) missing.push_back(name);
  }
  return missing;
}

std::vector<unsigned> all_cores() {
  std::vector<unsigned> cores;
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (unsigned i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &allowed)) cores.push_back(i);
    }
  }
#endif
  if (cores.empty()) {
    cores.resize(std::max(1u, std::thread::hardware_concurrency()));
    std::iota(cores.begin(), cores.end(), 0u);
  }
  return cores;
}

std::vector<unsigned> fast_cores() {
  std::map<long, std::vector<unsigned>> by_speed;
  for (unsigned core : all_cores()) by_speed[number(files_of(core) + "/cpufreq/cpuinfo_max_freq", 0)].push_back(core);
  if (by_speed.size() > 1) by_speed.erase(by_speed.begin());
  std::vector<unsigned> fast;
  for (const auto& [speed, cores] : by_speed) fast.insert(fast.end(), cores.begin(), cores.end());
  return fast;
}

void stay_on(const std::vector<unsigned>& cores) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  for (unsigned core : cores) CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);  // 0: this thread. Where it is refused, the thread stays free
#endif
}

int physical(const std::vector<unsigned>& cores) {
#if defined(__APPLE__)
  return std::max(1, system_value("hw.perflevel0.physicalcpu"));
#else
  std::set<long> first;
  for (unsigned core : cores) first.insert(number(files_of(core) + "/topology/thread_siblings_list", core));
  return static_cast<int>(first.size());
#endif
}

}  // namespace pocketphi_runtime
