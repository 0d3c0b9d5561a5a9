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
    Tokens guess = drafts.next(text, 100);
    int length = static_cast<int>(guess.size());
    drafts.took(length, 1 + row * length);
    if (length == 0) continue;
    ++count;
    int came = std::min(right, length);
    drafts.learn(came, came < length);
  }
  return count;
}

int main() {
  Drafts always(false);
  CHECK(always.next({}, 9).empty());
  CHECK(always.next({1}, 9).empty());
  CHECK(always.next({1, 2, 3, 4}, 9).empty());                                 // nothing stood there before
  CHECK(always.next({1, 7, 3, 1}, 9).empty());                                 // one token that is the same is not enough
  CHECK((always.next({1, 2, 3, 4, 1, 2}, 9) == Tokens{3, 4, 1, 2, 3, 4, 1}));  // from the end of the text as from there
  CHECK((always.next({1, 2, 3, 4, 1, 2}, 2) == Tokens{3, 4}));                 // as many as there is room for
  CHECK(always.next({1, 2, 3, 4, 1, 2}, 0).empty());
  CHECK((always.next({1, 2, 5, 9, 1, 2, 6, 0, 1, 2}, 1) == Tokens{6}));        // the last of equally long ones
  CHECK((always.next({8, 1, 2, 5, 9, 1, 2, 6, 8, 1, 2}, 1) == Tokens{5}));     // the longest first
  CHECK((always.next({1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2}, 9) == Tokens{1, 2, 1, 2, 1, 2, 1}));
  Tokens many;
  for (int i = 0; i < 40; ++i) many.push_back(i % 20);
  CHECK(always.next(many, 99).size() == Drafts::kMost);

  CHECK(guessed(200, Drafts::kMost, 0.1) == 200);  // what always comes true is guessed at each time
  CHECK(guessed(200, 0, 0.1) <= 16);               // what never does is left after some, and tried now and then
  CHECK(guessed(200, 0, 0.1) >= 6);
  std::puts("ok");
}
