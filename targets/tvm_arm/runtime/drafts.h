// Guesses of the tokens that come next. A decode reads all weights for one token; checking some guessed ones in the same call costs
// little more. Guesses come from the text itself: what followed the last time that its last tokens stood there (prompt look-up,
// Saxena 2023). How many are worth their time is learned while the model runs: which part of them was right, and what rows cost.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace pocketphi_runtime {

class Drafts {
 public:
  static constexpr int kMost = 7;  // tokens of a guess

  explicit Drafts(bool adaptive = true) : adaptive_(adaptive) {}

  // What may follow `seen`, at most `room` tokens of it; empty where no guess is worth its time.
  std::vector<int32_t> next(const std::vector<int32_t>& seen, int64_t room) {
    auto [begin, matched] = find(seen);
    room = std::min<int64_t>(room, kMost);
    if (matched < kFewest || room < 1) return {};
    kind_ = std::min(matched, kLongest) - kFewest;
    int64_t length = adaptive_ ? best(room) : room;
    if (length == 0) {
      if (++passed_ < kPatience) return {};
      length = std::min<int64_t>(room, kProbe);  // what did not pay may pay by now
    }
    passed_ = 0;
    int64_t period = static_cast<int64_t>(seen.size()) - begin;  // beyond its end the text goes on as from there
    std::vector<int32_t> guess;
    for (int64_t i = 0; i < length; ++i) guess.push_back(seen[begin + i % period]);
    return guess;
  }

  // How a guess went: of `length` tokens the first `right` came, and was it ended by another one?
  void learn(int64_t right, bool wrong) {
    Tally& tally = tallies_[kind_];
    tally.right = kMemory * tally.right + static_cast<double>(right);
    tally.all = kMemory * tally.all + static_cast<double>(right + (wrong ? 1 : 0));
  }

  // What a call took, in any unit of time: of one token, or of one and `guessed` more.
  void took(int64_t guessed, double time) {
    if (guessed == 0) {
      one_ = one_ == 0 ? time : one_ + kStep * (time - one_);
    } else if (one_ > 0) {
      double& known = more_[guessed - 1];
      known += kStep * (std::clamp(time / one_ - 1, 0.0, static_cast<double>(guessed)) - known);
    }
  }

 private:
  static constexpr int kFewest = 2, kLongest = 8;      // tokens that have to be the same, and that are compared
  static constexpr int kPatience = 24, kProbe = 2;     // guesses that were passed by before a short one is tried
  static constexpr double kMemory = 0.9, kStep = 0.1;  // of older guesses, and how far a measured time is followed

  struct Tally {
    double right = 1, all = 2;  // half of the first guesses are taken for right
  };

  // Where what followed the longest and last match of the end of `seen` begins, and how many tokens of it match.
  static std::pair<int64_t, int> find(const std::vector<int32_t>& seen) {
    int64_t end = static_cast<int64_t>(seen.size()), begin = end;
    int longest = 0;
    for (int64_t at = end - 1; at > 0 && longest < kLongest; --at) {  // `at`: what followed
      int same = 0;
      while (same < kLongest && same < at && seen[at - 1 - same] == seen[end - 1 - same]) ++same;
      if (same > longest) longest = same, begin = at;
    }
    return {begin, longest};
  }

  // The length that gives the most tokens in a time; 0 where one token a call does.
  int64_t best(int64_t room) const {
    const Tally& tally = tallies_[kind_];
    double right = tally.right / tally.all, expected = 1, chance = 1, most = 1;
    int64_t found = 0;
    for (int64_t length = 1; length <= room; ++length) {
      chance *= right;
      expected += chance;
      double rate = expected / (1 + more_[length - 1]);
      if (rate > most) most = rate, found = length;
    }
    return found;
  }

  bool adaptive_;
  std::array<Tally, kLongest - kFewest + 1> tallies_;
  int kind_ = 0, passed_ = 0;
  double one_ = 0;  // the time of a call of one token, and, as parts of it, what one guessed token adds, two, …
  std::array<double, kMost> more_{0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05};
};

}  // namespace pocketphi_runtime
