// A compiled model: kernels by name, and the code that calls them. model.so, or linked into this program.
#pragma once
#include <memory>
#include <string>

#include "abi.h"

namespace pocketphi_runtime {

class Library {
 public:
  // Both fail for what pocketphi did not build.
  static Library open(const std::string& path);
  static Library linked(const std::string& prefix);

  // Null where there is none.
  Kernel kernel(const std::string& name) const;

  // The bytecode of its functions; bytecode.h reads it. It lies in the library.
  std::string bytecode() const;

 private:
  void* symbol(const std::string& name) const;

  std::shared_ptr<void> handle_;  // of dlopen; null for one that is linked in
  std::string prefix_, name_;
};

}  // namespace pocketphi_runtime
