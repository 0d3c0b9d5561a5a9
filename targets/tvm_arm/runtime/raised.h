// Why a kernel failed on this thread. The runtime keeps it itself (backend.cc); the RPC server leaves it to TVM.
#pragma once

namespace pocketphi_runtime {

// In memory of its own: a reason may be that there is no more memory.
struct Reason {
  char text[512] = "";
};

// Nothing is thrown: kernels are in between.
void raise(const char* reason);

// The reason, which is forgotten.
Reason take_raised();

}  // namespace pocketphi_runtime
