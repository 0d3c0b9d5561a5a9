// The choice of the next token, as the app kits make it (artifacts/kits/reference.py), with a repetition penalty.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

namespace pocketphi_runtime {

// How an answer is made. temperature 0: the most likely token; top_k 0 and limit 0: none; top_p 1 and repetition_penalty 1: none.
struct Generation {
  int64_t limit = 0;
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1, repetition_penalty = 1;
  uint64_t seed = 0;
  std::vector<int64_t> stop;

  // Fails with a line that names what is wrong.
  static Generation parse(const std::string& json);
};

class Sampler {
 public:
  explicit Sampler(const Generation& how) : how_(how), state_(how.seed) {}

  // Ties go to the lower id; probabilities are computed in float64. seen: the tokens so far.
  int32_t choose(std::vector<float>& logits, const std::vector<int32_t>& seen) {
    penalize(logits, seen);
    if (how_.temperature <= 0) return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0);
    size_t kept = how_.top_k > 0 ? std::min<size_t>(how_.top_k, order_.size()) : order_.size();
    std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), before);
    order_.resize(kept);
    weights_.clear();
    double all = 0;
    for (int32_t token : order_) {
      weights_.push_back(std::exp((static_cast<double>(logits[token]) - logits[order_[0]]) / how_.temperature));
      all += weights_.back();
    }
    size_t count = 0;
    double mass = 0, enough = how_.top_p * all;
    while (count < kept && (count == 0 || mass < enough)) mass += weights_[count++];
    double target = uniform() * mass;
    for (size_t i = 0; i < count; ++i) {
      target -= weights_[i];
      if (target < 0) return order_[i];
    }
    return order_[count - 1];
  }

 private:
  // What was said becomes less likely (Keskar et al. 2019, arXiv:1909.05858, as transformers has it).
  void penalize(std::vector<float>& logits, const std::vector<int32_t>& seen) {
    if (how_.repetition_penalty == 1) return;
    std::vector<int32_t> once = seen;
    std::sort(once.begin(), once.end());
    once.erase(std::unique(once.begin(), once.end()), once.end());
    auto by = static_cast<float>(how_.repetition_penalty);
    for (int32_t token : once) logits[token] = logits[token] < 0 ? logits[token] * by : logits[token] / by;
  }

  // In [0, 1), from the upper 53 bits of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195).
  double uniform() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

  Generation how_;
  uint64_t state_;
  std::vector<int32_t> order_;
  std::vector<double> weights_;
};

}  // namespace pocketphi_runtime
