// A second, smaller bundle whose likeliest tokens are guesses of what comes next in a model's text.
#pragma once
#include <string>
#include <vector>

#include "model.h"

namespace pocketphi_runtime {

class DraftModel {
 public:
  // Runs on the threads of `model`, which is open on this one. Fails for a bundle that cannot guess for it.
  DraftModel(const std::string& folder, const Options& options, const Bundle& model, int64_t rows);

  // Tokens that it has room to guess behind `seen`, and those of `seen` that it has not read.
  int64_t room(const std::vector<int32_t>& seen) const;
  int64_t behind(const std::vector<int32_t>& seen) const;

  // What it says comes after `seen`: `count` tokens. Its cache is brought to that text, whatever was in it.
  std::vector<int32_t> guess(const std::vector<int32_t>& seen, int64_t count);

  int64_t bytes() const { return model_.bytes(); }

 private:
  int64_t same(const std::vector<int32_t>& seen) const;

  Model model_;
  std::vector<float> logits_;
};

}  // namespace pocketphi_runtime
