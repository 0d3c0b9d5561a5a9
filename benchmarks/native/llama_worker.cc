// A GGUF in libllama, on requests; llama.cpp's defaults but for threads and context.
//
//   prefill ROOM ID…    {"seconds": S}      forget all, append the tokens, pick the next; ROOM: tokens that there will be
//   decode COUNT        {"seconds": S, "memory": peak resident bytes}      COUNT times: append the picked one, pick the next
//
// Started with the file and the number of threads.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Linux's ru_maxrss would start with what the parent had when it forked.
long peak_bytes() {
  std::ifstream file("/proc/self/status");
  std::string word;
  long kib = 0;
  while (file >> word && word != "VmHWM:") {}
  file >> kib;
  return 1024 * kib;
}

class Session {
 public:
  Session(llama_model *model, int threads) : model_(model), threads_(threads) {}

  void prefill(int room, std::vector<llama_token> &tokens) {
    if (room > room_) {
      if (context_) llama_free(context_);
      llama_context_params params = llama_context_default_params();
      params.n_ctx = room_ = room;
      params.n_threads = params.n_threads_batch = threads_;
      context_ = llama_init_from_model(model_, params);
      if (!context_) std::exit(1);
    }
    llama_memory_clear(llama_get_memory(context_), true);
    append(tokens.data(), static_cast<int>(tokens.size()));
  }

  void decode() { append(&next_, 1); }

 private:
  void append(llama_token *tokens, int count) {
    if (llama_decode(context_, llama_batch_get_one(tokens, count))) std::exit(1);
    const float *logits = llama_get_logits_ith(context_, -1);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model_));
    next_ = static_cast<llama_token>(std::max_element(logits, logits + vocab) - logits);
  }

  llama_model *model_;
  llama_context *context_ = nullptr;
  int threads_, room_ = 0;
  llama_token next_ = 0;
};

}  // namespace

int main(int, char **argv) {
  llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
  llama_backend_init();
  auto begin = Clock::now();
  llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) return std::printf("{\"error\": \"%s: cannot be loaded\"}\n", argv[1]), 1;
  Session session(model, std::atoi(argv[2]));
  std::printf("{\"load\": %.3f}\n", since(begin));
  std::fflush(stdout);
  for (std::string text; std::getline(std::cin, text);) {
    std::istringstream line(text);
    std::string verb;
    int number;
    line >> verb >> number;
    std::vector<llama_token> tokens;
    for (llama_token token; line >> token;) tokens.push_back(token);
    auto start = Clock::now();
    if (verb == "prefill") session.prefill(number, tokens);
    else for (int i = 0; i < number; ++i) session.decode();
    double seconds = since(start);
    std::printf("{\"seconds\": %.6f, \"memory\": %ld}\n", seconds, peak_bytes());
    std::fflush(stdout);
  }
}
