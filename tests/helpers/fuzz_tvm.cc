// Opens a bundle once for each line of stdin, which holds the options, and uses it. Prints what came of it, on a line.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "pocketphi_runtime.h"

static uint64_t hash(const std::vector<float>& values) {
  uint64_t h = 1469598103934665603u;
  for (float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    h = (h ^ bits) * 1099511628211u;
    if (!std::isfinite(value)) return 0;
  }
  return h;
}

int main(int, char** argv) {
  const int32_t prompt[] = {1, 2, 3, 5, 8, 13, 21, 34, 55, 89};
  const int count = sizeof prompt / sizeof *prompt;
  for (std::string options; std::getline(std::cin, options);) {
    alarm(5);
    char error[300] = "";
    pocketphi* model = pocketphi_open(argv[1], options.c_str(), error, sizeof error);
    if (!model) {
      std::printf("refused %s\n", error);
    } else {
      std::vector<float> all(static_cast<size_t>(pocketphi_vocab(model)) * count), last(pocketphi_vocab(model));
      int code = pocketphi_prefill(model, prompt, count, last.data());
      if (code == 0) code = pocketphi_decode(model, 7, last.data());
      if (code == 0) code = pocketphi_prefill_all(model, prompt, count, all.data());
      if (code) std::printf("failed %s\n", pocketphi_error(model));
      else std::printf("ran %016llx %016llx\n", (unsigned long long)hash(last), (unsigned long long)hash(all));
      pocketphi_close(model);
    }
    std::fflush(stdout);
  }
  return 0;
}
