// What this machine's CPU can do, and which of its cores are worth a thread.
#pragma once
#include <string>
#include <vector>

namespace pocketphi_runtime {

extern const char* const kArch;  // "aarch64" or "x86_64"
extern const char* const kOs;    // "linux", "android" or "ios"

// Those of `features` (LLVM's names: dotprod, i8mm, avx512vnni, …) that the CPU lacks, or that this runtime cannot see.
std::vector<std::string> missing_features(const std::vector<std::string>& features);

// Cores that this process may use.
std::vector<unsigned> all_cores();

// Those of them that are not of the slowest kind, where there are several kinds.
std::vector<unsigned> fast_cores();

// Have the calling thread run on these alone, where the system lets it say so.
void stay_on(const std::vector<unsigned>& cores);

// How many of them are cores of their own: two may be halves of one. On Apple's systems, which do not say what a core is, the
// fast cores of the machine.
int physical(const std::vector<unsigned>& cores);

}  // namespace pocketphi_runtime
