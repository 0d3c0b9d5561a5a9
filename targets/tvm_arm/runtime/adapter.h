// An adapter: what it adds to the model's projections, in a file that is mapped.
#pragma once
#include <string>
#include <vector>

#include "bundle.h"

namespace pocketphi_runtime {

class Adapter {
 public:
  // None: every factor has no rows.
  explicit Adapter(const Bundle& bundle);

  // The file of a bundle's adapter. Fails for one that is damaged, or was made for other weights.
  Adapter(const Bundle& bundle, const std::string& path);

  // Of each weight that may have some: A, then B.
  const std::vector<TensorRef>& factors() const { return factors_; }

  // XXH64 of the file; 0 for none.
  uint64_t digest() const;

  // Fails if the file was written to or cut since it was mapped.
  void refuse_changed() const;

 private:
  Mapping file_;
  bool mapped_ = false;
  std::vector<TensorRef> factors_;
};

// Where a bundle has an adapter of this name, or the path that a text with a slash is.
std::string adapter_path(const Bundle& bundle, const std::string& name);

}  // namespace pocketphi_runtime
