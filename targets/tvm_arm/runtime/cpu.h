// What this machine's CPU can do, and how many of its cores are worth a thread.
#pragma once
#include <string>
#include <vector>

namespace pocketphi_runtime {

extern const char* const kArch;  // "aarch64" or "x86_64"
extern const char* const kOs;    // "linux", "android" or "ios"

// Those of `features` (LLVM's names: dotprod, i8mm, avx512vnni, …) that the CPU lacks, or that this runtime cannot see.
std::vector<std::string> missing_features(const std::vector<std::string>& features);

// Physical cores without the slowest kind, where there are several.
int fast_cores();

// All cores that this process may use.
int all_cores();

}  // namespace pocketphi_runtime
