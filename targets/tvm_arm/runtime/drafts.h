// Guesses of the tokens that come next. A decode reads all weights for one token; checking some guessed ones in the same call costs
// little more. Guesses come from the text itself: what followed the last time that its last tokens stood there (prompt look-up,
// Saxena 2023); or from a smaller model, which takes time for each (Leviathan et al. 2023, arXiv:2211.17192). Which of them is
// asked, and for how many, is what gives most tokens in a time. That is learned while the model runs: which part of the guesses
// was right, and what calls take.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace pocketphi_runtime {

// tokens: that the text has; of_model: how many the draft model is to be asked for. One of them is empty.
struct Guess {
  std::vector<int32_t> tokens;
  int64_t of_model = 0;
};

class Drafts {
 public:
  static constexpr int kMost = 7;  // tokens of a guess

  // text: whether guesses come from the text at all.
  explicit Drafts(bool text = true, bool adaptive = true) : text_(text), adaptive_(adaptive) {}

  // Another draft model, of which nothing is known but about what a token of it takes, as a part of a call.
  void meet(double cost) {
    tallies_[kModel] = Tally();
    cost_ = cost;
  }

  // What may follow `seen`, at most `room` tokens of it; empty where no guess is worth its time. model_room: tokens that the draft
  // model has room for, none where there is no such; behind: those that it would have to read before its first guess.
  Guess next(const std::vector<int32_t>& seen, int64_t room, int64_t model_room = 0, int64_t behind = 0) {
    room = std::min<int64_t>(room, kMost);
    model_room = std::min(model_room, room);
    auto [begin, matched] = text_ ? find(seen) : std::pair<int64_t, int>{0, 0};
    int kind = std::min(matched, kLongest) - kFewest;
    Choice text = matched < kFewest ? Choice() : best(kind, room, 0), model = best(kModel, model_room, cost_);
    if (text.length == 0 && model.length == 0) {  // what did not pay may pay by now
      if (matched >= kFewest && room > 0 && ++passed_ >= kPatience) text.length = std::min<int64_t>(room, kProbe);
      else if (model_room > 0 && ++model_passed_ >= patience(behind)) model.length = std::min<int64_t>(model_room, kProbe);
    }
    if (text.length == 0 || model.rate > text.rate) {
      if (model.length > 0) model_passed_ = 0, kind_ = kModel;
      return {{}, model.length};
    }
    passed_ = 0, kind_ = kind;
    int64_t period = static_cast<int64_t>(seen.size()) - begin;  // beyond its end the text goes on as from there
    Guess guess;
    for (int64_t i = 0; i < text.length; ++i) guess.tokens.push_back(seen[begin + i % period]);
    return guess;
  }

  // How a guess went: of its tokens the first `right` came, and was it ended by another one?
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

  // What the draft model took for so many tokens, in the same unit.
  void model_took(int64_t guessed, double time) {
    if (guessed > 0 && one_ > 0) cost_ += kModelStep * (time / one_ / static_cast<double>(guessed) - cost_);
  }

 private:
  static constexpr int kFewest = 2, kLongest = 8;      // tokens that have to be the same, and that are compared
  static constexpr int kModel = kLongest - kFewest + 1;  // the draft model's place among the tallies, behind those of matches
  static constexpr int kPatience = 24, kProbe = 2;     // guesses that were passed by before a short one is tried
  static constexpr double kMemory = 0.9, kStep = 0.1;  // of older guesses, and how far a measured time is followed
  static constexpr double kModelStep = 0.3, kRead = 0.2;  // the same of a draft model, and what a token of a prompt takes of a call's
  static constexpr double kShare = 0.03;               // of all time, for trying a draft model that did not pay

  struct Tally {
    double right = 1, all = 2;  // half of the first guesses are taken for right
  };
  struct Choice {
    int64_t length = 0;
    double rate = 1;  // tokens in the time of one call
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

  // The length that gives the most tokens in a time; 0 where one token a call does. cost: of each guessed token beside the call.
  Choice best(int kind, int64_t room, double cost) const {
    if (!adaptive_) return room > 0 ? Choice{room, kind == kModel ? 2.0 : 1.5} : Choice();
    const Tally& tally = tallies_[kind];
    double right = tally.right / tally.all, expected = 1, chance = 1;
    Choice found;
    for (int64_t length = 1; length <= room; ++length) {
      chance *= right;
      expected += chance;
      double rate = expected / (1 + more_[length - 1] + cost * static_cast<double>(length));
      if (rate > found.rate) found = {length, rate};
    }
    return found;
  }

  // Calls between two tries of a draft model that does not pay: what reading up to here takes of it is counted too.
  double patience(int64_t behind) const {
    double took = more_[kProbe - 1] + cost_ * (kProbe + kRead * static_cast<double>(behind));
    return std::max<double>(kPatience, took / kShare);
  }

  bool text_, adaptive_;
  std::array<Tally, kModel + 1> tallies_;
  int kind_ = 0, passed_ = 0, model_passed_ = 0;
  double one_ = 0;  // the time of a call of one token, and, as parts of it, what one guessed token adds, two, …
  std::array<double, kMost> more_{0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05};
  double cost_ = 0;  // and what the draft model takes for a token
};

}  // namespace pocketphi_runtime
