// What drafts.h guesses, for a script on standard input: see test_guessing.py.
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "drafts.h"

int main() {
  pocketphi_runtime::Drafts drafts;
  std::string what;
  while (std::cin >> what) {
    if (what == "new") {
      drafts = pocketphi_runtime::Drafts();
      continue;
    }
    if (what == "next") {
      int64_t room, model_room, behind, count;
      std::cin >> room >> model_room >> behind >> count;
      std::vector<int32_t> seen(count);
      for (int32_t& token : seen) std::cin >> token;
      pocketphi_runtime::Guess guess = drafts.next(seen, room, model_room, behind);
      std::cout << guess.of_model;
      for (int32_t token : guess.tokens) std::cout << ' ' << token;
      std::cout << '\n';
      continue;
    }
    int64_t count = 0;
    double value;
    if (what != "meet") std::cin >> count;
    std::cin >> value;
    if (what == "meet") drafts.meet(value);
    if (what == "learn") drafts.learn(count, value != 0);
    if (what == "took") drafts.took(count, value);
    if (what == "model_took") drafts.model_took(count, value);
  }
}
