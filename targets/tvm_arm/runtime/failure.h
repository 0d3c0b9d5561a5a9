#pragma once
#include <stdexcept>

namespace pocketphi_runtime {

// Bad input: one line that says what was expected and what came.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace pocketphi_runtime
