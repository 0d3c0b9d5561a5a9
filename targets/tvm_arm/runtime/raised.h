// Why a kernel failed on this thread. The runtime keeps it itself (backend.cc); the RPC server leaves it to TVM.
#pragma once
#include <string>

namespace pocketphi_runtime {

void raise(const std::string& reason);

// The reason, which is forgotten.
std::string take_raised();

}  // namespace pocketphi_runtime
