// Guesses of what comes next: what is guessed, and when it is left. Time is what the test says it is.
#include "drafts.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

using pocketphi_runtime::Drafts;
using Tokens = std::vector<int32_t>;

#define CHECK(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::exit(1)

// How many of `rounds` chances were guessed at, where `right` of each guess's tokens come and a row costs `row` of a call.
int guessed(int rounds, int right, double row) {
  Drafts drafts;
  Tokens text{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2};
  int count = 0;
  for (int i = 0; i < rounds; ++i) {
    Tokens guess = drafts.next(text, 100).tokens;
    int length = static_cast<int>(guess.size());
    drafts.took(length, 1 + row * length);
    if (length == 0) continue;
    ++count;
    int came = std::min(right, length);
    drafts.learn(came, came < length);
  }
  return count;
}

// How many tokens a draft model was asked for in `rounds` calls, where `right` of each guess's come and one takes `cost` of a call.
int asked(Drafts drafts, int rounds, int right, double cost, int64_t read = 1) {
  int64_t count = 0, behind = 0;
  drafts.meet(cost);
  for (int i = 0; i < rounds; ++i) {
    Tokens text{i, i + 1, i + 2};
    behind += read;
    pocketphi_runtime::Guess guess = drafts.next(text, 100, 100, behind);
    CHECK(guess.tokens.empty());
    drafts.model_took(guess.of_model, cost * guess.of_model);
    drafts.took(guess.of_model, 1 + 0.1 * guess.of_model);
    if (guess.of_model == 0) continue;
    count += guess.of_model, behind = 0;
    int64_t came = std::min<int64_t>(right, guess.of_model);
    drafts.learn(came, came < guess.of_model);
  }
  return static_cast<int>(count);
}

int main() {
  Drafts always(true, false);
  CHECK(always.next({}, 9).tokens.empty());
  CHECK(always.next({1}, 9).tokens.empty());
  CHECK(always.next({1, 2, 3, 4}, 9).tokens.empty());                                 // nothing stood there before
  CHECK(always.next({1, 7, 3, 1}, 9).tokens.empty());                                 // one token that is the same is not enough
  CHECK((always.next({1, 2, 3, 4, 1, 2}, 9).tokens == Tokens{3, 4, 1, 2, 3, 4, 1}));  // from the end of the text as from there
  CHECK((always.next({1, 2, 3, 4, 1, 2}, 2).tokens == Tokens{3, 4}));                 // as many as there is room for
  CHECK(always.next({1, 2, 3, 4, 1, 2}, 0).tokens.empty());
  CHECK((always.next({1, 2, 5, 9, 1, 2, 6, 0, 1, 2}, 1).tokens == Tokens{6}));        // the last of equally long ones
  CHECK((always.next({8, 1, 2, 5, 9, 1, 2, 6, 8, 1, 2}, 1).tokens == Tokens{5}));     // the longest first
  CHECK((always.next({1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}, 9).tokens == Tokens{1, 2, 1, 2, 1, 2, 1}));
  Tokens many;
  for (int i = 0; i < 40; ++i) many.push_back(i % 20);
  CHECK(always.next(many, 99).tokens.size() == Drafts::kMost);

  CHECK(guessed(200, Drafts::kMost, 0.1) == 200);  // what always comes true is guessed at each time
  CHECK(guessed(200, 0, 0.1) <= 16);               // what never does is left after some, and tried now and then
  CHECK(guessed(200, 0, 0.1) >= 6);

  CHECK(asked(Drafts(false), 200, Drafts::kMost, 0.05) > 1200);  // what always comes true is guessed at in full
  CHECK(asked(Drafts(false), 200, 2, 0.05) < 900);                // what is right for two tokens, for few more
  CHECK(asked(Drafts(false), 200, 2, 0.05) > 400);
  CHECK(asked(Drafts(false), 1000, 0, 0.05) <= 100);               // what never does is left, and tried now and then
  CHECK(asked(Drafts(false), 1000, 0, 0.05) >= 40);
  CHECK(asked(Drafts(false), 1000, Drafts::kMost, 1) == 0);       // as slow as the model itself
  CHECK(asked(Drafts(false), 1000, 0, 0.3) < 12);                 // reading on, to be tried, would cost more than may be
  Drafts both;
  both.meet(0.05);
  CHECK(both.next({1, 2, 3}, 100, 100, 3).of_model > 0);  // the text has no guess
  CHECK(both.next({1, 2, 3, 4, 1, 2}, 100, 100, 1).of_model == 0);  // as likely, and for nothing
  for (int i = 0; i < 30; ++i) both.next({1, 2, 3, 4, 1, 2}, 100), both.learn(0, true);
  CHECK(both.next({1, 2, 3, 4, 1, 2}, 100, 100, 1).of_model > 0);   // the text was never right
  CHECK(both.next({1, 2, 3}, 100, 1, 1).of_model == 1);
  CHECK(both.next({1, 2, 3}, 0, 100, 1).of_model == 0);
  CHECK(always.next({1, 2, 3, 4, 1, 2}, 9, 5).of_model == 5);
  CHECK((always.next({1, 2, 3, 4, 1, 2}, 9, 0).tokens == Tokens{3, 4, 1, 2, 3, 4, 1}));
  CHECK(Drafts(false, false).next({1, 2, 3, 4, 1, 2}, 9, 0).tokens.empty());
  std::puts("ok");
}
